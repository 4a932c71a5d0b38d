//! Directories with an image layout.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::Error;

/// Most files that a directory of images may have: more than any layout, and fewer than a home
/// directory that is named by mistake.
const MAX_FILES: usize = 100_000;

/// How deep the directories of an image layout are nested: `blobs/sha256`, and the layer's own
/// directory in what `docker save` writes.
const MAX_DEPTH: usize = 3;

/// The files of a directory by their names in it, each with its size.
pub(crate) fn files_of(directory: &Path) -> Result<Vec<(String, u64, ClosedFile)>, Error> {
    let read = |path: &Path| Error::read(path.display().to_string());
    let root = fs::canonicalize(directory).map_err(read(directory))?;
    let mut files = Vec::new();
    let mut left = vec![(directory.to_owned(), String::new(), MAX_DEPTH)];
    while let Some((path, prefix, depth)) = left.pop() {
        for entry in fs::read_dir(&path).map_err(read(&path))? {
            let entry = entry.map_err(read(&path))?;
            let path = entry.path();
            // No name of an image layout is anything else.
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let name = format!("{prefix}{name}");
            let real = fs::canonicalize(&path).map_err(read(&path))?;
            if !real.starts_with(&root) {
                let reason = format!(
                    "leads out of {}: copy what it links to",
                    directory.display()
                );
                return Err(Error::directory(&path, reason));
            }
            let metadata = fs::metadata(&real).map_err(read(&path))?;
            if metadata.is_dir() && depth > 0 {
                left.push((path, format!("{name}/"), depth - 1));
            } else if metadata.is_file() {
                let size = metadata.len();
                files.push((name, size, ClosedFile::new(real, size)));
            }
            if files.len() + left.len() > MAX_FILES {
                let reason = format!("has more than {MAX_FILES} files: it is no image layout");
                return Err(Error::directory(directory, reason));
            }
        }
    }
    Ok(files)
}

/// A file that is open only while it is read: there may be more of them than a process may open.
#[derive(Debug)]
pub(crate) struct ClosedFile {
    path: PathBuf,
    size: u64,
    position: u64,
    open: Option<File>,
}

impl ClosedFile {
    fn new(path: PathBuf, size: u64) -> Self {
        Self {
            path,
            size,
            position: 0,
            open: None,
        }
    }

    fn opened(&mut self) -> io::Result<&mut File> {
        let file = match self.open.take() {
            Some(file) => file,
            None => {
                let mut file = File::open(&self.path)?;
                file.seek(SeekFrom::Start(self.position))?;
                file
            }
        };
        Ok(self.open.insert(file))
    }
}

impl Read for ClosedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.opened()?.read(buffer)?;
        self.position += read as u64;
        if self.position >= self.size {
            self.open = None;
        }
        Ok(read)
    }
}

impl Seek for ClosedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = self.opened()?.seek(to)?;
        Ok(self.position)
    }
}

//! Where a built image goes. It is there whole or not at all.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix_image::{
    Error,
    archive::{LayoutFiles, TarLayout},
};
use tempfile::{Builder, TempDir};

use super::args::{Format, STDOUT};

/// What an output that is not finished is called, and something random after it.
const UNFINISHED: &str = ".nix2container-";

/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

/// Where an image is to go.
pub(crate) enum Output<'a> {
    Stdout,
    Archive(&'a Path),
    Directory(&'a Path),
}

impl<'a> Output<'a> {
    /// What the arguments ask for.
    pub(crate) fn of(out: &'a Path, format: Format) -> anyhow::Result<Self> {
        match format {
            Format::Archive if out == Path::new(STDOUT) => Ok(Self::Stdout),
            Format::Archive => Ok(Self::Archive(out)),
            Format::Directory if out == Path::new(STDOUT) => {
                bail!(
                    "a directory cannot be written to standard output: name it, or leave out --format"
                )
            }
            Format::Directory => Ok(Self::Directory(out)),
        }
    }

    /// Has `write` write the layout, and puts it in its place when that has succeeded.
    pub(crate) fn write(
        &self,
        write: impl FnOnce(&mut dyn LayoutFiles) -> Result<(), Error>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Stdout => archive(write, io::stdout().lock()),
            Self::Archive(out) => {
                let file = Builder::new()
                    .prefix(UNFINISHED)
                    // As for any new file, the umask takes its part of it.
                    .permissions(fs::Permissions::from_mode(0o666))
                    .tempfile_in(parent(out))?;
                archive(write, file.as_file())?;
                file.persist(out)?;
                Ok(())
            }
            Self::Directory(out) => {
                let directory = Builder::new()
                    .prefix(UNFINISHED)
                    .permissions(fs::Permissions::from_mode(0o777))
                    .tempdir_in(parent(out))?;
                write(&mut DirectoryLayout(directory.path()))?;
                place(directory, out)
            }
        }
    }
}

fn archive(
    write: impl FnOnce(&mut dyn LayoutFiles) -> Result<(), Error>,
    out: impl Write,
) -> anyhow::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let mut layout = TarLayout::new(&mut out);
    write(&mut layout)?;
    Ok(layout.finish()?)
}

/// Gives a directory its name, which nothing has but an empty directory.
fn place(directory: TempDir, out: &Path) -> anyhow::Result<()> {
    fs::rename(directory.path(), out).with_context(|| match out.is_dir() {
        true => "there is a directory that is not empty: remove it, or name another".to_owned(),
        false => "it cannot be put in its place".to_owned(),
    })?;
    // It is not where it would be deleted.
    let _ = directory.keep();
    Ok(())
}

fn parent(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// An image layout in a directory.
struct DirectoryLayout<'a>(&'a Path);

impl DirectoryLayout<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl LayoutFiles for DirectoryLayout<'_> {
    fn directory(&mut self, name: &str) -> Result<(), Error> {
        fs::create_dir(self.path(name)).map_err(|source| Error::WriteArchive { source })
    }

    fn file(
        &mut self,
        name: &str,
        _size: u64,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let failed = |source| Error::WriteArchive { source };
        let file = File::create_new(self.path(name)).map_err(failed)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        content(&mut file)?;
        file.flush().map_err(failed)
    }
}

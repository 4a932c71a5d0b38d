//! The files of an archive, or of a directory, by name and position.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom},
};

use tar::EntryType;

use crate::{Error, archive::MAX_DOCUMENT_BYTES, error::shorten};

/// Most bytes that the headers of an archive may have: some 100,000 files.
///
/// Long names are read into memory; without a limit a name could fill it.
const MAX_HEADER_BYTES: u64 = 64 << 20;

const BLOCK: u64 = 512;

/// Where a file's content lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// In which of the files that were given.
    file: usize,
    offset: u64,
    pub(super) size: u64,
}

/// A tar archive or a directory, indexed.
#[derive(Debug)]
pub(super) struct Files<R> {
    /// The archive's name, for messages.
    pub(super) archive: String,
    /// One of an archive, all of a directory.
    files: Vec<R>,
    extents: BTreeMap<String, Extent>,
}

impl<R: Read + Seek> Files<R> {
    /// The files of a directory by their names in it, each with its size.
    pub(super) fn of_directory(
        archive: String,
        files: impl IntoIterator<Item = (String, u64, R)>,
    ) -> Self {
        let (extents, files) = files
            .into_iter()
            .enumerate()
            .map(|(file, (name, size, content))| {
                let offset = 0;
                ((name, Extent { file, offset, size }), content)
            })
            .unzip();
        Self {
            archive,
            files,
            extents,
        }
    }

    /// Reads the headers of all entries of a tar archive.
    pub(super) fn index(archive: String, mut file: R) -> Result<Self, Error> {
        let read = |source: io::Error| match source.kind() {
            // What the tar crate says of a header that makes no sense.
            io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Error::NotTar {
                    archive: archive.clone(),
                    reason: source.to_string(),
                }
            }
            _ => Error::ReadArchive {
                archive: archive.clone(),
                source,
            },
        };
        let len = file.seek(SeekFrom::End(0)).map_err(read)?;
        file.rewind().map_err(read)?;

        let mut extents = BTreeMap::new();
        let mut links = BTreeMap::new();
        let mut end = 0;
        let mut headers = tar::Archive::new(Limited {
            inner: &mut file,
            left: MAX_HEADER_BYTES,
        });
        for entry in headers.entries_with_seek().map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let extent = Extent {
                file: 0,
                offset: entry.raw_file_position(),
                size: entry.size(),
            };
            end = extent.offset.saturating_add(extent.size);
            if end > len {
                return Err(Error::Truncated {
                    archive,
                    entry: Some(shorten(&name)),
                });
            }
            let refuse = |reason| Error::EntryName {
                archive: archive.clone(),
                entry: shorten(&name),
                reason,
            };
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    extents.insert(clean(&name).map_err(refuse)?, extent);
                }
                // Older versions of `docker save` link equal layers to each other.
                EntryType::Symlink => {
                    let name = clean(&name).map_err(refuse)?;
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    let target = resolve(directory, &target)
                        .ok_or_else(|| refuse("it is a link that leads out of the archive"))?;
                    links.insert(name, target);
                }
                EntryType::Directory | EntryType::XGlobalHeader => {
                    clean(&name).map_err(refuse)?;
                }
                _ => return Err(refuse("it is neither a file, a directory nor a link")),
            }
        }
        for (name, target) in links {
            // Links to what is not there do no harm until somebody asks for them.
            if let Some(&extent) = extents.get(&target) {
                extents.entry(name).or_insert(extent);
            }
        }
        if !has_end_marker(&mut file, end.next_multiple_of(BLOCK)).map_err(read)? {
            return Err(Error::Truncated {
                archive,
                entry: None,
            });
        }
        Ok(Self {
            archive,
            files: vec![file],
            extents,
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&str, Extent)> {
        self.extents.iter().map(|(name, extent)| (&**name, *extent))
    }

    pub(super) fn get(&self, name: &str) -> Option<Extent> {
        self.extents.get(name).copied()
    }

    /// The content of a file, from its beginning.
    pub(super) fn open(&mut self, extent: Extent) -> Result<io::Take<&mut R>, Error> {
        let file = &mut self.files[extent.file];
        file.seek(SeekFrom::Start(extent.offset))
            .map_err(|source| Error::ReadArchive {
                archive: self.archive.clone(),
                source,
            })?;
        Ok(file.by_ref().take(extent.size))
    }

    /// The whole content of a document.
    pub(super) fn read_document(&mut self, name: &str, extent: Extent) -> Result<Vec<u8>, Error> {
        if extent.size > MAX_DOCUMENT_BYTES {
            return Err(Error::DocumentTooLarge {
                archive: self.archive.clone(),
                document: name.to_owned(),
                size: extent.size,
                limit: MAX_DOCUMENT_BYTES,
            });
        }
        let mut document = Vec::new();
        let read = self.open(extent)?.read_to_end(&mut document);
        read.map_err(|source| Error::ReadArchive {
            archive: self.archive.clone(),
            source,
        })?;
        Ok(document)
    }
}

/// A tar archive ends with two blocks of zeros (POSIX, `pax`): without them it has been cut.
fn has_end_marker<R: Read + Seek>(file: &mut R, at: u64) -> io::Result<bool> {
    let mut blocks = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(2 * BLOCK).read_to_end(&mut blocks)?;
    Ok(blocks.len() as u64 == 2 * BLOCK && blocks.iter().all(|&byte| byte == 0))
}

/// The name of an entry without `.` and empty components.
fn clean(name: &str) -> Result<String, &'static str> {
    if name.starts_with('/') {
        return Err("it is absolute");
    }
    let mut clean: Vec<&str> = Vec::new();
    for component in name.split('/') {
        match component {
            "" | "." => {}
            ".." => return Err("it has a `..`"),
            component => clean.push(component),
        }
    }
    Ok(clean.join("/"))
}

/// Where a relative link leads, if that is inside the archive.
fn resolve(directory: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut path: Vec<&str> = directory.split('/').collect();
    for component in target.split('/') {
        match component {
            ".." => drop(path.pop()?),
            component => path.push(component),
        }
    }
    clean(&path.join("/")).ok()
}

/// Gives up after some bytes, whatever lies between them.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("it has more than 64 MiB of headers"))?;
        Ok(read)
    }
}

impl<R: Seek> Seek for Limited<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

//! A layer's files as a tar archive.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use tar::{EntryType, Header};

use super::{Content, Directory, LayerTree, Leaf, Node};

impl LayerTree {
    /// Writes the tree as a tar archive. The files that it copies are opened by `open`.
    pub(crate) fn write<R: Read>(
        &self,
        out: impl Write,
        mut open: impl FnMut(&Path) -> io::Result<R>,
    ) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        self.root.write(&mut tar, Path::new(""), &mut open)?;
        tar.finish()
    }
}

impl Directory {
    /// Writes what is in the directory, which has this path.
    fn write<R: Read>(
        &self,
        tar: &mut tar::Builder<impl Write>,
        path: &Path,
        open: &mut impl FnMut(&Path) -> io::Result<R>,
    ) -> io::Result<()> {
        for (name, node) in &self.children {
            let path = path.join(name);
            match node {
                Node::Directory(directory) => {
                    let mut header = header(EntryType::Directory, directory.mode, 0);
                    // The slash at the end is part of a directory's name in a tar archive.
                    tar.append_data(&mut header, path.join(""), io::empty())?;
                    directory.write(tar, &path, open)?;
                }
                Node::Leaf(leaf) => leaf.write(tar, &path, open)?,
            }
        }
        Ok(())
    }
}

impl Leaf {
    fn write<R: Read>(
        &self,
        tar: &mut tar::Builder<impl Write>,
        path: &Path,
        open: &mut impl FnMut(&Path) -> io::Result<R>,
    ) -> io::Result<()> {
        match &self.content {
            Content::Place { executable } => {
                let mode = if *executable { 0o555 } else { 0o444 };
                let mut header = header(EntryType::Regular, mode, 0);
                tar.append_data(&mut header, path, io::empty())
            }
            Content::Symlink { target } => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                let target = target.as_os_str().as_encoded_bytes();
                if header.set_link_name_literal(target).is_err() {
                    append_long_link(tar, target)?;
                }
                tar.append_data(&mut header, path, io::empty())
            }
            Content::Copy {
                of,
                executable,
                size,
            } => {
                let named = |error: io::Error| {
                    io::Error::new(error.kind(), format!("{}: {error}", of.display()))
                };
                // Outside of the store its owner may write it.
                let mode = if *executable { 0o755 } else { 0o644 };
                let mut header = header(EntryType::Regular, mode, *size);
                let mut file = WholeFile {
                    file: open(of).map_err(named)?,
                    left: *size,
                };
                tar.append_data(&mut header, path, &mut file).map_err(named)
            }
            Content::Text(text) => {
                let mut header = header(EntryType::Regular, 0o644, text.len() as u64);
                tar.append_data(&mut header, path, text.as_bytes())
            }
        }
    }
}

/// Reads as many bytes as a file had when it was looked at, and no other number.
struct WholeFile<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for WholeFile<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.left = match self.left.checked_sub(read as u64) {
            Some(left) if read > 0 || left == 0 || buffer.is_empty() => left,
            _ => return Err(io::Error::other("its length has changed meanwhile")),
        };
        Ok(read)
    }
}

/// The header of something that belongs to root and has no time.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Writes GNU's extension for the target of the link that follows.
///
/// `tar::Builder::append_link` would do, but it normalises short targets.
fn append_long_link(tar: &mut tar::Builder<impl Write>, target: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_path("././@LongLink")?;
    header.set_entry_type(EntryType::GNULongLink);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(target.len() as u64 + 1);
    header.set_cksum();
    tar.append(&header, target.chain(&[0][..]))
}

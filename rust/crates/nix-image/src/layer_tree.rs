//! The files of a layer.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use nix_store::{StoreDir, StorePath};
use tar::{EntryType, Header};

use crate::Error;

/// What a store path is, by `lstat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Whether it may be executed.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to, as `readlink` tells it.
        target: PathBuf,
    },
}

/// What a tree of `copyToRoot` brings to one path of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootEntry {
    /// The path below `/`, without the slash.
    pub path: PathBuf,
    /// Where in the store it comes from.
    pub source: PathBuf,
    /// For anything but a directory: what `source` leads to in the end. Two trees
    /// may bring the same file.
    pub file: Option<PathBuf>,
}

/// The files of a layer.
#[derive(Clone, Debug, Default)]
pub struct LayerTree {
    root: Directory,
}

#[derive(Clone, Debug, Default)]
struct Directory {
    /// What asked for it first: the other party of a collision.
    source: PathBuf,
    children: BTreeMap<OsString, Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Directory(Directory),
    Leaf(Leaf),
}

#[derive(Clone, Debug)]
struct Leaf {
    content: Content,
    source: PathBuf,
    /// See [`RootEntry::file`].
    file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    File { executable: bool },
    Symlink { target: PathBuf },
}

impl Content {
    /// `None` for a directory.
    fn of(kind: NodeKind) -> Option<Self> {
        match kind {
            NodeKind::Directory => None,
            NodeKind::File { executable } => Some(Self::File { executable }),
            NodeKind::Symlink { target } => Some(Self::Symlink { target }),
        }
    }
}

impl LayerTree {
    /// A tree that has the store directory and its parents.
    ///
    /// # Errors
    /// [`Error::Whiteout`] for a store directory of such a name.
    pub fn new(store_dir: &StoreDir) -> Result<Self, Error> {
        let mut tree = Self::default();
        let path = Path::new(store_dir.as_str());
        tree.add(path, path, NodeKind::Directory, None)?;
        Ok(tree)
    }

    /// Adds the place of a store path, for the snapshotter to mount it on. A link is no
    /// place for a mount, it is in the layer itself.
    ///
    /// # Errors
    /// [`Error::Collision`] with what `copyToRoot` brought before.
    pub fn add_place(&mut self, path: &StorePath, kind: NodeKind) -> Result<(), Error> {
        self.add(path.as_path(), path.as_path(), kind, None)
    }

    /// Adds a directory of `copyToRoot`, or a link to anything else.
    ///
    /// # Errors
    /// [`Error::Collision`] if two trees bring different files to one path;
    /// [`Error::Whiteout`] for a file whose name would delete another.
    pub fn add_root_entry(&mut self, entry: &RootEntry) -> Result<(), Error> {
        let kind = match &entry.file {
            None => NodeKind::Directory,
            Some(_) => NodeKind::Symlink {
                target: entry.source.clone(),
            },
        };
        self.add(&entry.path, &entry.source, kind, entry.file.as_deref())
    }

    /// Adds a node and the directories above it.
    fn add(
        &mut self,
        path: &Path,
        source: &Path,
        kind: NodeKind,
        file: Option<&Path>,
    ) -> Result<(), Error> {
        let collision = |first: &Path| Error::Collision {
            path: Path::new("/").join(path),
            first: first.to_owned(),
            second: source.to_owned(),
        };
        let new_directory = || {
            Node::Directory(Directory {
                source: source.to_owned(),
                children: BTreeMap::new(),
            })
        };
        let mut names = path.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let Some(mut name) = names.next() else {
            return Ok(());
        };
        let mut directory = &mut self.root;
        for below in names {
            check_name(name, source)?;
            let node = directory.children.entry(name.to_owned());
            match node.or_insert_with(new_directory) {
                Node::Directory(found) => directory = found,
                Node::Leaf(leaf) => return Err(collision(&leaf.source)),
            }
            name = below;
        }
        check_name(name, source)?;
        let content = Content::of(kind);
        match (directory.children.get(name), content) {
            (None, None) => {
                directory.children.insert(name.to_owned(), new_directory());
                Ok(())
            }
            (None, Some(content)) => {
                let leaf = Leaf {
                    content,
                    source: source.to_owned(),
                    file: file.map(Path::to_owned),
                };
                directory.children.insert(name.to_owned(), Node::Leaf(leaf));
                Ok(())
            }
            (Some(Node::Directory(_)), None) => Ok(()),
            (Some(Node::Directory(found)), Some(_)) => Err(collision(&found.source)),
            (Some(Node::Leaf(found)), content) => {
                let same_content = content.as_ref() == Some(&found.content);
                let same_file = file.is_some() && file == found.file.as_deref();
                if same_content || same_file {
                    return Ok(());
                }
                Err(collision(&found.source))
            }
        }
    }

    /// Writes the tree as a tar archive.
    pub(crate) fn write(&self, out: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        self.root.write(&mut tar, Path::new(""))?;
        tar.finish()
    }
}

impl Directory {
    /// Writes what is in the directory, which has this path.
    fn write(&self, tar: &mut tar::Builder<impl Write>, path: &Path) -> io::Result<()> {
        for (name, node) in &self.children {
            let path = path.join(name);
            match node {
                Node::Directory(directory) => {
                    let mut header = header(EntryType::Directory, 0o755);
                    // The slash at the end is part of a directory's name in a tar archive.
                    tar.append_data(&mut header, path.join(""), io::empty())?;
                    directory.write(tar, &path)?;
                }
                Node::Leaf(leaf) => leaf.write(tar, &path)?,
            }
        }
        Ok(())
    }
}

impl Leaf {
    fn write(&self, tar: &mut tar::Builder<impl Write>, path: &Path) -> io::Result<()> {
        let mut header = match &self.content {
            Content::File { executable: true } => header(EntryType::Regular, 0o555),
            Content::File { executable: false } => header(EntryType::Regular, 0o444),
            Content::Symlink { target } => {
                let mut header = header(EntryType::Symlink, 0o777);
                let target = target.as_os_str().as_encoded_bytes();
                if header.set_link_name_literal(target).is_err() {
                    append_long_link(tar, target)?;
                }
                header
            }
        };
        tar.append_data(&mut header, path, io::empty())
    }
}

/// The header of something empty that belongs to root and has no time.
fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

/// Refuses what deletes a file of a lower layer (image-spec, `layer.md`, "Whiteouts").
fn check_name(name: &OsStr, source: &Path) -> Result<(), Error> {
    if name.as_encoded_bytes().starts_with(b".wh.") {
        return Err(Error::Whiteout {
            path: source.to_owned(),
        });
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const HASH: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr";

    fn store_path(name: &str) -> StorePath {
        StoreDir::default()
            .parse(&format!("/nix/store/{HASH}-{name}"))
            .unwrap()
    }

    fn tree() -> LayerTree {
        LayerTree::new(&StoreDir::default()).unwrap()
    }

    fn entry(path: &str, source: &str, file: Option<&str>) -> RootEntry {
        RootEntry {
            path: path.into(),
            source: source.into(),
            file: file.map(PathBuf::from),
        }
    }

    /// The entries of a layer, each as a line of type, mode, path and target.
    fn list(tree: &LayerTree) -> Vec<String> {
        let mut layer = Vec::new();
        tree.write(&mut layer).unwrap();
        let mut archive = tar::Archive::new(&*layer);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
                assert_eq!((header.mtime().unwrap(), entry.size()), (0, 0));
                assert_eq!(
                    (header.username(), header.groupname()),
                    (Ok(Some("")), Ok(Some("")))
                );
                let kind = match header.entry_type() {
                    EntryType::Directory => 'd',
                    EntryType::Regular => '-',
                    EntryType::Symlink => 'l',
                    other => panic!("{other:?}"),
                };
                let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                let target = entry.link_name().unwrap();
                let target =
                    target.map_or(String::new(), |target| format!(" -> {}", target.display()));
                format!("{kind}{:o} {path}{target}", header.mode().unwrap())
            })
            .collect()
    }

    #[test]
    fn a_mount_point_is_of_the_kind_of_its_store_path() {
        let mut tree = tree();
        for (name, kind) in [
            ("d", NodeKind::Directory),
            ("x", NodeKind::File { executable: true }),
            ("f", NodeKind::File { executable: false }),
            (
                "l",
                NodeKind::Symlink {
                    target: "../e/./x".into(),
                },
            ),
        ] {
            tree.add_place(&store_path(name), kind).unwrap();
        }
        assert_eq!(
            list(&tree),
            [
                "d755 nix/".to_owned(),
                "d755 nix/store/".to_owned(),
                format!("d755 nix/store/{HASH}-d/"),
                format!("-444 nix/store/{HASH}-f"),
                format!("l777 nix/store/{HASH}-l -> ../e/./x"),
                format!("-555 nix/store/{HASH}-x"),
            ]
        );
    }

    #[test]
    fn another_store_directory_has_other_parents() {
        let store_dir = StoreDir::new("/home/ann/store").unwrap();
        let tree = LayerTree::new(&store_dir).unwrap();
        assert_eq!(
            list(&tree),
            ["d755 home/", "d755 home/ann/", "d755 home/ann/store/"]
        );
    }

    #[test]
    fn trees_are_joined_into_one_farm_of_links() {
        let mut tree = tree();
        for entry in [
            entry(
                "bin/sh",
                "/nix/store/a/bin/sh",
                Some("/nix/store/bash/bin/bash"),
            ),
            entry("bin", "/nix/store/b/bin", None),
            entry("bin/ls", "/nix/store/b/bin/ls", Some("/nix/store/b/bin/ls")),
            // The same file by another way.
            entry(
                "bin/sh",
                "/nix/store/b/bin/sh",
                Some("/nix/store/bash/bin/bash"),
            ),
        ] {
            tree.add_root_entry(&entry).unwrap();
        }
        assert_eq!(
            list(&tree),
            [
                "d755 bin/",
                "l777 bin/ls -> /nix/store/b/bin/ls",
                "l777 bin/sh -> /nix/store/a/bin/sh",
                "d755 nix/",
                "d755 nix/store/",
            ]
        );
    }

    #[test]
    fn what_collides_is_named_with_both_sources() {
        let file = |path: &str, source: &str| entry(path, source, Some(source));
        for (first, second) in [
            (file("bin/sh", "/s/a/bin/sh"), file("bin/sh", "/s/b/bin/sh")),
            (file("bin", "/s/a/bin"), file("bin/sh", "/s/b/bin/sh")),
            (file("bin/sh", "/s/a/bin/sh"), file("bin", "/s/b/bin")),
            (file("bin", "/s/a/bin"), entry("bin", "/s/b/bin", None)),
        ] {
            let mut tree = tree();
            tree.add_root_entry(&first).unwrap();
            let message = tree.add_root_entry(&second).unwrap_err().to_string();
            for source in [&first.source, &second.source] {
                assert!(message.contains(source.to_str().unwrap()), "{message}");
            }
        }
        let error = tree()
            .add_root_entry(&file("nix/store", "/s/a/nix/store"))
            .unwrap_err();
        assert!(matches!(error, Error::Collision { .. }), "{error}");
    }

    #[test]
    fn a_name_that_deletes_files_is_refused() {
        for path in [".wh.etc", "etc/.wh..wh..opq"] {
            let error = tree()
                .add_root_entry(&entry(path, "/s/a", Some("/s/a")))
                .unwrap_err();
            assert!(matches!(error, Error::Whiteout { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_name_survives(names in vec("[^/\\x00]{1,120}", 1..6), target in "/[^\\x00]{1,150}[a-z]") {
            let path: PathBuf = names.iter().filter(|name| !matches!(name.as_str(), "." | "..")).collect();
            prop_assume!(path.file_name().is_some());
            prop_assume!(!names.iter().any(|name| name.starts_with(".wh.")));
            let mut tree = LayerTree::default();
            tree.add_root_entry(&RootEntry {
                path: path.clone(),
                source: target.clone().into(),
                file: Some(target.clone().into()),
            })
            .unwrap();
            let lines = list(&tree);
            prop_assert_eq!(lines.len(), path.components().count());
            let link = format!("l777 {} -> {}", path.display(), target);
            prop_assert_eq!(lines.last().unwrap(), &link);
        }
    }
}

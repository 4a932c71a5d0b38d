//! The files of a layer.

mod write;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Component, Path, PathBuf},
};

use nix_store::{StoreDir, StorePath};

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
    /// What it becomes.
    pub node: RootNode,
}

/// What becomes of a file of `copyToRoot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootNode {
    /// A directory.
    Directory,
    /// A symbolic link to where it comes from.
    Link {
        /// What it leads to in the end. Two trees may bring the same file.
        file: PathBuf,
    },
    /// A file of its own.
    Copy {
        /// What it is a copy of, not a link. Two trees may bring the same file.
        file: PathBuf,
        /// Whether it may be executed.
        executable: bool,
        /// Its length in bytes.
        size: u64,
    },
}

/// What asks for the files of a base layout, in messages.
const BASE_LAYOUT: &str = "--base-layout";

/// The files of a layer.
#[derive(Clone, Debug)]
pub struct LayerTree {
    root: Directory,
}

#[derive(Clone, Debug)]
struct Directory {
    /// What asked for it first: the other party of a collision.
    source: PathBuf,
    mode: u32,
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
    /// See [`RootNode`].
    file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// An empty file, to mount on.
    Place {
        executable: bool,
    },
    Symlink {
        target: PathBuf,
    },
    Copy {
        of: PathBuf,
        executable: bool,
        size: u64,
    },
    Text(&'static str),
}

impl Directory {
    const MODE: u32 = 0o755;

    fn new(source: &Path) -> Self {
        Self {
            source: source.to_owned(),
            mode: Self::MODE,
            children: BTreeMap::new(),
        }
    }
}

impl Default for LayerTree {
    fn default() -> Self {
        Self {
            root: Directory::new(Path::new("/")),
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
        tree.add(path, path, None, None)?;
        Ok(tree)
    }

    /// Adds the place of a store path, for the snapshotter to mount it on. A link is no
    /// place for a mount, it is in the layer itself.
    ///
    /// # Errors
    /// [`Error::Collision`] with what `copyToRoot` brought before.
    pub fn add_place(&mut self, path: &StorePath, kind: NodeKind) -> Result<(), Error> {
        let content = match kind {
            NodeKind::Directory => None,
            NodeKind::File { executable } => Some(Content::Place { executable }),
            NodeKind::Symlink { target } => Some(Content::Symlink { target }),
        };
        self.add(path.as_path(), path.as_path(), content, None)
    }

    /// Adds what a tree of `copyToRoot` brings.
    ///
    /// # Errors
    /// [`Error::Collision`] if two trees bring different files to one path;
    /// [`Error::Whiteout`] for a file whose name would delete another.
    pub fn add_root_entry(&mut self, entry: &RootEntry) -> Result<(), Error> {
        let (content, file) = match &entry.node {
            RootNode::Directory => (None, None),
            RootNode::Link { file } => {
                let target = entry.source.clone();
                (Some(Content::Symlink { target }), Some(file))
            }
            RootNode::Copy {
                file,
                executable,
                size,
            } => {
                let content = Content::Copy {
                    of: file.clone(),
                    executable: *executable,
                    size: *size,
                };
                (Some(content), Some(file))
            }
        };
        let file = file.map(PathBuf::as_path);
        self.add(&entry.path, &entry.source, content, file)
    }

    /// Gives a directory this mode, and makes it if nothing is there.
    pub(crate) fn default_directory(&mut self, path: &str, mode: u32) {
        let source = Path::new(BASE_LAYOUT);
        // What is there in another form was asked for.
        if self.add(Path::new(path), source, None, None).is_ok()
            && let Some(Node::Directory(directory)) = self.node_mut(path)
        {
            directory.mode = mode;
        }
    }

    /// Makes a file if nothing is there.
    pub(crate) fn default_file(&mut self, path: &str, text: &'static str) {
        if self.node_mut(path).is_none() {
            let source = Path::new(BASE_LAYOUT);
            // Where a directory above is a link, what it leads to was asked for.
            let _ = self.add(Path::new(path), source, Some(Content::Text(text)), None);
        }
    }

    fn node_mut(&mut self, path: &str) -> Option<&mut Node> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut directory = &mut self.root;
        for name in above.split('/').filter(|name| !name.is_empty()) {
            match directory.children.get_mut(OsStr::new(name))? {
                Node::Directory(found) => directory = found,
                Node::Leaf(_) => return None,
            }
        }
        directory.children.get_mut(OsStr::new(name))
    }

    /// Adds a node, a directory if it has no content, and the directories above it.
    fn add(
        &mut self,
        path: &Path,
        source: &Path,
        content: Option<Content>,
        file: Option<&Path>,
    ) -> Result<(), Error> {
        let collision = |first: &Path| Error::Collision {
            path: Path::new("/").join(path),
            first: first.to_owned(),
            second: source.to_owned(),
        };
        let new_directory = || Node::Directory(Directory::new(source));
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

//! From a snapshot to its mounts, and to the owner of its directory: pure functions.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::features::Features;
use crate::id_mapping::{IdMapping, Owner};
use crate::model::{Id, Ids, Kind, Snapshot};
use crate::options::{FUSE_OVERLAYFS, Options, Overlay, RemapIds};

/// One mount, in the words of containerd's API (`api/types/mount.proto`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kind of file system; containerd calls this field `type`.
    pub fstype: String,
    /// What is mounted.
    pub source: String,
    /// Where it is mounted, below the root of the mount list; empty for that root itself.
    pub target: String,
    /// Mount options, each a flag or `key=value`.
    pub options: Vec<String>,
}

/// Where the layers are.
///
/// `snapshots` is known to be valid in mount options: UTF-8, and without the characters that
/// separate them.
pub(crate) fn layer_dir(snapshots: &Path, id: Id) -> PathBuf {
    snapshots.join(id.to_string()).join("fs")
}

/// Where overlayfs prepares files that are to appear in the layer at once.
pub(crate) fn work_dir(snapshots: &Path, id: Id) -> PathBuf {
    snapshots.join(id.to_string()).join("work")
}

/// How layers are mounted on this machine: the options, and what the machine can do of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPolicy {
    overlay: Overlay,
    /// Of every overlay, after its directories.
    options: Vec<String>,
    remap: bool,
}

impl MountPolicy {
    /// Decides once for all snapshots.
    pub(crate) fn new(options: &Options, features: &Features) -> Result<Self> {
        let possible = options.overlay == Overlay::Fuse || features.id_mapped_layers;
        let remap = match options.remap_ids {
            RemapIds::Auto => possible,
            RemapIds::Never => false,
            RemapIds::Always if possible => true,
            RemapIds::Always => {
                return Err(Error::Kernel {
                    what: "mount the layers of an overlay with mapped ids, as remap_ids = true demands",
                    remedy: "it needs Linux 5.19 or newer (6.3 with the root on tmpfs) and no user \
                             namespace around the daemon; otherwise leave remap_ids at \"auto\"",
                });
            }
        };
        Ok(Self {
            overlay: options.overlay,
            options: overlay_options(options, features),
            remap,
        })
    }

    /// The options of every overlay.
    pub(crate) fn overlay_options(&self) -> &[String] {
        &self.options
    }

    /// Whose ids the layers carry, of a snapshot with this mapping in its labels and this owner of
    /// its parent's layer.
    ///
    /// A client that has not been told that this snapshotter maps ids (`remap-ids` among the
    /// capabilities) makes a copy of the parent in which everything belongs to the ids of the host,
    /// and puts the labels on the snapshot above it all the same. To map once more would leave
    /// nothing to root. The copy is known by its owner, since images belong to root.
    pub(crate) fn ids(&self, mapping: IdMapping, parent: Option<Owner>) -> Ids {
        let root = mapping.root();
        let shifted = root != (0, 0) && parent == Some(root);
        if self.remap && !shifted {
            Ids::Mapped(mapping)
        } else {
            Ids::Shifted(mapping)
        }
    }

    /// The owner that the directory of a new layer is to have, given that of its parent's layer.
    pub(crate) fn owner(&self, snapshot: &Snapshot, parent: Option<Owner>) -> Option<Owner> {
        let written = snapshot.kind == Kind::Active;
        match &snapshot.ids {
            Ids::AsSeen => parent,
            // Nothing maps the ids of a bind mount of this directory, see `mounts`.
            Ids::Mapped(mapping) | Ids::Shifted(mapping) if snapshot.parents.is_empty() => {
                Some(mapping.root())
            }
            Ids::Shifted(mapping) if written => Some(mapping.root()),
            // Of an overlay, containerd maps the lower directories and not the upper one.
            // fuse-overlayfs maps all it shows.
            Ids::Mapped(mapping) if written && self.overlay == Overlay::Kernel => {
                Some(mapping.root())
            }
            Ids::Mapped(_) | Ids::Shifted(_) => parent,
        }
    }

    /// The mounts of a snapshot, as containerd 2.x gives them (`plugins/snapshots/overlay`), apart
    /// from two that would not show a container in a user namespace what it should see:
    ///
    /// - A bind mount of the snapshot's own directory is not mapped. What is written to it then
    ///   belongs to the ids of the host, as in the upper directory of an overlay.
    /// - containerd never maps a bind mount that is read-only (`core/mount`), so a view of one
    ///   layer is an overlay of the view's own empty directory and that layer.
    ///
    /// Otherwise a single layer is a bind mount, since overlayfs wants a lower directory under a
    /// writable one and two when there is none.
    pub(crate) fn mounts(&self, snapshots: &Path, snapshot: &Snapshot) -> Vec<Mount> {
        let Snapshot { id, kind, .. } = *snapshot;
        let layer = |id| layer_dir(snapshots, id).display().to_string();
        let bind = |id, access: &str| Mount {
            fstype: "bind".to_owned(),
            source: layer(id),
            target: String::new(),
            options: vec![access.to_owned(), "rbind".to_owned()],
        };
        let mapping = match &snapshot.ids {
            Ids::Mapped(mapping) => Some(mapping),
            Ids::AsSeen | Ids::Shifted(_) => None,
        };
        let parents = snapshot.parents.as_slice();
        vec![match (kind, parents, mapping) {
            (Kind::Active, [], _) => bind(id, "rw"),
            (Kind::View | Kind::Committed, [], _) => bind(id, "ro"),
            (Kind::View | Kind::Committed, [parent], None) => bind(*parent, "ro"),
            (Kind::Active, [..], _) => {
                let own = vec![
                    format!("workdir={}", work_dir(snapshots, id).display()),
                    format!("upperdir={}", layer(id)),
                ];
                self.overlay(mapping, own, parents.iter().copied().map(layer))
            }
            (Kind::View | Kind::Committed, [parent], Some(_)) => {
                self.overlay(mapping, Vec::new(), [id, *parent].into_iter().map(layer))
            }
            (Kind::View | Kind::Committed, [_, _, ..], _) => {
                self.overlay(mapping, Vec::new(), parents.iter().copied().map(layer))
            }
        }]
    }

    fn overlay(
        &self,
        mapping: Option<&IdMapping>,
        own: Vec<String>,
        lower: impl Iterator<Item = String>,
    ) -> Mount {
        let lower: Vec<String> = lower.collect();
        let directories = own
            .into_iter()
            .chain([format!("lowerdir={}", lower.join(":"))]);
        let configured = self.options.iter().cloned();
        let (fstype, options) = match self.overlay {
            Overlay::Kernel => {
                let mapping = mapping.map(IdMapping::mount_options).into_iter().flatten();
                let options = mapping.chain(directories).chain(configured).collect();
                ("overlay".to_owned(), options)
            }
            Overlay::Fuse => {
                let mapping = mapping.map(IdMapping::fuse_options).into_iter().flatten();
                let options = directories.chain(mapping).chain(configured).collect();
                (format!("fuse3.{FUSE_OVERLAYFS}"), options)
            }
        };
        Mount {
            fstype,
            source: "overlay".to_owned(),
            target: String::new(),
            options,
        }
    }
}

/// What was configured, then what this machine needs, unless it is configured.
fn overlay_options(options: &Options, features: &Features) -> Vec<String> {
    let mut all = options.mount_options.clone();
    if options.overlay == Overlay::Fuse {
        return all;
    }
    let configured = |key: &str| {
        let key_of = |option: &String| option.split('=').next() == Some(key);
        options.mount_options.iter().any(key_of)
    };
    if features.user_namespace && features.userxattr && !configured("userxattr") {
        all.push("userxattr".to_owned());
    }
    // An index would tie an upper directory to the lower ones it was first mounted with, by file
    // handles that do not survive a copy to another file system.
    if features.index && !configured("index") {
        all.push("index=off".to_owned());
    }
    all
}

#[cfg(test)]
mod tests;

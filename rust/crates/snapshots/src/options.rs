//! How a snapshotter behaves, and what is wrong with a root or an option.

use std::path::Path;

use crate::error::{Error, Result};

/// The program, and the end of the type of its mounts.
pub(crate) const FUSE_OVERLAYFS: &str = "fuse-overlayfs";

/// How a [`Snapshotter`](crate::Snapshotter) behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Delete the directory of a snapshot in [`Snapshotter::remove`](crate::Snapshotter::remove),
    /// instead of in [`Snapshotter::cleanup`](crate::Snapshotter::cleanup).
    pub sync_remove: bool,
    /// Add [`UPPERDIR_LABEL`](crate::UPPERDIR_LABEL) to the labels that stat, update and list give.
    /// It is never stored.
    pub upperdir_label: bool,
    /// Who lays the layers over one another.
    pub overlay: Overlay,
    /// Whether mounts map the ids of containers in user namespaces.
    pub remap_ids: RemapIds,
    /// Further options of overlay mounts, each a flag or `key=value`. They never apply to bind
    /// mounts.
    pub mount_options: Vec<String>,
    /// The name of the directory beside `snapshots` that holds the attachments: for each id a
    /// directory whose content is the caller's, and which lives and dies with its snapshot.
    pub attachments: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sync_remove: false,
            upperdir_label: false,
            overlay: Overlay::Kernel,
            remap_ids: RemapIds::Auto,
            mount_options: Vec::new(),
            attachments: "attachments",
        }
    }
}

/// Who lays the layers of a snapshot over one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlay {
    /// The kernel.
    Kernel,
    /// The program fuse-overlayfs, which containerd starts for each mount.
    Fuse,
}

/// Whether mounts map the ids of a container in a user namespace, as the labels
/// [`UID_MAPPING_LABEL`](crate::UID_MAPPING_LABEL) and its like for groups ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemapIds {
    /// Where it is possible.
    Auto,
    /// Always, and a machine that cannot is refused.
    Always,
    /// Never: the labels only decide who owns new directories.
    Never,
}

impl Options {
    /// Tests what can be said without looking at the machine.
    pub(crate) fn check(&self) -> Result<()> {
        self.mount_options
            .iter()
            .try_for_each(|option| self.check_mount_option(option))
    }

    fn check_mount_option(&self, option: &str) -> Result<()> {
        let key = option.split('=').next().unwrap_or_default();
        let reason = match key {
            _ if option.is_empty() || option.contains(',') => "each entry is one mount option",
            "lowerdir" | "lowerdir+" | "datadir+" | "upperdir" | "workdir" => {
                "the snapshotter sets the directories of an overlay itself"
            }
            "uidmap" | "gidmap" | "uidmapping" | "gidmapping" => {
                "ids are mapped for each container as its labels say, see remap_ids"
            }
            "bind" | "rbind" | "remount" | "loop" => {
                "it would make the mount another than an overlay"
            }
            _ if key.starts_with("X-containerd.") => {
                "it is for containerd's mount manager, which plain overlays never pass"
            }
            "userxattr" | "index" | "metacopy" | "redirect_dir" | "nfs_export" | "uuid"
            | "verity"
                if self.overlay == Overlay::Fuse =>
            {
                "it is of the kernel's overlayfs, and fuse-overlayfs does not know it"
            }
            _ => return Ok(()),
        };
        Err(Error::Options {
            option: format!("{option:?} of mount_options"),
            reason: reason.to_owned(),
        })
    }
}

/// Most bytes of the path of a root. SQLite takes 512 for a file, its log's suffix and more included
/// (`MAX_PATHNAME` in `os_unix.c`, 3.54).
const MAX_ROOT_BYTES: usize = 480;

/// Whether overlayfs can be told of directories below this absolute path, containerd be told the
/// path, and SQLite open files in it.
pub(crate) fn check_root(root: &Path) -> Result<()> {
    let refuse = |reason| {
        Err(Error::Root {
            root: root.to_owned(),
            reason,
        })
    };
    match root.to_str() {
        None => refuse("its path is not UTF-8, as containerd's API wants it"),
        Some(name) if name.contains([':', ',', '\\']) => refuse(
            "its path has one of the characters : , \\ which separate the options of a mount",
        ),
        Some(name) if name.len() > MAX_ROOT_BYTES => {
            refuse("its path is longer than 480 bytes, and SQLite cannot open files in it")
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_that_cannot_be() {
        use Overlay::{Fuse, Kernel};
        for (overlay, option, refused) in [
            (Kernel, "volatile", false),
            (Kernel, "index=on", false),
            (Kernel, "userxattr", false),
            (Fuse, "volatile", false),
            (Fuse, "noacl", false),
            (Fuse, "userxattr", true),
            (Fuse, "index=on", true),
            (Fuse, "redirect_dir=on", true),
            (Kernel, "", true),
            (Kernel, "volatile,lowerdir=/etc", true),
            (Kernel, "upperdir=/etc", true),
            (Kernel, "lowerdir+=/etc", true),
            (Kernel, "uidmap=0:0:1", true),
            (Fuse, "gidmapping=0:0:1", true),
            (Kernel, "bind", true),
            (Kernel, "X-containerd.mkdir.path=/etc", true),
        ] {
            let options = Options {
                overlay,
                mount_options: vec![option.to_owned()],
                ..Options::default()
            };
            match options.check() {
                Ok(()) => assert!(!refused, "{option:?}"),
                Err(error) => {
                    let named = error.to_string().contains(&format!("{option:?}"));
                    assert!(refused && named, "{option:?}: {error}");
                }
            }
        }
    }
}

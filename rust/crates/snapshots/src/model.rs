//! The words of containerd's snapshot model.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::id_mapping::IdMapping;

/// Labels of a snapshot. An empty value means that the label is absent, as in containerd's own
/// metadata store (`core/metadata/boltutil`).
pub type Labels = BTreeMap<String, String>;

/// The number of a snapshot. It names the snapshot's directories and never changes, while a commit
/// gives the snapshot another name; it is not used again after the snapshot is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(crate) u64);

impl Id {
    /// The id that a directory name stands for; only what [`Id`] itself displays is one.
    pub(crate) fn from_dir_name(name: &str) -> Option<Self> {
        let id = Self(name.parse().ok()?);
        (id.to_string() == name).then_some(id)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a snapshot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Read-only sight of a committed snapshot.
    View,
    /// Can be written to, and committed.
    Active,
    /// Immutable, can be a parent.
    Committed,
}

impl Kind {
    /// The word of containerd's filters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is known of one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The key of an active snapshot or view, the name of a committed one.
    pub name: String,
    /// The name of the parent; empty when there is none.
    pub parent: String,
    /// View, active or committed.
    pub kind: Kind,
    /// When it was made, or committed, in full nanoseconds.
    pub created: SystemTime,
    /// When it was last updated; equals `created` before the first update.
    pub updated: SystemTime,
    /// Its labels.
    pub labels: Labels,
}

/// What the own layer of a snapshot takes on the disk, without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Allocated bytes: blocks of 512 bytes, as `du` counts them.
    pub size: u64,
    /// Inodes, each once however many names it has.
    pub inodes: u64,
}

/// How many snapshots there are, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Of [`Kind::View`].
    pub views: u64,
    /// Of [`Kind::Active`].
    pub active: u64,
    /// Of [`Kind::Committed`].
    pub committed: u64,
}

/// What the mounts of an active snapshot or view depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number.
    pub id: Id,
    /// [`Kind::Active`] or [`Kind::View`].
    pub kind: Kind,
    /// The numbers of its ancestors, the immediate parent first.
    pub parents: Vec<Id>,
    /// Whose users and groups own its files.
    pub ids: Ids,
}

/// Which users and groups own the files of a snapshot on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// Those that its container sees: it is in no user namespace.
    AsSeen,
    /// In the layers of its parents those that its container sees, which its mounts map to those of
    /// the host.
    Mapped(IdMapping),
    /// In all layers those of the host: a client has made a copy of the parents for this mapping
    /// (containerd `client/snapshotter_opts_unix.go`, the snapshots `…-remap`), or mounts map
    /// nothing here.
    Shifted(IdMapping),
}

/// The label that tells where the layer of a snapshot is, see
/// [`Options::upperdir_label`](crate::Options::upperdir_label).
pub const UPPERDIR_LABEL: &str = "containerd.io/snapshot/overlay.upperdir";

/// The labels that are kept: without empty values, and without the one that is made anew for each
/// answer and comes back from clients that update what they were told.
pub(crate) fn to_keep(mut labels: Labels) -> Labels {
    labels.retain(|name, value| !value.is_empty() && name != UPPERDIR_LABEL);
    labels
}

/// The labels of snapshot `key` after an update with a field mask (containerd
/// `core/snapshots/storage`, `UpdateInfo`): no path at all replaces everything mutable, which is
/// the labels.
pub(crate) fn masked_labels<P: AsRef<str>>(
    key: &str,
    mut old: Labels,
    new: &Labels,
    paths: &[P],
) -> Result<Labels> {
    if paths.is_empty() {
        return Ok(to_keep(new.clone()));
    }
    for path in paths {
        let path = path.as_ref();
        if path == "labels" {
            old.clone_from(new);
        } else if let Some(name) = path.strip_prefix("labels.") {
            old.insert(name.to_owned(), new.get(name).cloned().unwrap_or_default());
        } else {
            return Err(Error::ImmutableField {
                key: key.to_owned(),
                path: path.to_owned(),
            });
        }
    }
    Ok(to_keep(old))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn an_id_is_the_name_of_its_directory_and_nothing_else() {
        assert_eq!(Id::from_dir_name("17"), Some(Id(17)));
        for name in [
            "",
            "017",
            "+17",
            "-1",
            "17 ",
            "new-17",
            "18446744073709551616",
        ] {
            assert_eq!(Id::from_dir_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn masks() {
        let old = labels(&[("a", "1"), ("b", "2"), ("c.d", "3")]);
        let new = labels(&[("a", "9"), ("c.d", ""), ("e", "5"), ("empty", "")]);
        for (paths, want) in [
            (&[][..], labels(&[("a", "9"), ("e", "5")])),
            (&["labels"], labels(&[("a", "9"), ("e", "5")])),
            (
                &["labels.a"],
                labels(&[("a", "9"), ("b", "2"), ("c.d", "3")]),
            ),
            (&["labels.b"], labels(&[("a", "1"), ("c.d", "3")])),
            (
                &["labels.c.d", "labels.e"],
                labels(&[("a", "1"), ("b", "2"), ("e", "5")]),
            ),
            (&["labels.unknown"], old.clone()),
        ] {
            assert_eq!(
                masked_labels("k", old.clone(), &new, paths).unwrap(),
                want,
                "{paths:?}"
            );
        }
        for path in [
            "parent", "name", "kind", "created", "label", "", "labelsx", "Labels",
        ] {
            let error = masked_labels("k", old.clone(), &new, &["labels", path]).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{path:?}");
        }
    }
}

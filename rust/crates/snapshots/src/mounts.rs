//! From a snapshot to its mounts: a pure function.

use std::path::{Path, PathBuf};

use crate::model::{Id, Kind, Snapshot};

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

/// The mounts of a snapshot, as containerd 2.x gives them (`plugins/snapshots/overlay`).
///
/// A single layer is a bind mount, since overlayfs wants a lower directory under a writable one and
/// two when there is none. `options` are those of overlayfs and never apply to bind mounts.
pub(crate) fn mounts(snapshots: &Path, options: &[String], snapshot: &Snapshot) -> Vec<Mount> {
    let layer = |id| layer_dir(snapshots, id).display().to_string();
    let bind = |id, access: &str| Mount {
        fstype: "bind".to_owned(),
        source: layer(id),
        target: String::new(),
        options: vec![access.to_owned(), "rbind".to_owned()],
    };
    let overlay = |mut own: Vec<String>| {
        let lower: Vec<String> = snapshot.parents.iter().map(|&id| layer(id)).collect();
        own.push(format!("lowerdir={}", lower.join(":")));
        own.extend_from_slice(options);
        Mount {
            fstype: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: own,
        }
    };
    vec![match (snapshot.kind, snapshot.parents.as_slice()) {
        (Kind::Active, []) => bind(snapshot.id, "rw"),
        (Kind::Active, [..]) => overlay(vec![
            format!("workdir={}", work_dir(snapshots, snapshot.id).display()),
            format!("upperdir={}", layer(snapshot.id)),
        ]),
        (Kind::View | Kind::Committed, []) => bind(snapshot.id, "ro"),
        (Kind::View | Kind::Committed, [parent]) => bind(*parent, "ro"),
        (Kind::View | Kind::Committed, [_, _, ..]) => overlay(Vec::new()),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        use Kind::{Active, View};
        let cases: &[(Kind, &[u64], &str)] = &[
            (Active, &[], "bind /r/s/9/fs rw,rbind"),
            (View, &[], "bind /r/s/9/fs ro,rbind"),
            (View, &[3], "bind /r/s/3/fs ro,rbind"),
            (
                Active,
                &[3],
                "overlay overlay workdir=/r/s/9/work,upperdir=/r/s/9/fs,\
                 lowerdir=/r/s/3/fs,volatile,index=off",
            ),
            (
                Active,
                &[7, 3, 1],
                "overlay overlay workdir=/r/s/9/work,upperdir=/r/s/9/fs,\
                 lowerdir=/r/s/7/fs:/r/s/3/fs:/r/s/1/fs,volatile,index=off",
            ),
            (
                View,
                &[7, 3],
                "overlay overlay lowerdir=/r/s/7/fs:/r/s/3/fs,volatile,index=off",
            ),
        ];
        let options = ["volatile".to_owned(), "index=off".to_owned()];
        for &(kind, parents, want) in cases {
            let snapshot = Snapshot {
                id: Id(9),
                kind,
                parents: parents.iter().copied().map(Id).collect(),
            };
            let got = mounts(Path::new("/r/s"), &options, &snapshot);
            let [
                Mount {
                    fstype,
                    source,
                    target,
                    options,
                },
            ] = got.as_slice()
            else {
                panic!("{got:?}");
            };
            assert_eq!(target, "");
            assert_eq!(format!("{fstype} {source} {}", options.join(",")), want);
        }
    }
}

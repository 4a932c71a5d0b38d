//! Which mounts a container gets: its overlay, then the store objects on top of it.

use nix_store::StorePath;
use snapshots::Mount;

/// A store object as it is to appear in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreObject {
    pub(crate) path: StorePath,
    pub(crate) kind: ObjectKind,
}

/// What stands at the store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    /// A file or a directory, which is bound onto its like in the layer.
    FileOrDirectory,
    /// A symbolic link that the layer carries itself: there is nothing to mount.
    LinkInLayer,
    /// A symbolic link for which the layer has a file or a directory, as the Go
    /// project builds it. mount(2) follows the link, so what it leads to is bound.
    LinkTo(String),
}

/// Appends a read-only bind mount for each store object to the mounts of the root.
///
/// The order is that of `objects`, which is sorted, and store paths never lie
/// below one another. `rbind` rather than `bind`, since containerd performs no
/// other kind in every version; only the topmost mount becomes read-only by `ro`
/// (containerd's `core/mount`), and the store has no mounts of its own below its objects.
pub(crate) fn with_store_objects(mut root: Vec<Mount>, objects: &[StoreObject]) -> Vec<Mount> {
    root.extend(objects.iter().filter_map(|object| {
        let source = match &object.kind {
            ObjectKind::FileOrDirectory => object.path.as_str().to_owned(),
            ObjectKind::LinkTo(target) => target.clone(),
            ObjectKind::LinkInLayer => return None,
        };
        Some(Mount {
            fstype: "bind".to_owned(),
            source,
            target: object.path.as_str().to_owned(),
            options: vec!["ro".to_owned(), "rbind".to_owned()],
        })
    }));
    root
}

#[cfg(test)]
mod tests {
    use nix_store::StoreDir;

    use super::*;

    #[test]
    fn each_kind_of_store_object_has_its_mount() {
        let path = |base: &str| {
            StoreDir::default()
                .parse(&format!("/nix/store/{base}"))
                .unwrap()
        };
        let dir = path("8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-dir");
        let root = Mount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec!["lowerdir=/a".into()],
        };
        let bind = |source: &str, target: &StorePath| Mount {
            fstype: "bind".into(),
            source: source.into(),
            target: target.to_string(),
            options: vec!["ro".into(), "rbind".into()],
        };
        for (kind, expected) in [
            (ObjectKind::FileOrDirectory, Some(bind(dir.as_str(), &dir))),
            (ObjectKind::LinkInLayer, None),
            (
                ObjectKind::LinkTo("/nix/store/x".into()),
                Some(bind("/nix/store/x", &dir)),
            ),
        ] {
            let object = StoreObject {
                path: dir.clone(),
                kind,
            };
            let mounts = with_store_objects(vec![root.clone()], &[object]);
            let expected: Vec<_> = [root.clone()].into_iter().chain(expected).collect();
            assert_eq!(mounts, expected);
        }
    }
}

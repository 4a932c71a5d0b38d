//! How store objects look on this machine, and the places that they are mounted on.

use std::{
    fs::{self, DirBuilder, FileType, Metadata},
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use nix_store::{Closure, StoreDir, StorePath};
use rustix::fs::{Mode, OFlags};
use snapshots::sync_directory;
use tracing::warn;

use crate::{
    error::Error,
    mounts::{ObjectKind, StoreObject},
};

/// Looks at `path` as a container on top of the layer in `layer_dir` is to see it.
///
/// # Errors
/// [`nix_store::Error::ObjectGone`] when it is not in the store: somebody has deleted it
/// by force, past its GC root.
pub(crate) fn store_object(
    store_dir: &StoreDir,
    path: &StorePath,
    layer_dir: &Path,
) -> Result<StoreObject, Error> {
    let found = |kind| {
        Ok(StoreObject {
            path: path.clone(),
            kind,
        })
    };
    if !look_at(path)?.is_symlink() {
        return found(ObjectKind::FileOrDirectory);
    }
    let in_layer = fs::symlink_metadata(below(layer_dir, path.as_path())).map(|m| m.file_type());
    if in_layer.is_ok_and(|kind: FileType| kind.is_symlink()) {
        return found(ObjectKind::LinkInLayer);
    }
    // Out of the store, a link could name any file of the host.
    let target = fs::canonicalize(path.as_path()).ok().filter(|target| {
        target.starts_with(store_dir.as_str()) && target != Path::new(store_dir.as_str())
    });
    match target.as_deref().and_then(Path::to_str) {
        Some(target) => found(ObjectKind::LinkTo(target.to_owned())),
        None => {
            warn!(%path, "nothing is mounted for this link: it leads nowhere in the store");
            found(ObjectKind::LinkInLayer)
        }
    }
}

/// Makes, in the directory of a layer, the place for each store object: a directory
/// for a directory, an empty file for a file, and of a symbolic link the link itself.
///
/// containerd mounts only onto what is there (`core/mount` joins the target and
/// creates nothing). A layer in the per-path format brings these places along, for daemons that
/// rely on that; making them here costs a fraction of unpacking them.
///
/// They are on the disk when this returns.
///
/// # Errors
/// [`Error::MountPoint`], and [`nix_store::Error::ObjectGone`].
pub(crate) fn make_mount_points(
    store_dir: &StoreDir,
    closure: &Closure,
    layer_dir: &Path,
) -> Result<(), Error> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::MountPoint { path, source }
    };
    if closure.paths().is_empty() {
        return Ok(());
    }
    let parent = below(layer_dir, Path::new(store_dir.as_str()));
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&parent)
        .map_err(fail(&parent))?;
    let parent_fd = rustix::fs::open(
        &parent,
        OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| fail(&parent)(errno.into()))?;
    for path in closure.paths() {
        let object = look_at(path)?;
        make_place(path, &object, &parent_fd)
            .map_err(|source| fail(&parent.join(path.base_name()))(source))?;
    }
    for dir in parent.ancestors().take_while(|dir| *dir != layer_dir) {
        sync_directory(dir).map_err(fail(dir))?;
    }
    Ok(())
}

/// Makes the place by its last component: the others are looked up once, and not a thousand times.
fn make_place(path: &StorePath, object: &Metadata, parent: &OwnedFd) -> io::Result<()> {
    let name = path.base_name();
    if object.is_dir() {
        rustix::fs::mkdirat(parent, name, Mode::from(0o755))?;
    } else if object.is_symlink() {
        rustix::fs::symlinkat(fs::read_link(path.as_path())?, parent, name)?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, flags, Mode::from(0o644))?;
    }
    Ok(())
}

fn look_at(path: &StorePath) -> Result<Metadata, Error> {
    fs::symlink_metadata(path.as_path()).map_err(|source| match source.kind() {
        ErrorKind::NotFound => nix_store::Error::ObjectGone { path: path.clone() }.into(),
        _ => Error::StoreObject {
            path: path.clone(),
            source,
        },
    })
}

/// An absolute path moved below another directory.
fn below(dir: &Path, path: &Path) -> PathBuf {
    dir.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const DIR: &str = "0kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-dir";
    const FILE: &str = "1kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-file";
    const LINK: &str = "2kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-link";
    const OUT: &str = "3kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-out";

    /// A store with a directory, a file, a link to the file and a link out of the store.
    fn store() -> (tempfile::TempDir, StoreDir, Closure) {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap().join("store");
        fs::create_dir_all(root.join(DIR)).unwrap();
        fs::write(root.join(FILE), "content").unwrap();
        symlink(root.join(FILE), root.join(LINK)).unwrap();
        symlink("/etc/passwd", root.join(OUT)).unwrap();
        let store_dir = StoreDir::new(root.to_str().unwrap()).unwrap();
        let closure = [DIR, FILE, LINK, OUT]
            .map(|base| store_dir.parse(&format!("{store_dir}/{base}")).unwrap())
            .into_iter()
            .collect();
        (dir, store_dir, closure)
    }

    fn kinds(store_dir: &StoreDir, closure: &Closure, layer: &Path) -> Vec<ObjectKind> {
        closure
            .paths()
            .iter()
            .map(|path| store_object(store_dir, path, layer).unwrap().kind)
            .collect()
    }

    #[test]
    fn places_are_of_the_kind_of_the_object() {
        let (_dir, store_dir, closure) = store();
        let layer = tempfile::tempdir().unwrap();
        make_mount_points(&store_dir, &closure, layer.path()).unwrap();

        let place = |base: &str| below(layer.path(), Path::new(store_dir.as_str())).join(base);
        assert!(place(DIR).is_dir());
        assert_eq!(fs::read_to_string(place(FILE)).unwrap(), "");
        assert_eq!(fs::read_link(place(OUT)).unwrap(), Path::new("/etc/passwd"));
        use ObjectKind::{FileOrDirectory, LinkInLayer};
        assert_eq!(
            kinds(&store_dir, &closure, layer.path()),
            [FileOrDirectory, FileOrDirectory, LinkInLayer, LinkInLayer]
        );
    }

    #[test]
    fn a_link_without_its_like_in_the_layer_is_followed_within_the_store_only() {
        let (_dir, store_dir, closure) = store();
        let layer = tempfile::tempdir().unwrap();
        let file = format!("{store_dir}/{FILE}");
        assert_eq!(
            kinds(&store_dir, &closure, layer.path())[2..],
            [ObjectKind::LinkTo(file), ObjectKind::LinkInLayer]
        );
    }

    #[test]
    fn an_object_that_is_gone_is_named() {
        let (_dir, store_dir, closure) = store();
        fs::remove_dir(closure.paths()[0].as_path()).unwrap();
        let layer = tempfile::tempdir().unwrap();
        let error = make_mount_points(&store_dir, &closure, layer.path()).unwrap_err();
        assert!(error.to_string().contains(DIR), "{error}");
    }
}

//! GC roots of the archives that images come from: `<root>/images/<hash>-<name>/path`.
//!
//! A root stands from before its archive is read until no image has its name any more.

use std::{
    collections::{BTreeSet, HashMap},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use nix_store::{StoreDir, StorePath};
use tokio::sync::OwnedMutexGuard;

use crate::{error::Error, inventory::entries, nix_snapshotter::NixSnapshotter};

/// The directory below the daemon's root.
pub(crate) const IMAGES: &str = "images";

type Turn = tokio::sync::Mutex<()>;

/// All roots of archives.
pub(super) struct ArchiveRoots {
    dir: PathBuf,
    snapshotter: NixSnapshotter,
    /// Who works with an archive at the moment.
    turns: Mutex<HashMap<StorePath, Weak<Turn>>>,
}

/// The right to change the root of one archive. Others wait for it.
pub(super) struct Archive {
    roots: Arc<ArchiveRoots>,
    path: StorePath,
    _turn: OwnedMutexGuard<()>,
}

impl ArchiveRoots {
    pub(super) fn new(root: &Path, snapshotter: NixSnapshotter) -> Self {
        Self {
            dir: root.join(IMAGES),
            snapshotter,
            turns: Mutex::default(),
        }
    }

    pub(super) fn store_dir(&self) -> &StoreDir {
        self.snapshotter.store_dir()
    }

    /// Waits until nobody else works with an archive.
    pub(super) async fn archive(self: &Arc<Self>, path: &StorePath) -> Archive {
        let turn = self.turn(path).lock_owned().await;
        self.in_turn(path, turn)
    }

    /// The same, unless somebody works with it.
    pub(super) fn try_archive(self: &Arc<Self>, path: &StorePath) -> Option<Archive> {
        let turn = self.turn(path).try_lock_owned().ok()?;
        Some(self.in_turn(path, turn))
    }

    fn in_turn(self: &Arc<Self>, path: &StorePath, turn: OwnedMutexGuard<()>) -> Archive {
        Archive {
            roots: Arc::clone(self),
            path: path.clone(),
            _turn: turn,
        }
    }

    fn turn(&self, path: &StorePath) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(path).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(Turn::default());
        turns.insert(path.clone(), Arc::downgrade(&turn));
        turn
    }

    /// The archives that have a root. Blocks for listing a directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(super) fn list(&self) -> Result<BTreeSet<StorePath>, Error> {
        let fail = |source| Error::Inventory {
            path: self.dir.clone(),
            source,
        };
        let mut found = BTreeSet::new();
        for entry in entries(&self.dir).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let store_dir = self.snapshotter.store_dir();
            let path = name.to_str().map(|name| format!("{store_dir}/{name}"));
            // What is not ours is left alone.
            found.extend(path.and_then(|path| store_dir.parse(&path).ok()));
        }
        Ok(found)
    }
}

impl Archive {
    /// Its store path.
    pub(super) fn path(&self) -> &StorePath {
        &self.path
    }

    fn dir(&self) -> PathBuf {
        self.roots.dir.join(self.path.base_name())
    }

    /// Whether it has a root.
    pub(super) fn is_held(&self) -> bool {
        self.dir().join("path").symlink_metadata().is_ok()
            || self
                .dir()
                .join(self.path.base_name())
                .symlink_metadata()
                .is_ok()
    }

    /// Realises the archive, as layers are, and makes its root.
    ///
    /// # Errors
    /// Nix cannot provide it. Nothing is left then that was not there before.
    pub(super) async fn hold(&self) -> Result<(), Error> {
        let had_root = self.is_held();
        let held = self.roots.snapshotter.hold(&self.path, self.dir()).await;
        if held.is_err() && !had_root {
            self.release().await?;
        }
        held
    }

    /// Removes the root, if there is one.
    ///
    /// # Errors
    /// The directory cannot be deleted.
    pub(super) async fn release(&self) -> Result<(), Error> {
        let dir = self.dir();
        let deleted = tokio::fs::remove_dir_all(&dir).await;
        match deleted {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(Error::Inventory { path: dir, source })
            }
            _ => Ok(()),
        }
    }
}

//! The directories under the root, and the ids that are being made.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::id_mapping::Owner;
use crate::lock::RootLock;
use crate::model::{Id, Kind, Snapshot};
use crate::mounts::{layer_dir, work_dir};
use crate::tree;

pub(crate) struct Layout {
    snapshots: PathBuf,
    attachments: PathBuf,
    /// The id that is given next.
    next: AtomicU64,
    /// Ids with a living [`Reservation`].
    reserved: Mutex<BTreeSet<Id>>,
    /// Held as long as a reservation lives, since dropping one deletes directories.
    _lock: RootLock,
}

impl Layout {
    /// Makes the directories of `root` that are missing.
    pub(crate) fn open(root: &Path, lock: RootLock, attachments: &str) -> Result<Self> {
        let layout = Self {
            snapshots: root.join("snapshots"),
            attachments: root.join(attachments),
            next: AtomicU64::new(1),
            reserved: Mutex::default(),
            _lock: lock,
        };
        make_private_dir(&layout.snapshots)?;
        make_private_dir(&layout.attachments)?;
        Ok(layout)
    }

    /// Deletes the directories among `found` that are not of `stored` snapshots, and begins to count
    /// above every id that was given before: `note` is told the highest one before the last trace
    /// of it goes.
    ///
    /// A process that the caller had started may have outlived the crash, and put something into
    /// the attachment directory of its id at any later time. No other snapshot may ever have that.
    pub(crate) fn repair(
        &self,
        found: &BTreeSet<Id>,
        stored: &BTreeSet<Id>,
        note: impl FnOnce(Id) -> Result<Id>,
    ) -> Result<()> {
        let orphans: Vec<Id> = found.difference(stored).copied().collect();
        if !orphans.is_empty() {
            tracing::info!(
                count = orphans.len(),
                "deleting directories that belong to no snapshot"
            );
        }
        // The layers first: the note may need the space on a disk that is full.
        orphans.iter().for_each(|id| self.delete_snapshot(*id));
        let highest = note(found.last().copied().unwrap_or(Id(0)))?;
        orphans.iter().for_each(|id| self.delete_attachment(*id));
        for id in stored.difference(found) {
            // The power went away before the file system wrote what was new.
            let path = self.snapshot_dir(*id);
            tracing::warn!(path = %path.display(), "the directory of a snapshot is missing");
        }
        self.next.store(highest.0 + 1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn snapshots(&self) -> &Path {
        &self.snapshots
    }

    pub(crate) fn snapshot_dir(&self, id: Id) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    pub(crate) fn attachment_dir(&self, id: Id) -> PathBuf {
        self.attachments.join(id.to_string())
    }

    /// The ids that have a directory of either sort.
    pub(crate) fn ids(&self) -> Result<BTreeSet<Id>> {
        let mut ids = BTreeSet::new();
        for dir in [&self.snapshots, &self.attachments] {
            for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
                let name = entry.map_err(Error::io("list", dir))?.file_name();
                ids.extend(name.to_str().and_then(Id::from_dir_name));
            }
        }
        Ok(ids)
    }

    pub(crate) fn reserved(&self) -> MutexGuard<'_, BTreeSet<Id>> {
        // A panic cannot leave the set half changed.
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reserve(self: &Arc<Self>) -> Reservation {
        let id = Id(self.next.fetch_add(1, Ordering::Relaxed));
        self.reserved().insert(id);
        Reservation {
            layout: Arc::clone(self),
            id,
            outcome: Outcome::Abandoned,
        }
    }

    /// The owner of the layer of a snapshot's parent, if it has one.
    pub(crate) fn owner_of_parent(&self, parents: &[Id]) -> Result<Option<Owner>> {
        let parent = parents.first();
        parent
            .map(|&parent| owner(&layer_dir(&self.snapshots, parent)))
            .transpose()
    }

    /// Makes the directories of a snapshot, with an owner of its layer other than this process if
    /// one is given.
    pub(crate) fn make(&self, snapshot: &Snapshot, wanted: Option<Owner>) -> Result<()> {
        let Snapshot { id, kind, .. } = *snapshot;
        let dir = self.snapshot_dir(id);
        make_private_dir(&dir)?;
        let layer = layer_dir(&self.snapshots, id);
        make_dir(&layer, 0o755)?;
        if kind == Kind::Active {
            make_dir(&work_dir(&self.snapshots, id), 0o711)?;
        }
        if let Some((uid, gid)) = wanted
            && owner(&layer)? != (uid, gid)
        {
            let set = lchown(&layer, Some(uid), Some(gid));
            set.map_err(Error::io("set the owner of", &layer))?;
        }
        Ok(())
    }

    /// Has on the disk what was made under an id with an attachment: the layer itself, and every
    /// name that leads to it and to the attachment. Without one there is nothing to keep yet.
    pub(crate) fn persist(&self, id: Id) -> Result<()> {
        let attachment = self.attachment_dir(id);
        let attached = attachment
            .try_exists()
            .map_err(Error::io("look for", &attachment))?;
        if attached {
            sync(&layer_dir(&self.snapshots, id))?;
            sync(&self.snapshot_dir(id))?;
            sync(&self.snapshots)?;
            sync(&attachment)?;
            sync(&self.attachments)?;
        }
        Ok(())
    }

    /// Deletes both directories of an id.
    pub(crate) fn delete(&self, id: Id) {
        self.delete_attachment(id);
        self.delete_snapshot(id);
    }

    pub(crate) fn delete_snapshot(&self, id: Id) {
        delete_or_warn(&self.snapshot_dir(id));
    }

    pub(crate) fn delete_attachment(&self, id: Id) {
        delete_or_warn(&self.attachment_dir(id));
    }
}

/// The snapshot is gone, so that a directory which cannot be deleted is no failure of the call; the
/// next clean-up tries again.
fn delete_or_warn(path: &Path) {
    if let Err(error) = tree::remove(path) {
        let error = &error as &dyn std::error::Error;
        let path = path.display();
        tracing::warn!(%path, error, "a directory that belongs to no snapshot stays behind");
    }
}

/// Makes a directory that only its owner can enter, unless it is there.
pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(Error::io("make the directory", path))
}

/// Makes a directory with this very mode, whatever the umask is.
fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir(path).map_err(Error::io("make the directory", path))?;
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(Error::io("set the mode of", path))
}

fn owner(path: &Path) -> Result<Owner> {
    let found = fs::symlink_metadata(path).map_err(Error::io("read the owner of", path))?;
    Ok((found.uid(), found.gid()))
}

fn sync(dir: &Path) -> Result<()> {
    sync_directory(dir).map_err(Error::io("sync", dir))
}

/// Has the names in a directory on the disk.
///
/// # Errors
/// What the file system says, unless it is that it has nothing to sync in a directory.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// An id for a snapshot that is being made.
///
/// Clean-up leaves the directories of this id alone as long as the reservation lives. When it is
/// dropped without having been given to [`Snapshotter::create`](crate::Snapshotter::create), or
/// when that fails, everything that was made under the id is deleted; the drop then blocks on the
/// file system.
#[must_use = "dropping a reservation deletes what was made under its id"]
pub struct Reservation {
    layout: Arc<Layout>,
    id: Id,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// No snapshot came of it.
    Abandoned,
    /// The snapshot is in the store.
    Published,
    /// The disk did not say whether the snapshot is in the store. Clean-up asks the store when it
    /// is readable again.
    Unknown,
}

impl Reservation {
    /// The id that the snapshot will have.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Where to put what belongs to the snapshot besides its layer; made by the caller, deleted
    /// with the snapshot.
    #[must_use]
    pub fn attachment_dir(&self) -> PathBuf {
        self.layout.attachment_dir(self.id)
    }

    pub(crate) fn settle<T>(mut self, result: Result<T>) -> Result<T> {
        self.outcome = match &result {
            Ok(_) => Outcome::Published,
            Err(Error::Unconfirmed { .. }) => Outcome::Unknown,
            Err(_) => Outcome::Abandoned,
        };
        result
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match self.outcome {
            Outcome::Abandoned => self.layout.delete(self.id),
            Outcome::Published | Outcome::Unknown => {}
        }
        self.layout.reserved().remove(&self.id);
    }
}

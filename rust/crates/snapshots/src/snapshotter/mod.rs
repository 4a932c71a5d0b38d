//! The snapshotter: the store and the directories together.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::features::{Features, try_overlay};
use crate::filter::Filter;
use crate::id_mapping::IdMapping;
use crate::layout::{Layout, Reservation, make_private_dir};
use crate::lock::RootLock;
use crate::model::{Counts, Id, Ids, Info, Kind, Labels, Snapshot, UPPERDIR_LABEL, Usage, to_keep};
use crate::mount_limits;
use crate::mounts::{Mount, MountPolicy, layer_dir};
use crate::options::{Options, Overlay, check_root};
use crate::store::{Store, StoreWaits};
use crate::tree;

/// Snapshots on overlayfs directories under one root. All calls block.
pub struct Snapshotter {
    store: Store,
    layout: Arc<Layout>,
    features: Features,
    policy: MountPolicy,
    sync_remove: bool,
    upperdir_label: bool,
}

impl Snapshotter {
    /// Opens the snapshots of `root`, which is made if it is missing, and deletes what a crash left
    /// behind.
    ///
    /// # Errors
    ///
    /// As [`Snapshotter::check`]; when the root cannot be made or written or is in use, when its
    /// file system or the kernel lacks what snapshots or the options need, see [`Features`]; and
    /// when the store is damaged, missing, of another program or of a newer version.
    pub fn open(root: &Path, options: &Options) -> Result<Self> {
        let Prepared {
            root,
            lock,
            features,
            policy,
        } = prepare(root, options)?;
        let layout = Layout::open(&root, lock, options.attachments)?;
        if !Store::exists(&root)? {
            if !layout.ids()?.is_empty() {
                return Err(Error::StoreMissing {
                    path: Store::path(&root),
                });
            }
            Store::create(&root)?;
        }
        let store = Store::open(&root)?;
        layout.repair(&layout.ids()?, &store.ids()?, |id| store.note_given(id))?;
        Ok(Self {
            store,
            layout: Arc::new(layout),
            features,
            policy,
            sync_remove: options.sync_remove,
            upperdir_label: options.upperdir_label,
        })
    }

    /// Tests what can be said of a root and its options without looking at the disk.
    ///
    /// # Errors
    ///
    /// When an option is not valid, or the path cannot be named in mount options.
    pub fn check(root: &Path, options: &Options) -> Result<()> {
        check_root(root)?;
        options.check()
    }

    /// What the kernel and the file system of the root can do.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// An id for a snapshot that is going to be made.
    pub fn reserve(&self) -> Reservation {
        self.layout.reserve()
    }

    /// Tests whether [`Snapshotter::create`] could succeed now, for callers with much to do before
    /// it.
    ///
    /// # Errors
    ///
    /// [`Code::AlreadyExists`](crate::Code), [`Code::NotFound`](crate::Code) for the parent, and
    /// [`Code::InvalidArgument`](crate::Code) for a parent that is not committed, an empty key, the
    /// kind committed or labels that do not map ids, see [`IdMapping::of`].
    pub fn check_new(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<()> {
        not_empty("key", key)?;
        IdMapping::of(labels)?;
        self.store.admit(kind, key, some_name(parent)).map(drop)
    }

    /// Makes an active snapshot or a view. An empty `parent` is none.
    ///
    /// `fill` is called while nobody else can see the snapshot, and may put something into its
    /// [layer](Self::layer_dir), which is on the disk when this returns if the snapshot has an
    /// attachment; what is in directories of its own it has to sync itself. What it gives is given to the caller.
    ///
    /// # Errors
    ///
    /// Those of [`Snapshotter::check_new`] and those of `fill`. Nothing is left of the reservation
    /// then.
    pub fn create<T, E: From<Error>>(
        &self,
        reservation: Reservation,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        fill: impl FnOnce(&Snapshot) -> Result<T, E>,
    ) -> Result<T, E> {
        not_empty("key", key)?;
        let parent = some_name(parent);
        let parents = self.store.admit(kind, key, parent)?;
        let snapshot = Snapshot {
            id: reservation.id(),
            kind,
            ids: self.ids(&labels, &parents)?,
            parents,
        };
        let owner = self.layout.owner_of_parent(&snapshot.parents)?;
        let owner = self.policy.owner(&snapshot, owner);
        self.layout.make(&snapshot, owner)?;
        let filled = fill(&snapshot)?;
        self.layout.persist(snapshot.id)?;
        let inserted = self.store.insert(&snapshot, key, parent, &to_keep(labels));
        reservation.settle(inserted)?;
        Ok(filled)
    }

    /// What the mounts of an active snapshot or view depend on, and its labels.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`](crate::Code), [`Code::FailedPrecondition`](crate::Code) for a committed
    /// snapshot, or [`Code::InvalidArgument`](crate::Code) for labels that do not map ids any more
    /// since an update.
    pub fn snapshot(&self, key: &str) -> Result<(Snapshot, Labels)> {
        let (snapshot, labels) = self.store.snapshot(key)?;
        let ids = self.ids(&labels, &snapshot.parents)?;
        Ok((Snapshot { ids, ..snapshot }, labels))
    }

    /// The labels of each of these snapshots. One that was removed meanwhile has none.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn labels(&self, ids: &[Id]) -> Result<Vec<Labels>> {
        self.store.labels(ids)
    }

    fn ids(&self, labels: &Labels, parents: &[Id]) -> Result<Ids> {
        let Some(mapping) = IdMapping::of(labels)? else {
            return Ok(Ids::AsSeen);
        };
        let owner = self.layout.owner_of_parent(parents)?;
        Ok(self.policy.ids(mapping, owner))
    }

    /// The mounts that give a snapshot its content, as containerd 2.x orders their options.
    #[must_use]
    pub fn mounts(&self, snapshot: &Snapshot) -> Vec<Mount> {
        self.policy.mounts(self.layout.snapshots(), snapshot)
    }

    /// Tests whether containerd can perform mounts that [`Snapshotter::mounts`] gave.
    ///
    /// # Errors
    ///
    /// [`Code::FailedPrecondition`](crate::Code) when there are more layers than overlayfs or
    /// mount(2) takes.
    pub fn check_mountable(&self, mounts: &[Mount]) -> Result<()> {
        let page = rustix::param::page_size();
        mounts
            .iter()
            .try_for_each(|mount| mount_limits::check(mount, page))
    }

    /// Turns the active snapshot `key` into the committed one `name`. Labels are replaced, not
    /// inherited.
    ///
    /// A snapshot that was made without parent can get one now (containerd 2.2); an empty `parent`
    /// leaves it as it is. Takes the same short time however large the snapshot is: containerd
    /// waits for it with a lock on all its metadata.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`](crate::Code) for the key or the parent,
    /// [`Code::AlreadyExists`](crate::Code) for the name, [`Code::FailedPrecondition`](crate::Code)
    /// when `key` is not active or the parent not committed, [`Code::InvalidArgument`](crate::Code)
    /// for an empty name or another parent than the one it was made on.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<()> {
        not_empty("name", name)?;
        not_empty("key", key)?;
        let parent = some_name(parent);
        self.store.commit(name, key, parent, &to_keep(labels))
    }

    /// Removes a snapshot that has no children, of any kind.
    ///
    /// Its attachments are deleted at once, its directory too with [`Options::sync_remove`]. What
    /// cannot be deleted is logged, and [`Snapshotter::cleanup`] tries again.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`](crate::Code), or [`Code::FailedPrecondition`](crate::Code) when it has
    /// children.
    pub fn remove(&self, key: &str) -> Result<()> {
        let id = self.store.remove(key)?;
        self.layout.delete_attachment(id);
        if self.sync_remove {
            self.layout.delete_snapshot(id);
        }
        Ok(())
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`](crate::Code).
    pub fn stat(&self, key: &str) -> Result<Info> {
        self.store
            .info(key)
            .map(|(id, info)| self.decorate(id, info))
    }

    /// Changes the labels of a snapshot and gives what it is then. `paths` is a field mask:
    /// `labels` replaces all of them, `labels.<name>` sets one, or deletes it when `labels` has no
    /// value for it; no path at all is `labels`.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`](crate::Code), or [`Code::InvalidArgument`](crate::Code) for any other
    /// path.
    pub fn update<P: AsRef<str>>(&self, key: &str, labels: &Labels, paths: &[P]) -> Result<Info> {
        self.store
            .update(key, labels, paths)
            .map(|(id, info)| self.decorate(id, info))
    }

    /// Calls `each` with every snapshot that one of the filters lets through, or with all if there
    /// is no filter, in the order of their ids, until it breaks.
    ///
    /// All of them are as of one moment, and other calls go on meanwhile, from `each` too. The
    /// store can use the space of what changes meanwhile again only afterwards.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidArgument`](crate::Code) for a filter that is not valid.
    pub fn list<F: AsRef<str>>(
        &self,
        filters: &[F],
        mut each: impl FnMut(Id, Info) -> ControlFlow<()>,
    ) -> Result<()> {
        let filter = Filter::parse(filters)?;
        self.store
            .list(&filter, |id, info| each(id, self.decorate(id, info)))
    }

    /// How many snapshots there are, by kind. Cheap: no labels are decoded.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn counts(&self) -> Result<Counts> {
        self.store.counts()
    }

    /// How often, and how long, calls that change the store have waited for one another since it
    /// was opened.
    #[must_use]
    pub fn store_waits(&self) -> StoreWaits {
        self.store.waits()
    }

    /// What the own layer of a snapshot takes: of an active one now, of a committed one since it
    /// was first asked for; a view takes nothing.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`](crate::Code).
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let (id, kind, noted) = self.store.usage(key)?;
        match (kind, noted) {
            (Kind::View, _) => Ok(Usage::default()),
            (Kind::Committed, Some(usage)) => Ok(usage),
            (Kind::Active | Kind::Committed, _) => {
                let measured = tree::usage(&self.layer_dir(id))?;
                let usage = measured.ok_or_else(|| Error::NotFound {
                    key: key.to_owned(),
                })?;
                if kind == Kind::Committed
                    && let Err(error) = self.store.set_usage(key, id, usage)
                {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(key, error, "the usage will be measured again");
                }
                Ok(usage)
            }
        }
    }

    /// Deletes the directories of removed snapshots. What cannot be deleted is logged.
    ///
    /// # Errors
    ///
    /// When the store or the list of directories cannot be read.
    pub fn cleanup(&self) -> Result<()> {
        // In this order: a directory is made after its id was reserved, and the reservation ends
        // after the snapshot is in the store. Whatever is listed first and found in neither of the
        // two afterwards belongs to nothing.
        let found = self.layout.ids()?;
        let reserved = self.layout.reserved().clone();
        let stored = self.store.ids()?;
        for id in found
            .into_iter()
            .filter(|id| !reserved.contains(id) && !stored.contains(id))
        {
            self.layout.delete(id);
        }
        self.store.keep_space();
        Ok(())
    }

    /// The directory with the content of a snapshot's own layer.
    #[must_use]
    pub fn layer_dir(&self, id: Id) -> PathBuf {
        layer_dir(self.layout.snapshots(), id)
    }

    /// The directory for what else belongs to a snapshot. It is there if the caller made it.
    #[must_use]
    pub fn attachment_dir(&self, id: Id) -> PathBuf {
        self.layout.attachment_dir(id)
    }

    fn decorate(&self, id: Id, mut info: Info) -> Info {
        if self.upperdir_label {
            info.labels.insert(
                UPPERDIR_LABEL.to_owned(),
                self.layer_dir(id).display().to_string(),
            );
        }
        info
    }
}

fn not_empty(what: &'static str, name: &str) -> Result<()> {
    if name.is_empty() {
        Err(Error::EmptyName { what })
    } else {
        Ok(())
    }
}

/// containerd's API has an empty name where there is no parent.
fn some_name(parent: Option<&str>) -> Option<&str> {
    parent.filter(|parent| !parent.is_empty())
}

/// A root that is there, locked and fit for snapshots.
struct Prepared {
    root: PathBuf,
    lock: RootLock,
    features: Features,
    policy: MountPolicy,
}

/// Makes and locks the root, and finds out what it can do. A root that is made for nothing goes
/// again.
fn prepare(root: &Path, options: &Options) -> Result<Prepared> {
    let root = absolute(root).map_err(Error::io("resolve", root))?;
    Snapshotter::check(&root, options)?;
    let is_new = !root.exists();
    let attempt = || {
        make_private_dir(&root)?;
        let lock = RootLock::acquire(&root)?;
        let features = Features::probe(&root)?;
        log(&features);
        features.suffice(&root, options.overlay)?;
        let policy = MountPolicy::new(options, &features)?;
        if options.overlay == Overlay::Kernel && !options.mount_options.is_empty() {
            try_overlay(&root, policy.overlay_options())?;
        }
        Ok((lock, features, policy))
    };
    match attempt() {
        Ok((lock, features, policy)) => Ok(Prepared {
            root,
            lock,
            features,
            policy,
        }),
        Err(error) => {
            // Nobody who locks it in between is harmed: a directory with a lock in it stays.
            if is_new && !matches!(error, Error::RootLocked { .. }) {
                let _ = RootLock::delete(&root).and_then(|()| std::fs::remove_dir(&root));
            }
            Err(error)
        }
    }
}

fn log(features: &Features) {
    tracing::info!(
        kernel = features.kernel,
        user_namespace = features.user_namespace,
        d_type = features.d_type,
        index = features.index,
        userxattr = features.userxattr,
        id_mapped_layers = features.id_mapped_layers,
        fuse_overlayfs = features.fuse_overlayfs.is_ok(),
        "what overlays can do here"
    );
}

#[cfg(test)]
mod tests;

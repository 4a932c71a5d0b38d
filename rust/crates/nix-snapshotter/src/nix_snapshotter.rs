//! Nix layers on top of plain snapshots: the order of events that a pull goes through.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use nix_image::annotations::{self, SNAPSHOT_REF};
use nix_store::{Closure, LayerClosure, Realiser, StoreDir, StorePath};
use snapshots::{Counts, Id, Kind, Labels, Mount, Snapshot, Snapshotter, StoreWaits};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug};

use crate::{
    calls::about,
    error::{Error, chain},
    inventory::entries,
    mounts::{StoreObject, with_store_objects},
    realisations::{RealisationStats, Realisations, RealisedAhead, RealisedLayer, UnderWay},
    store_view::{make_mount_points, store_object},
};

/// Where the GC roots of a snapshot are kept: `<root>/gcroots/<id>`.
pub(crate) const GC_ROOTS: &str = "gcroots";

/// A snapshotter whose layers may be closures of store paths.
#[derive(Clone)]
pub(crate) struct NixSnapshotter {
    snapshots: Arc<Snapshotter>,
    realiser: Realiser,
    realisations: Arc<Realisations>,
    store_dir: StoreDir,
}

/// A snapshot that containerd asks for.
pub(crate) struct NewSnapshot {
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
}

impl NixSnapshotter {
    pub(crate) fn new(
        snapshots: Snapshotter,
        realiser: Realiser,
        max_realisations: u16,
        store_dir: StoreDir,
    ) -> Self {
        let snapshots = Arc::new(snapshots);
        Self {
            realisations: Realisations::new(
                Arc::clone(&snapshots),
                realiser.clone(),
                max_realisations,
            ),
            snapshots,
            realiser,
            store_dir,
        }
    }

    /// The directory of the store.
    pub(crate) fn store_dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// The store paths that are held by the roots in each directory in `parent`, by the name of the
    /// directory.
    pub(crate) async fn held_paths(
        &self,
        parent: PathBuf,
    ) -> Result<BTreeMap<String, Closure>, Error> {
        let (this, call) = (self.clone(), Span::current());
        let list = move || {
            let fail = |source| Error::Inventory {
                path: parent.clone(),
                source,
            };
            let mut held = BTreeMap::new();
            for entry in entries(&parent).map_err(fail)? {
                let entry = entry.map_err(fail)?;
                match this.realiser.roots(entry.path()).read() {
                    Ok(paths) => {
                        let name = entry.file_name().to_string_lossy().into_owned();
                        held.insert(name, paths.unwrap_or_default());
                    }
                    // It may be in the making, or on its way out.
                    Err(error) => debug!(error = chain(&error), "roots that are not counted"),
                }
            }
            Ok(held)
        };
        tokio::task::spawn_blocking(move || call.in_scope(list)).await?
    }

    /// The NAR sizes of store paths in bytes; of those that Nix does not know there is none.
    pub(crate) async fn nar_sizes(
        &self,
        paths: &[StorePath],
    ) -> Result<HashMap<StorePath, u64>, Error> {
        Ok(self
            .realiser
            .nar_sizes(paths, &CancellationToken::new())
            .await?)
    }

    /// Has a store path provided, and held by roots in `dir` for longer than any snapshot lives.
    pub(crate) async fn hold(&self, path: &StorePath, dir: PathBuf) -> Result<(), Error> {
        let alone = alone(path);
        let first = self.provide(alone.clone()).await?;
        let (roots, never) = (self.realiser.roots(dir), CancellationToken::new());
        let held = self.realiser.realise(&alone, &roots, &never).await;
        // Deletes, which blocks.
        tokio::task::spawn_blocking(move || drop(first)).await?;
        held?;
        Ok(())
    }

    /// Has a store path provided by itself, as the paths of a layer are.
    pub(crate) async fn provide_path(
        &self,
        path: &StorePath,
    ) -> Result<Option<RealisedLayer>, Error> {
        self.provide(alone(path)).await
    }

    /// Has the store paths of a layer provided, shared and limited as for snapshots. What had to be
    /// fetched is held until the result is dropped; what was there may go at any time.
    async fn provide(&self, layer: LayerClosure) -> Result<Option<RealisedLayer>, Error> {
        let (layer, realiser) = (Arc::new(layer), self.realiser.clone());
        let looked_at = Arc::clone(&layer);
        let look = move || realiser.is_present(&looked_at);
        let is_present = tokio::task::spawn_blocking(look).await?;
        match is_present && !self.realisations.is_under_way(&layer) {
            true => Ok(None),
            false => self.realisations.realise(&layer).await.map(Some),
        }
    }

    /// Realises a layer for the snapshot that will ask for it, shared and limited as for others. It
    /// is held until the result is dropped, or taken.
    pub(crate) async fn realise_ahead(&self, layer: LayerClosure) -> Result<RealisedAhead, Error> {
        self.realisations.realise_ahead(&Arc::new(layer)).await
    }

    /// What the realisations have come to so far.
    pub(crate) fn realisation_stats(&self) -> RealisationStats {
        self.realisations.stats()
    }

    /// The realisations that have something to fetch or to build.
    pub(crate) fn realisations_under_way(&self) -> Vec<UnderWay> {
        self.realisations.under_way()
    }

    /// Cancels what is being realised. Of those snapshots nothing is left when this returns.
    pub(crate) async fn shut_down(&self) {
        self.realisations.shut_down().await;
    }

    /// Makes a snapshot and says how to mount it.
    ///
    /// The closure that its labels ask for is realised first, outside of any
    /// transaction, so that a download of minutes blocks nobody else. Whoever sees
    /// the snapshot finds its GC roots in place. If this fails, or is dropped
    /// because the caller has gone away, the reservation takes everything along.
    pub(crate) async fn create(&self, new: NewSnapshot) -> Result<Vec<Mount>, Error> {
        let layer = self.layer(&new.labels)?.map(Arc::new);
        let realised = match &layer {
            Some(layer) => {
                // Nothing is downloaded for a key that is taken.
                let parent = new.parent.as_deref();
                self.snapshots
                    .check_new(new.kind, &new.key, parent, &new.labels)?;
                self.realisations.realise(layer).await?
            }
            None => RealisedLayer {
                reservation: self.snapshots.reserve(),
                closure: Closure::default(),
            },
        };
        about(&[("snapshot", &realised.reservation.id().to_string())]);
        block_in_place(|| self.publish(realised, new, layer.as_deref()))
    }

    /// What the labels of a snapshot ask for.
    fn layer(&self, labels: &Labels) -> Result<Option<LayerClosure>, Error> {
        let labels = labels.iter().map(|(name, value)| (&**name, &**value));
        Ok(annotations::layer_closure(&self.store_dir, labels)?)
    }

    fn publish(
        &self,
        realised: RealisedLayer,
        new: NewSnapshot,
        layer: Option<&LayerClosure>,
    ) -> Result<Vec<Mount>, Error> {
        let RealisedLayer {
            reservation,
            closure,
        } = realised;
        let purpose = Purpose::of(&new.key, &new.labels);
        self.snapshots.create(
            reservation,
            new.kind,
            &new.key,
            new.parent.as_deref(),
            new.labels,
            |snapshot| {
                let layer_dir = self.snapshots.layer_dir(snapshot.id);
                make_mount_points(&self.store_dir, &closure, &layer_dir)?;
                self.mounts_of(snapshot, purpose, layer)
            },
        )
    }

    /// Says again how to mount a snapshot.
    pub(crate) async fn mounts(&self, key: String) -> Result<Vec<Mount>, Error> {
        let this = self.clone();
        self.blocking(move |snapshots| {
            let (snapshot, labels) = snapshots.snapshot(&key)?;
            let layer = this.layer(&labels)?;
            this.mounts_of(&snapshot, Purpose::of(&key, &labels), layer.as_ref())
        })
        .await
    }

    /// For calls that take as long as one look at the store, or as one transaction in
    /// [`block_in_place`]: handing them to another thread and back would take as long again.
    pub(crate) fn snapshots(&self) -> &Snapshotter {
        &self.snapshots
    }

    /// Runs blocking work of any length, such as the walk of a directory, on a thread of its own.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Snapshotter>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let snapshots = Arc::clone(&self.snapshots);
        let call = Span::current();
        tokio::task::spawn_blocking(move || call.in_scope(|| work(&snapshots))).await?
    }

    /// How many snapshots there are, by kind. Blocks for one read transaction.
    pub(crate) fn counts(&self) -> Result<Counts, Error> {
        Ok(self.snapshots.counts()?)
    }

    /// How calls have waited for one another to change the store.
    pub(crate) fn store_waits(&self) -> StoreWaits {
        self.snapshots.store_waits()
    }

    /// The mounts that a snapshot needs for its purpose; `layer` is what its own labels ask for.
    fn mounts_of(
        &self,
        snapshot: &Snapshot,
        purpose: Purpose,
        layer: Option<&LayerClosure>,
    ) -> Result<Vec<Mount>, Error> {
        let root = self.snapshots.mounts(snapshot);
        if purpose != Purpose::Unpacking {
            self.snapshots.check_mountable(&root)?;
        }
        match purpose {
            Purpose::Unpacking | Purpose::Chowning => Ok(root),
            Purpose::Container => {
                let objects = self.store_objects(snapshot, layer)?;
                Ok(with_store_objects(root, &objects))
            }
        }
    }

    /// The store objects of a snapshot and all its parents, each once.
    fn store_objects(
        &self,
        snapshot: &Snapshot,
        layer: Option<&LayerClosure>,
    ) -> Result<Vec<StoreObject>, Error> {
        let mut objects = self.store_objects_of(snapshot.id, layer)?;
        let labels = self.snapshots.labels(&snapshot.parents)?;
        for (id, labels) in snapshot.parents.iter().zip(&labels) {
            let layer = self.layer(labels)?;
            objects.extend(self.store_objects_of(*id, layer.as_ref())?);
        }
        // Stable: of equal paths, the one in the topmost layer stays.
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        objects.dedup_by(|a, b| a.path == b.path);
        Ok(objects)
    }

    /// The store objects of one layer: those that its GC roots hold. What its labels name has to be
    /// among them, or a container would miss it without a word.
    fn store_objects_of(
        &self,
        id: Id,
        layer: Option<&LayerClosure>,
    ) -> Result<Vec<StoreObject>, Error> {
        let roots = self.realiser.roots(self.snapshots.attachment_dir(id));
        let held = match layer {
            Some(layer) => roots.read_all_of(layer)?,
            // A client may have committed the snapshot without its labels.
            None => roots.read()?.unwrap_or_default(),
        };
        let layer_dir = self.snapshots.layer_dir(id);
        held.into_iter()
            .map(|path| store_object(&self.store_dir, &path, &layer_dir))
            .collect()
    }
}

/// One store path as what is realised.
fn alone(path: &StorePath) -> LayerClosure {
    LayerClosure {
        closure_info: None,
        paths: [path.clone()].into_iter().collect(),
    }
}

/// What a client of containerd is going to do with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Unpack a layer into it. containerd unpacks into what it is given, and since 2.4 it takes a
    /// last mount that is read-only for "already unpacked" and skips the layer (`core/unpack`).
    Unpacking,
    /// Give all its files to the ids of a user namespace, which a walk through read-only store
    /// objects would not survive, nor they the walk.
    Chowning,
    /// Run a container on it.
    Container,
}

impl Purpose {
    /// Told from the key `<namespace>/<n>/<client key>` and the labels, since nothing else tells.
    ///
    /// - The unpacker sets the label `containerd.io/snapshot.ref` (1.7 to 2.4). The older path
    ///   behind `image.Unpack` sends no labels, but keys of the same form as the unpacker,
    ///   `extract-<unique> <chain ID>` (`core/metadata`, `pkg/rootfs`).
    /// - Without the capability `remap-ids`, the client changes owners in a snapshot
    ///   `<digest>-remap`, in 1.7 `<chain ID>-<uid>-<gid>-remap` (`client/snapshotter_opts_unix.go`
    ///   and `client/container_opts_unix.go`).
    ///
    /// The space of the one and the colon of the other cannot be in the id of a container.
    fn of(key: &str, labels: &Labels) -> Self {
        let client_key = key.splitn(3, '/').last().unwrap_or(key);
        let is_digest = |text: &str| text.starts_with("sha256:") || text.starts_with("sha512:");
        let unpacked = client_key
            .strip_prefix("extract-")
            .and_then(|rest| rest.split_once(' '))
            .is_some_and(|(_, chain_id)| is_digest(chain_id));
        if unpacked || labels.contains_key(SNAPSHOT_REF) {
            Self::Unpacking
        } else if is_digest(client_key) && client_key.ends_with("-remap") {
            Self::Chowning
        } else {
            Self::Container
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_are_told_apart() {
        use Purpose::{Chowning, Container, Unpacking};
        let chain_id = format!("sha256:{}", "a".repeat(64));
        for (key, reference, expected) in [
            (
                format!("k8s.io/12/extract-123456789-AbC_ {chain_id}"),
                false,
                Unpacking,
            ),
            (format!("extract-123 {chain_id}"), false, Unpacking),
            ("default/3/anything".to_owned(), true, Unpacking),
            (format!("default/3/{chain_id}-remap"), false, Chowning),
            (format!("default/3/{chain_id}-1-2-remap"), false, Chowning),
            (format!("default/3/{chain_id}-1-2"), false, Container),
            ("default/3/redis-remap".to_owned(), false, Container),
            ("default/3/redis".to_owned(), false, Container),
            ("default/3/extract-pages".to_owned(), false, Container),
            (format!("default/3/view {chain_id}"), false, Container),
        ] {
            let mut labels = Labels::new();
            if reference {
                labels.insert(SNAPSHOT_REF.to_owned(), chain_id.clone());
            }
            assert_eq!(Purpose::of(&key, &labels), expected, "{key}");
        }
    }
}

//! Nix layers on top of plain snapshots: the order of events that a pull goes through.

use std::sync::Arc;

use nix_image::annotations::{self, SNAPSHOT_REF};
use nix_store::{Closure, Realiser, StoreDir};
use snapshots::{Counts, Kind, Labels, Mount, Snapshot, Snapshotter, StoreWaits};
use tracing::Span;

use crate::{
    calls::about,
    error::Error,
    mounts::{StoreObject, with_store_objects},
    realisations::{RealisationStats, Realisations, RealisedLayer, UnderWay},
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
        let labels = new.labels.iter().map(|(name, value)| (&**name, &**value));
        let layer = annotations::layer_closure(&self.store_dir, labels)?;

        let (kind, key, parent) = (new.kind, new.key.clone(), new.parent.clone());
        self.blocking(move |snapshots| {
            // Nothing is downloaded for a key that is taken.
            Ok(snapshots.check_new(kind, &key, parent.as_deref())?)
        })
        .await?;
        let realised = match layer {
            Some(layer) => self.realisations.realise(&Arc::new(layer)).await?,
            None => RealisedLayer {
                reservation: self.snapshots.reserve(),
                closure: Closure::default(),
            },
        };
        about(&[("snapshot", &realised.reservation.id().to_string())]);
        let this = self.clone();
        self.blocking(move |_| this.publish(realised, new)).await
    }

    fn publish(&self, realised: RealisedLayer, new: NewSnapshot) -> Result<Vec<Mount>, Error> {
        let RealisedLayer {
            reservation,
            closure,
        } = realised;
        let extraction = is_extraction(&new.key, &new.labels);
        self.snapshots.create(
            reservation,
            new.kind,
            &new.key,
            new.parent.as_deref(),
            new.labels,
            |snapshot| {
                let layer_dir = self.snapshots.layer_dir(snapshot.id);
                make_mount_points(&self.store_dir, &closure, &layer_dir)?;
                self.mounts_of(snapshot, extraction)
            },
        )
    }

    /// Says again how to mount a snapshot.
    pub(crate) async fn mounts(&self, key: String) -> Result<Vec<Mount>, Error> {
        let this = self.clone();
        self.blocking(move |snapshots| {
            let snapshot = snapshots.snapshot(&key)?;
            let extraction = is_extraction(&key, &snapshots.stat(&key)?.labels);
            this.mounts_of(&snapshot, extraction)
        })
        .await
    }

    /// Runs blocking work, disk access and transactions, on a thread of its own.
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

    /// The mounts of a container; of a layer that is being unpacked, only its writable root.
    ///
    /// containerd unpacks into what it is given, and since 2.4 it takes a last mount
    /// that is read-only for "already unpacked" and skips the layer (`core/unpack`).
    fn mounts_of(&self, snapshot: &Snapshot, extraction: bool) -> Result<Vec<Mount>, Error> {
        let root = self.snapshots.mounts(snapshot);
        if extraction {
            return Ok(root);
        }
        Ok(with_store_objects(root, &self.store_objects(snapshot)?))
    }

    /// The store objects of a snapshot and all its parents, each once.
    fn store_objects(&self, snapshot: &Snapshot) -> Result<Vec<StoreObject>, Error> {
        let mut objects = Vec::new();
        for id in std::iter::once(&snapshot.id).chain(&snapshot.parents) {
            let roots = self.realiser.roots(self.snapshots.attachment_dir(*id));
            let layer_dir = self.snapshots.layer_dir(*id);
            for path in roots.read()?.unwrap_or_default() {
                objects.push(store_object(&self.store_dir, &path, &layer_dir)?);
            }
        }
        // Stable: of equal paths, the one in the topmost layer stays.
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        objects.dedup_by(|a, b| a.path == b.path);
        Ok(objects)
    }
}

/// Whether containerd is going to unpack a layer into this snapshot.
///
/// Its unpacker says so by the label `containerd.io/snapshot.ref` (1.7 to 2.4). The
/// older path behind `image.Unpack` sends no labels, but keys of the same form as
/// the unpacker, `<namespace>/<n>/extract-<unique> <chain ID>`; with its space this
/// cannot be the id of a container (`core/metadata`, `pkg/rootfs`).
fn is_extraction(key: &str, labels: &Labels) -> bool {
    let client_key = key.splitn(3, '/').last().unwrap_or(key);
    labels.contains_key(SNAPSHOT_REF)
        || client_key
            .strip_prefix("extract-")
            .is_some_and(|rest| rest.contains(" sha256:") || rest.contains(" sha512:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extractions_are_told_from_containers() {
        let chain_id = format!("sha256:{}", "a".repeat(64));
        for (key, reference, expected) in [
            (
                format!("k8s.io/12/extract-123456789-AbC_ {chain_id}"),
                false,
                true,
            ),
            (format!("extract-123 {chain_id}"), false, true),
            ("default/3/anything".to_owned(), true, true),
            ("default/3/redis".to_owned(), false, false),
            ("default/3/extract-pages".to_owned(), false, false),
            (format!("default/3/view {chain_id}"), false, false),
        ] {
            let mut labels = Labels::new();
            if reference {
                labels.insert(SNAPSHOT_REF.to_owned(), chain_id.clone());
            }
            assert_eq!(is_extraction(&key, &labels), expected, "{key}");
        }
    }
}

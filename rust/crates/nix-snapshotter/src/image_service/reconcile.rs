//! The roots of archives follow the images of containerd: whoever removes one, and whatever happens
//! while one of the two is down.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use containerd_client::services::v1::{SubscribeRequest, events_client::EventsClient};
use image_loader::Client;
use nix_store::StorePath;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::sleep,
};
use tonic::transport::Channel;
use tracing::{Instrument, info, warn};

use super::{
    KUBERNETES, archive_of,
    archive_roots::{Archive, ArchiveRoots},
    failures::Failures,
    forward::Containerd,
    leases::Leases,
};
use crate::error::{Error, chain};

/// What containerd tells of removed images (`core/metadata`), as a filter of its events.
const REMOVALS: &str = r#"topic=="/images/delete""#;

/// How long to wait before containerd is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often it is done without a reason: containerd does not say when it has begun to tell of
/// removals.
const PERIOD: Duration = Duration::from_secs(60);

/// How long to wait for the other names of an image to go, too.
const SETTLE: Duration = Duration::from_millis(50);

/// How many archives are held again at once. One takes as long as Nix does.
const HOLDING: usize = 4;

/// Compares the two.
pub(super) struct Reconciler {
    containerd: Containerd,
    roots: Arc<ArchiveRoots>,
    leases: Arc<Leases>,
    wanted: Notify,
    holding: Arc<Semaphore>,
    /// What was said of archives whose roots cannot be as containerd's images ask for.
    said: Mutex<BTreeMap<StorePath, String>>,
}

impl Reconciler {
    pub(super) fn new(
        containerd: Containerd,
        roots: Arc<ArchiveRoots>,
        leases: Arc<Leases>,
    ) -> Self {
        Self {
            containerd,
            roots,
            leases,
            wanted: Notify::new(),
            holding: Arc::new(Semaphore::new(HOLDING)),
            said: Mutex::default(),
        }
    }

    /// Has it done at the next opportunity.
    pub(super) fn reconcile_soon(&self) {
        self.wanted.notify_one();
    }

    /// Does it at first, after each removal, and whenever containerd has come back; for ever.
    pub(super) async fn run(self: &Arc<Self>) -> Infallible {
        let mut failures = Failures::default();
        loop {
            let begun = Instant::now();
            let ended = tokio::select! {
                ended = self.listen() => ended,
                ended = self.work() => ended.map(|never| match never {}),
            };
            if begun.elapsed() > PERIOD {
                failures.end();
            }
            if let Err(error) = ended {
                failures.tell("containerd's images are not followed for now", &error);
            }
            sleep(RETRY).await;
        }
    }

    /// Does it whenever it is wanted.
    async fn work(self: &Arc<Self>) -> Result<Infallible, Error> {
        loop {
            let reconciled = self.reconcile().await;
            self.leases.delete_abandoned(&self.containerd).await?;
            reconciled?;
            tokio::select! {
                () = self.wanted.notified() => sleep(SETTLE).await,
                () = sleep(PERIOD) => {}
            }
        }
    }

    /// Hears of removals until containerd goes away.
    async fn listen(&self) -> Result<(), Error> {
        let subscribe = SubscribeRequest {
            filters: vec![REMOVALS.to_owned()],
        };
        let mut client = EventsClient::<Channel>::over(self.containerd.channel());
        let refused = || self.containerd.refused("tell of its images");
        let events = client.subscribe(subscribe).await;
        let mut events = events.map_err(refused())?.into_inner();
        while let Some(event) = events.message().await.map_err(refused())? {
            if event.namespace == KUBERNETES {
                self.wanted.notify_one();
            }
        }
        Ok(())
    }

    /// Drops the roots that no image needs, and has those made that are missing.
    async fn reconcile(self: &Arc<Self>) -> Result<(), Error> {
        let roots = Arc::clone(&self.roots);
        let held = spawn_blocking(move || roots.list()).await??;
        let named = self.named().await?;
        let differing: BTreeSet<_> = held.symmetric_difference(&named).cloned().collect();
        self.said().retain(|path, _| differing.contains(path));
        for path in differing {
            // A pull that is under way sees to it itself, and so does what holds it again.
            let Some(archive) = self.roots.try_archive(&path) else {
                continue;
            };
            // It may have ended since the images were listed.
            if !self.named().await?.contains(&path) {
                match archive.release().await {
                    Ok(()) => info!(archive = %path, "released: no image is left of it"),
                    Err(error) => self.cannot(&path, &error),
                }
            } else if path.as_path().symlink_metadata().is_err() {
                if self.is_news(&path, "gone") {
                    warn!(archive = %path, "an image comes from an archive that is gone from the store: its next pull fetches it");
                }
            } else if let Ok(permit) = Arc::clone(&self.holding).try_acquire_owned() {
                let holding = Arc::clone(self).hold(path, archive, permit);
                tokio::spawn(holding.in_current_span());
            }
        }
        Ok(())
    }

    /// Makes the root of an archive, which takes as long as Nix takes. The others do not wait for it.
    async fn hold(
        self: Arc<Self>,
        path: StorePath,
        archive: Archive,
        permit: OwnedSemaphorePermit,
    ) {
        match archive.hold().await {
            Ok(()) => {
                info!(archive = %path, "held again: an image comes from it");
                drop((archive, permit));
                // There may be more of them than can be held at once.
                self.wanted.notify_one();
            }
            Err(error) => self.cannot(&path, &error),
        }
    }

    /// Says that the root of an archive stays as it is, once for each reason.
    fn cannot(&self, path: &StorePath, error: &Error) {
        let error = chain(error);
        if self.is_news(path, &error) {
            warn!(archive = %path, error, "its GC root is not what containerd's images ask for");
        }
    }

    fn is_news(&self, path: &StorePath, reason: &str) -> bool {
        let said = self.said().insert(path.clone(), reason.to_owned());
        said.as_deref() != Some(reason)
    }

    fn said(&self) -> MutexGuard<'_, BTreeMap<StorePath, String>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The archives that images come from.
    pub(super) async fn named(&self) -> Result<BTreeSet<StorePath>, Error> {
        let containerd = image_loader::Containerd::over(self.containerd.channel(), KUBERNETES)?;
        let images = containerd.list_images().await?;
        let store_dir = self.roots.store_dir();
        let archives = images
            .iter()
            .filter_map(|image| archive_of(&image.name, store_dir));
        Ok(archives.collect())
    }
}

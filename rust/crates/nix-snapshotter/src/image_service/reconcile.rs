//! The roots of archives follow the images of containerd: whoever removes one, and whatever happens
//! while one of the two is down.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use containerd_client::services::v1::{SubscribeRequest, events_client::EventsClient};
use nix_store::StorePath;
use tokio::{sync::Notify, task::spawn_blocking, time::sleep};
use tracing::{debug, info, warn};

use super::{
    KUBERNETES,
    archive_roots::{Archive, ArchiveRoots},
    forward::Containerd,
    reference::NixReference,
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

/// Compares the two.
pub(super) struct Reconciler {
    containerd: Containerd,
    roots: Arc<ArchiveRoots>,
    wanted: Notify,
}

impl Reconciler {
    pub(super) fn new(containerd: Containerd, roots: Arc<ArchiveRoots>) -> Self {
        Self {
            containerd,
            roots,
            wanted: Notify::new(),
        }
    }

    /// Has it done at the next opportunity.
    pub(super) fn reconcile_soon(&self) {
        self.wanted.notify_one();
    }

    /// Does it at first, after each removal, and whenever containerd has come back; for ever.
    pub(super) async fn run(&self) -> Infallible {
        loop {
            let ended = tokio::select! {
                ended = self.listen() => ended,
                ended = self.work() => ended.map(|never| match never {}),
            };
            if let Err(error) = ended {
                debug!(
                    error = chain(&error),
                    "containerd's images are not followed for now"
                );
            }
            sleep(RETRY).await;
        }
    }

    /// Does it whenever it is wanted.
    async fn work(&self) -> Result<Infallible, Error> {
        loop {
            self.reconcile().await?;
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
        let mut client = EventsClient::new(self.containerd.channel());
        let refused = |status| Error::Cri {
            operation: "tell of its images",
            socket: self.containerd.socket().to_owned(),
            status: Box::new(status),
        };
        let events = client.subscribe(subscribe).await;
        let mut events = events.map_err(refused)?.into_inner();
        while let Some(event) = events.message().await.map_err(refused)? {
            if event.namespace == KUBERNETES {
                self.wanted.notify_one();
            }
        }
        Ok(())
    }

    /// Drops the roots that no image needs, and makes those that are missing.
    async fn reconcile(&self) -> Result<(), Error> {
        let roots = Arc::clone(&self.roots);
        let held = spawn_blocking(move || roots.list()).await??;
        let named = self.named().await?;
        for path in held.symmetric_difference(&named) {
            // A pull that is under way sees to it itself.
            let Some(archive) = self.roots.try_archive(path) else {
                continue;
            };
            // It may have ended since the images were listed.
            let is_named = self.named().await?.contains(path);
            // What is wrong with one archive does not keep the others from it.
            if let Err(error) = settle(&archive, path, is_named).await {
                let error = chain(&error);
                warn!(archive = %path, error, "its GC root is not what containerd's images ask for");
            }
        }
        Ok(())
    }

    /// The archives that images come from.
    pub(super) async fn named(&self) -> Result<BTreeSet<StorePath>, Error> {
        let containerd = image_loader::Containerd::over(self.containerd.channel(), KUBERNETES)?;
        let images = containerd.list_images().await?;
        let store_dir = self.roots.store_dir();
        let archive = |name: &str| {
            let is_ours = NixReference::is_one(name);
            let parsed = is_ours.then(|| NixReference::parse(name, store_dir).ok());
            parsed.flatten().map(|name| name.archive)
        };
        Ok(images
            .iter()
            .filter_map(|image| archive(&image.name))
            .collect())
    }
}

/// Makes the root of an archive, or drops it.
async fn settle(archive: &Archive, path: &StorePath, is_named: bool) -> Result<(), Error> {
    if !is_named {
        archive.release().await?;
        info!(archive = %path, "released: no image is left of it");
    } else if path.as_path().symlink_metadata().is_ok() {
        archive.hold().await?;
        info!(archive = %path, "held again: an image comes from it");
    } else {
        warn!(archive = %path, "an image comes from an archive that is gone from the store: its next pull fetches it");
    }
    Ok(())
}

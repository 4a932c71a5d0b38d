//! The CRI's image service: containerd's own, with images that Nix resolves.
//!
//! Kubelet asks here instead of at containerd. Calls are forwarded to containerd byte for byte, and
//! with them methods and fields that are younger than this program. Only these are looked into:
//!
//! * `PullImage` of a name that Nix resolves is done here (`pull`), where containerd can take the image
//!   (`readiness`), on an archive that is held by a GC root of its own (`archive_roots`).
//! * After `RemoveImage` the roots are dropped that no image needs any more (`reconcile`, which hears
//!   of other clients' removals by containerd's events, and deletes leases of a daemon that was
//!   killed).
//! * `ImageFsInfo`, `ListImages`, `StreamImages` and `ImageStatus` may tell kubelet of the store
//!   paths, too (`store_usage`, `rewrite`).

mod archive_roots;
mod failures;
mod forward;
mod leases;
mod present;
mod pull;
mod readiness;
mod reconcile;
mod reference;
mod rewrite;
mod store_usage;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use cri_api::v1::{PullImageRequest, PullImageResponse};
use nix_store::{StoreDir, StorePath};
use tonic::{Request, Response, Status, body::Body, server::NamedService};
use tower::Service;
use tracing::Instrument;

pub(crate) use self::archive_roots::IMAGES;
use self::{
    archive_roots::ArchiveRoots,
    forward::{Containerd, MAX_MESSAGE},
    leases::Leases,
    pull::Puller,
    readiness::Ours,
    reconcile::Reconciler,
    reference::NixReference,
    store_usage::StoreUsage,
};
use crate::{calls::about, config::Config, nix_snapshotter::NixSnapshotter};

/// The namespace of containerd in which the CRI has everything.
pub(crate) const KUBERNETES: &str = "k8s.io";

/// The archive in the store that an image of this name comes from; `None` for a name that is not for
/// Nix to resolve.
pub(crate) fn archive_of(image: &str, store_dir: &StoreDir) -> Option<StorePath> {
    let is_ours = NixReference::is_one(image);
    let name = is_ours.then(|| NixReference::parse(image, store_dir).ok())?;
    name.map(|name| name.archive)
}

/// The service. Its copies are one.
#[derive(Clone)]
pub(crate) struct ImageService {
    containerd: Containerd,
    puller: Arc<Puller>,
    reconciler: Arc<Reconciler>,
    /// Where kubelet is to hear of it.
    store_usage: Option<Arc<StoreUsage>>,
}

impl ImageService {
    /// A service that has not connected to containerd yet.
    pub(crate) fn new(config: &Config, snapshotter: NixSnapshotter) -> Self {
        let options = &config.image_service;
        let containerd = Containerd::new(&options.containerd_address);
        let usage = options.count_store_paths.then(|| {
            let (snapshotter, containerd) = (snapshotter.clone(), containerd.clone());
            StoreUsage::new(&config.root, snapshotter, containerd, &options.snapshotter)
        });
        let roots = Arc::new(ArchiveRoots::new(&config.root, snapshotter.clone()));
        let ours = Ours {
            plugin: options.snapshotter.clone(),
            address: config.address.clone(),
            root: config.root.clone(),
        };
        let leases = Arc::new(Leases::new(&config.root, &options.snapshotter));
        let reconciler = Arc::new(Reconciler::new(
            containerd.clone(),
            Arc::clone(&roots),
            Arc::clone(&leases),
        ));
        Self {
            puller: Arc::new(Puller::new(
                containerd.clone(),
                snapshotter,
                roots,
                leases,
                Arc::clone(&reconciler),
                ours,
            )),
            reconciler,
            store_usage: usage.map(Arc::new),
            containerd,
        }
    }

    /// What there is to do beside answering, for ever: keeps the roots of archives in step with the
    /// images of containerd, and looks how large the held store paths are.
    pub(crate) async fn keep_in_step(&self) -> Infallible {
        let measuring = async {
            match &self.store_usage {
                Some(usage) => usage.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            never = self.reconciler.run() => never,
            never = measuring => never,
        }
    }

    /// Answers a call.
    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        match method {
            "PullImage" => self.pull_image(request).await,
            "RemoveImage" => {
                let response = self.containerd.forward(request).await;
                self.reconciler.reconcile_soon();
                response
            }
            "ImageFsInfo" => self.counted(request, StoreUsage::in_use).await,
            "ListImages" | "StreamImages" | "ImageStatus" => {
                self.counted(request, StoreUsage::in_sizes).await
            }
            _ => self.containerd.forward(request).await,
        }
    }

    /// Forwards a call in whose answer store paths are counted, where they are.
    async fn counted(
        &self,
        request: http::Request<Body>,
        count: impl Fn(&StoreUsage, &Bytes) -> Option<Vec<u8>> + Send + 'static,
    ) -> http::Response<Body> {
        let answer = self.containerd.forward(request).await;
        match self.store_usage.clone() {
            Some(usage) => rewrite::messages(answer, move |message| count(&usage, message)),
            None => answer,
        }
    }

    async fn pull_image(self, request: http::Request<Body>) -> http::Response<Body> {
        let (request, message) = match wire::peek::<PullImageRequest>(request, MAX_MESSAGE).await {
            Ok(peeked) => peeked,
            Err(status) => return status.into_http(),
        };
        let spec = message.and_then(|message| message.image);
        let image = spec.as_ref().map_or("", |spec| &spec.image);
        about(&[("image", image)]);
        if !NixReference::is_one(image) {
            return self.containerd.forward(request).await;
        }
        let puller = Arc::clone(&self.puller);
        let pull = move |request: Request<PullImageRequest>| {
            let puller = Arc::clone(&puller);
            async move {
                let spec = request.into_inner().image.unwrap_or_default();
                let image_ref = puller.pull(&spec).await?;
                Ok::<_, Status>(Response::new(PullImageResponse { image_ref }))
            }
        };
        wire::unary(pull, request, MAX_MESSAGE).await
    }
}

impl NamedService for ImageService {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl Service<http::Request<Body>> for ImageService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(async move { Ok(answer.in_current_span().await) })
    }
}

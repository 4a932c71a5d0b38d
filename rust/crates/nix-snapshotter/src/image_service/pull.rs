//! The pull of an image that Nix resolves.
//!
//! ```text
//! name → archive (realised, held) → manifest → closures of its layers (realised)
//!      → containerd: blobs, snapshots, names, under a lease → the CRI knows it → its id
//! ```
//! Nothing is downloaded while containerd waits for a snapshot: it holds locks then. One archive is
//! pulled by one call at a time, and whoever waited finds the image there.

use std::{collections::HashMap, sync::Arc};

use cri_api::v1::ImageSpec;
use futures_util::future::try_join_all;
use image_loader::{ImageArchive, PlannedImage, Platforms, Silent};
use nix_image::{Platform, annotations};
use nix_store::LayerClosure;
use tokio::{runtime::Handle, task::spawn_blocking};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info};

use super::{
    KUBERNETES,
    archive_roots::{Archive, ArchiveRoots},
    forward::Containerd,
    reference::NixReference,
};
use crate::{error::Error, nix_snapshotter::NixSnapshotter};

/// By this label the CRI knows its own images (`internal/cri/labels`, 1.7 to 2.4). Without it, it
/// would name the image by its identifier itself, a moment later.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");

/// What the id of a lease begins with.
const LEASE: &str = "nix-snapshotter";

/// Pulls images.
pub(super) struct Puller {
    containerd: Containerd,
    snapshotter: NixSnapshotter,
    roots: Arc<ArchiveRoots>,
    /// The name by which containerd knows this daemon.
    plugin: String,
}

/// An archive that was read.
struct Opened {
    archive: ImageArchive,
    image: PlannedImage,
    /// The digest of the config.
    id: String,
    /// Of the layers that name store paths.
    closures: Vec<LayerClosure>,
}

impl Puller {
    pub(super) fn new(
        containerd: Containerd,
        snapshotter: NixSnapshotter,
        roots: Arc<ArchiveRoots>,
        plugin: String,
    ) -> Self {
        Self {
            containerd,
            snapshotter,
            roots,
            plugin,
        }
    }

    /// Pulls an image and gives its identifier. When the caller goes away, it is given up, and
    /// nothing is left of it.
    pub(super) async fn pull(self: &Arc<Self>, spec: &ImageSpec) -> Result<String, Error> {
        let cancel = CancellationToken::new();
        let _cancelled_with_the_call = cancel.clone().drop_guard();
        let (this, spec) = (Arc::clone(self), spec.clone());
        let pull = async move {
            let name = NixReference::parse(&spec.image, this.snapshotter.store_dir())?;
            let waiting = async { Ok(this.roots.archive(&name.archive).await) };
            let archive = unless(&cancel, waiting).await?;
            let had_root = archive.is_held();
            let imported = this.pull_archive(&name, &spec, &archive, &cancel).await;
            if imported.is_err() && !had_root {
                archive.release().await?;
            }
            let id = imported?;
            // containerd has the image: whatever comes now, the root has to stay.
            let image = name.reference.to_string();
            unless(&cancel, this.containerd.wait_for_image(&image, &id)).await?;
            Ok(id)
        };
        tokio::spawn(pull.in_current_span()).await?
    }

    /// Sees to it that containerd has the image.
    async fn pull_archive(
        &self,
        name: &NixReference,
        spec: &ImageSpec,
        archive: &Archive,
        cancel: &CancellationToken,
    ) -> Result<String, Error> {
        unless(cancel, archive.hold()).await?;
        let opened = self.open(name).await?;
        let id = opened.id.clone();
        let image = name.reference.to_string();
        if self.is_pulled(&opened, &image).await? {
            info!(image, id, "the image is there already");
            return Ok(id);
        }
        // The runtimes of another class may have another snapshotter.
        if spec.runtime_handler.is_empty() {
            self.containerd.check_snapshotter(&self.plugin).await?;
        }
        let closures = opened.closures.iter().cloned();
        let realising = closures.map(|closure| self.snapshotter.provide(closure));
        let held = unless(cancel, try_join_all(realising)).await?;
        let imported = self.import(opened, cancel.clone()).await;
        // Their roots are deleted, which blocks. Those of the snapshots stand by now.
        spawn_blocking(move || drop(held)).await?;
        imported?;
        info!(image, id, "imported");
        Ok(id)
    }

    /// Reads the archive and checks that it has what the name says.
    async fn open(&self, name: &NixReference) -> Result<Opened, Error> {
        let (name, store_dir) = (name.clone(), self.snapshotter.store_dir().clone());
        let call = Span::current();
        let open = move || {
            let mut archive = image_loader::open(name.archive.as_path())?;
            check_names(&archive, &name)?;
            let platform = Platforms::One(Platform::host());
            let planned = image_loader::images(&mut archive, &platform, Some(&name.reference))?;
            let no_image = || image_loader::Error::NoImage {
                archive: name.archive.to_string(),
            };
            let image = planned.into_iter().next().ok_or_else(no_image)?;
            let stored = image.unpacked.as_ref().ok_or_else(no_image)?;
            let id = stored.manifest.config.digest.to_string();
            let mut closures = Vec::new();
            for layer in &stored.manifest.layers {
                let labels = annotations::snapshot_labels(&layer.annotations);
                closures.extend(annotations::layer_closure(&store_dir, labels)?);
            }
            Ok(Opened {
                id,
                closures,
                image,
                archive,
            })
        };
        spawn_blocking(move || call.in_scope(open)).await?
    }

    /// Whether containerd has exactly this image by the name, and the CRI knows it.
    async fn is_pulled(&self, opened: &Opened, image: &str) -> Result<bool, Error> {
        let containerd = image_loader::Containerd::over(self.containerd.channel(), KUBERNETES)?;
        let found = containerd.image(image).await?;
        match found.is_some_and(|found| found.target.digest == opened.image.target.digest) {
            true => self.containerd.has_image(image, &opened.id).await,
            false => Ok(false),
        }
    }

    /// Brings the image into containerd. It reads the archive, which blocks: on a thread of its own.
    async fn import(&self, opened: Opened, cancel: CancellationToken) -> Result<(), Error> {
        let mut containerd = image_loader::Containerd::over(self.containerd.channel(), KUBERNETES)?;
        let plugin = self.plugin.clone();
        let Opened {
            mut archive,
            image,
            id,
            ..
        } = opened;
        let (handle, call) = (Handle::current(), Span::current());
        let import = move || {
            let load = async |containerd: &image_loader::Containerd| {
                let labels =
                    HashMap::from([MANAGED].map(|(name, value)| (name.into(), value.into())));
                let loading = async {
                    let progress = &Silent;
                    image_loader::load(
                        containerd,
                        &mut archive,
                        &plugin,
                        &image,
                        &labels,
                        progress,
                    )
                    .await?;
                    Ok(containerd.tag(&id, &image.target, &labels).await?)
                };
                unless(&cancel, loading).await
            };
            let importing = containerd.under_lease(LEASE, load);
            handle.block_on(importing.instrument(call))
        };
        spawn_blocking(import).await?
    }
}

/// Refuses a tag or a digest that the archive contradicts.
fn check_names(archive: &ImageArchive, name: &NixReference) -> Result<(), Error> {
    let [image] = archive.images() else {
        // Not one image: said where it is planned.
        return Ok(());
    };
    name.check_tag(image.name.as_deref())?;
    let Some(digest) = name.reference.digest() else {
        return Ok(());
    };
    let mut own = image.roots.iter().chain(&image.manifests);
    match own.any(|own| own.digest == digest) {
        true => Ok(()),
        false => Err(Error::Contradiction {
            image: name.reference.to_string(),
            archive: match image.roots.first() {
                Some(root) => format!("has the digest {}: write that, or none", root.digest),
                None => "has no image".to_owned(),
            },
        }),
    }
}

/// The outcome of a piece of work, unless it is cancelled before.
async fn unless<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        outcome = work => outcome,
        () = cancel.cancelled() => Err(nix_store::Error::Cancelled.into()),
    }
}

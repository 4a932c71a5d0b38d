//! The pull of an image that Nix resolves.
//!
//! ```text
//! name → containerd can take it → archive (realised)
//!      → GC root of the archive
//!        | at once: manifest → closures of its layers (realised, held for their snapshots)
//!      → in turn: containerd gets blobs, snapshots, names, under a lease
//!      → the CRI knows it → its id
//! ```
//! Nothing is downloaded while containerd waits for a snapshot: it holds locks then. What is
//! realised is shared by all who ask for it meanwhile. One archive is imported by one call at a
//! time, and whoever waited finds the image there.

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc};

use cri_api::v1::ImageSpec;
use futures_util::{StreamExt, TryStreamExt, stream};
use image_loader::{ImageArchive, PlannedImage, Platforms, Silent};
use nix_image::{Platform, annotations};
use nix_store::{LayerClosure, StoreDir, StorePath};
use tokio::{runtime::Handle, task::spawn_blocking, try_join};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info, warn};

use super::{
    KUBERNETES,
    archive_roots::{Archive, ArchiveRoots},
    forward::Containerd,
    leases::Leases,
    readiness::Ours,
    reconcile::Reconciler,
    reference::NixReference,
};
use crate::{
    error::{Error, chain},
    nix_snapshotter::NixSnapshotter,
    realisations::RealisedAhead,
};

/// By this label the CRI knows its own images (`internal/cri/labels`, 1.7 to 2.4). Without it, it
/// would name the image by its identifier itself, a moment later.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");

/// What the id of a lease begins with.
const LEASE: &str = "nix-snapshotter";

/// How many layers of an image are realised at once.
const LAYERS_AT_ONCE: usize = 8;

/// Pulls images.
pub(super) struct Puller {
    containerd: Containerd,
    snapshotter: NixSnapshotter,
    roots: Arc<ArchiveRoots>,
    leases: Arc<Leases>,
    reconciler: Arc<Reconciler>,
    ours: Ours,
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

/// What the layers of an image need, as far as containerd does not have the image.
type Layers = Vec<RealisedAhead>;

impl Puller {
    pub(super) fn new(
        containerd: Containerd,
        snapshotter: NixSnapshotter,
        roots: Arc<ArchiveRoots>,
        leases: Arc<Leases>,
        reconciler: Arc<Reconciler>,
        ours: Ours,
    ) -> Self {
        Self {
            containerd,
            snapshotter,
            roots,
            leases,
            reconciler,
            ours,
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
            let (ours, runtime) = (&this.ours, &spec.runtime_handler);
            unless(&cancel, this.containerd.check_snapshotter(ours, runtime)).await?;
            let providing = this.snapshotter.provide_path(&name.archive);
            let provided = unless(&cancel, providing).await?;
            let mut made_root = false;
            let imported = this.import_held(&name, &mut made_root, &cancel).await;
            dropped(provided).await?;
            if imported.is_err() && made_root {
                this.give_up(&name.archive).await;
            }
            imported
        };
        tokio::spawn(pull.in_current_span()).await?
    }

    /// Sees to it that containerd has the image of an archive, which is held from before its import.
    async fn import_held(
        &self,
        name: &NixReference,
        made_root: &mut bool,
        cancel: &CancellationToken,
    ) -> Result<String, Error> {
        // Others have their turn while this one downloads.
        let holding = async { self.hold(name, made_root, cancel).await.map(drop) };
        let reading = async { Ok(self.read(name, cancel).await) };
        let ((), read) = try_join!(holding, reading)?;
        let (opened, layers) = match read {
            Ok(read) => read,
            // It may have been collected before its root stood.
            Err(_) => self.read(name, cancel).await?,
        };
        let layers = layers?;
        let imported = self.import_in_turn(name, opened, made_root, cancel).await;
        dropped(layers).await?;
        imported
    }

    /// Reads the archive, and has realised what its layers need.
    async fn read(
        &self,
        name: &NixReference,
        cancel: &CancellationToken,
    ) -> Result<(Opened, Result<Layers, Error>), Error> {
        let opened = unless(cancel, self.open(name)).await?;
        let layers = unless(cancel, self.realise_layers(name, &opened)).await;
        Ok((opened, layers))
    }

    async fn realise_layers(&self, name: &NixReference, opened: &Opened) -> Result<Layers, Error> {
        if self.is_pulled(name, opened).await? {
            return Ok(Layers::new());
        }
        stream::iter(opened.closures.clone())
            .map(|closure| self.snapshotter.realise_ahead(closure))
            .buffered(LAYERS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Has the archive held, and nobody else work with it until what is returned is dropped.
    async fn hold(
        &self,
        name: &NixReference,
        made_root: &mut bool,
        cancel: &CancellationToken,
    ) -> Result<Archive, Error> {
        let waiting = async { Ok(self.roots.archive(&name.archive).await) };
        let archive = unless(cancel, waiting).await?;
        if !archive.is_held() {
            *made_root = true;
            unless(cancel, archive.hold()).await?;
        }
        Ok(archive)
    }

    /// Releases an archive whose import has failed, unless containerd has an image of it all the
    /// same, or does not say.
    async fn give_up(&self, archive: &StorePath) {
        let archive = self.roots.archive(archive).await;
        let released = match self.reconciler.named().await {
            Ok(named) if !named.contains(archive.path()) => archive.release().await,
            _ => {
                self.reconciler.reconcile_soon();
                Ok(())
            }
        };
        if let Err(error) = released {
            let (archive, error) = (archive.path(), chain(&error));
            warn!(%archive, error, "its GC root is left although its import has failed");
        }
    }

    /// Reads the archive and checks that it has what the name says.
    async fn open(&self, name: &NixReference) -> Result<Opened, Error> {
        let (name, store_dir) = (name.clone(), self.snapshotter.store_dir().clone());
        let call = Span::current();
        let open = move || {
            let mut archive = image_loader::open(&in_store(&name.archive, &store_dir)?)?;
            let platform = Platforms::One(Platform::host());
            let planned = image_loader::images(&mut archive, &platform, Some(&name.reference))?;
            let no_image = || image_loader::Error::NoImage {
                archive: name.archive.to_string(),
            };
            let image = planned.into_iter().next().ok_or_else(no_image)?;
            name.check(archive.images(), &image.target)?;
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

    /// Imports the image, unless it is there already, and waits until the CRI knows it.
    async fn import_in_turn(
        &self,
        name: &NixReference,
        opened: Opened,
        made_root: &mut bool,
        cancel: &CancellationToken,
    ) -> Result<String, Error> {
        // Whoever has made the root may have given up and taken it along.
        let _turn = self.hold(name, made_root, cancel).await?;
        let (id, image) = (opened.id.clone(), name.reference.to_string());
        if unless(cancel, self.is_pulled(name, &opened)).await? {
            info!(image, id, "the image is there already");
            return Ok(id);
        }
        self.import(opened, cancel.clone()).await?;
        // Still in turn: whoever comes next finds the image there.
        unless(cancel, self.containerd.wait_for_image(&image, &id)).await?;
        info!(image, id, "imported");
        Ok(id)
    }

    /// Whether containerd has exactly this image by the name, and the CRI knows it.
    async fn is_pulled(&self, name: &NixReference, opened: &Opened) -> Result<bool, Error> {
        let image = &name.reference.to_string();
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
        let (plugin, leases) = (self.ours.plugin.clone(), Arc::clone(&self.leases));
        let Opened {
            mut archive,
            mut image,
            id,
            ..
        } = opened;
        let labels = HashMap::from([MANAGED].map(|(name, value)| (name.into(), value.into())));
        let names = std::mem::take(&mut image.names);
        let (handle, call) = (Handle::current(), Span::current());
        let import = move || {
            let load = async |containerd: &image_loader::Containerd| {
                let progress = &Silent;
                let loading = async {
                    image_loader::load(
                        containerd,
                        &mut archive,
                        &plugin,
                        &image,
                        &labels,
                        progress,
                    )
                    .await?;
                    Ok(())
                };
                unless(&cancel, loading).await?;
                // Not to be interrupted: an image that has its names is there, root and all.
                for name in names.iter().map(ToString::to_string).chain([id]) {
                    containerd.tag(&name, &image.target, &labels).await?;
                }
                Ok(())
            };
            let importing = containerd.under_lease(LEASE, leases.labels(), load);
            handle.block_on(importing.instrument(call))
        };
        spawn_blocking(import).await?
    }
}

/// The file or directory that a store path is, or leads to within the store.
fn in_store(archive: &StorePath, store_dir: &StoreDir) -> Result<PathBuf, Error> {
    let resolve = |path: &str| {
        fs::canonicalize(path).map_err(|source| Error::StoreObject {
            path: archive.clone(),
            source,
        })
    };
    let (target, store) = (resolve(archive.as_str())?, resolve(store_dir.as_str())?);
    match target.starts_with(&store) && target != store {
        true => Ok(archive.as_path().to_owned()),
        false => Err(Error::NotInStore {
            archive: archive.clone(),
            target,
        }),
    }
}

/// Lets go of what was provided. Roots are deleted, which blocks.
async fn dropped(provided: impl Send + 'static) -> Result<(), Error> {
    Ok(spawn_blocking(move || drop(provided)).await?)
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

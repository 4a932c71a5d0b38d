//! `nix2container load`.

use std::io::{Read, Seek};

use anyhow::{Context, bail};
use nix_image::{
    Platform, Reference, annotations,
    archive::{Archive, ArchiveImage, StoredImage},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    archive_file,
    cli::{ContainerdArgs, LoadArgs},
    containerd::{Containerd, gc_labels},
    progress::Progress,
};

pub(crate) fn run(
    containerd: &ContainerdArgs,
    args: &LoadArgs,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut archive = archive_file::open(&args.archive)?;
    let images = images(&mut archive, args.r#ref.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime for I/O")?;
    runtime.block_on(async {
        let mut containerd =
            Containerd::connect(&containerd.address, &containerd.namespace).await?;
        containerd.create_lease().await?;
        let loaded = tokio::select! {
            loaded = load(&containerd, &mut archive, &args.snapshotter, &images, progress) => loaded,
            interrupted = interruption() => interrupted,
        };
        let deleted = containerd.delete_lease(loaded.is_err()).await;
        loaded.and(deleted)
    })
}

/// The images to load, each by its names.
fn images<R: Read + Seek>(
    archive: &mut Archive<R>,
    reference: Option<&Reference>,
) -> anyhow::Result<Vec<(Vec<Reference>, StoredImage)>> {
    let mut images: Vec<(Vec<Reference>, StoredImage)> = Vec::new();
    for image in archive.images().to_vec() {
        let manifest = archive.select(&image, &Platform::host())?;
        let name = match reference {
            Some(reference) => reference.clone(),
            None => name(archive.name(), &image)?,
        };
        match images
            .iter_mut()
            .find(|(_, other)| other.descriptor.digest == manifest.digest)
        {
            Some((names, _)) => names.push(name),
            None => images.push((vec![name], archive.image(manifest)?)),
        }
    }
    if images.is_empty() {
        bail!("{} has no image", archive.name());
    }
    if reference.is_some() && images.len() > 1 {
        bail!(
            "{} has {} images, and --ref can name one only",
            archive.name(),
            images.len()
        );
    }
    for (names, image) in &mut images {
        names.dedup();
        for layer in &image.manifest.layers {
            annotations::check_lengths(&layer.annotations)
                .with_context(|| format!("cannot load {} of {}", layer.digest, archive.name()))?;
        }
    }
    Ok(images)
}

fn name(archive: &str, image: &ArchiveImage) -> anyhow::Result<Reference> {
    let Some(name) = &image.name else {
        bail!("{archive} does not say the name of its image: pass it with --ref");
    };
    Reference::parse(name).with_context(|| {
        format!("{archive} gives its image an impossible name: pass another with --ref")
    })
}

async fn load<R: Read + Seek>(
    containerd: &Containerd,
    archive: &mut Archive<R>,
    snapshotter: &str,
    images: &[(Vec<Reference>, StoredImage)],
    progress: &Progress,
) -> anyhow::Result<()> {
    for (names, image) in images {
        let mut written = 0;
        for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
            written += u32::from(
                containerd
                    .write_blob(archive, blob, Default::default(), progress)
                    .await?,
            );
        }
        let labels = gc_labels(&image.manifest);
        written += u32::from(
            containerd
                .write_blob(archive, &image.descriptor, labels, progress)
                .await?,
        );
        let unpacked = containerd.unpack(snapshotter, image).await?;
        tracing::debug!(
            blobs = written,
            layers = unpacked,
            "transferred and unpacked {}",
            image.descriptor.digest
        );
        for name in names {
            containerd.tag(name, &image.descriptor).await?;
            tracing::info!(digest = %image.descriptor.digest, %snapshotter, "loaded {name}");
            println!("{name}");
        }
    }
    Ok(())
}

/// Waits for a signal that asks to end: the lease must not stay.
async fn interruption() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

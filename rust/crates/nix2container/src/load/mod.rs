//! `nix2container load`.

mod plan;

use std::{
    io::{Read, Seek},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use nix_image::{Platform, Reference, archive::Archive};
use plan::{PlannedImage, Platforms};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    archive_file::{self, ImageArchive, STDIN},
    cli::ContainerdArgs,
    containerd::Containerd,
    progress::Progress,
    runtime::wait,
};

/// What to load, and how.
#[derive(Args)]
pub(crate) struct LoadArgs {
    /// The snapshotter to unpack the images with.
    #[arg(long, value_name = "NAME", default_value = "nix")]
    snapshotter: String,
    /// The name of the image, instead of the one in the archive.
    #[arg(long, value_name = "REFERENCE", value_parser = Reference::parse)]
    r#ref: Option<Reference>,
    /// The platform to load, as in `linux/arm64/v8` [default: the one of this machine].
    #[arg(
        long,
        value_name = "OS/ARCH[/VARIANT]",
        conflicts_with = "all_platforms"
    )]
    platform: Option<Platform>,
    /// Load every platform that the archive has, and unpack the one that runs here.
    #[arg(long)]
    all_platforms: bool,
    /// The archives: OCI or `docker save`, plain, gzip or zstd; `-` is standard input.
    #[arg(value_name = "ARCHIVE", required = true)]
    archives: Vec<PathBuf>,
}

/// An archive with what of it is to be loaded.
type Planned = (ImageArchive, Vec<PlannedImage>);

pub(crate) fn run(
    containerd: &ContainerdArgs,
    args: &LoadArgs,
    progress: &Progress,
) -> anyhow::Result<()> {
    // All of them first: nothing is loaded when one of them cannot be.
    let mut archives = plan(args)?;
    wait(async {
        let mut containerd =
            Containerd::connect(&containerd.address, &containerd.namespace).await?;
        containerd.create_lease().await?;
        let loading = async {
            for (archive, images) in &mut archives {
                load(&containerd, archive, &args.snapshotter, images, progress).await?;
            }
            Ok(())
        };
        let loaded = tokio::select! {
            loaded = loading => loaded,
            interrupted = interruption() => interrupted,
        };
        let deleted = containerd.delete_lease(loaded.is_err()).await;
        loaded.and(deleted)
    })
}

fn plan(args: &LoadArgs) -> anyhow::Result<Vec<Planned>> {
    let is_stdin = |path: &&PathBuf| path.as_path() == Path::new(STDIN);
    if args.archives.iter().filter(is_stdin).count() > 1 {
        bail!("standard input has one archive: pass `{STDIN}` once");
    }
    if args.r#ref.is_some() && args.archives.len() > 1 {
        bail!("--ref names one image: load the archives one by one");
    }
    let platforms = match (&args.platform, args.all_platforms) {
        (_, true) => Platforms::All,
        (Some(platform), false) => Platforms::One(platform.clone()),
        (None, false) => Platforms::One(Platform::host()),
    };
    let mut planned = Vec::new();
    for path in &args.archives {
        let mut archive = archive_file::open_or_stdin(path)?;
        let images = plan::images(&mut archive, &platforms, args.r#ref.as_ref())?;
        planned.push((archive, images));
    }
    Ok(planned)
}

async fn load<R: Read + Seek>(
    containerd: &Containerd,
    archive: &mut Archive<R>,
    snapshotter: &str,
    images: &[PlannedImage],
    progress: &Progress,
) -> anyhow::Result<()> {
    for image in images {
        let digest = image.target.digest;
        let mut written = 0;
        for (blob, labels) in &image.blobs {
            written += u32::from(
                containerd
                    .write_blob(archive, blob, labels.clone(), progress)
                    .await?,
            );
        }
        let unpacked = match &image.unpacked {
            Some(stored) => containerd.unpack(snapshotter, stored, progress).await?,
            None => {
                tracing::info!(%digest, "no platform of it runs here: nothing is unpacked");
                0
            }
        };
        tracing::debug!(
            blobs = written,
            layers = unpacked,
            "transferred and unpacked {digest}"
        );
        for name in &image.names {
            containerd.tag(name, &image.target).await?;
            tracing::info!(%digest, %snapshotter, "loaded {name}");
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

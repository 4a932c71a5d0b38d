//! `nix2container load`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use clap::{Args, builder::NonEmptyStringValueParser};
use image_loader::{Containerd, Error, ImageArchive, PlannedImage, Platforms, STDIN};
use nix_image::{Platform, Reference};
use tokio::signal::unix::{SignalKind, signal};

use crate::{cli::ContainerdArgs, progress::Progress, runtime::wait};

/// What to load, and how.
#[derive(Args)]
pub(crate) struct LoadArgs {
    /// The snapshotter to unpack the images with.
    #[arg(
        long,
        value_name = "NAME",
        env = "CONTAINERD_SNAPSHOTTER",
        default_value = "nix",
        value_parser = NonEmptyStringValueParser::new()
    )]
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
        let mut containerd = containerd.connect().await?;
        let work = async |containerd: &Containerd| {
            tokio::select! {
                loaded = load(containerd, &mut archives, args, progress) => loaded,
                interrupted = interruption() => interrupted,
            }
        };
        containerd
            .under_lease("nix2container", &HashMap::new(), work)
            .await
    })
}

async fn load(
    containerd: &Containerd,
    archives: &mut [Planned],
    args: &LoadArgs,
    progress: &Progress,
) -> anyhow::Result<()> {
    for (archive, images) in archives {
        for image in images {
            let (snapshotter, labels) = (&args.snapshotter, HashMap::new());
            image_loader::load(containerd, archive, snapshotter, image, &labels, progress)
                .await
                .map_err(with_flag)?;
            for name in &image.names {
                println!("{name}");
            }
        }
    }
    Ok(())
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
        let mut archive = image_loader::open_or_stdin(path)?;
        let images = image_loader::images(&mut archive, &platforms, args.r#ref.as_ref())
            .map_err(with_flag)?;
        planned.push((archive, images));
    }
    Ok(planned)
}

/// The error with the flag that is the way out.
fn with_flag(error: Error) -> anyhow::Error {
    match error {
        error @ Error::Name { .. } => anyhow!("{:#}: name it by --ref", anyhow!(error)),
        Error::SamePlatform { ref platform, .. } => anyhow!("{error} (--platform {platform})"),
        error if error.is_snapshotter_missing() => {
            anyhow!("{error}, or choose another with --snapshotter")
        }
        error => error.into(),
    }
}

/// Waits for a signal that asks to end: the lease must not stay.
async fn interruption() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

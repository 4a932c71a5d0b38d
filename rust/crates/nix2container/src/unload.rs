//! `nix2container unload`.

use anyhow::Context;
use clap::Args;
use image_loader::NamedImage;

use crate::{
    cli::ContainerdArgs,
    output::{print, printable},
    runtime::wait,
};

/// What to remove.
#[derive(Args)]
pub(crate) struct UnloadArgs {
    /// The names of the images, as `load` takes and prints them.
    #[arg(value_name = "REFERENCE", required = true)]
    references: Vec<String>,
}

pub(crate) fn run(containerd: &ContainerdArgs, args: &UnloadArgs) -> anyhow::Result<()> {
    wait(async {
        let containerd = containerd.connect().await?;
        // All of them first: nothing is removed when one of them is unknown.
        let mut images: Vec<NamedImage> = Vec::new();
        for reference in &args.references {
            let image = containerd.find_image(reference).await?;
            if !images.contains(&image) {
                images.push(image);
            }
        }
        for image in &images {
            containerd.untag(image).await?;
            let name = printable(&image.name);
            tracing::info!(digest = %image.target.digest, "removed {name}");
            print(&format!("{name}\n")).context("cannot write to standard output")?;
        }
        Ok(())
    })
}

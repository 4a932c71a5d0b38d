//! `nix2container inspect`.

mod table;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use nix_store::StoreDir;
use serde_json::json;

use crate::{
    cli::ContainerdArgs,
    image_facts::{self, ImageFacts},
    image_source::ImageSource,
    output::{print, printable_json},
    registry::RegistryArgs,
    runtime::wait,
};

/// What to look at.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The directory of the Nix store.
    #[arg(long, value_name = "DIR", default_value = "/nix/store", value_parser = StoreDir::new)]
    store_dir: StoreDir,
    #[command(flatten)]
    registry: RegistryArgs,
    /// An archive or a directory with an image layout, `-` for an archive on standard input,
    /// docker://REFERENCE for an image in a registry, or the name of an image in containerd. A
    /// file of that name comes before an image.
    #[arg(value_name = "WHAT")]
    what: PathBuf,
}

pub(crate) fn run(containerd: &ContainerdArgs, args: &InspectArgs) -> anyhow::Result<()> {
    let (source, images) = wait(async {
        let mut source = ImageSource::open(&args.what, containerd, &args.registry).await?;
        let mut images = image_facts::read(&mut source, &args.store_dir).await?;
        image_facts::measure(&args.store_dir, &mut images).await;
        anyhow::Ok((source.name().to_owned(), images))
    })?;
    let text = match args.json {
        true => to_json(&source, &images),
        false => table::of_images(&images),
    };
    print(&text).context("cannot write to standard output")
}

fn to_json(source: &str, images: &[ImageFacts]) -> String {
    let document = json!({ "source": source, "images": images });
    printable_json(&format!("{document:#}\n"))
}

//! `nix2container diff`.

mod compare;
mod table;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use compare::Difference;
use image_loader::STDIN;
use nix_store::StoreDir;
use serde_json::{Value, json};

use crate::{
    cli::ContainerdArgs,
    image_facts::{self, ImageFacts},
    image_source::ImageSource,
    output::{print, printable_json},
    registry::RegistryArgs,
    runtime::wait,
};

/// What to compare.
#[derive(Args)]
pub(crate) struct DiffArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The directory of the Nix store.
    #[arg(long, value_name = "DIR", default_value = "/nix/store", value_parser = StoreDir::new)]
    store_dir: StoreDir,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The image before: an archive or a directory with an image layout, `-` for an archive on
    /// standard input, docker://REFERENCE for an image in a registry, or the name of an image in
    /// containerd.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The image after.
    #[arg(value_name = "B")]
    b: PathBuf,
}

/// One of two images that are compared.
struct Side {
    source: String,
    image: ImageFacts,
}

pub(crate) fn run(containerd: &ContainerdArgs, args: &DiffArgs) -> anyhow::Result<()> {
    if args.a.as_os_str() == STDIN && args.b.as_os_str() == STDIN {
        bail!("standard input has one archive: pass `{STDIN}` once");
    }
    let (a, b) = wait(async {
        let (a, b) = (
            read(&args.a, containerd, args).await?,
            read(&args.b, containerd, args).await?,
        );
        let mut images = [a.image, b.image];
        image_facts::measure(&args.store_dir, &mut images).await;
        let [of_a, of_b] = images;
        anyhow::Ok((Side { image: of_a, ..a }, Side { image: of_b, ..b }))
    })?;
    let difference = compare::compare(&a.image, &b.image);
    let text = match args.json {
        true => to_json(&a, &b, &difference),
        false => table::of_difference(&a, &b, &difference),
    };
    print(&text).context("cannot write to standard output")
}

async fn read(
    what: &std::path::Path,
    containerd: &ContainerdArgs,
    args: &DiffArgs,
) -> anyhow::Result<Side> {
    let mut source = ImageSource::open(what, containerd, &args.registry).await?;
    let images = image_facts::read(&mut source, &args.store_dir).await?;
    let source = source.name().to_owned();
    Ok(Side {
        image: image_facts::one(&source, images)?,
        source,
    })
}

fn to_json(a: &Side, b: &Side, difference: &Difference) -> String {
    let side = |side: &Side| -> Value {
        json!({
            "source": side.source,
            "names": side.image.names,
            "digest": side.image.digest,
            "nar_size": side.image.closure.nar_size,
        })
    };
    let document = json!({
        "a": side(a),
        "b": side(b),
        "store_paths": difference.store_paths,
        "config": difference.config,
        "layers": difference.layers,
    });
    printable_json(&format!("{document:#}\n"))
}

//! `nix2container build`.

mod args;
mod closure;
mod output;
mod root_tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Seek,
    path::{self, Path},
};

use anyhow::{Context, bail};
pub(crate) use args::BuildArgs;
use args::{CopyMode, Format, STDOUT};
use nix_image::{
    Base, ImageOptions, Layer, LayerTree, NewImage, Platform, Reference, RuntimeConfig,
    archive::write_layout, base_layout_paths,
};
use output::Output;
use tempfile::SpooledTempFile;

use image_loader::ImageArchive;

/// Most bytes of a layer that are kept in memory until it is written.
const SPOOLED: usize = 8 << 20;

pub(crate) fn run(args: &BuildArgs) -> anyhow::Result<()> {
    let added = args.closure.is_some() || args.copy_to_root.is_some() || args.base_layout;
    if args.from_image.is_none() && !added {
        bail!(
            "nothing to build an image of: give --closure, --copy-to-root, --base-layout or --from-image"
        );
    }
    let output = Output::of(&args.out, args.format)?;
    let options = options(args)?;
    let (reference, platform) = (options.reference.clone(), options.platform.clone());

    let mut archive = args
        .from_image
        .as_deref()
        .map(image_loader::open)
        .transpose()?;
    let base = archive
        .as_mut()
        .map(|archive| archive.base(&platform))
        .transpose()?;
    let mut blob = SpooledTempFile::new(SPOOLED);
    let layer = match tree(args, archive.as_mut().zip(base.as_ref()))? {
        None => None,
        Some((tree, closure)) => {
            let compression = args.compression.into();
            let open = |path: &Path| File::open(path);
            Some(Layer::pack(&tree, &closure, compression, open, &mut blob)?)
        }
    };
    blob.rewind().context("cannot read the layer again")?;
    let image = NewImage::new(options, base, layer)?;

    output
        .write(|out| write_layout(&image, archive.as_mut(), &mut blob, out))
        .with_context(|| format!("cannot build {}", args.out.display()))?;
    tracing::info!(%reference, digest = %image.digest(), "built {}", args.out.display());
    Ok(())
}

fn options(args: &BuildArgs) -> anyhow::Result<ImageOptions> {
    let mut runtime = match &args.config {
        None => RuntimeConfig::default(),
        Some(file) => read_config(file)?,
    };
    runtime.labels.extend(distinct("--label", &args.labels)?);
    Ok(ImageOptions {
        reference: reference(args)?,
        platform: args.platform.clone().unwrap_or_else(Platform::host),
        runtime,
        created: args.created.clone(),
        annotations: distinct("--annotation", &args.manifest_annotations)?,
    })
}

fn distinct(flag: &str, pairs: &[(String, String)]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for (name, value) in pairs {
        if found.insert(name.clone(), value.clone()).is_some() {
            bail!("{flag} gives {name} twice");
        }
    }
    Ok(found)
}

fn reference(args: &BuildArgs) -> anyhow::Result<Reference> {
    match &args.r#ref {
        Some(reference) if reference.is_digest() => {
            bail!(
                "an image cannot be named {reference} before it is built: use a tag instead of a digest"
            )
        }
        Some(reference) => Ok(reference.clone()),
        None if args.out == Path::new(STDOUT) || args.format == Format::Directory => {
            bail!("only an archive that has a path can name its image: pass --ref")
        }
        None => {
            let out = path::absolute(&args.out)
                .with_context(|| format!("cannot write {}", args.out.display()))?;
            Reference::nix(&out)
                .context("the path of the archive cannot name its image: pass --ref")
        }
    }
}

fn read_config(file: &Path) -> anyhow::Result<RuntimeConfig> {
    let read = || anyhow::Ok(RuntimeConfig::parse(&fs::read(file)?)?);
    read().with_context(|| format!("cannot read the config {}", file.display()))
}

/// The files of the layer of the closure and of what comes to `/`, and the closure.
fn tree(
    args: &BuildArgs,
    base: Option<(&mut ImageArchive, &Base)>,
) -> anyhow::Result<Option<(LayerTree, nix_store::LayerClosure)>> {
    let roots = match &args.copy_to_root {
        None => Vec::new(),
        Some(list) => root_tree::read_list(&args.store_dir, list)?,
    };
    let closure = match &args.closure {
        None => None,
        Some(given) => Some(closure::read(
            &args.store_dir,
            given,
            args.annotations,
            args.config.as_deref(),
        )?),
    };
    let closure = match closure {
        None if roots.is_empty() && !args.base_layout => return Ok(None),
        closure => closure.unwrap_or_default(),
    };

    let mut tree = LayerTree::new(&args.store_dir)?;
    for path in closure.named() {
        tree.add_place(path, closure::kind(path)?)?;
    }
    root_tree::add(&mut tree, &args.store_dir, &roots, args.copy_to_root_mode)?;
    if args.base_layout {
        let brought = match base {
            Some((archive, base)) => archive.brings(&base.image, &base_layout_paths())?,
            None => BTreeSet::new(),
        };
        tree.add_base_layout(|path| brought.contains(path));
    }
    let mounted: BTreeSet<_> = closure.mounted.paths().iter().collect();
    let unmounted = roots.iter().filter(|root| !mounted.contains(root));
    for root in unmounted.filter(|_| args.copy_to_root_mode == CopyMode::Symlink) {
        tracing::warn!(
            "{root} of --copy-to-root is not in the closure: its links lead nowhere unless the base image has it"
        );
    }
    Ok(Some((tree, closure.layer)))
}

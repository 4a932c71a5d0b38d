//! `nix2container build`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{self, Path},
};

use anyhow::{Context, bail};
use nix_image::{Layer, LayerTree, NewImage, Platform, Reference, RuntimeConfig, archive};

use crate::{archive_file, cli::BuildArgs, closure, root_tree};

pub(crate) fn run(args: &BuildArgs) -> anyhow::Result<()> {
    if args.from_image.is_none() && args.closure.is_none() && args.copy_to_root.is_none() {
        bail!("nothing to build an image of: give --closure, --copy-to-root or --from-image");
    }
    let reference = reference(args)?;
    let config = match &args.config {
        None => RuntimeConfig::default(),
        Some(file) => read_config(file)?,
    };
    let layer = layer(args)?;
    let mut base_archive = args
        .from_image
        .as_deref()
        .map(archive_file::open)
        .transpose()?;
    let host = Platform::host();
    let base = base_archive
        .as_mut()
        .map(|archive| archive.base(&host))
        .transpose()?;
    let image = NewImage::new(reference.clone(), host, config, base, layer)?;

    write_beside(&args.out, |out| {
        Ok(archive::write(&image, base_archive.as_mut(), out)?)
    })
    .with_context(|| format!("cannot build {}", args.out.display()))?;
    tracing::info!(%reference, digest = %image.digest(), "built {}", args.out.display());
    Ok(())
}

fn reference(args: &BuildArgs) -> anyhow::Result<Reference> {
    match &args.r#ref {
        Some(reference) if reference.is_digest() => {
            bail!(
                "an image cannot be named {reference} before it is built: use a tag instead of a digest"
            )
        }
        Some(reference) => Ok(reference.clone()),
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

/// The layer of the closure and of what comes to `/`.
fn layer(args: &BuildArgs) -> anyhow::Result<Option<Layer>> {
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
        None if roots.is_empty() => return Ok(None),
        closure => closure.unwrap_or_default(),
    };

    let mut tree = LayerTree::new(&args.store_dir)?;
    for path in closure.named() {
        tree.add_place(path, closure::kind(path)?)?;
    }
    root_tree::add(&mut tree, &args.store_dir, &roots)?;
    let mounted: BTreeSet<_> = closure.mounted.paths().iter().collect();
    for root in roots.iter().filter(|root| !mounted.contains(root)) {
        tracing::warn!(
            "{root} of --copy-to-root is not in the closure: its links lead nowhere unless the base image has it"
        );
    }
    Ok(Some(Layer::pack(&tree, &closure.layer)?))
}

/// Writes a file under another name beside `out`, and gives it its name at the end:
/// nobody sees a part of it, and nothing is left of a failure.
fn write_beside(
    out: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let directory = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".nix2container-")
        // As for any new file, the umask takes its part of it.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(directory)?;
    let mut buffered = BufWriter::with_capacity(1 << 20, file.as_file());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.persist(out)?;
    Ok(())
}

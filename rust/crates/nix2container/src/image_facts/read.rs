//! Reading the documents of an image.

use std::collections::BTreeSet;

use anyhow::{Context, bail};
use indicatif::HumanBytes;
use nix_image::{
    Descriptor, Digest, ImageConfig, Index, Manifest, Platform, annotations,
    archive::{MAX_MANIFESTS, MAX_NESTING},
};
use nix_store::{LayerClosure, StoreDir};
use serde::de::DeserializeOwned;

use super::{ImageFacts, LayerFacts, LayerKind, store};
use crate::{
    image_source::{ImageSource, Listed},
    output::printable,
};

/// Most bytes of documents that are read of one source. Thousands of manifests may share one config,
/// so that a small archive could ask for more memory than there is.
const MAX_BYTES: u64 = 64 << 20;

/// What may still be read of a source.
struct Limits {
    manifests: usize,
    bytes: u64,
}

/// A manifest that an image leads to.
struct Found {
    manifest: Descriptor,
    index: Option<Digest>,
}

/// All images of a source that it has the documents of, each for one platform.
pub(crate) async fn read(
    source: &mut ImageSource,
    store_dir: &StoreDir,
) -> anyhow::Result<Vec<ImageFacts>> {
    let mut images: Vec<ImageFacts> = Vec::new();
    let mut left = Limits {
        manifests: MAX_MANIFESTS,
        bytes: MAX_BYTES,
    };
    for listed in source.images() {
        let first = images.len();
        let mut platforms = BTreeSet::new();
        for found in manifests(source, &listed, &mut left).await? {
            let platform = found.manifest.platform.as_ref();
            if let Some(platform) = platform.filter(|platform| !platform.is_unknown()) {
                platforms.insert(platform.to_string());
            }
            let digest = found.manifest.digest;
            if let Some(known) = images.iter_mut().find(|image| image.digest == digest) {
                known.names.extend(listed.name.clone());
                known.names.dedup();
            } else if let Some(image) = image(source, &listed, &found, store_dir, &mut left).await?
            {
                platforms.insert(image.platform.clone());
                images.push(image);
            }
        }
        for image in &mut images[first..] {
            image.platforms = platforms.iter().cloned().collect();
        }
    }
    if images.is_empty() {
        bail!("{} has no image for containers", source.name());
    }
    Ok(images)
}

/// The one image to compare: the only one, or the one for this machine.
pub(crate) fn one(source: &str, mut images: Vec<ImageFacts>) -> anyhow::Result<ImageFacts> {
    if images.len() > 1 {
        let all = list(&images);
        images.retain(|image| {
            let platform = image.platform.parse::<Platform>();
            platform.is_ok_and(|platform| Platform::host().suits(&platform).is_some())
        });
        if images.len() != 1 {
            bail!("{source} has {all}: name an archive or an image of one");
        }
    }
    images
        .pop()
        .with_context(|| format!("{source} has no image"))
}

fn list(images: &[ImageFacts]) -> String {
    let names = images.iter().map(|image| {
        let name = image.names.first().map(|name| printable(name));
        let name = name.unwrap_or_else(|| image.digest.to_string());
        format!("{name} for {}", printable(&image.platform))
    });
    names.collect::<Vec<_>>().join(", ")
}

/// The manifests that an image leads to, itself or below its indexes.
async fn manifests(
    source: &mut ImageSource,
    listed: &Listed,
    left: &mut Limits,
) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut waiting = vec![(listed.root.clone(), None, 0)];
    while let Some((descriptor, index, depth)) = waiting.pop() {
        left.manifests = left.manifests.checked_sub(1).with_context(|| {
            format!("{} has more than {MAX_MANIFESTS} manifests", source.name())
        })?;
        if depth > MAX_NESTING {
            bail!(
                "the indexes of {} are nested more than {MAX_NESTING} deep",
                source.name()
            );
        }
        if descriptor.is_index() {
            if let Some(document) = document::<Index>(source, &descriptor, left).await? {
                let children = document.manifests.into_iter().rev();
                waiting.extend(children.map(|child| (child, Some(descriptor.digest), depth + 1)));
            }
        } else if descriptor.is_manifest() {
            found.push(Found {
                manifest: descriptor,
                index,
            });
        }
    }
    Ok(found)
}

/// Reads the manifest and the config of an image; `None` if the source has not got them, or if
/// they are of something else than an image for containers.
async fn image(
    source: &mut ImageSource,
    listed: &Listed,
    found: &Found,
    store_dir: &StoreDir,
    left: &mut Limits,
) -> anyhow::Result<Option<ImageFacts>> {
    let Some(manifest) = document::<Manifest>(source, &found.manifest, left).await? else {
        return Ok(None);
    };
    let platform = found.manifest.platform.as_ref();
    if !manifest.config.is_config() || platform.is_some_and(Platform::is_unknown) {
        return Ok(None);
    }
    let Some(config) = document::<ImageConfig>(source, &manifest.config, left).await? else {
        bail!(
            "{} has the manifest {} and not its config {}: copy the image again",
            source.name(),
            found.manifest.digest,
            manifest.config.digest
        );
    };
    let mut layers = Vec::new();
    let mut gathered = store::Gathered::default();
    for descriptor in &manifest.layers {
        let labels = annotations::snapshot_labels(&descriptor.annotations);
        let closure = annotations::layer_closure(store_dir, labels).with_context(|| {
            let digest = descriptor.digest;
            format!("cannot tell the store paths of layer {digest} (is its store elsewhere? --store-dir names it)")
        })?;
        let named = closure.unwrap_or_default();
        let listed = store::resolve(store_dir, &named);
        layers.push(layer(descriptor, &named, listed.paths.paths().len()));
        gathered.add(listed);
    }
    Ok(Some(ImageFacts {
        names: listed.name.iter().cloned().collect(),
        digest: found.manifest.digest,
        index: found.index,
        platform: config.platform().to_string(),
        platforms: Vec::new(),
        created: config.created,
        config: config.config,
        layers,
        closure: store::closure(&gathered),
    }))
}

fn layer(descriptor: &Descriptor, named: &LayerClosure, store_paths: usize) -> LayerFacts {
    let kind = match (&named.closure_info, named.paths.paths()) {
        (Some(_), _) => LayerKind::NixClosure,
        (None, [_, ..]) => LayerKind::NixPerPath,
        (None, []) => LayerKind::Ordinary,
    };
    LayerFacts {
        digest: descriptor.digest,
        media_type: descriptor.media_type.clone(),
        size: descriptor.size,
        kind,
        closure_info: named.closure_info.as_ref().map(ToString::to_string),
        store_paths,
    }
}

async fn document<T: DeserializeOwned>(
    source: &mut ImageSource,
    descriptor: &Descriptor,
    left: &mut Limits,
) -> anyhow::Result<Option<T>> {
    left.bytes = left.bytes.checked_sub(descriptor.size).with_context(|| {
        format!(
            "the documents of {} have more than {} together",
            source.name(),
            HumanBytes(MAX_BYTES)
        )
    })?;
    let Some(json) = source.read(descriptor).await? else {
        return Ok(None);
    };
    // serde_json repeats what it has not understood.
    let document = serde_json::from_slice(&json).map_err(|error| {
        let (name, reason) = (source.name(), printable(&error.to_string()));
        anyhow::anyhow!(
            "{} in {name} is no document of an image: {reason}",
            descriptor.digest
        )
    });
    document.map(Some)
}

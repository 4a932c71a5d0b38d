//! What of an archive goes into containerd: read and checked before containerd is asked for
//! anything.

use std::{
    collections::{BTreeSet, HashMap},
    io::{Read, Seek},
};

use anyhow::{Context, bail};
use nix_image::{
    Descriptor, Digest, Error, Index, Manifest, Platform, Reference, annotations,
    archive::{Archive, ArchiveImage, StoredImage},
};

use crate::containerd::{index_gc_labels, manifest_gc_labels};

/// Which of the platforms of an image are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Platforms {
    /// The best for this one.
    One(Platform),
    /// All that the archive has.
    All,
}

/// An image of an archive on its way into containerd.
#[derive(Debug)]
pub(super) struct PlannedImage {
    /// The names that it gets.
    pub(super) names: Vec<Reference>,
    /// What the names stand for: a manifest, or an index of several.
    pub(super) target: Descriptor,
    /// All its blobs, what refers to others behind these, each with its labels.
    pub(super) blobs: Vec<(Descriptor, HashMap<String, String>)>,
    /// What is unpacked; nothing if no platform of it runs here.
    pub(super) unpacked: Option<StoredImage>,
}

/// The images of an archive, each once, with all its names. `reference` names the only one
/// otherwise than the archive does.
pub(super) fn images<R: Read + Seek>(
    archive: &mut Archive<R>,
    platforms: &Platforms,
    reference: Option<&Reference>,
) -> anyhow::Result<Vec<PlannedImage>> {
    let mut images: Vec<PlannedImage> = Vec::new();
    for image in archive.images().to_vec() {
        let target = match platforms {
            Platforms::One(platform) => archive.select(&image, platform)?,
            Platforms::All => only_root(archive.name(), &image)?,
        };
        let name = match reference {
            Some(reference) => reference.clone(),
            None => name(archive.name(), &image)?,
        };
        match images
            .iter_mut()
            .find(|other| other.target.digest == target.digest)
        {
            Some(other) => other.names.push(name),
            None => images.push(PlannedImage {
                names: vec![name],
                target: target.clone(),
                blobs: blobs(archive, target)?,
                unpacked: unpacked(archive, &image, platforms)?,
            }),
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
    for image in &mut images {
        image.names.dedup();
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

/// The one document that stands for all platforms of an image.
fn only_root<'a>(archive: &str, image: &'a ArchiveImage) -> anyhow::Result<&'a Descriptor> {
    match &*image.roots {
        [first, others @ ..] if others.iter().all(|other| other.digest == first.digest) => {
            Ok(first)
        }
        roots => bail!(
            "{archive} has {} manifests under one name and no index of them: load one with --platform",
            roots.len()
        ),
    }
}

/// What of an image is unpacked: what was asked for, and of all platforms the one that runs here.
fn unpacked<R: Read + Seek>(
    archive: &mut Archive<R>,
    image: &ArchiveImage,
    platforms: &Platforms,
) -> anyhow::Result<Option<StoredImage>> {
    let manifest = match platforms {
        Platforms::One(platform) => archive.select(image, platform)?,
        Platforms::All => match archive.select(image, &Platform::host()) {
            Ok(manifest) => manifest,
            Err(Error::Platform { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        },
    };
    let stored = archive.image(manifest)?;
    for layer in &stored.manifest.layers {
        annotations::check_lengths(&layer.annotations)
            .with_context(|| format!("cannot load {} of {}", layer.digest, archive.name()))?;
    }
    Ok(Some(stored))
}

/// A blob with all that it refers to.
fn blobs<R: Read + Seek>(
    archive: &mut Archive<R>,
    root: &Descriptor,
) -> anyhow::Result<Vec<(Descriptor, HashMap<String, String>)>> {
    let mut blobs = Vec::new();
    add_tree(archive, root, &mut BTreeSet::new(), &mut blobs)?;
    Ok(blobs)
}

/// Adds a blob behind all that it refers to. The archive has refused indexes that are nested too
/// deep.
fn add_tree<R: Read + Seek>(
    archive: &mut Archive<R>,
    blob: &Descriptor,
    seen: &mut BTreeSet<Digest>,
    blobs: &mut Vec<(Descriptor, HashMap<String, String>)>,
) -> anyhow::Result<()> {
    if !seen.insert(blob.digest) {
        return Ok(());
    }
    let (children, labels) = if blob.is_index() {
        let index: Index = document(archive, blob)?;
        let labels = index_gc_labels(&index);
        (index.manifests, labels)
    } else if blob.is_manifest() {
        let manifest: Manifest = document(archive, blob)?;
        let labels = manifest_gc_labels(&manifest);
        let mut children = manifest.layers;
        children.push(manifest.config);
        (children, labels)
    } else {
        Default::default()
    };
    for child in &children {
        add_tree(archive, child, seen, blobs)?;
    }
    blobs.push((blob.clone(), labels));
    Ok(())
}

fn document<R: Read + Seek, T: serde::de::DeserializeOwned>(
    archive: &mut Archive<R>,
    descriptor: &Descriptor,
) -> anyhow::Result<T> {
    let json = archive.read_blob(descriptor)?;
    serde_json::from_slice(&json).with_context(|| {
        format!(
            "{} in {} is not what it should be",
            descriptor.digest,
            archive.name()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_platforms_need_one_document_that_stands_for_them() {
        let root = |content: &[u8]| Descriptor::of("index", content);
        let image = |roots| ArchiveImage {
            name: None,
            roots,
            manifests: Vec::new(),
        };
        let one = image(vec![root(b"a"), root(b"a")]);
        assert_eq!(only_root("x", &one).unwrap(), &root(b"a"));
        let two = image(vec![root(b"a"), root(b"b")]);
        let message = only_root("x", &two).unwrap_err().to_string();
        assert!(message.contains("--platform"), "{message}");
    }
}

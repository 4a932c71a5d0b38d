//! What an archive lists under one name.

use crate::{
    Descriptor,
    manifest::{IMAGE_NAME, REF_NAME},
};

/// The images of an archive that have one name, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveImage {
    /// The whole name, as it stands in the archive.
    pub name: Option<String>,
    /// What the archive lists under the name: mostly one index, or one manifest.
    pub roots: Vec<Descriptor>,
    /// The manifests of these, each for another platform.
    pub manifests: Vec<Descriptor>,
}

/// The name that an entry of `index.json` gives: a reference by OCI's annotation
/// is mostly a tag alone and then names nothing.
pub(super) fn image_name(descriptor: &Descriptor) -> Option<String> {
    let annotation = |name| {
        descriptor
            .annotations
            .get(name)
            .filter(|value| !value.is_empty())
    };
    annotation(IMAGE_NAME)
        .or_else(|| annotation(REF_NAME).filter(|name| name.contains(['/', ':', '@'])))
        .cloned()
}

/// Adds what is listed under a name, with its manifests, to the image of that name.
pub(super) fn add_image(
    images: &mut Vec<ArchiveImage>,
    name: Option<String>,
    root: Descriptor,
    manifests: Vec<Descriptor>,
) {
    match images.iter_mut().find(|image| image.name == name) {
        Some(image) => {
            image.roots.push(root);
            image.manifests.extend(manifests);
        }
        None => images.push(ArchiveImage {
            name,
            roots: vec![root],
            manifests,
        }),
    }
}

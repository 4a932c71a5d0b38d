//! What a push consists of, decided before the registry is spoken to.

use std::io::{Read, Seek};

use anyhow::{Context, anyhow, bail};
use nix_image::{
    Descriptor, Index, Manifest, Reference, annotations,
    archive::{Archive, ArchiveImage},
};

/// The annotation of a blob that says which repositories of a registry have it, as containerd
/// writes it; the host of the registry follows.
const SOURCE: &str = "containerd.io/distribution.source.";

/// An image, or an index of images, with all that belongs to it.
#[derive(Debug)]
pub(super) struct Plan {
    /// Where it goes.
    pub(super) destination: Reference,
    /// The configs and layers, each once.
    pub(super) blobs: Vec<Blob>,
    manifests: Vec<PlannedManifest>,
    index: Option<(Descriptor, Vec<u8>)>,
}

/// A blob, and which of the archives has it.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) archive: usize,
    pub(super) descriptor: Descriptor,
}

#[derive(Debug)]
struct PlannedManifest {
    descriptor: Descriptor,
    json: Vec<u8>,
    manifest: Manifest,
    /// What messages call its archive.
    archive: String,
}

impl Plan {
    /// What the destination will name.
    pub(super) fn root(&self) -> &Descriptor {
        match (&self.index, &*self.manifests) {
            (Some((index, _)), _) => index,
            (None, manifests) => &manifests[0].descriptor,
        }
    }

    /// The manifests and the index, each by what it is to be stored, what refers to others behind
    /// them.
    pub(super) fn documents(&self) -> Vec<(String, &Descriptor, &[u8])> {
        let root = self.destination.tag_or_digest();
        let manifests = self.manifests.iter().map(|planned| {
            let name = match self.index {
                Some(_) => planned.descriptor.digest.to_string(),
                None => root.clone(),
            };
            (name, &planned.descriptor, &*planned.json)
        });
        let index = self
            .index
            .iter()
            .map(|(descriptor, json)| (root.clone(), descriptor, &**json));
        manifests.chain(index).collect()
    }

    /// The layers of all images.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests
            .iter()
            .flat_map(|planned| &planned.manifest.layers)
    }

    /// Another repository of the same registry that is known to have a blob.
    pub(super) fn mount_source<'a>(&self, blob: &'a Descriptor) -> Option<&'a str> {
        let sources = blob
            .annotations
            .get(&format!("{SOURCE}{}", self.destination.domain()))?;
        let own = self.destination.repository();
        sources
            .split(',')
            .find(|source| !source.is_empty() && *source != own)
    }
}

/// Reads the archives and decides what goes where.
pub(super) fn plan<R: Read + Seek>(
    archives: &mut [Archive<R>],
    reference: Option<&Reference>,
) -> anyhow::Result<Plan> {
    let mut names = Vec::new();
    let mut manifests: Vec<PlannedManifest> = Vec::new();
    let mut blobs: Vec<Blob> = Vec::new();
    for (number, archive) in archives.iter_mut().enumerate() {
        let image = the_image(archive)?;
        if reference.is_none() {
            names.push(destination(archive.name(), &image)?);
        }
        for descriptor in image.manifests {
            if manifests
                .iter()
                .any(|other| other.descriptor.digest == descriptor.digest)
            {
                continue;
            }
            let planned = read_manifest(archive, descriptor)?;
            let belonging = planned.manifest.layers.iter();
            for blob in belonging.chain([&planned.manifest.config]) {
                if blobs
                    .iter()
                    .any(|other| other.descriptor.digest == blob.digest)
                {
                    continue;
                }
                // What is missing must not be found out after half of the rest was transferred.
                archive.blob(blob)?;
                blobs.push(Blob {
                    archive: number,
                    descriptor: blob.clone(),
                });
            }
            manifests.push(planned);
        }
    }
    check_platforms(&manifests)?;
    let destination = match reference {
        Some(reference) => reference.clone(),
        None => one_name(&names)?,
    };
    if destination.is_resolved_by_nix() {
        bail!(
            "cannot push to {destination}: that is a name that Nix resolves, and no registry: pass --ref"
        );
    }
    let index = match manifests.len() {
        0 => bail!("there is no image to push"),
        1 => None,
        _ => {
            let listed = manifests.iter().map(|planned| planned.descriptor.clone());
            Some(Index::of_platforms(listed.collect())?)
        }
    };
    let plan = Plan {
        destination,
        blobs,
        manifests,
        index,
    };
    match plan.destination.digest() {
        Some(digest) if digest != plan.root().digest => bail!(
            "cannot push to {}: the image has the digest {}: name it by a tag, or by that",
            plan.destination,
            plan.root().digest
        ),
        _ => Ok(plan),
    }
}

/// The one image of an archive, whatever names it has there.
fn the_image<R: Read + Seek>(archive: &Archive<R>) -> anyhow::Result<ArchiveImage> {
    let name = archive.name();
    let [first, others @ ..] = archive.images() else {
        bail!("{name} has no image");
    };
    let digests = |image: &ArchiveImage| -> Vec<_> {
        image.manifests.iter().map(|each| each.digest).collect()
    };
    if others.iter().any(|other| digests(other) != digests(first)) {
        bail!(
            "{name} has {} images, and only one can be pushed at a time: `skopeo copy` takes one out of it",
            others.len() + 1
        );
    }
    let mut image = first.clone();
    if !others.is_empty() {
        image.name = None;
    }
    Ok(image)
}

fn destination(archive: &str, image: &ArchiveImage) -> anyhow::Result<Reference> {
    if image.name.is_none() {
        bail!("{archive} does not give its image one name to push it to: pass --ref");
    }
    image_loader::name(archive, image)
        .map_err(|error| anyhow!("{:#}: pass another with --ref", anyhow!(error)))
}

fn one_name(names: &[Reference]) -> anyhow::Result<Reference> {
    let [first, others @ ..] = names else {
        bail!("there is no archive to push");
    };
    match others.iter().find(|other| *other != first) {
        Some(other) => {
            bail!("the archives have different names, {first} and {other}: pass --ref")
        }
        None => Ok(first.clone()),
    }
}

fn read_manifest<R: Read + Seek>(
    archive: &mut Archive<R>,
    descriptor: Descriptor,
) -> anyhow::Result<PlannedManifest> {
    let json = archive.read_blob(&descriptor)?;
    let name = archive.name().to_owned();
    let digest = descriptor.digest;
    let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| {
        anyhow!("{name}: {digest} is not a manifest: {error}: make the archive again")
    })?;
    for layer in &manifest.layers {
        annotations::check_lengths(&layer.annotations)
            .with_context(|| format!("containerd could not pull {} of {name}", layer.digest))?;
    }
    Ok(PlannedManifest {
        descriptor,
        json,
        manifest,
        archive: name,
    })
}

/// Refuses two images for one platform, of which nobody could get the second.
fn check_platforms(manifests: &[PlannedManifest]) -> anyhow::Result<()> {
    let descriptors: Vec<_> = manifests
        .iter()
        .map(|planned| planned.descriptor.clone())
        .collect();
    if let Some((first, second)) = Index::of_one_platform(&descriptors)
        && let Some(platform) = &descriptors[second].platform
    {
        bail!(
            "{} and {} are both for {platform}: push one of them only",
            manifests[first].archive,
            manifests[second].archive
        );
    }
    Ok(())
}

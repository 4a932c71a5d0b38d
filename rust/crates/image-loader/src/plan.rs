//! What of an archive goes into containerd: read and checked before containerd is asked for
//! anything.

use std::{
    collections::{BTreeSet, HashMap},
    io::{Read, Seek},
};

use nix_image::{
    Descriptor, Digest, Index, Manifest, Platform, Reference, annotations,
    archive::{Archive, ArchiveImage, StoredImage},
};

use crate::{
    Error,
    containerd::{index_gc_labels, manifest_gc_labels},
};

/// Which of the platforms of an image are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// The best for this one.
    One(Platform),
    /// All that the archive has.
    All,
}

/// A blob, and the labels that it gets in containerd.
pub type LabelledBlob = (Descriptor, HashMap<String, String>);

/// An image of an archive on its way into containerd.
#[derive(Debug)]
pub struct PlannedImage {
    /// The names that it gets.
    pub names: Vec<Reference>,
    /// What the names stand for: a manifest, or an index of several.
    pub target: Descriptor,
    /// All its blobs, what refers to others behind these.
    pub blobs: Vec<LabelledBlob>,
    /// What is unpacked; nothing if no platform of it runs here.
    pub unpacked: Option<StoredImage>,
}

/// The images of an archive, each once, with all its names. `reference` names the only one
/// otherwise than the archive does.
///
/// # Errors
/// The archive is damaged, has no image for the platform, or names its images otherwise than it is
/// asked for.
pub fn images<R: Read + Seek>(
    archive: &mut Archive<R>,
    platforms: &Platforms,
    reference: Option<&Reference>,
) -> Result<Vec<PlannedImage>, Error> {
    let mut images: Vec<PlannedImage> = Vec::new();
    for image in archive.images().to_vec() {
        let target = match platforms {
            Platforms::One(platform) => archive.select(&image, platform)?.clone(),
            Platforms::All => root(archive, &image)?,
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
                blobs: blobs(archive, &target)?,
                target,
                unpacked: unpacked(archive, &image, platforms)?,
            }),
        }
    }
    let name = || archive.name().to_owned();
    if images.is_empty() {
        return Err(Error::NoImage { archive: name() });
    }
    if reference.is_some() && images.len() > 1 {
        return Err(Error::SeveralImages {
            archive: name(),
            count: images.len(),
        });
    }
    for image in &mut images {
        image.names.dedup();
    }
    Ok(images)
}

/// The name that an archive gives an image.
///
/// # Errors
/// [`Error::Name`].
pub fn name(archive: &str, image: &ArchiveImage) -> Result<Reference, Error> {
    let refuse = |source: Option<nix_image::Error>| Error::Name {
        archive: archive.to_owned(),
        name: image.name.clone(),
        source: source.map(Box::new),
    };
    let name = image.name.as_deref().ok_or_else(|| refuse(None))?;
    Reference::parse(name).map_err(|error| refuse(Some(error)))
}

/// The one document that stands for all platforms of an image. Where the archive has none, it is
/// the index that a push of the archive makes, too.
fn root<R: Read + Seek>(
    archive: &mut Archive<R>,
    image: &ArchiveImage,
) -> Result<Descriptor, Error> {
    if let [first, others @ ..] = &*image.roots
        && others.iter().all(|other| other.digest == first.digest)
    {
        return Ok(first.clone());
    }
    let mut manifests: Vec<Descriptor> = Vec::new();
    for manifest in &image.manifests {
        if manifests
            .iter()
            .all(|other| other.digest != manifest.digest)
        {
            manifests.push(manifest.clone());
        }
    }
    if manifests.is_empty() {
        return Err(Error::NoImage {
            archive: archive.name().to_owned(),
        });
    }
    if let Some((first, second)) = Index::of_one_platform(&manifests)
        && let Some(platform) = &manifests[second].platform
    {
        let name = image.name.as_deref();
        return Err(Error::SamePlatform {
            archive: archive.name().to_owned(),
            name: name.map_or("no name".to_owned(), |name| format!("the name {name:?}")),
            manifests: [manifests[first].digest, manifests[second].digest],
            platform: Box::new(platform.clone()),
        });
    }
    let (index, json) = Index::of_platforms(manifests)?;
    archive.keep(&index, json);
    Ok(index)
}

/// What of an image is unpacked: what was asked for, and of all platforms the one that runs here.
fn unpacked<R: Read + Seek>(
    archive: &mut Archive<R>,
    image: &ArchiveImage,
    platforms: &Platforms,
) -> Result<Option<StoredImage>, Error> {
    let manifest = match platforms {
        Platforms::One(platform) => archive.select(image, platform)?,
        Platforms::All => match archive.select(image, &Platform::host()) {
            Ok(manifest) => manifest,
            Err(nix_image::Error::Platform { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        },
    };
    let stored = archive.image(manifest)?;
    for layer in &stored.manifest.layers {
        annotations::check_lengths(&layer.annotations).map_err(|error| Error::Layer {
            archive: archive.name().to_owned(),
            layer: layer.digest,
            source: Box::new(error),
        })?;
    }
    Ok(Some(stored))
}

/// A blob with all that it refers to.
fn blobs<R: Read + Seek>(
    archive: &mut Archive<R>,
    root: &Descriptor,
) -> Result<Vec<LabelledBlob>, Error> {
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
    blobs: &mut Vec<LabelledBlob>,
) -> Result<(), Error> {
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
) -> Result<T, Error> {
    let json = archive.read_blob(descriptor)?;
    serde_json::from_slice(&json).map_err(|source| Error::Document {
        archive: archive.name().to_owned(),
        digest: descriptor.digest,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use nix_image::media_type;
    use serde_json::json;

    use super::*;

    /// An archive whose `index.json` lists the manifests of images for these architectures itself,
    /// all under one name.
    fn archive(architectures: &[&str]) -> Archive<Cursor<Vec<u8>>> {
        let mut files = vec![(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        )];
        let mut blob = |media_type: &str, content: serde_json::Value| {
            let content = content.to_string().into_bytes();
            let descriptor = Descriptor::of(media_type, &content);
            let digits = descriptor.digest.to_string().replace(':', "/");
            files.push((format!("blobs/{digits}"), content));
            descriptor
        };
        let mut manifests = Vec::new();
        for (number, architecture) in architectures.iter().enumerate() {
            let config = json!({
                "os": "linux",
                "architecture": architecture,
                "author": number.to_string(),
                "rootfs": { "type": "layers", "diff_ids": [] },
            });
            let config = blob(media_type::CONFIG, config);
            let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [] });
            let mut manifest = blob(media_type::MANIFEST, manifest);
            let name = (
                "io.containerd.image.name".to_owned(),
                "r.io/a:v1".to_owned(),
            );
            manifest.annotations.extend([name]);
            manifests.push(manifest);
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, &*content).unwrap();
        }
        Archive::open("x", Cursor::new(tar.into_inner().unwrap())).unwrap()
    }

    #[test]
    fn manifests_under_one_name_become_an_index_that_does_not_depend_on_their_order() {
        let plan = |architectures| {
            let mut archive = archive(architectures);
            let images = images(&mut archive, &Platforms::All, None).unwrap();
            let [image] = <[_; 1]>::try_from(images).unwrap();
            let (last, labels) = image.blobs.last().unwrap().clone();
            assert_eq!((&last, labels.len()), (&image.target, 2));
            assert_eq!(image.blobs.len(), 5);
            assert_eq!(image.names.len(), 1);
            let json = archive.read_blob(&image.target).unwrap();
            let index: Index = serde_json::from_slice(&json).unwrap();
            let listed = index.manifests.iter();
            listed
                .map(|manifest| {
                    assert!(manifest.annotations.is_empty());
                    manifest.platform.as_ref().unwrap().to_string()
                })
                .collect::<Vec<_>>()
        };
        let expected = ["linux/amd64", "linux/arm64"];
        assert_eq!(plan(&["amd64", "arm64"]), expected);
        assert_eq!(plan(&["arm64", "amd64"]), expected);
    }

    #[test]
    fn two_images_for_one_platform_are_refused_with_the_way_out() {
        let mut twice = archive(&["amd64", "arm64", "aarch64"]);
        let message = images(&mut twice, &Platforms::All, None)
            .unwrap_err()
            .to_string();
        for words in ["x has two", "r.io/a:v1", "for linux/a", "by its platform"] {
            assert!(message.contains(words), "{message}");
        }
        let one = Platforms::One("linux/arm64".parse().unwrap());
        assert_eq!(images(&mut twice, &one, None).unwrap().len(), 1);
    }

    #[test]
    fn a_single_manifest_needs_no_index_and_no_manifest_is_no_image() {
        let mut archive = archive(&["amd64"]);
        let images = images(&mut archive, &Platforms::All, None).unwrap();
        assert!(images[0].target.is_manifest());
        let artifacts = ArchiveImage {
            name: None,
            roots: [&b"a"[..], b"b"]
                .map(|each| Descriptor::of("x", each))
                .into(),
            manifests: Vec::new(),
        };
        let error = root(&mut archive, &artifacts).unwrap_err();
        assert!(matches!(error, Error::NoImage { .. }), "{error}");
    }
}

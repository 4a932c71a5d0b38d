//! Archives of `docker save` and of nixpkgs' `dockerTools`: no blobs by digest, no
//! manifest, but a list of configs and layers by file name.

use std::{
    collections::BTreeMap,
    io::{Read, Seek},
};

use serde::Deserialize;

use crate::{
    Compression, Descriptor, Digest, Error, ImageConfig, Manifest,
    archive::{
        ArchiveImage, DOCKER_MANIFEST, MAX_DOCKER_LAYERS, MAX_MANIFESTS,
        files::{Extent, Files},
        images::add_image,
        read::{Blob, parse},
    },
    digest::Hasher,
    error::shorten,
    manifest::{layer_media_type, media_type, null_is_default},
};

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default, deserialize_with = "null_is_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    layers: Vec<String>,
}

/// Makes the manifests that the archive does not have.
///
/// Every layer is read once for its digest.
pub(super) fn open<R: Read + Seek>(
    files: &mut Files<R>,
    list: Extent,
) -> Result<(Vec<ArchiveImage>, BTreeMap<Digest, Blob>), Error> {
    let json = files.read_document(DOCKER_MANIFEST, list)?;
    let entries: Vec<Entry> = parse(&files.archive, DOCKER_MANIFEST, &json)?;

    let names = entries.iter().map(|entry| entry.repo_tags.len().max(1));
    let layers = entries.iter().map(|entry| entry.layers.len());
    for (number, limit, what) in [
        (names.sum::<usize>(), MAX_MANIFESTS, "images"),
        (layers.sum(), MAX_DOCKER_LAYERS, "layers"),
    ] {
        if number > limit {
            return Err(Error::NotAnImage {
                archive: files.archive.clone(),
                reason: format!("it lists more than {limit} {what}"),
            });
        }
    }

    let mut images = Vec::new();
    let mut blobs = BTreeMap::new();
    let mut layers_read = BTreeMap::new();
    for entry in entries {
        let extent = file(files, &entry.config)?;
        let name = shorten(&entry.config);
        let document = files.read_document(&name, extent)?;
        let config: ImageConfig = parse(&files.archive, &name, &document)?;
        let config_descriptor = Descriptor::of(media_type::CONFIG, &document);
        blobs.insert(config_descriptor.digest, Blob::File(extent));

        let mut layers = Vec::new();
        for name in entry.layers {
            let layer = match layers_read.get(&name) {
                Some(layer) => Descriptor::clone(layer),
                None => {
                    let extent = file(files, &name)?;
                    let layer = describe_layer(files, extent)?;
                    blobs.insert(layer.digest, Blob::File(extent));
                    layers_read.insert(name, layer.clone());
                    layer
                }
            };
            layers.push(layer);
        }
        let manifest = Manifest {
            annotations: BTreeMap::new(),
            config: config_descriptor,
            layers,
            media_type: media_type::MANIFEST.to_owned(),
            schema_version: 2,
        };
        let document = serde_json::to_vec(&manifest).map_err(|source| Error::Json { source })?;
        let descriptor = Descriptor {
            platform: Some(config.platform()),
            ..Descriptor::of(media_type::MANIFEST, &document)
        };
        blobs.insert(descriptor.digest, Blob::Document(document));

        if entry.repo_tags.is_empty() {
            add_image(
                &mut images,
                None,
                descriptor.clone(),
                vec![descriptor.clone()],
            );
        }
        for name in entry.repo_tags {
            add_image(
                &mut images,
                Some(name),
                descriptor.clone(),
                vec![descriptor.clone()],
            );
        }
    }
    Ok((images, blobs))
}

fn file<R: Read + Seek>(files: &Files<R>, name: &str) -> Result<Extent, Error> {
    files.get(name).ok_or_else(|| Error::MissingFile {
        archive: files.archive.clone(),
        file: shorten(name),
    })
}

fn describe_layer<R: Read + Seek>(
    files: &mut Files<R>,
    extent: Extent,
) -> Result<Descriptor, Error> {
    let archive = files.archive.clone();
    let read = |source| Error::ReadArchive {
        archive: archive.clone(),
        source,
    };
    let mut content = files.open(extent)?;
    let mut beginning = Vec::new();
    content
        .by_ref()
        .take(Compression::MAGIC_BYTES as u64)
        .read_to_end(&mut beginning)
        .map_err(read)?;
    let mut hasher = Hasher::default();
    hasher.update(&beginning);
    std::io::copy(&mut content, &mut hasher).map_err(read)?;
    Ok(Descriptor {
        annotations: BTreeMap::new(),
        digest: hasher.finish(),
        media_type: layer_media_type(Compression::detect(&beginning)),
        platform: None,
        size: extent.size,
    })
}

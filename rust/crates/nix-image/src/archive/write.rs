//! Writing an archive.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, Write},
};

use serde::Serialize;
use tar::{EntryType, Header};

use crate::{
    Descriptor, Digest, Error, Index, NewImage,
    archive::{Archive, BLOBS, DOCKER_MANIFEST, INDEX, LAYOUT_VERSION, OCI_LAYOUT},
    manifest::{IMAGE_NAME, REF_NAME, media_type},
};

/// What the content of a blob comes from.
enum Source<'a> {
    Memory(&'a [u8]),
    Base {
        layer: &'a Descriptor,
        diff_id: Digest,
    },
}

/// Writes `image` as an OCI image layout that `docker load` reads, too: the entries
/// in the order of the alphabet, as containerd's export has them.
///
/// Layers of the base are copied out of `base`, the archive that the image was
/// put together with, and checked on the way.
///
/// # Errors
/// [`Error::WriteArchive`], and what is wrong with the base: it is read here.
pub fn write<R: Read + Seek>(
    image: &NewImage,
    mut base: Option<&mut Archive<R>>,
    mut out: impl Write,
) -> Result<(), Error> {
    let mut blobs = BTreeMap::new();
    for (layer, diff_id) in &image.base_layers {
        let source = Source::Base {
            layer,
            diff_id: *diff_id,
        };
        blobs.insert(layer.digest, (layer.size, source));
    }
    let layer = image.layer.as_ref();
    let own = [&image.manifest, &image.config]
        .map(|document| (&document.descriptor, &*document.json))
        .into_iter()
        .chain(layer.map(|layer| (&layer.descriptor, &*layer.blob)));
    for (descriptor, content) in own {
        blobs.insert(
            descriptor.digest,
            (descriptor.size, Source::Memory(content)),
        );
    }

    let out = &mut out;
    write_directory(out, "blobs/")?;
    write_directory(out, BLOBS)?;
    for (digest, (size, source)) in blobs {
        write_header(out, &format!("{BLOBS}{}", digest.hex()), size, 0o444)?;
        match (source, &mut base) {
            (Source::Memory(content), _) => put(out, content)?,
            (Source::Base { layer, diff_id }, Some(base)) => {
                base.copy_layer(layer, diff_id, out)?;
            }
            (Source::Base { layer, .. }, None) => {
                return Err(Error::MissingBlob {
                    archive: image.reference.to_string(),
                    digest: layer.digest,
                });
            }
        }
        pad(out, size)?;
    }
    write_file(out, INDEX, &index(image)?)?;
    write_file(out, DOCKER_MANIFEST, &docker_manifest(image)?)?;
    write_file(out, OCI_LAYOUT, &layout()?)?;
    put(out, &[0; 1024])?;
    out.flush().map_err(|source| Error::WriteArchive { source })
}

fn layout() -> Result<Vec<u8>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: &'static str,
    }
    to_json(&Layout {
        image_layout_version: LAYOUT_VERSION,
    })
}

fn index(image: &NewImage) -> Result<Vec<u8>, Error> {
    let descriptor = Descriptor {
        annotations: BTreeMap::from([
            (IMAGE_NAME.to_owned(), image.reference.to_string()),
            (REF_NAME.to_owned(), image.reference.ref_name()),
        ]),
        platform: Some(image.platform.clone()),
        ..image.manifest.descriptor.clone()
    };
    to_json(&Index {
        manifests: vec![descriptor],
        media_type: media_type::INDEX.to_owned(),
        schema_version: 2,
    })
}

/// The list of images of `docker save`, which refers to the same blobs.
fn docker_manifest(image: &NewImage) -> Result<Vec<u8>, Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        config: String,
        layers: Vec<String>,
        repo_tags: [String; 1],
    }
    let file = |descriptor: &Descriptor| format!("{BLOBS}{}", descriptor.digest.hex());
    let base_layers = image.base_layers.iter().map(|(layer, _)| layer);
    let layers = base_layers.chain(image.layer.as_ref().map(|layer| &layer.descriptor));
    to_json(&[Entry {
        config: file(&image.config.descriptor),
        layers: layers.map(file).collect(),
        repo_tags: [image.reference.familiar()],
    }])
}

fn to_json(document: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(document).map_err(|source| Error::Json { source })
}

fn write_file(out: &mut impl Write, name: &str, content: &[u8]) -> Result<(), Error> {
    let size = content.len() as u64;
    write_header(out, name, size, 0o444)?;
    put(out, content)?;
    pad(out, size)
}

fn write_directory(out: &mut impl Write, name: &str) -> Result<(), Error> {
    let mut header = header(name, 0, 0o755)?;
    header.set_entry_type(EntryType::Directory);
    header.set_cksum();
    put(out, header.as_bytes())
}

fn write_header(out: &mut impl Write, name: &str, size: u64, mode: u32) -> Result<(), Error> {
    let mut header = header(name, size, mode)?;
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    put(out, header.as_bytes())
}

/// A header without a time and an owner.
fn header(name: &str, size: u64, mode: u32) -> Result<Header, Error> {
    // GNU headers have room for a layer of more than 8 GiB.
    let mut header = Header::new_gnu();
    header
        .set_path(name)
        .map_err(|source| Error::WriteArchive { source })?;
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    Ok(header)
}

fn put(out: &mut impl Write, bytes: &[u8]) -> Result<(), Error> {
    out.write_all(bytes)
        .map_err(|source| Error::WriteArchive { source })
}

/// Fills the last block of a file's content.
fn pad(out: &mut impl Write, size: u64) -> Result<(), Error> {
    let fill = size.next_multiple_of(512) - size;
    put(out, &[0; 512][..fill as usize])
}

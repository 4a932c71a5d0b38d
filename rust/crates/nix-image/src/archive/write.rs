//! Writing an image layout: as a tar archive, or as whatever has files.

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

/// Where the files of an image layout go.
pub trait LayoutFiles {
    /// Makes a directory, whose parents have been made before.
    ///
    /// # Errors
    /// [`Error::WriteArchive`].
    fn directory(&mut self, name: &str) -> Result<(), Error>;

    /// Makes a file of so many bytes, which `content` writes.
    ///
    /// # Errors
    /// Those of `content`, and [`Error::WriteArchive`].
    fn file(
        &mut self,
        name: &str,
        size: u64,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<(), Error>;
}

/// What the content of a blob comes from.
enum Source<'a> {
    Memory(&'a [u8]),
    Layer,
    Base {
        layer: &'a Descriptor,
        diff_id: Digest,
    },
}

/// Writes `image` as an OCI image layout that `docker load` reads, too: the files
/// in the order of the alphabet, as containerd's export has them.
///
/// Layers of the base are copied out of `base`, the archive that the image was
/// put together with, and checked on the way. `layer` is the blob of the layer that was packed.
///
/// # Errors
/// [`Error::WriteArchive`], and what is wrong with the base: it is read here.
pub fn write_layout<R: Read + Seek>(
    image: &NewImage,
    mut base: Option<&mut Archive<R>>,
    layer: &mut impl Read,
    out: &mut dyn LayoutFiles,
) -> Result<(), Error> {
    let mut blobs = BTreeMap::new();
    for (layer, diff_id) in &image.base_layers {
        let source = Source::Base {
            layer,
            diff_id: *diff_id,
        };
        blobs.insert(layer.digest, (layer.size, source));
    }
    if let Some(layer) = &image.layer {
        blobs.insert(layer.digest, (layer.size, Source::Layer));
    }
    for document in [&image.manifest, &image.config] {
        let descriptor = &document.descriptor;
        let source = Source::Memory(&document.json);
        blobs.insert(descriptor.digest, (descriptor.size, source));
    }

    out.directory("blobs/")?;
    out.directory(BLOBS)?;
    for (digest, (size, source)) in blobs {
        let name = format!("{BLOBS}{}", digest.hex());
        out.file(
            &name,
            size,
            &mut |mut out| match (&source, base.as_deref_mut()) {
                (Source::Memory(content), _) => put(out, content),
                (Source::Layer, _) => {
                    let copied = std::io::copy(layer, out);
                    copied
                        .map(drop)
                        .map_err(|source| Error::WriteArchive { source })
                }
                (Source::Base { layer, diff_id }, Some(base)) => {
                    base.copy_layer(layer, *diff_id, &mut out)
                }
                (Source::Base { layer, .. }, None) => Err(Error::MissingBlob {
                    archive: image.reference.to_string(),
                    digest: layer.digest,
                }),
            },
        )?;
    }
    for (name, document) in [
        (INDEX, index(image)?),
        (DOCKER_MANIFEST, docker_manifest(image)?),
        (OCI_LAYOUT, layout()?),
    ] {
        let size = document.len() as u64;
        out.file(name, size, &mut |out| put(out, &document))?;
    }
    Ok(())
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
    let layers = base_layers.chain(&image.layer);
    to_json(&[Entry {
        config: file(&image.config.descriptor),
        layers: layers.map(file).collect(),
        repo_tags: [image.reference.familiar()],
    }])
}

fn to_json(document: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(document).map_err(|source| Error::Json { source })
}

/// An image layout in a tar archive.
pub struct TarLayout<W>(W);

impl<W: Write> TarLayout<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self(out)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// [`Error::WriteArchive`].
    pub fn finish(mut self) -> Result<(), Error> {
        put(&mut self.0, &[0; 1024])?;
        let flushed = self.0.flush();
        flushed.map_err(|source| Error::WriteArchive { source })
    }
}

impl<W: Write> LayoutFiles for TarLayout<W> {
    fn directory(&mut self, name: &str) -> Result<(), Error> {
        let mut header = header(name, 0, 0o755)?;
        header.set_entry_type(EntryType::Directory);
        header.set_cksum();
        put(&mut self.0, header.as_bytes())
    }

    fn file(
        &mut self,
        name: &str,
        size: u64,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut header = header(name, size, 0o444)?;
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        put(&mut self.0, header.as_bytes())?;
        content(&mut self.0)?;
        // Fills the last block of the content.
        let fill = size.next_multiple_of(512) - size;
        put(&mut self.0, &[0; 512][..fill as usize])
    }
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

fn put(out: &mut (impl Write + ?Sized), bytes: &[u8]) -> Result<(), Error> {
    out.write_all(bytes)
        .map_err(|source| Error::WriteArchive { source })
}

//! Reading an archive of images.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Cursor, Read, Seek, Write},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Base, Compression, Descriptor, Digest, Error, ImageConfig, Index, Manifest, Platform,
    archive::{
        BLOBS, DOCKER_MANIFEST, INDEX, LAYOUT_VERSION, MAX_MANIFESTS, MAX_NESTING, OCI_LAYOUT,
        docker,
        files::{Extent, Files},
        images::{ArchiveImage, add_image, image_name},
    },
    compression::DiffIdHasher,
    digest::Hasher,
    error::{cut, shorten, shorten_json},
};

const CHUNK: usize = 128 << 10;

/// An archive of images.
///
/// `R` is the tar file, plain and seekable, or a file of the directory that the images are in.
#[derive(Debug)]
pub struct Archive<R> {
    files: Files<R>,
    blobs: BTreeMap<Digest, Blob>,
    images: Vec<ArchiveImage>,
}

/// Where the content of a blob is.
#[derive(Clone, Debug)]
pub(super) enum Blob {
    File(Extent),
    /// One that was made up for an archive that has none of its kind.
    Document(Vec<u8>),
}

/// An image of an archive, with all its documents read and checked.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// The descriptor of the manifest.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// The config; it has one diff ID for each layer.
    pub config: ImageConfig,
}

impl<R: Read + Seek> Archive<R> {
    /// Reads what is in the archive. `name` is what messages call it.
    ///
    /// # Errors
    /// Say which archive and which of its files are damaged, and how.
    pub fn open(name: impl Into<String>, file: R) -> Result<Self, Error> {
        Self::of(Files::index(name.into(), file)?)
    }

    /// Reads what is in a directory. `files` are those that it has, by their names in it, each with
    /// its size: of an OCI image layout, or what an archive of `docker save` has been unpacked to.
    ///
    /// # Errors
    /// As for [`Archive::open`].
    pub fn open_directory(
        name: impl Into<String>,
        files: impl IntoIterator<Item = (String, u64, R)>,
    ) -> Result<Self, Error> {
        Self::of(Files::of_directory(name.into(), files))
    }

    fn of(mut files: Files<R>) -> Result<Self, Error> {
        if let Some(extent) = files.get(OCI_LAYOUT) {
            Self::open_layout(files, extent)
        } else if let Some(extent) = files.get(DOCKER_MANIFEST) {
            let (images, blobs) = docker::open(&mut files, extent)?;
            Ok(Self {
                files,
                blobs,
                images,
            })
        } else {
            Err(Error::NotAnImage {
                archive: files.archive,
                reason: format!("it has neither `{OCI_LAYOUT}` nor `{DOCKER_MANIFEST}`"),
            })
        }
    }

    fn open_layout(mut files: Files<R>, layout: Extent) -> Result<Self, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Layout {
            image_layout_version: String,
        }
        let not_an_image = |archive: &str, reason| Error::NotAnImage {
            archive: archive.to_owned(),
            reason,
        };
        let json = files.read_document(OCI_LAYOUT, layout)?;
        let layout: Layout = parse(&files.archive, OCI_LAYOUT, &json)?;
        if layout.image_layout_version != LAYOUT_VERSION {
            let version = shorten(&layout.image_layout_version);
            let reason = format!("its `{OCI_LAYOUT}` has version {version}, not {LAYOUT_VERSION}");
            return Err(not_an_image(&files.archive, reason));
        }
        let index = files
            .get(INDEX)
            .ok_or_else(|| not_an_image(&files.archive, format!("it has no `{INDEX}`")))?;
        let json = files.read_document(INDEX, index)?;
        let index: Index = parse(&files.archive, INDEX, &json)?;

        let blobs = files
            .names()
            .filter_map(|(name, extent)| {
                let digest = format!("sha256:{}", name.strip_prefix(BLOBS)?)
                    .parse()
                    .ok()?;
                Some((digest, Blob::File(extent)))
            })
            .collect();
        let mut archive = Self {
            files,
            blobs,
            images: Vec::new(),
        };
        let mut left = MAX_MANIFESTS;
        for descriptor in index.manifests {
            let name = image_name(&descriptor);
            let mut manifests = Vec::new();
            archive.flatten(descriptor.clone(), 0, &mut left, &mut manifests)?;
            add_image(&mut archive.images, name, descriptor, manifests);
        }
        Ok(archive)
    }

    /// Collects the manifests below an index, each with its platform.
    fn flatten(
        &mut self,
        mut descriptor: Descriptor,
        depth: usize,
        left: &mut usize,
        manifests: &mut Vec<Descriptor>,
    ) -> Result<(), Error> {
        let refuse = |reason| Error::NotAnImage {
            archive: self.files.archive.clone(),
            reason,
        };
        *left = left
            .checked_sub(1)
            .ok_or_else(|| refuse(format!("it lists more than {MAX_MANIFESTS} manifests")))?;
        if depth > MAX_NESTING {
            let reason = format!("its indexes are nested more than {MAX_NESTING} deep");
            return Err(refuse(reason));
        }
        if descriptor.is_index() {
            let index: Index = self.document(&descriptor)?;
            for descriptor in index.manifests {
                self.flatten(descriptor, depth + 1, left, manifests)?;
            }
        } else if descriptor.is_manifest() {
            if descriptor.platform.is_none() {
                let manifest: Manifest = self.document(&descriptor)?;
                let config: ImageConfig = self.document(&manifest.config)?;
                descriptor.platform = Some(config.platform());
            }
            manifests.push(descriptor);
        }
        // Anything else is an artifact that lies beside the images.
        Ok(())
    }

    /// Keeps a document that was made of what the archive has, as if it were one of its blobs.
    pub fn keep(&mut self, descriptor: &Descriptor, document: Vec<u8>) {
        let document = Blob::Document(document);
        self.blobs.entry(descriptor.digest).or_insert(document);
    }

    /// What messages call the archive.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.files.archive
    }

    /// The images in the archive's order.
    #[must_use]
    pub fn images(&self) -> &[ArchiveImage] {
        &self.images
    }

    /// The one of an image's manifests that runs on `platform`.
    ///
    /// # Errors
    /// [`Error::Platform`], which lists what there is.
    pub fn select<'a>(
        &self,
        image: &'a ArchiveImage,
        platform: &Platform,
    ) -> Result<&'a Descriptor, Error> {
        let platform_of = |manifest: &'a Descriptor| manifest.platform.as_ref();
        image
            .manifests
            .iter()
            .filter_map(|manifest| Some((platform.suits(platform_of(manifest)?)?, manifest)))
            // The first of the best.
            .rev()
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, manifest)| manifest)
            .ok_or_else(|| Error::Platform {
                archive: self.files.archive.clone(),
                wanted: platform.to_string(),
                found: list_platforms(image.manifests.iter().filter_map(platform_of)),
            })
    }

    /// Reads the manifest and the config of an image, and checks that they are
    /// those of an image for containers whose layers can be unpacked.
    ///
    /// # Errors
    /// Say which blob of the archive is missing, damaged or unfit.
    pub fn image(&mut self, manifest: &Descriptor) -> Result<StoredImage, Error> {
        let descriptor = manifest.clone();
        let manifest: Manifest = self.document(&descriptor)?;
        let unfit = |descriptor: &Descriptor| Error::MediaType {
            archive: self.files.archive.clone(),
            digest: descriptor.digest,
            media_type: shorten(&descriptor.media_type),
        };
        if !manifest.config.is_config() {
            return Err(unfit(&manifest.config));
        }
        if let Some(layer) = manifest.layers.iter().find(|layer| !layer.is_layer()) {
            return Err(unfit(layer));
        }
        let config: ImageConfig = self.document(&manifest.config)?;
        if manifest.layers.len() != config.rootfs.diff_ids.len() {
            return Err(Error::LayerCount {
                archive: self.files.archive.clone(),
                manifest: descriptor.digest,
                layers: manifest.layers.len(),
                diff_ids: config.rootfs.diff_ids.len(),
            });
        }
        Ok(StoredImage {
            descriptor,
            manifest,
            config,
        })
    }

    /// The archive's one image for `platform`, as the base of another. It may have
    /// several names.
    ///
    /// # Errors
    /// [`Error::NotOneImage`], and those of [`Archive::select`] and [`Archive::image`].
    pub fn base(&mut self, platform: &Platform) -> Result<Base, Error> {
        let mut manifests: Vec<Descriptor> = Vec::new();
        for image in &self.images {
            let manifest = self.select(image, platform)?;
            if manifests
                .iter()
                .all(|other| other.digest != manifest.digest)
            {
                manifests.push(manifest.clone());
            }
        }
        let [manifest] = &*manifests else {
            let names = self.images.iter().filter_map(|image| image.name.as_deref());
            return Err(Error::NotOneImage {
                archive: self.files.archive.clone(),
                images: manifests.len(),
                names: shorten(&names.collect::<Vec<_>>().join(" ")),
            });
        };
        let image = self.image(manifest)?;
        // The index may have said otherwise; what is built on the image has its config's.
        let found = image.config.platform();
        if platform.suits(&found).is_none() {
            return Err(Error::Platform {
                archive: self.files.archive.clone(),
                wanted: platform.to_string(),
                found: list_platforms([&found].into_iter()),
            });
        }
        let mut compressions = Vec::new();
        for layer in &image.manifest.layers {
            compressions.push(self.layer_compression(layer)?);
        }
        Ok(Base {
            image,
            compressions,
        })
    }

    fn document<T: DeserializeOwned>(&mut self, descriptor: &Descriptor) -> Result<T, Error> {
        let json = self.read_blob(descriptor)?;
        parse(&self.files.archive, &descriptor.digest.to_string(), &json)
    }

    /// The whole content of a document.
    ///
    /// # Errors
    /// Those of [`Archive::blob`] and [`BlobReader::read`], and
    /// [`Error::DocumentTooLarge`].
    pub fn read_blob(&mut self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        if descriptor.size > super::MAX_DOCUMENT_BYTES {
            return Err(Error::DocumentTooLarge {
                archive: self.files.archive.clone(),
                document: descriptor.digest.to_string(),
                size: descriptor.size,
                limit: super::MAX_DOCUMENT_BYTES,
            });
        }
        let mut blob = self.blob(descriptor)?;
        let mut content = Vec::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            match blob.read(&mut chunk)? {
                0 => return Ok(content),
                read => content.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// The content of a blob, checked while it is read.
    ///
    /// # Errors
    /// [`Error::MissingBlob`]; [`Error::BlobSize`] if it has not the size that the
    /// descriptor says; [`Error::ReadArchive`].
    pub fn blob(&mut self, descriptor: &Descriptor) -> Result<BlobReader<'_>, Error> {
        let archive = self.files.archive.clone();
        let Some(blob) = self.blobs.get(&descriptor.digest) else {
            return Err(Error::MissingBlob {
                archive,
                digest: descriptor.digest,
            });
        };
        let size = match blob {
            Blob::File(extent) => extent.size,
            Blob::Document(document) => document.len() as u64,
        };
        if size != descriptor.size {
            return Err(Error::BlobSize {
                archive,
                digest: descriptor.digest,
                expected: descriptor.size,
                found: size,
            });
        }
        let content: Box<dyn Read + '_> = match blob {
            Blob::File(extent) => Box::new(self.files.open(*extent)?),
            Blob::Document(document) => Box::new(Cursor::new(document)),
        };
        Ok(BlobReader {
            archive,
            digest: descriptor.digest,
            content,
            left: size,
            hasher: Some(Hasher::default()),
        })
    }

    /// The compression of a layer by its beginning.
    pub(super) fn layer_compression(&mut self, layer: &Descriptor) -> Result<Compression, Error> {
        let mut beginning = [0; Compression::MAGIC_BYTES];
        // Too few bytes to check the digest of: whoever uses the layer reads it whole.
        let read = self.blob(layer)?.read_unchecked(&mut beginning)?;
        Ok(Compression::detect(&beginning[..read]))
    }

    /// Copies a layer as it is, and checks on the way that it decompresses to `diff_id`.
    pub(super) fn copy_layer(
        &mut self,
        layer: &Descriptor,
        diff_id: Digest,
        out: &mut impl Write,
    ) -> Result<(), Error> {
        let archive = self.files.archive.clone();
        let damaged = |source| Error::DecompressLayer {
            archive: archive.clone(),
            digest: layer.digest,
            source,
        };
        let compression = self.layer_compression(layer)?;
        let mut hasher = DiffIdHasher::new(compression).map_err(damaged)?;
        let mut blob = self.blob(layer)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = blob.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            hasher.update(&chunk[..read]).map_err(damaged)?;
            out.write_all(&chunk[..read])
                .map_err(|source| Error::WriteArchive { source })?;
        }
        let found = hasher.finish().map_err(damaged)?;
        if found != diff_id {
            return Err(Error::DiffId {
                archive,
                layer: layer.digest,
                expected: diff_id,
                found,
            });
        }
        Ok(())
    }
}

/// Reads a blob. Its digest is checked with the last byte: what was read before
/// must not be used if the end is an error.
pub struct BlobReader<'a> {
    archive: String,
    digest: Digest,
    content: Box<dyn Read + 'a>,
    left: u64,
    /// `None` once it has been checked.
    hasher: Option<Hasher>,
}

impl<'a> BlobReader<'a> {
    /// The content without any check of it.
    pub(super) fn unchecked(self) -> Box<dyn Read + 'a> {
        self.content
    }
    /// Fills `buffer` as far as there is content; 0 is the end.
    ///
    /// # Errors
    /// [`Error::BlobDigest`] at the end of a blob that is not what its digest says,
    /// [`Error::ReadArchive`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let filled = self.read_unchecked(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..filled]);
        }
        if self.left == 0
            && let Some(hasher) = self.hasher.take()
        {
            let found = hasher.finish();
            if found != self.digest {
                return Err(Error::BlobDigest {
                    archive: self.archive.clone(),
                    digest: self.digest,
                    found,
                });
            }
        }
        Ok(filled)
    }

    fn read_unchecked(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.content
            .read_exact(&mut buffer[..wanted])
            .map_err(|source| Error::ReadArchive {
                archive: self.archive.clone(),
                source,
            })?;
        self.left -= wanted as u64;
        Ok(wanted)
    }
}

/// The platforms without repetition, and without those of attestations.
fn list_platforms<'a>(platforms: impl Iterator<Item = &'a Platform>) -> String {
    let platforms: BTreeSet<_> = platforms
        .filter(|platform| !platform.is_unknown())
        .map(|platform| platform.to_string().escape_debug().to_string())
        .collect();
    cut(platforms.into_iter().collect::<Vec<_>>().join(", "))
}

pub(super) fn parse<T: DeserializeOwned>(
    archive: &str,
    document: &str,
    json: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|source| Error::Document {
        archive: archive.to_owned(),
        document: document.to_owned(),
        source: shorten_json(source),
    })
}

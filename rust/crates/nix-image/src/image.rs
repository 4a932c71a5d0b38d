//! Putting an image together: a base, a layer of store paths, a config.

use std::collections::BTreeMap;

use crate::{
    Compression, Descriptor, Digest, Error, ImageConfig, Layer, Manifest, Platform, Reference,
    RuntimeConfig,
    archive::StoredImage,
    config::History,
    manifest::{layer_media_type, media_type},
};

/// What the history of an image calls the step that added its layer.
const CREATED_BY: &str = "nix2container build";

/// An image that is ready to be written.
#[derive(Clone, Debug)]
pub struct NewImage {
    pub(crate) reference: Reference,
    pub(crate) platform: Platform,
    pub(crate) manifest: Document,
    pub(crate) config: Document,
    /// The layers that are taken over, each with its diff ID.
    pub(crate) base_layers: Vec<(Descriptor, Digest)>,
    /// The one that is added.
    pub(crate) layer: Option<Descriptor>,
}

/// What an image is to be, besides its layers.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Its name.
    pub reference: Reference,
    /// What it runs on, if it has no base: it has the base's otherwise.
    pub platform: Platform,
    /// How a container of it is started.
    pub runtime: RuntimeConfig,
    /// When it was made, in the format of RFC 3339; else the base's time, or none.
    pub created: Option<String>,
    /// The annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
}

/// A JSON document with its descriptor.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) descriptor: Descriptor,
    pub(crate) json: Vec<u8>,
}

/// What an image is built upon; [`Archive::base`](crate::archive::Archive::base) gives it.
#[derive(Clone, Debug)]
pub struct Base {
    /// The image.
    pub image: StoredImage,
    /// The compression of each of its layers, whatever their media types say:
    /// Docker's do not tell.
    pub compressions: Vec<Compression>,
}

impl ImageOptions {
    /// An image of this name for this machine, and nothing else.
    #[must_use]
    pub fn named(reference: Reference) -> Self {
        Self {
            reference,
            platform: Platform::host(),
            runtime: RuntimeConfig::default(),
            created: None,
            annotations: BTreeMap::new(),
        }
    }
}

impl NewImage {
    /// Puts an image together.
    ///
    /// It inherits from `base` as a Dockerfile's image does from its `FROM`, and the
    /// base's layers with their annotations: what a base that is a Nix image asks
    /// for is mounted for this one, too.
    ///
    /// # Errors
    /// [`Error::Json`], which no image is known to give.
    pub fn new(
        options: ImageOptions,
        base: Option<Base>,
        layer: Option<Layer>,
    ) -> Result<Self, Error> {
        let ImageOptions {
            reference,
            platform,
            runtime,
            created,
            annotations,
        } = options;
        let mut config;
        let mut base_layers = Vec::new();
        match base {
            None => {
                config = ImageConfig {
                    architecture: platform.architecture,
                    config: runtime,
                    os: platform.os,
                    variant: platform.variant,
                    ..ImageConfig::default()
                };
            }
            Some(base) => {
                config = base.image.config;
                config.config = runtime.on_top_of(config.config);
                let layers = base
                    .image
                    .manifest
                    .layers
                    .into_iter()
                    .zip(base.compressions);
                base_layers = layers
                    // All layers of a manifest are of one family of media types.
                    .map(|(layer, compression)| Descriptor {
                        media_type: layer_media_type(compression),
                        ..layer
                    })
                    .zip(config.rootfs.diff_ids.iter().copied())
                    .collect();
            }
        }
        if let Some(layer) = &layer {
            config.rootfs.diff_ids.push(layer.diff_id);
        }
        if created.is_some() {
            config.created.clone_from(&created);
        }
        config.history.push(History {
            created,
            created_by: Some(CREATED_BY.to_owned()),
            empty_layer: layer.is_none(),
            ..History::default()
        });
        let platform = config.platform();
        let config = Document::new(media_type::CONFIG, &config)?;
        let layers = base_layers.iter().map(|(layer, _)| layer);
        let layer = layer.map(|layer| layer.descriptor);
        let layers = layers.chain(&layer);
        let manifest = Manifest {
            annotations,
            config: config.descriptor.clone(),
            layers: layers.cloned().collect(),
            media_type: media_type::MANIFEST.to_owned(),
            schema_version: 2,
        };
        Ok(Self {
            reference,
            platform,
            manifest: Document::new(media_type::MANIFEST, &manifest)?,
            config,
            base_layers,
            layer,
        })
    }

    /// The digest of the manifest, which identifies the image.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.manifest.descriptor.digest
    }
}

impl Document {
    fn new(media_type: &str, content: &impl serde::Serialize) -> Result<Self, Error> {
        let json = serde_json::to_vec(content).map_err(|source| Error::Json { source })?;
        Ok(Self {
            descriptor: Descriptor::of(media_type, &json),
            json,
        })
    }
}

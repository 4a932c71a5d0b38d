//! Manifests, indexes and descriptors, as far as images of containers need them.
//!
//! Keys are declared in the order of the alphabet, in which they are written:
//! equal input gives equal bytes, and so equal digests.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Compression, Digest, Error, Platform};

/// Media types of OCI 1.1 and of Docker's image format 2.
pub mod media_type {
    /// An image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An image config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer; `+gzip` or `+zstd` follows if it is compressed.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

    /// An image manifest of Docker's image format 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// A manifest list of Docker's image format 2: its index.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub(super) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
}

/// The annotation that names an image in an archive, as containerd writes it.
pub const IMAGE_NAME: &str = "io.containerd.image.name";

/// OCI's annotation for a reference in an archive: mostly the tag alone.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Says where a blob is, what it is, and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Arbitrary metadata; a Nix layer names its store paths here.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// The blob's digest.
    pub digest: Digest,
    /// What the blob is.
    pub media_type: String,
    /// What the image runs on; of manifests only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The blob's size in bytes.
    pub size: u64,
}

impl Descriptor {
    /// The descriptor of a blob that is in memory.
    #[must_use]
    pub fn of(media_type: impl Into<String>, blob: &[u8]) -> Self {
        Self {
            annotations: BTreeMap::new(),
            digest: Digest::of(blob),
            media_type: media_type.into(),
            platform: None,
            size: blob.len() as u64,
        }
    }

    /// Whether it is of an image manifest.
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            media_type::MANIFEST | media_type::DOCKER_MANIFEST
        )
    }

    /// Whether it is of an index of manifests.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            media_type::INDEX | media_type::DOCKER_INDEX
        )
    }

    /// Whether it is of the config of an image for containers.
    #[must_use]
    pub fn is_config(&self) -> bool {
        matches!(
            self.media_type.as_str(),
            media_type::CONFIG | media_type::DOCKER_CONFIG
        )
    }

    /// Whether it is of a layer that can be unpacked: a tar archive, plain or compressed.
    #[must_use]
    pub fn is_layer(&self) -> bool {
        let media_type = self.media_type.as_str();
        match media_type.strip_prefix(media_type::LAYER) {
            Some(suffix) => matches!(suffix, "" | "+gzip" | "+zstd"),
            None => matches!(
                media_type.strip_prefix(media_type::DOCKER_LAYER),
                Some("" | ".gzip" | ".zstd")
            ),
        }
    }
}

/// OCI's media type of a layer with this compression.
#[must_use]
pub fn layer_media_type(compression: Compression) -> String {
    let suffix = match compression {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    format!("{}{suffix}", media_type::LAYER)
}

/// An image manifest: the config and the layers of one image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Arbitrary metadata.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// What this document is; the descriptor says so as well.
    #[serde(default)]
    pub media_type: String,
    /// 2.
    pub schema_version: u32,
}

/// An index: manifests, each with its name or its platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// The manifests, or further indexes.
    #[serde(default, deserialize_with = "null_is_default")]
    pub manifests: Vec<Descriptor>,
    /// What this document is.
    #[serde(default)]
    pub media_type: String,
    /// 2.
    pub schema_version: u32,
}

impl Index {
    /// The index of one image for several platforms, and the bytes it is stored as.
    ///
    /// The order of the manifests does not count: they stand in that of their platforms. What an
    /// archive notes of them for itself, their name there, is left out.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn of_platforms(mut manifests: Vec<Descriptor>) -> Result<(Descriptor, Vec<u8>), Error> {
        for manifest in &mut manifests {
            manifest.annotations.remove(IMAGE_NAME);
            manifest.annotations.remove(REF_NAME);
        }
        manifests.sort_by_cached_key(|manifest| {
            let platform = manifest.platform.as_ref().map(Platform::to_string);
            (platform, manifest.digest)
        });
        let index = Self {
            manifests,
            media_type: media_type::INDEX.to_owned(),
            schema_version: 2,
        };
        let json = serde_json::to_vec(&index).map_err(|source| Error::Json { source })?;
        Ok((Descriptor::of(media_type::INDEX, &json), json))
    }

    /// Where two of these manifests are that are for one platform: in one index, nobody could get
    /// the second.
    #[must_use]
    pub fn of_one_platform(manifests: &[Descriptor]) -> Option<(usize, usize)> {
        let known = |manifest: &'_ Descriptor| {
            let platform = manifest.platform.clone();
            platform.filter(|platform| !platform.is_unknown())
        };
        manifests.iter().enumerate().find_map(|(second, manifest)| {
            let platform = known(manifest)?;
            let first = manifests[..second]
                .iter()
                .position(|other| known(other).is_some_and(|other| platform.is_same(&other)));
            first.map(|first| (first, second))
        })
    }
}

/// Programs in Go write `null` for an empty list or map.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_can_be_unpacked_are_told_by_their_type() {
        for (media_type, is_layer) in [
            ("application/vnd.oci.image.layer.v1.tar", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.docker.image.rootfs.diff.tar", true),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                false,
            ),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar",
                false,
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                false,
            ),
            ("application/vnd.erofs.layer.v1", false),
            ("application/vnd.in-toto+json", false),
        ] {
            assert_eq!(
                Descriptor::of(media_type, b"").is_layer(),
                is_layer,
                "{media_type}"
            );
        }
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            assert!(Descriptor::of(layer_media_type(compression), b"").is_layer());
        }
    }

    #[test]
    fn keys_are_written_in_the_order_of_the_alphabet() {
        let mut descriptor = Descriptor::of(media_type::MANIFEST, b"x");
        descriptor.platform = Some(Platform::host());
        descriptor.annotations.insert("a".into(), "b".into());
        let index = Index {
            manifests: vec![descriptor.clone()],
            media_type: media_type::INDEX.into(),
            schema_version: 2,
        };
        let manifest = Manifest {
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            config: descriptor.clone(),
            layers: vec![descriptor],
            media_type: media_type::MANIFEST.into(),
            schema_version: 2,
        };
        assert_sorted(&index);
        assert_sorted(&manifest);
    }

    /// `serde_json::Value` sorts the keys of its objects.
    pub(crate) fn assert_sorted(document: &impl Serialize) {
        let text = serde_json::to_string(document).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text, value.to_string());
    }

    #[test]
    fn an_index_of_platforms_does_not_depend_on_their_order() {
        let manifest = |architecture: &str| {
            let mut manifest = Descriptor::of(media_type::MANIFEST, architecture.as_bytes());
            manifest.platform = Some(Platform {
                architecture: architecture.into(),
                os: "linux".into(),
                variant: None,
            });
            manifest.annotations.insert(IMAGE_NAME.into(), "x".into());
            manifest.annotations.insert(REF_NAME.into(), "x".into());
            manifest.annotations.insert("kept".into(), "x".into());
            manifest
        };
        let (amd, arm) = (manifest("amd64"), manifest("arm64"));
        let (descriptor, json) = Index::of_platforms(vec![arm.clone(), amd.clone()]).unwrap();
        let other = Index::of_platforms(vec![amd.clone(), arm.clone()]).unwrap();
        assert_eq!((&descriptor, &json), (&other.0, &other.1));
        assert_eq!(descriptor.digest, Digest::of(&json));
        assert!(descriptor.is_index());

        let index: Index = serde_json::from_slice(&json).unwrap();
        let digests: Vec<_> = index.manifests.iter().map(|each| each.digest).collect();
        assert_eq!(digests, [amd.digest, arm.digest]);
        let names: Vec<_> = index.manifests[0].annotations.keys().collect();
        assert_eq!(names, ["kept"]);
    }

    #[test]
    fn documents_of_go_programs_are_read() {
        let index: Index = serde_json::from_str(r#"{"schemaVersion":2,"manifests":null}"#).unwrap();
        assert!(index.manifests.is_empty());
        let negative = r#"{"mediaType":"x","digest":"sha256:00","size":-1}"#;
        assert!(serde_json::from_str::<Descriptor>(negative).is_err());
    }
}

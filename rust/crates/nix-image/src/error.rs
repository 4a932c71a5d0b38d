//! What can go wrong with an image.

use std::{io, path::PathBuf};

use crate::{
    Digest,
    annotations::{MAX_LABEL_BYTES, NIX_STORE_PATH_PREFIX},
    config::RuntimeConfig,
};

/// An error of this crate. What caused it is its [`source`](std::error::Error::source):
/// print the whole chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The value of a label that must be a store path is none.
    #[error("label {label} does not name a store path")]
    Label {
        /// The label's name, shortened for display.
        label: String,
        /// Says what the value is and which rule it breaks.
        source: nix_store::Error,
    },
    /// The labels of one layer name more store paths than a layer may have.
    #[error("the labels {NIX_STORE_PATH_PREFIX}<n> of one layer name too many store paths")]
    LabelPaths {
        /// Says how many are allowed.
        source: nix_store::Error,
    },
    /// An annotation does not fit into a label of containerd.
    #[error(
        "annotation {label} has {bytes} bytes with its value, and containerd takes {MAX_LABEL_BYTES}: \
         no containerd can unpack the layer; build the image with a shorter value"
    )]
    LabelTooLong {
        /// The annotation's name, shortened for display.
        label: String,
        /// Bytes of name and value.
        bytes: usize,
    },
    /// A text that should be a digest is none.
    #[error("{text} is not a digest: {reason}")]
    Digest {
        /// The text, shortened for display.
        text: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A text that should be the name of an image is none.
    #[error("{reference} cannot name an image: {reason}; {remedy}")]
    Reference {
        /// The text, shortened for display.
        reference: String,
        /// The rule that it breaks.
        reason: String,
        /// What to name it instead.
        remedy: &'static str,
    },

    /// A text that should name a platform does not.
    #[error("{platform} names no platform: write it as in `linux/arm64` or `linux/arm/v7`")]
    PlatformName {
        /// The text, shortened for display.
        platform: String,
    },

    /// The config that a user gives has a key that cannot be.
    #[error(
        "key {key} {reason}; the keys of a config are {}",
        RuntimeConfig::known_keys()
    )]
    ConfigKey {
        /// The key, shortened for display.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The config that a user gives is not one.
    #[error("it is not the JSON object `config` of an image config")]
    Config {
        /// Says what is wrong and where.
        source: serde_json::Error,
    },

    /// Two sources bring different files to one path of the image.
    #[error(
        "{} and {} both come to {}: leave one out, or join them with nixpkgs' `buildEnv`, \
         which chooses by priority", .first.display(), .second.display(), .path.display()
    )]
    Collision {
        /// The path in the image.
        path: PathBuf,
        /// What is there already.
        first: PathBuf,
        /// What should be there, too.
        second: PathBuf,
    },
    /// A file has a name that means the deletion of another in a layer.
    #[error(
        "{} cannot be in an image: names that begin with `.wh.` delete files of lower layers",
        .path.display()
    )]
    Whiteout {
        /// The file.
        path: PathBuf,
    },
    /// A layer cannot be packed.
    #[error("cannot pack the layer of the store paths")]
    PackLayer {
        /// The reason.
        source: io::Error,
    },
    /// A document cannot be written as JSON.
    #[error("cannot write a document of the image as JSON")]
    Json {
        /// The reason.
        source: serde_json::Error,
    },
    /// An archive cannot be written.
    #[error("cannot write the archive")]
    WriteArchive {
        /// The reason.
        source: io::Error,
    },

    /// An archive cannot be read.
    #[error("cannot read {archive}")]
    ReadArchive {
        /// The archive.
        archive: String,
        /// The reason.
        source: io::Error,
    },
    /// A file is no tar archive.
    #[error("{archive} is not a tar archive, or it is damaged: {reason}; make or copy it again")]
    NotTar {
        /// The archive.
        archive: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An archive ends before its time.
    #[error(
        "{archive} is truncated{}: make or copy it again",
        .entry.as_ref().map_or(String::new(), |entry| format!(" within {entry}"))
    )]
    Truncated {
        /// The archive.
        archive: String,
        /// The file in it that is cut, shortened for display.
        entry: Option<String>,
    },
    /// An archive has an entry that no archive of images has.
    #[error("{archive} has an entry {entry} that cannot be in an archive of images: {reason}")]
    EntryName {
        /// The archive.
        archive: String,
        /// The entry's name, shortened for display.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A tar archive is not one of images.
    #[error(
        "{archive} is not an archive of images: {reason}; \
         `nix2container build`, `docker save` and `skopeo copy` make them"
    )]
    NotAnImage {
        /// The archive.
        archive: String,
        /// What it lacks.
        reason: String,
    },
    /// An archive should have one image, and has another number.
    #[error("{archive} has {images} images, and a base must be one: {names}; save the one alone")]
    NotOneImage {
        /// The archive.
        archive: String,
        /// Images for the platform.
        images: usize,
        /// Their names, shortened for display.
        names: String,
    },
    /// A document of an archive is not valid.
    #[error("{document} in {archive} is not valid")]
    Document {
        /// The archive.
        archive: String,
        /// The file's name, or the blob's digest.
        document: String,
        /// Says what is wrong and where.
        source: serde_json::Error,
    },
    /// A document of an archive is absurdly large.
    #[error("{document} in {archive} has {size} bytes, and a document may have {limit}")]
    DocumentTooLarge {
        /// The archive.
        archive: String,
        /// The file's name, or the blob's digest.
        document: String,
        /// Its bytes.
        size: u64,
        /// The bytes that are allowed.
        limit: u64,
    },
    /// A file that `manifest.json` lists is not in the archive.
    #[error("{archive} has no {file}, which its `manifest.json` lists: make or copy it again")]
    MissingFile {
        /// The archive.
        archive: String,
        /// The file, shortened for display.
        file: String,
    },
    /// A blob that a document refers to is not in the archive.
    #[error(
        "{archive} has no blob {digest}, which the image needs: make the archive again, with all its layers"
    )]
    MissingBlob {
        /// The archive.
        archive: String,
        /// The blob.
        digest: Digest,
    },
    /// A blob has not the size that its descriptor says.
    #[error(
        "blob {digest} in {archive} has {found} bytes instead of {expected}: make or copy the archive again"
    )]
    BlobSize {
        /// The archive.
        archive: String,
        /// The blob.
        digest: Digest,
        /// The size by the descriptor.
        expected: u64,
        /// The size in the archive.
        found: u64,
    },
    /// A blob is not what its digest says.
    #[error(
        "blob {digest} in {archive} is damaged, its digest is {found}: make or copy the archive again"
    )]
    BlobDigest {
        /// The archive.
        archive: String,
        /// The digest by which the image refers to the blob.
        digest: Digest,
        /// The digest of what is there.
        found: Digest,
    },
    /// A blob is of a kind that no container can use.
    #[error("{digest} in {archive} is a {media_type}, which is no part of an image for containers")]
    MediaType {
        /// The archive.
        archive: String,
        /// The blob.
        digest: Digest,
        /// Its media type, shortened for display.
        media_type: String,
    },
    /// Manifest and config of an image do not belong together.
    #[error(
        "manifest {manifest} in {archive} has {layers} layers, but its config has {diff_ids} diff IDs"
    )]
    LayerCount {
        /// The archive.
        archive: String,
        /// The manifest.
        manifest: Digest,
        /// Layers of the manifest.
        layers: usize,
        /// Diff IDs of the config.
        diff_ids: usize,
    },
    /// A layer cannot be decompressed.
    #[error("cannot decompress layer {digest} in {archive}")]
    DecompressLayer {
        /// The archive.
        archive: String,
        /// The layer.
        digest: Digest,
        /// The reason.
        source: io::Error,
    },
    /// A layer is not the one that the config means.
    #[error(
        "layer {layer} in {archive} has the diff ID {found}, but the image's config says {expected}"
    )]
    DiffId {
        /// The archive.
        archive: String,
        /// The layer.
        layer: Digest,
        /// The diff ID of the config.
        expected: Digest,
        /// The diff ID of the layer.
        found: Digest,
    },
    /// An image is not for the platform in question.
    #[error(
        "{archive} has no image for {wanted}, only for {}",
        if .found.is_empty() { "no known platform" } else { .found }
    )]
    Platform {
        /// The archive.
        archive: String,
        /// The platform in question.
        wanted: String,
        /// The platforms that there are.
        found: String,
    },
}

/// Most characters that a message takes over from a document.
const LONGEST: usize = 300;

/// The text for an error message: quoted, escaped, and cut where a hostile document
/// would flood it.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}… ({} bytes)", &text[..cut], text.len()),
    }
}

/// The beginning of a text whose pieces are quoted or escaped already.
pub(crate) fn cut(text: String) -> String {
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((cut, _)) => format!("{}… ({} bytes)", &text[..cut], text.len()),
    }
}

/// The error, which repeats a value that is of another type than it should be, however long.
pub(crate) fn shorten_json(error: serde_json::Error) -> serde_json::Error {
    use serde::de::Error as _;

    let text = error.to_string();
    if text.char_indices().nth(LONGEST).is_none() {
        return error;
    }
    let (line, column) = (error.line(), error.column());
    serde_json::Error::custom(format!("{}, at line {line} column {column}", cut(text)))
}

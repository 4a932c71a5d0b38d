use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

use nix_image::{Digest, Platform};
use tonic::Status;

/// Why an image cannot be loaded, or containerd not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An archive, or a document in it, is not what it should be.
    #[error(transparent)]
    Image(#[from] nix_image::Error),
    /// A file cannot be read.
    #[error("cannot read {name}")]
    Read {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A compressed archive cannot be decompressed.
    #[error("{name} is truncated or damaged: make or copy it again")]
    Packed {
        /// The archive.
        name: String,
        /// What the decoder says.
        source: io::Error,
    },
    /// There is no room for an archive that is decompressed, or that comes from a stream.
    #[error("cannot write {name} to a file in {}", .directory.display())]
    TemporaryFile {
        /// The archive.
        name: String,
        /// Where temporary files go.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory is no image layout.
    #[error("{} {reason}", .directory.display())]
    Directory {
        /// The directory, or a file in it.
        directory: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A document of an archive has another form than its media type says.
    #[error("{digest} in {archive} is not what it should be: make the archive again")]
    Document {
        /// The archive.
        archive: String,
        /// The document.
        digest: Digest,
        /// Where it differs.
        source: serde_json::Error,
    },
    /// An archive does not name its image, or not by a reference.
    #[error("{archive} gives its image {}", .name.as_ref().map_or("no name".to_owned(), |name| format!("the impossible name {name:?}")))]
    Name {
        /// The archive.
        archive: String,
        /// The name.
        name: Option<String>,
        /// Which rule it breaks.
        source: Option<Box<nix_image::Error>>,
    },
    /// An archive, or what it lists under a name, has no image.
    #[error(
        "{archive} has no image: make it with `nix2container build`, `docker save` or `skopeo copy`"
    )]
    NoImage {
        /// The archive.
        archive: String,
    },
    /// One name was given for the images of an archive that has several.
    #[error(
        "{archive} has {count} images, and one name can stand for one only: load them by their own names"
    )]
    SeveralImages {
        /// The archive.
        archive: String,
        /// How many images it has.
        count: usize,
    },
    /// containerd would refuse the annotations of a layer.
    #[error("cannot load layer {layer} of {archive}")]
    Layer {
        /// The archive.
        archive: String,
        /// The digest of the layer.
        layer: Digest,
        /// Which annotation, and why.
        source: Box<nix_image::Error>,
    },
    /// An archive has two images for one platform under one name.
    #[error(
        "{archive} has two images for {platform} under {name}, {} and {}, and one name can stand for one of them \
         only: give one of them another name, or load the first by its platform",
        .manifests[0],
        .manifests[1]
    )]
    SamePlatform {
        /// The archive.
        archive: String,
        /// The name.
        name: String,
        /// The digests of their manifests.
        manifests: [Digest; 2],
        /// The platform.
        platform: Box<Platform>,
    },
    /// There is no connection to containerd.
    #[error("cannot connect to containerd at {}: {reason}", .socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why, and what to do about it.
        reason: String,
    },
    /// containerd does not do something.
    #[error("containerd cannot {operation}: {}", reason(.status))]
    Refused {
        /// What was to be done.
        operation: String,
        /// What it answers.
        status: Box<Status>,
    },
    /// What containerd has does not fit what is asked of it.
    #[error("{0}")]
    Unfit(String),
}

/// What containerd says of a snapshotter that it has not (`plugins/services/snapshots`).
const NOT_LOADED: &str = "snapshotter not loaded";

impl Error {
    /// Whether containerd does not have the snapshotter.
    #[must_use]
    pub fn is_snapshotter_missing(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.message().contains(NOT_LOADED))
    }

    pub(crate) fn read(name: String) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { name, source }
    }

    pub(crate) fn refused(operation: impl Display, status: Status) -> Self {
        Self::Refused {
            operation: operation.to_string(),
            status: Box::new(status),
        }
    }

    pub(crate) fn directory(directory: &Path, reason: impl Display) -> Self {
        Self::Directory {
            directory: directory.to_owned(),
            reason: reason.to_string(),
        }
    }
}

fn reason(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        message if message.contains(NOT_LOADED) => {
            format!("{message}; add it to [proxy_plugins] of containerd's configuration")
        }
        message => message.to_owned(),
    }
}

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    sync::Arc,
};

use nix_store::StorePath;
use tonic::{Code, Status};

/// Why a call of containerd fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The labels do not describe a layer.
    #[error(transparent)]
    Labels(#[from] nix_image::Error),
    /// The store paths of a layer cannot be had.
    #[error(transparent)]
    Nix(#[from] Arc<nix_store::Error>),
    /// A bug: a realisation panicked.
    #[error("internal error: the realisation ended without an outcome")]
    NoOutcome,
    /// The snapshot, or what is asked of it, does not exist or does not fit.
    #[error(transparent)]
    Snapshots(#[from] snapshots::Error),
    /// A store object cannot be looked at.
    #[error("cannot look at {path}")]
    StoreObject { path: StorePath, source: io::Error },
    /// The place for a store object cannot be made in its layer.
    #[error("cannot make the mount point {}", .path.display())]
    MountPoint { path: PathBuf, source: io::Error },
    /// What is on the disk cannot be counted.
    #[error("cannot list {}", .path.display())]
    Inventory { path: PathBuf, source: io::Error },
    /// A bug: the work of a call panicked.
    #[error("internal error: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    /// An archive cannot be read or not be loaded.
    #[error(transparent)]
    Load(Box<image_loader::Error>),
    /// A name says something else than the archive that it names.
    #[error("{image} is not what its archive has, which {archive}")]
    Contradiction { image: String, archive: String },
    /// What is named is built, and not what it builds.
    #[error(
        "{path} is a derivation, and no archive: name its output, as `nix-store --query --outputs` tells it"
    )]
    Derivation { path: StorePath },
    /// The archive is a link that leads out of the store, where anybody may change what it leads to.
    #[error(
        "{archive} is a link to {}, which is not in the store: name the store path of the archive itself", .target.display()
    )]
    NotInStore { archive: StorePath, target: PathBuf },
    /// There is nobody to import an image.
    #[error(
        "containerd cannot be reached at {}: {reason} (`image_service.containerd_address` names its socket)",
        .socket.display()
    )]
    Unreachable { socket: PathBuf, reason: String },
    /// Nobody would unpack the layers of an image.
    #[error("containerd at {} has no snapshotter {ours:?}: {}", .socket.display(), plugin_hint(.known_as.as_deref()))]
    NoPlugin {
        ours: String,
        socket: PathBuf,
        /// The name by which it knows this daemon.
        known_as: Option<String>,
    },
    /// Pods would get another snapshotter's snapshot of an image, and none of its store paths.
    #[error(
        "{whose} the snapshotter {theirs:?}, and images that Nix resolves need this one: \
         set `snapshotter = {ours:?}` in the section of the CRI's images of containerd's configuration"
    )]
    OtherSnapshotter {
        /// "containerd's CRI has", and the like.
        whose: String,
        theirs: String,
        ours: String,
    },
    /// containerd has an image, and its CRI does not know it.
    #[error(
        "containerd has loaded {image}, and its CRI has not heard of it within {seconds} s: \
         its log says why, and the next attempt finds the image"
    )]
    NotShown { image: String, seconds: u64 },
    /// containerd does not answer as it should.
    #[error("containerd at {} cannot {operation}: {}", .socket.display(), .status.message())]
    Cri {
        operation: &'static str,
        socket: PathBuf,
        status: Box<Status>,
    },
    /// The request lacks a field without which it means nothing.
    #[error("the request has no `{0}`")]
    MissingField(&'static str),
}

impl Error {
    /// The code that containerd acts on.
    fn code(&self) -> Code {
        match self {
            Self::Labels(_) | Self::MissingField(_) => Code::InvalidArgument,
            Self::Snapshots(error) => match error.code() {
                snapshots::Code::NotFound => Code::NotFound,
                snapshots::Code::AlreadyExists => Code::AlreadyExists,
                snapshots::Code::InvalidArgument => Code::InvalidArgument,
                snapshots::Code::FailedPrecondition => Code::FailedPrecondition,
                snapshots::Code::ResourceExhausted => Code::ResourceExhausted,
                snapshots::Code::Internal => Code::Internal,
            },
            Self::Nix(error) => match &**error {
                nix_store::Error::InvalidStorePath { .. }
                | nix_store::Error::ClosureTooLarge
                | nix_store::Error::NoStorePaths { .. } => Code::InvalidArgument,
                nix_store::Error::TimedOut { .. } => Code::DeadlineExceeded,
                // Whoever still waits is told so only when the daemon ends.
                nix_store::Error::Cancelled => Code::Unavailable,
                nix_store::Error::GcRoots { source, .. } => disk(source),
                // Not NotFound: from Prepare, that would have the CRI unpack the image again.
                _ => Code::FailedPrecondition,
            },
            Self::Load(error) => load_code(error),
            Self::Contradiction { .. } => Code::InvalidArgument,
            Self::NotInStore { .. } | Self::Derivation { .. } => Code::InvalidArgument,
            Self::NotShown { .. } | Self::Unreachable { .. } => Code::Unavailable,
            Self::Cri { status, .. } => status.code(),
            Self::NoPlugin { .. } | Self::OtherSnapshotter { .. } => Code::FailedPrecondition,
            Self::StoreObject { source, .. }
            | Self::MountPoint { source, .. }
            | Self::Inventory { source, .. } => disk(source),
            Self::Panicked(_) | Self::NoOutcome => Code::Internal,
        }
    }
}

impl From<image_loader::Error> for Error {
    fn from(error: image_loader::Error) -> Self {
        Self::Load(Box::new(error))
    }
}

impl From<nix_store::Error> for Error {
    fn from(error: nix_store::Error) -> Self {
        Self::Nix(Arc::new(error))
    }
}

/// What to do about a snapshotter that containerd has not.
fn plugin_hint(name: Option<&str>) -> String {
    match name {
        Some(name) => format!("it knows this daemon as {name:?}, which `image_service.snapshotter` has to be"),
        None => "add it to [proxy_plugins] of its configuration, and restart it; `image_service.snapshotter` is the name"
            .to_owned(),
    }
}

/// What the loading of an image fails with.
fn load_code(error: &image_loader::Error) -> Code {
    use image_loader::Error as Load;
    match error {
        Load::Image(_)
        | Load::Packed { .. }
        | Load::Directory { .. }
        | Load::Document { .. }
        | Load::Name { .. }
        | Load::NoImage { .. }
        | Load::SeveralImages { .. }
        | Load::Layer { .. }
        | Load::SamePlatform { .. } => Code::InvalidArgument,
        Load::Read { source, .. } | Load::TemporaryFile { source, .. } => disk(source),
        Load::Unreachable { .. } => Code::Unavailable,
        Load::Unfit(_) => Code::FailedPrecondition,
        // The plugin is not among containerd's.
        Load::Refused { .. } if error.is_snapshotter_missing() => Code::FailedPrecondition,
        Load::Refused { status, .. } => status.code(),
    }
}

/// Endings by which containerd takes a FailedPrecondition for another error (errdefs `errgrpc`, 2.0 to
/// 2.4), and which the words of Nix, of a builder or of the kernel may have.
const OTHER_MEANINGS: [&str; 2] = [": conflict", ": not modified"];

/// The code of what the file system says.
fn disk(error: &io::Error) -> Code {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

impl From<Error> for Status {
    /// The code, and the error with its causes as the message.
    fn from(error: Error) -> Self {
        let mut message = without_middle(chain(&error));
        if OTHER_MEANINGS
            .iter()
            .any(|ending| message.ends_with(ending))
        {
            message.push('.');
        }
        Self::new(error.code(), message)
    }
}

/// Most bytes of a message, from its beginning and from its end. It travels in a header, up to
/// three times as long, and clients break the connection at more than 16 KiB of headers (hyper).
/// Names stand at the beginning, and the last 4 KiB of what Nix said at the end.
const MESSAGE_HEAD: usize = 1024;
const MESSAGE_TAIL: usize = 4 * 1024;

fn without_middle(message: String) -> String {
    if message.len() <= MESSAGE_HEAD + MESSAGE_TAIL {
        return message;
    }
    let head = &message[..message.floor_char_boundary(MESSAGE_HEAD)];
    let tail = &message[message.ceil_char_boundary(message.len() - MESSAGE_TAIL)..];
    format!("{head} … {tail}")
}

/// An error and its causes on one line, as Go's `%w` joins them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message.push_str(": ");
        message.push_str(&error.to_string());
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        assert_eq!(without_middle("short".to_owned()), "short");
        let long = format!("name{}reason", "é".repeat(1_000_000));
        let short = without_middle(long);
        assert!(
            short.len() <= MESSAGE_HEAD + MESSAGE_TAIL + 5,
            "{}",
            short.len()
        );
        assert!(short.starts_with("nameé") && short.ends_with("éreason"));
        assert!(short.contains("é … é"));
    }
}

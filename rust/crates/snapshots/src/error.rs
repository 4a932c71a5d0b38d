//! The one error type of the crate.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use crate::model::Kind;

/// The result of every call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not do what it was asked. The cause, where there is one, is the `source` of the
/// error and not repeated in its message.
///
/// Names and keys are shown quoted and escaped: they come from containerd's clients. This also
/// keeps a message from ending in `: conflict` or `: not modified`, two endings by which
/// containerd's clients turn a failed precondition into another error (errdefs `errgrpc`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "the message of a variant tells what its fields are"
)]
pub enum Error {
    /// There is no such snapshot.
    #[error("snapshot {key:?} does not exist")]
    NotFound { key: String },

    /// The parent of a snapshot that is to be made or committed does not exist.
    #[error("the parent {parent:?} of snapshot {key:?} does not exist")]
    ParentNotFound { key: String, parent: String },

    /// The key or name is taken.
    #[error("snapshot {key:?} exists already")]
    AlreadyExists { key: String },

    /// A key or a name is empty.
    #[error("the {what} of a snapshot must not be empty")]
    EmptyName { what: &'static str },

    /// Only a commit makes a committed snapshot.
    #[error("snapshot {key:?} cannot be made as committed: make an active one and commit it")]
    CreateCommitted { key: String },

    /// A snapshot is to be made on an active one or a view.
    #[error(
        "snapshot {key:?} cannot be made on {parent:?}: this parent is {kind}, \
         and only committed snapshots can be parents"
    )]
    CreateOnUncommitted {
        key: String,
        parent: String,
        kind: Kind,
    },

    /// A commit names another parent than the one that the snapshot was made on.
    #[error(
        "snapshot {key:?} cannot be committed with the parent {asked:?}: it was made on \
         {parent:?}, and only a snapshot without parent can get one at commit"
    )]
    ParentMismatch {
        key: String,
        parent: String,
        asked: String,
    },

    /// A field mask names a field that cannot be changed.
    #[error(
        "field {path:?} of snapshot {key:?} cannot be updated: \
         the mutable fields are \"labels\" and \"labels.<name>\""
    )]
    ImmutableField { key: String, path: String },

    /// The labels of a snapshot do not map ids.
    #[error("label {label} is {value:?}, which maps no ids: {reason}")]
    IdMapping {
        label: &'static str,
        value: String,
        reason: &'static str,
    },

    /// There are more layers below a snapshot than one mount can have.
    #[error("a snapshot on {layers} layers cannot be mounted: {reason}")]
    TooManyLayers { layers: usize, reason: String },

    /// A filter does not follow the grammar. The offset is in bytes, from 0.
    #[error("filter {filter:?} is not valid: {reason} at byte {offset}")]
    FilterSyntax {
        filter: String,
        offset: usize,
        reason: &'static str,
    },

    /// The filters of one call would take too much memory.
    #[error("the filters are too large: {reason}")]
    FilterTooLarge { reason: String },

    /// A committed snapshot was asked for its mounts.
    #[error(
        "snapshot {key:?} is committed and has no mounts of its own: \
         make a view of it, or an active snapshot on it"
    )]
    MountsOfCommitted { key: String },

    /// A view or a committed snapshot is to be committed.
    #[error(
        "snapshot {key:?} cannot be committed: it is {kind}, \
         and only active snapshots can be committed"
    )]
    CommitInactive { key: String, kind: Kind },

    /// A commit names a parent that is an active snapshot or a view.
    #[error(
        "snapshot {key:?} cannot be committed on {parent:?}: this parent is {kind}, \
         and only committed snapshots can be parents"
    )]
    CommitOnUncommitted {
        key: String,
        parent: String,
        kind: Kind,
    },

    /// A parent is to be removed. containerd's own suite (`core/snapshots/testsuite`) looks for the
    /// word "remove".
    #[error(
        "cannot remove snapshot {key:?}: \
         it has children, such as {child:?}, which must be removed first"
    )]
    HasChildren { key: String, child: String },

    /// One of the [`Options`](crate::Options) is not valid.
    #[error("option {option} is not valid: {reason}")]
    Options { option: String, reason: String },

    /// The root cannot hold snapshots.
    #[error("the root directory {root:?} cannot be used: {reason}")]
    Root { root: PathBuf, reason: &'static str },

    /// Another process has the root open.
    #[error(
        "the root directory {root:?} is in use by {}: stop it, or give each its own root",
        holder.map_or("another process".to_owned(), |pid| format!("process {pid}"))
    )]
    RootLocked { root: PathBuf, holder: Option<u32> },

    /// Another program keeps its metadata in the root.
    #[error(
        "{path:?} is not a snapshot store but {found}: \
         give this snapshotter a root directory of its own"
    )]
    ForeignStore { path: PathBuf, found: &'static str },

    /// There are snapshots on the disk, and nothing that tells what they are.
    #[error(
        "{path:?} is missing, but snapshot directories are there: restore it from a backup, or \
         remove the images of this snapshotter from containerd and delete the root directory"
    )]
    StoreMissing { path: PathBuf },

    /// The store is not as it was written.
    #[error(
        "{path:?} is damaged ({reason}): restore the root directory from a backup, or remove the \
         images of this snapshotter from containerd and delete the root directory"
    )]
    StoreDamaged { path: PathBuf, reason: String },

    /// A newer version of this crate wrote the store.
    #[error(
        "{path:?} has schema {found}, and this version knows schema {known}: \
         use the newer version that wrote it"
    )]
    NewerSchema {
        path: PathBuf,
        found: i64,
        known: i64,
    },

    /// The kernel lacks something.
    #[error("the kernel cannot {what}: {remedy}")]
    Kernel {
        what: &'static str,
        remedy: &'static str,
    },

    /// The file system failed.
    #[error("cannot {operation} {path:?}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// The store failed, and nothing was changed.
    #[error("cannot {operation} in {path:?}")]
    Store {
        operation: &'static str,
        path: PathBuf,
        source: Box<rusqlite::Error>,
    },

    /// The store failed while it made a change durable, which may be on the disk or not.
    #[error("cannot {operation} in {path:?}: the disk does not confirm that it is written")]
    Unconfirmed {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// A row of the store cannot be read.
    #[error("the record of snapshot {key:?} is damaged: {reason}")]
    Damaged { key: String, reason: &'static str },
}

/// The class of an [`Error`], after the gRPC code with which containerd's own snapshotter answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The snapshot, or its parent, does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request can never succeed as it stands.
    InvalidArgument,
    /// The request does not fit the state that the snapshot is in.
    FailedPrecondition,
    /// The disk, or somebody's share of it, is full.
    ResourceExhausted,
    /// The disk, the kernel or the store failed.
    Internal,
}

impl Error {
    /// The class of this error.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::ParentNotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::EmptyName { .. }
            | Self::CreateCommitted { .. }
            | Self::CreateOnUncommitted { .. }
            | Self::ParentMismatch { .. }
            | Self::ImmutableField { .. }
            | Self::IdMapping { .. }
            | Self::FilterSyntax { .. }
            | Self::FilterTooLarge { .. }
            | Self::Options { .. }
            | Self::Root { .. } => Code::InvalidArgument,
            Self::MountsOfCommitted { .. }
            | Self::CommitInactive { .. }
            | Self::CommitOnUncommitted { .. }
            | Self::HasChildren { .. }
            | Self::TooManyLayers { .. }
            | Self::RootLocked { .. }
            | Self::ForeignStore { .. }
            | Self::StoreMissing { .. }
            | Self::NewerSchema { .. }
            | Self::Kernel { .. } => Code::FailedPrecondition,
            Self::Io { source, .. } | Self::Unconfirmed { source, .. } if is_full(source) => {
                Code::ResourceExhausted
            }
            Self::Store { source, .. }
                if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) =>
            {
                Code::ResourceExhausted
            }
            Self::StoreDamaged { .. }
            | Self::Io { .. }
            | Self::Store { .. }
            | Self::Unconfirmed { .. }
            | Self::Damaged { .. } => Code::Internal,
        }
    }

    /// Adapter for `map_err` that names what was done to which path.
    pub(crate) fn io<S: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(S) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source: source.into(),
        }
    }
}

fn is_full(source: &io::Error) -> bool {
    matches!(
        source.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

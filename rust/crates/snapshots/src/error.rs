//! The one error type of the crate.

use std::io;
use std::path::PathBuf;

use crate::model::Kind;

/// The result of every call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not do what it was asked.
///
/// Names and keys are shown quoted and escaped: they come from containerd's clients. This also
/// keeps a message from ending in `: conflict` or `: not modified`, two endings by which
/// containerd's clients turn a failed precondition into another error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "the message of a variant says what its fields are"
)]
pub enum Error {
    #[error("snapshot {key:?} does not exist")]
    NotFound { key: String },

    #[error("the parent {parent:?} of snapshot {key:?} does not exist")]
    ParentNotFound { key: String, parent: String },

    #[error("snapshot {key:?} exists already")]
    AlreadyExists { key: String },

    #[error("the {what} of a snapshot must not be empty")]
    EmptyName { what: &'static str },

    #[error("snapshot {key:?} cannot be made as committed: make an active one and commit it")]
    CreateCommitted { key: String },

    #[error(
        "snapshot {key:?} cannot be made on {parent:?}: this parent is {kind}, and only committed snapshots can be parents"
    )]
    CreateOnUncommitted {
        key: String,
        parent: String,
        kind: Kind,
    },

    #[error(
        "snapshot {key:?} cannot be committed with the parent {asked:?}: it was made on {parent:?}, and only a snapshot without parent can get one at commit"
    )]
    ParentMismatch {
        key: String,
        parent: String,
        asked: String,
    },

    #[error(
        "field {path:?} of snapshot {key:?} cannot be updated: the mutable fields are \"labels\" and \"labels.<name>\""
    )]
    ImmutableField { key: String, path: String },

    #[error("filter {filter:?} is not valid: {reason} at byte {offset}")]
    FilterSyntax {
        filter: String,
        /// Where in the filter, counted in bytes from 0.
        offset: usize,
        reason: &'static str,
    },

    #[error("the filters are too large: {reason}")]
    FilterTooLarge { reason: String },

    #[error(
        "snapshot {key:?} is committed and has no mounts of its own: make a view of it, or an active snapshot on it"
    )]
    MountsOfCommitted { key: String },

    #[error(
        "snapshot {key:?} cannot be committed: it is {kind}, and only active snapshots can be committed"
    )]
    CommitInactive { key: String, kind: Kind },

    #[error(
        "snapshot {key:?} cannot be committed on {parent:?}: this parent is {kind}, and only committed snapshots can be parents"
    )]
    CommitOnUncommitted {
        key: String,
        parent: String,
        kind: Kind,
    },

    // containerd's own test suite looks for the word "remove" (core/snapshots/testsuite).
    #[error(
        "cannot remove snapshot {key:?}: it has children, such as {child:?}, which must be removed first"
    )]
    HasChildren { key: String, child: String },

    #[error("option {option} is not valid: {reason}")]
    Options {
        option: String,
        reason: &'static str,
    },

    #[error("the root directory {root:?} cannot be used: {reason}")]
    Root { root: PathBuf, reason: &'static str },

    #[error("the root directory {root:?} is in use by {}: stop it, or give each its own root", holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    RootLocked { root: PathBuf, holder: Option<u32> },

    #[error(
        "{path:?} is not a snapshot store but {found}: give this snapshotter a root directory of its own"
    )]
    ForeignStore { path: PathBuf, found: &'static str },

    #[error(
        "{path:?} is missing, but snapshot directories are there: restore it, or delete {snapshots:?} to begin anew"
    )]
    StoreMissing { path: PathBuf, snapshots: PathBuf },

    #[error(
        "{path:?} has schema {found}, and this version knows schema {known}: use the newer version that wrote it"
    )]
    NewerSchema {
        path: PathBuf,
        found: u64,
        known: u64,
    },

    #[error("the kernel cannot {what}: {remedy}")]
    Kernel {
        what: &'static str,
        remedy: &'static str,
    },

    #[error("cannot {operation} {path:?}: {source}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("cannot {operation} in {path:?}: {source}")]
    Store {
        operation: &'static str,
        path: PathBuf,
        source: Box<redb::Error>,
    },

    #[error(
        "cannot {operation} in {path:?}: the disk did not confirm the write ({source}); restart the daemon, the store repairs itself when it is opened"
    )]
    Unconfirmed {
        operation: &'static str,
        path: PathBuf,
        source: Box<redb::Error>,
    },

    #[error("the record of snapshot {key:?} is damaged: {reason}")]
    Damaged { key: String, reason: &'static str },
}

/// The class of an [`Error`], after the gRPC code that containerd's reference snapshotter answers
/// with.
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
            | Self::FilterSyntax { .. }
            | Self::FilterTooLarge { .. }
            | Self::Options { .. }
            | Self::Root { .. } => Code::InvalidArgument,
            Self::MountsOfCommitted { .. }
            | Self::CommitInactive { .. }
            | Self::CommitOnUncommitted { .. }
            | Self::HasChildren { .. }
            | Self::RootLocked { .. }
            | Self::ForeignStore { .. }
            | Self::StoreMissing { .. }
            | Self::NewerSchema { .. }
            | Self::Kernel { .. } => Code::FailedPrecondition,
            Self::Io { .. }
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

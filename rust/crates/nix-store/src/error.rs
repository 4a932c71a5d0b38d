use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use crate::{MAX_CLOSURE_PATHS, StorePath};

/// What can go wrong between a label and a realised, rooted closure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configured store directory cannot be one.
    #[error("{dir} is not a store directory: {reason}; name an absolute path such as /nix/store")]
    InvalidStoreDir {
        /// The text, shortened for display.
        dir: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A text that should name a store object does not.
    #[error("{path} is not a store path: {reason}")]
    InvalidStorePath {
        /// The text, shortened for display.
        path: String,
        /// The rule that it breaks.
        reason: String,
    },
    /// A layer names more than [`MAX_CLOSURE_PATHS`] paths.
    #[error(
        "a layer may name at most {MAX_CLOSURE_PATHS} store paths: split the image into several layers"
    )]
    ClosureTooLarge,
    /// A closure-info object without the list that makes it one.
    #[error(
        "{closure_info} is not a closure-info: it has no regular file `store-paths`; \
         build one with nixpkgs' `closureInfo`"
    )]
    NoStorePaths {
        /// The store object.
        closure_info: StorePath,
    },
    /// The list of a closure-info object cannot be read.
    #[error("cannot read {closure_info}/store-paths")]
    ReadClosureInfo {
        /// The store object.
        closure_info: StorePath,
        /// The reason.
        source: io::Error,
    },
    /// Nix or the external builder cannot be started at all.
    #[error("cannot run {program}: {}", start_hint(.reason))]
    Start {
        /// The program as it was called.
        program: String,
        /// The reason, which the message tells.
        reason: io::Error,
    },
    /// Nix or the external builder says that it failed.
    #[error("{program} failed for {subject} ({status}){}", quote(.stderr))]
    Failed {
        /// The program as it was called.
        program: String,
        /// The store paths that it was called for, shortened.
        subject: String,
        /// Exit code or signal.
        status: ExitStatus,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// Nix or the external builder did not end in time and was killed.
    #[error(
        "{program} for {subject} did not end within {} s and was killed; \
         raise `realise_timeout` if the store paths need longer{}", .after.as_secs(), quote(.stderr)
    )]
    TimedOut {
        /// The program as it was called.
        program: String,
        /// The store paths that it was called for, shortened.
        subject: String,
        /// The configured time.
        after: Duration,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// The program reported success, and does not tell a size for each store path.
    #[error("{program} does not tell the sizes of {subject}")]
    Sizes {
        /// The program as it was called.
        program: String,
        /// The store paths that it was called for, shortened.
        subject: String,
    },
    /// Whoever wanted the store paths has gone away.
    #[error("the realisation was cancelled")]
    Cancelled,
    /// The program reported success, and yet the store path is not there.
    #[error("{program} reported success, but {path} does not exist")]
    NotRealised {
        /// The program as it was called.
        program: String,
        /// The store path.
        path: StorePath,
    },
    /// Nix has failed for a store path that was there before, and is not any more.
    #[error(
        "{path} was deleted while it was being realised, as Nix's garbage collector does; try \
         again when that has ended"
    )]
    Collected {
        /// The store path.
        path: StorePath,
        /// What Nix says.
        source: Box<Error>,
    },
    /// The builder has made another link than it was asked for.
    #[error(
        "{program} was to make {} a link to {path}, and {found}; have the builder make a GC root \
         of its two arguments, the link and the store path, or leave that to Nix by making no link",
        .link.display()
    )]
    OtherLink {
        /// The builder.
        program: String,
        /// The link.
        link: Box<Path>,
        /// The store path that it was called for.
        path: StorePath,
        /// What it has made instead.
        found: Box<str>,
    },
    /// The builder has left the GC root to Nix, which does not make it.
    #[error(
        "{program} has provided {path} and not made the link {}, and Nix cannot hold the path in \
         its place; have the builder make the link a GC root, or bring the path into Nix's store \
         as `nix copy` does", .link.display()
    )]
    NotRooted {
        /// The builder.
        program: String,
        /// The store path that it was called for.
        path: StorePath,
        /// The link.
        link: PathBuf,
        /// What Nix says.
        source: Box<Error>,
    },
    /// A layer names a store path for which it has no GC root any more.
    #[error(
        "no GC root holds {path}, which a layer of the image names; make it anew with \
         `nix-store --realise {path} --add-root {}`, or remove the image and pull it again",
        .link.display()
    )]
    NotHeld {
        /// The store path.
        path: StorePath,
        /// Where the root is to be.
        link: PathBuf,
    },
    /// A held store object has been deleted all the same.
    #[error(
        "{path} is gone from the store although a GC root holds it; \
         restore it with `nix-store --realise {path}`, or remove the image and pull it again"
    )]
    ObjectGone {
        /// The store path.
        path: StorePath,
    },
    /// The directory of GC roots cannot be made, written or read.
    #[error("cannot {operation} GC roots at {}", .path.display())]
    GcRoots {
        /// What was tried.
        operation: &'static str,
        /// The directory or link.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

fn start_hint(reason: &io::Error) -> String {
    match reason.kind() {
        io::ErrorKind::NotFound => {
            "there is no such program; install Nix, or put the directory that holds it on the PATH \
             of nix-snapshotter"
                .to_owned()
        }
        _ => reason.to_string(),
    }
}

/// A program's own words, indented below the message.
fn quote(stderr: &str) -> String {
    let mut quoted = String::new();
    for line in stderr.lines().filter(|line| !line.trim().is_empty()) {
        // Writing to a String cannot fail.
        let _ = write!(quoted, "\n  {line}");
    }
    if quoted.is_empty() {
        quoted
    } else {
        format!(":{quoted}")
    }
}

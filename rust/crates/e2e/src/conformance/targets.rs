//! The three ways in which this project's tests reach a snapshotter.

use anyhow::Result;

use super::Target;
use crate::{
    containerd::{Containerd, NIX, OVERLAYFS},
    daemon::{Config, Daemon},
    host::Host,
    node::Node,
    snapshots::Snapshots,
};

/// The daemon on its own socket. Keys, labels and times are its own here.
///
/// # Errors
/// It does not start.
pub fn daemon(host: &Host) -> Result<Box<dyn Target>> {
    Ok(Box::new(Daemon::start(&Config::new(host, "daemon"))?))
}

/// The daemon as a client of containerd sees it: containerd's metadata store is in front of it
/// (`core/metadata`), which gives it keys with a namespace and a number, and keeps to itself parents,
/// times and all labels but `containerd.io/snapshot.ref` and those that begin with
/// `containerd.io/snapshot/`.
///
/// # Errors
/// One of the two does not start.
pub fn nix_through_containerd(host: &Host) -> Result<Box<dyn Target>> {
    Ok(Box::new(Node::start(host)?))
}

/// containerd's own overlayfs snapshotter in the same way: the oracle of every check.
///
/// # Errors
/// containerd does not start.
pub fn overlayfs_through_containerd(host: &Host) -> Result<Box<dyn Target>> {
    // containerd asks nothing of a proxy that nobody uses.
    let nobody = Config::new(host, "nobody");
    Ok(Box::new(Containerd::start(host, &nobody)?))
}

impl Target for Daemon {
    fn connect(&self) -> Result<Snapshots> {
        self.snapshots()
    }
}

impl Target for Node {
    fn connect(&self) -> Result<Snapshots> {
        self.containerd.snapshots(NIX)
    }
}

impl Target for Containerd {
    fn connect(&self) -> Result<Snapshots> {
        self.snapshots(OVERLAYFS)
    }
}

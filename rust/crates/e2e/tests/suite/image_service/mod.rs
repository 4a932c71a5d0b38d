//! The daemon's image service before containerd's CRI, called as kubelet calls it.

mod counting;
mod forward;
mod killed;
mod pods;
mod pull;
mod reconcile;
mod store;

use std::fs;

use crate::cri::Node;
use anyhow::{Context, Result, ensure};
use e2e::{
    archive::image,
    containerd::Config,
    cri::Cri,
    daemon,
    host::{Host, unique},
    invariants,
    process::{SETTLE, children, poll, when},
    store::Object,
};

/// A node whose kubelet asks the daemon for images.
struct Cluster {
    node: Node,
    images: Cri,
}

impl Cluster {
    fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, |daemon| daemon, |config| config)
    }

    fn start_with(
        host: &Host,
        daemon: impl FnOnce(daemon::Config) -> daemon::Config,
        configure: impl FnOnce(Config) -> Config,
    ) -> Result<Self> {
        let config = daemon::Config::new(host, &unique("daemon")).line("upperdir_label = true");
        let config = daemon(config);
        let node = Node::start_with(host, &config, configure)?;
        let images = Cri::connect(config.address())?;
        Ok(Self { node, images })
    }

    /// The archives that the daemon holds.
    fn held(&self) -> Result<Vec<String>> {
        let dir = self.node.daemon.config().root().join("images");
        let Ok(entries) = fs::read_dir(dir) else {
            return Ok(Vec::new());
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    /// Waits until no archive is held.
    fn holds_nothing(&self) -> Result<()> {
        poll("the release of archives", SETTLE, || {
            Ok(when(self.held()?.is_empty()))
        })
        .with_context(|| format!("{:?}", self.held()))
    }

    /// Nothing is left but the image for pods.
    fn keeps_nothing(&self) -> Result<()> {
        self.holds_nothing()?;
        self.node.containerd.collect_garbage()?;
        let rows = self.node.daemon.snapshots()?.names(&[])?;
        ensure!(rows.len() == 1, "{rows:?}");
        let leases = self.node.containerd.leases()?;
        ensure!(leases.is_empty(), "{leases:?}");
        // Where a pull was given up, Nix has some seconds to end, and its roots stand until then.
        let daemon = &self.node.daemon;
        let at_rest = poll("the end of what was given up", SETTLE, || {
            let has_ended = children(daemon.pid())?.is_empty();
            Ok(when(has_ended && invariants::check(daemon).is_ok()))
        });
        // It says what is left.
        invariants::check(daemon)?;
        at_rest
    }
}

/// An archive in the store, of an image that runs hello. Each is another image.
fn archive(host: &Host, flags: &[&str]) -> Result<Object> {
    let hello = format!("{}/bin/hello", host.fixture("hello")?);
    e2e::archive::archive(host, "hello", &[&hello], flags)
}

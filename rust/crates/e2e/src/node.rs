//! A containerd with its daemon, and the images that tests run on them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::{
    containerd::{Containerd, NIX, OVERLAYFS},
    daemon::{Config, Daemon},
    host::{Host, unique},
    image::{Image, Layer},
    process::{SETTLE, poll, succeed, when},
};

/// Where images with [`busybox_layer`] have the program that tests run.
pub const BUSYBOX: &str = "/bin/busybox";

/// What one machine of a cluster has.
#[derive(Debug)]
pub struct Node {
    // Dropped first: its containers want their snapshots removed.
    /// containerd.
    pub containerd: Containerd,
    /// Its snapshotter `nix`.
    pub daemon: Daemon,
}

impl Node {
    /// Starts both with the defaults.
    ///
    /// # Errors
    /// One of them does not start.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, &Config::new(host, "daemon"))
    }

    /// Starts both.
    ///
    /// # Errors
    /// One of them does not start.
    pub fn start_with(host: &Host, config: &Config) -> Result<Self> {
        let daemon = Daemon::start(config)?;
        let containerd = Containerd::start(host, config)?;
        Ok(Self { containerd, daemon })
    }

    /// Checks that a failed pull has left nothing that containerd's collector does not take.
    ///
    /// # Errors
    /// Names what is left.
    pub fn keeps_nothing(&self) -> Result<()> {
        let containerd = &self.containerd;
        let leases = containerd.leases()?;
        ensure!(leases.is_empty(), "leases are left: {leases:?}");
        containerd.collect_garbage()?;
        let images = containerd.images()?;
        ensure!(images.is_empty(), "images are left: {images:?}");
        let blobs = containerd.blobs()?;
        ensure!(blobs.is_empty(), "blobs are left: {blobs:?}");
        for snapshotter in [NIX, OVERLAYFS] {
            let names = containerd.snapshots(snapshotter)?.names(&[])?;
            ensure!(names.is_empty(), "snapshots are left: {names:?}");
        }
        poll("the end of cleaning up", SETTLE, || {
            let kept = self.daemon.config().kept()?;
            Ok(when(kept.snapshots.is_empty() && kept.gc_roots.is_empty()))
        })
    }
}

/// A reference that no other test uses.
#[must_use]
pub fn reference(name: &str) -> String {
    format!("docker.io/library/{}:latest", unique(name))
}

/// Calls `nix2container build`.
///
/// # Errors
/// The configuration cannot be written.
pub fn build_command(
    host: &Host,
    reference: &str,
    entrypoint: &[&str],
    closure: &Path,
    archive: &Path,
) -> Result<Command> {
    let config = host.dir().join(unique("config"));
    fs::write(&config, json!({ "Entrypoint": entrypoint }).to_string())?;
    let mut build = Command::new(host.nix2container());
    build
        .args(["build", "--ref", reference, "--config"])
        .arg(config);
    build.arg("--closure").arg(closure).arg(archive);
    Ok(build)
}

/// Builds an archive by `nix2container build` and gives its path.
///
/// # Errors
/// What it says.
pub fn build(
    host: &Host,
    reference: &str,
    entrypoint: &[&str],
    closure: &str,
    flags: &[&str],
) -> Result<PathBuf> {
    let archive = host.dir().join(unique("archive"));
    let mut build = build_command(host, reference, entrypoint, Path::new(closure), &archive)?;
    succeed(build.args(flags))?;
    Ok(archive)
}

/// An ordinary layer with busybox at [`BUSYBOX`].
///
/// # Errors
/// There is no busybox among the fixtures.
pub fn busybox_layer(host: &Host) -> Result<Layer> {
    let program = fs::read(format!("{}/bin/busybox", host.fixture("busybox")?))?;
    Layer::default()
        .dir("bin")?
        .file("bin/busybox", 0o755, &program)
}

/// Writes an image of the layers by hand and gives the path of its archive. It has
/// [`BUSYBOX`] in a layer of its own at the bottom.
///
/// # Errors
/// As for [`busybox_layer`].
pub fn busybox_image(
    host: &Host,
    reference: &str,
    layers: impl IntoIterator<Item = Layer>,
) -> Result<PathBuf> {
    let archive = host.dir().join(unique("archive"));
    let image = Image::new(reference)
        .entrypoint(&[BUSYBOX, "true"])
        .layer(busybox_layer(host)?);
    layers
        .into_iter()
        .fold(image, Image::layer)
        .write(&archive)?;
    Ok(archive)
}

/// How often an export may be cut off.
const EXPORTS: u32 = 5;

/// Has `ctr images export` write an image to a new file.
///
/// With containerd 2.1 it ends now and then, without an error, before it has written all that the
/// transfer service sends.
///
/// # Errors
/// What `ctr` says, and that the archive has no end.
pub fn export(containerd: &Containerd, flags: &[&str], image: &str, file: &Path) -> Result<()> {
    for _ in 0..EXPORTS {
        let mut export = containerd.ctr(&["images", "export"]);
        succeed(export.args(flags).arg(file).arg(image))?;
        // Two blocks of zeros (POSIX, `pax`).
        if fs::read(file)?.ends_with(&[0; 1024]) {
            return Ok(());
        }
        fs::remove_file(file)?;
    }
    bail!("{EXPORTS} exports of {image} were cut off")
}

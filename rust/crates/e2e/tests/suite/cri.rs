//! The CRI on top of the daemon: which images it knows, whoever goes and comes back, and images with
//! volumes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::{Config, Containerd, NIX},
    cri::Cri,
    daemon::{self, Daemon},
    host::{Host, test, unique, unmount_below},
    image::{Image, Layer},
    node::{BUSYBOX, busybox_image, busybox_layer, reference},
    process::{SETTLE, poll, succeed, when},
    store::{Object, Store},
};
use serde_json::json;

/// A node of a cluster: the daemon, a containerd with the CRI on it, and an image for pods.
pub(crate) struct Node {
    pub(crate) containerd: Containerd,
    pub(crate) daemon: Daemon,
    pub(crate) cri: Cri,
}

impl Node {
    fn start(host: &Host, configure: impl FnOnce(Config) -> Config) -> Result<Self> {
        let daemon = daemon::Config::new(host, &unique("daemon"));
        Self::start_with(host, &daemon, configure)
    }

    /// Starts it with a daemon of this configuration.
    pub(crate) fn start_with(
        host: &Host,
        daemon: &daemon::Config,
        configure: impl FnOnce(Config) -> Config,
    ) -> Result<Self> {
        let pause = |image: &str| -> Result<_> {
            let archive = host.dir().join("pause");
            Image::new(image)
                .entrypoint(&[BUSYBOX, "sleep", "1000"])
                .layer(busybox_layer(host)?)
                .write(&archive)?;
            Ok(archive)
        };
        Self::start_from(host, daemon, configure, pause)
    }

    /// Starts it with pods that are held by the image of the archive that `pause` makes.
    pub(crate) fn start_from(
        host: &Host,
        daemon: &daemon::Config,
        configure: impl FnOnce(Config) -> Config,
        archive: impl FnOnce(&str) -> Result<PathBuf>,
    ) -> Result<Self> {
        let pause = reference("pause");
        // Where its socket is, containerd says when it runs.
        let socket = host.dir().join(unique("containerd-socket"));
        let line = format!("image_service.containerd_address = {socket:?}");
        let daemon = Daemon::start(&daemon.clone().line(line))?;
        let config = configure(Config::with_cri(&pause));
        let containerd = Containerd::start_with(host, &config, daemon.config())?;
        symlink(containerd.socket(), &socket)?;
        let cri = Cri::connect(&containerd.socket())?;
        let archive = archive(&pause)?;
        let node = Self {
            containerd,
            daemon,
            cri,
        };
        node.containerd.load(NIX, &archive)?;
        node.lists(&[&pause])?;
        Ok(node)
    }

    /// Waits until the CRI knows these images by their names: it hears of them by events.
    pub(crate) fn lists(&self, images: &[&str]) -> Result<()> {
        let listed = poll("an image in the CRI", SETTLE, || {
            let names = self.cri.images()?;
            let known = |image: &&str| names.iter().any(|name| name == image);
            Ok(when(images.iter().all(known)))
        });
        listed.with_context(|| format!("{:?}", self.cri.images()))?;
        for image in images {
            let id = self.cri.image_id(image)?;
            ensure!(id.is_some(), "{image} is listed and has no status");
        }
        Ok(())
    }

    /// The image has a store object in a layer of its own; a container reads it.
    fn runs(&self, image: &str, object: &Object) -> Result<()> {
        let pod = self.cri.run_pod()?;
        let container = pod.create_container(image, &[BUSYBOX, "sleep", "1000"], &[])?;
        pod.start_container(&container)?;
        let read = pod.exec(&container, &[BUSYBOX, "cat", object.path()])?;
        ensure!(read == "content\n", "{read:?}");
        pod.remove()
    }
}

/// A store object, and archives of two images with it.
fn images(host: &Host) -> Result<(Object, [(String, PathBuf); 2])> {
    let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
    let image = || -> Result<_> {
        let image = reference("cri");
        let archive = busybox_image(host, &image, [Layer::per_path(&[object.path()])?])?;
        Ok((image, archive))
    };
    let images = [image()?, image()?];
    Ok((object, images))
}

#[test]
fn images_stay_listed_whoever_is_restarted() {
    test(|host| {
        for format in Config::formats()? {
            let mut node = Node::start(host, |config| config.format(format))?;
            let (object, [(loaded, first), (imported, second)]) = images(host)?;
            let listed = [loaded.as_str(), &imported];
            node.containerd.load(NIX, &first)?;
            let second = second.to_str().context("a path")?;
            let import = ["images", "import", "--snapshotter", NIX, second];
            succeed(&mut node.containerd.ctr(&import))?;
            node.lists(&listed)?;
            node.runs(&loaded, &object)?;
            // What kubelet looks at is a directory of this name in containerd's root.
            let dirs = node.cri.image_filesystems()?;
            ensure!(dirs.len() == 1, "{dirs:?}");
            ensure!(dirs[0].ends_with("/io.containerd.snapshotter.v1.nix"));

            // The daemon alone, in order and not.
            node.daemon.stop()?;
            ensure!(node.cri.images()?.len() == 3, "without the daemon");
            node.daemon.start_again()?;
            node.daemon.kill()?;
            node.daemon.start_again()?;
            node.lists(&listed)?;
            // containerd alone.
            node.containerd.restart()?;
            node.cri.wait()?;
            node.lists(&listed)?;
            // Both: containerd goes first and comes last, as systemd does it with `Before=`.
            node.containerd.stop();
            node.daemon.stop()?;
            node.daemon.start_again()?;
            node.containerd.restart()?;
            node.cri.wait()?;
            node.lists(&listed)?;
            node.runs(&imported, &object)?;

            for image in listed {
                node.cri.remove_image(image)?;
                ensure!(node.cri.image_id(image)?.is_none(), "{image} is left");
            }
            node.containerd.collect_garbage()?;
            let rows = node.daemon.snapshots()?.names(&[])?;
            ensure!(
                rows.len() == 1,
                "more than the layer of the pause image: {rows:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn images_are_forgotten_when_containerd_starts_without_the_daemon() {
    test(|host| {
        let mut node = Node::start(host, |config| config)?;
        let (object, [(image, archive), _]) = images(host)?;
        node.containerd.load(NIX, &archive)?;
        node.lists(&[&image])?;
        node.daemon.stop()?;
        node.containerd.restart()?;
        node.cri.wait()?;
        let listed = node.cri.images()?;
        ensure!(listed.is_empty(), "this containerd keeps {listed:?}");
        // containerd itself has lost nothing.
        ensure!(node.containerd.images()?.contains(&image));

        // The daemon's return says nothing to the CRI; an event of the image does.
        node.daemon.start_again()?;
        poll("the connection to the daemon", SETTLE, || {
            Ok(when(node.containerd.snapshots(NIX)?.names(&[]).is_ok()))
        })?;
        ensure!(node.cri.images()?.is_empty(), "this containerd looks again");
        let label = ["images", "label", &image, "any=label"];
        succeed(&mut node.containerd.ctr(&label))?;
        node.lists(&[&image])?;
        // So does another start of containerd.
        node.containerd.restart()?;
        node.cri.wait()?;
        ensure!(node.cri.images()?.len() == 2);
        node.runs(&image, &object)
    });
}

/// An image with a file in a volume, and a store object in a layer of its own if there is one.
fn volume_image(host: &Host, name: &str, object: Option<&Object>) -> Result<String> {
    let image = reference(name);
    let data = Layer::default()
        .dir("data")?
        .file("data/file", 0o644, b"from the image\n")?;
    let mut written = Image::new(&image)
        .setting("Volumes", json!({ "/data": {} }))
        .layer(busybox_layer(host)?)
        .layer(data);
    if let Some(object) = object {
        written = written.layer(Layer::per_path(&[object.path()])?);
    }
    written.write(&host.dir().join(name))?;
    Ok(image)
}

/// Where something is mounted below a directory.
fn mounts_below(dir: &Path) -> Result<usize> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .filter(|point| Path::new(point).starts_with(dir))
        .count())
}

#[test]
fn an_image_with_a_volume_fails_where_the_cri_copies_it() {
    test(|host| {
        let node = Node::start(host, |config| config)?;
        let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
        let plain = volume_image(host, "plain", None)?;
        let image = volume_image(host, "nix", Some(&object))?;
        for archive in ["plain", "nix"] {
            node.containerd.load(NIX, &host.dir().join(archive))?;
        }
        node.lists(&[&plain, &image])?;
        let pod = node.cri.run_pod()?;
        let sleep = [BUSYBOX, "sleep", "1000"];
        let temporary = node.containerd.temporary();

        // Without store paths a snapshot is one mount, and the volume is copied.
        let container = pod.create_container(&plain, &sleep, &[])?;
        pod.start_container(&container)?;
        let read = pod.exec(&container, &[BUSYBOX, "cat", "/data/file"])?;
        ensure!(read == "from the image\n", "{read:?}");
        ensure!(mounts_below(&temporary)? == 0);

        let status = match pod.create_container(&image, &sleep, &[]) {
            Ok(_) => anyhow::bail!("this containerd unmounts what it mounts"),
            Err(status) => status,
        };
        ensure!(status.message().contains("busy"), "{status:?}");
        ensure!(mounts_below(&temporary)? > 0);
        unmount_below(&temporary)?;

        // A volume of the pod in its place: nothing is copied.
        let volume = host.dir().join("volume");
        fs::create_dir(&volume)?;
        let container = pod.create_container(&image, &sleep, &[(&volume, "/data")])?;
        pod.start_container(&container)?;
        let read = pod.exec(&container, &[BUSYBOX, "cat", object.path()])?;
        ensure!(read == "content\n", "{read:?}");
        ensure!(pod.exec(&container, &[BUSYBOX, "ls", "/data"])?.is_empty());
        ensure!(mounts_below(&temporary)? == 0);
        pod.remove()?;

        // The container that was not made leaves nothing.
        node.containerd.collect_garbage()?;
        let active = node.daemon.snapshots()?.names(&["kind==active"])?;
        ensure!(active.is_empty(), "{active:?}");
        Ok(())
    });
}

#[test]
fn an_image_with_a_volume_runs_where_the_cri_ignores_it() {
    test(|host| {
        for format in Config::formats()? {
            let node = Node::start(host, |config| {
                config.format(format).ignoring_image_volumes()
            })?;
            let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
            let image = volume_image(host, "nix", Some(&object))?;
            node.containerd.load(NIX, &host.dir().join("nix"))?;
            node.lists(&[&image])?;
            let pod = node.cri.run_pod()?;
            let container = pod.create_container(&image, &[BUSYBOX, "sleep", "1000"], &[])?;
            pod.start_container(&container)?;
            let read = pod.exec(&container, &[BUSYBOX, "cat", object.path(), "/data/file"])?;
            ensure!(read == "content\nfrom the image\n", "{read:?}");
            // It is in the container's own layer, and goes with it.
            pod.exec(&container, &[BUSYBOX, "touch", "/data/new"])?;
            pod.remove()?;
        }
        Ok(())
    });
}

//! The daemon's image service before containerd's CRI, called as kubelet calls it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::{Config, NIX},
    cri::Cri,
    daemon,
    host::{Host, test, unique},
    invariants,
    node::{build, reference},
    process::{SETTLE, poll, succeed, when},
    snapshots::says,
    store::{self, Store},
};
use tonic::Code;

use crate::cri::Node;

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
        invariants::check(&self.node.daemon)?;
        Ok(())
    }
}

/// An archive in the store, of an image that runs hello.
struct Archive {
    path: String,
    root: PathBuf,
}

impl Archive {
    fn new(host: &Host, flags: &[&str]) -> Result<Self> {
        let hello = format!("{}/bin/hello", host.fixture("hello")?);
        let info = host.fixture("hello-closure-info")?;
        // Each is another image.
        let label = format!("test={}", unique("label"));
        let flags = [flags, &["--label", &label]].concat();
        Self::add(
            host,
            &build(host, &reference("built"), &[&hello], &info, &flags)?,
        )
    }

    /// Puts a file into the store.
    fn add(host: &Host, file: &Path) -> Result<Self> {
        let dir = host.dir().join(unique("add"));
        fs::create_dir(&dir)?;
        let named = dir.join("nix-image-hello.tar");
        fs::rename(file, &named)?;
        let path = succeed(Command::new("nix-store").arg("--add").arg(&named))?;
        let path = path.trim_end().to_owned();
        let root = host.dir().join(unique("archive-root"));
        let mut hold = Command::new("nix-store");
        succeed(hold.args(["--realise", &path, "--add-root"]).arg(&root))?;
        Ok(Self { path, root })
    }

    fn image(&self) -> String {
        format!("nix:0{}", self.path)
    }

    /// Leaves it to the daemon whether the store keeps it.
    fn release(&self) -> Result<()> {
        Ok(fs::remove_file(&self.root)?)
    }

    fn exists(&self) -> bool {
        Path::new(&self.path).exists()
    }
}

#[test]
fn an_image_is_pulled_by_its_store_path_runs_and_goes() {
    test(|host| {
        for format in Config::formats()? {
            let cluster =
                Cluster::start_with(host, |daemon| daemon, |config| config.format(format))?;
            let (cri, containerd) = (&cluster.node.cri, &cluster.node.containerd);
            for flags in [&[][..], &["--annotations", "per-path"]] {
                let archive = Archive::new(host, flags)?;
                let image = archive.image();
                ensure!(cluster.images.image_id(&image)?.is_none());
                let id = cluster.images.pull(&image)?;
                ensure!(id.starts_with("sha256:"), "{id}");
                // From now on containerd's own CRI has it, by both names.
                for name in [&image, &id] {
                    ensure!(cri.image_id(name)?.as_ref() == Some(&id), "{name}");
                }
                archive.release()?;
                store::collect_garbage()?;
                ensure!(archive.exists(), "the archive was collected");

                let pod = cri.run_pod()?;
                let hello = format!("{}/bin/hello", host.fixture("hello")?);
                let container = pod.create_container(&id, &[&hello], &[])?;
                pod.start_container(&container)?;
                pod.remove()?;

                // Kubelet removes images by their identifiers.
                cluster.images.remove_image(&id)?;
                ensure!(cri.image_id(&image)?.is_none());
                cluster.keeps_nothing()?;
                ensure!(!containerd.images()?.contains(&image));
                store::collect_garbage()?;
                ensure!(!archive.exists(), "the archive is held still");
            }
        }
        Ok(())
    });
}

#[test]
fn pods_that_start_at_once_have_the_image_imported_once() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let archive = Archive::new(host, &[])?;
        let image = archive.image();
        let pulls = cluster.images.pull_at_once(&[&*image; 10], SETTLE);
        let mut ids = Vec::new();
        for pull in pulls {
            ids.push(pull.context("a pull that does not end")??);
        }
        ids.dedup();
        ensure!(ids.len() == 1, "{ids:?}");
        let log = cluster.node.daemon.log();
        let told = |words: &str| log.lines().filter(|line| line.contains(words)).count();
        ensure!(told("the image is there already") == 9, "{log}");
        // Pulled again, as `imagePullPolicy: Always` has it.
        ensure!(cluster.images.pull(&image)? == ids[0]);
        // With another name that means the same archive: one image with two names.
        let by_digest = cluster
            .node
            .containerd
            .image_digest(&format!("{image}:latest"))?;
        let digest = by_digest.context("no digest")?;
        ensure!(cluster.images.pull(&format!("{image}@{digest}"))? == ids[0]);
        ensure!(cluster.held()?.len() == 1);
        cluster.images.remove_image(&ids[0])?;
        cluster.keeps_nothing()
    });
}

#[test]
fn what_cannot_be_pulled_is_said_and_leaves_nothing() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let named = Archive::new(host, &[])?;
        let digest = format!("sha256:{}", "0".repeat(64));
        let store = Store::new(host)?;
        let directory = store.build("directory", "$busybox mkdir $out", &[])?;
        let text = store.build("text", "echo no archive > $out", &[])?;
        let foreign = Archive::new(host, &["--platform", "linux/s390x"])?;
        let nobodys = "/nix/store/00000000000000000000000000000000-nobody-has-this";
        for (image, code, words) in [
            (
                "nix:0/etc/passwd".to_owned(),
                Code::InvalidArgument,
                &["/nix/store"][..],
            ),
            (
                format!("{}/inside", named.image()),
                Code::InvalidArgument,
                &["inside"],
            ),
            (
                format!("nix:0{}", directory.path()),
                Code::InvalidArgument,
                &["directory"],
            ),
            (
                format!("nix:0{}", text.path()),
                Code::InvalidArgument,
                &[text.path()],
            ),
            (foreign.image(), Code::InvalidArgument, &["linux/s390x"]),
            (
                format!("nix:0{nobodys}"),
                Code::FailedPrecondition,
                &[nobodys],
            ),
            (
                format!("{}@{digest}", named.image()),
                Code::InvalidArgument,
                &["sha256:", "write that"],
            ),
            (
                format!("{}:v2", named.image()),
                Code::InvalidArgument,
                &["the tag latest"],
            ),
            (
                "nix:0/nix/store/Upper".to_owned(),
                Code::InvalidArgument,
                &["rename"],
            ),
        ] {
            let status = match cluster.images.pull(&image) {
                Ok(id) => anyhow::bail!("{image} is {id}"),
                Err(status) => status,
            };
            ensure!(status.code() == code, "{image}: {status:?}");
            says(status.message(), words).with_context(|| image.clone())?;
            ensure!(cluster.held()?.is_empty(), "{image}: {:?}", cluster.held());
        }
        cluster.keeps_nothing()
    });
}

#[test]
fn roots_follow_the_images_whoever_removes_them_and_whoever_is_down() {
    test(|host| {
        let mut cluster = Cluster::start(host)?;
        // By another client.
        let archive = Archive::new(host, &[])?;
        let id = cluster.images.pull(&archive.image())?;
        for name in [format!("{}:latest", archive.image()), id] {
            cluster.node.containerd.remove_image(&name)?;
        }
        cluster.keeps_nothing()?;

        // While the daemon is down.
        let id = cluster.images.pull(&archive.image())?;
        cluster.node.daemon.stop()?;
        for name in [format!("{}:latest", archive.image()), id] {
            cluster.node.containerd.remove_image(&name)?;
        }
        ensure!(!cluster.held()?.is_empty());
        cluster.node.daemon.start_again()?;
        cluster.holds_nothing()?;
        poll("containerd's connection to the daemon", SETTLE, || {
            let snapshots = cluster.node.containerd.snapshots(NIX)?;
            Ok(when(snapshots.names(&[]).is_ok()))
        })?;

        // A root that was lost comes back; containerd's return is noticed.
        let id = cluster.images.pull(&archive.image())?;
        cluster.node.containerd.stop();
        fs::remove_dir_all(cluster.node.daemon.config().root().join("images"))?;
        cluster.node.containerd.restart()?;
        poll("the root", SETTLE, || Ok(when(cluster.held()?.len() == 1)))?;
        // containerd looks for what a snapshotter that was down could not remove when it next
        // removes something there.
        cluster.node.cri.wait()?;
        cluster.images.remove_image(&id)?;
        cluster.keeps_nothing()
    });
}

#[test]
fn without_containerd_callers_hear_so_at_once_and_afterwards_all_is_well() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let archive = Archive::new(host, &[])?;
        cluster.node.containerd.stop();
        let begun = Instant::now();
        let status = cluster
            .images
            .pull(&archive.image())
            .err()
            .context("a pull")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        let status = cluster
            .images
            .pull("docker.io/library/a")
            .err()
            .context("a pull")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        says(
            status.message(),
            &["containerd cannot be reached", "containerd_address"],
        )?;
        ensure!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
        ensure!(cluster.held()?.is_empty());
        cluster.node.containerd.restart()?;
        cluster.images.wait()?;
        cluster.images.pull(&archive.image())?;
        Ok(())
    });
}

#[test]
fn calls_that_are_not_ours_are_those_of_containerd() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let (ours, theirs) = (&cluster.images, &cluster.node.cri);
        ensure!(ours.images()? == theirs.images()?);
        ensure!(ours.image_filesystems()? == theirs.image_filesystems()?);
        for image in cluster.node.cri.images()? {
            ensure!(ours.image_id(&image)? == theirs.image_id(&image)?);
        }
        // What containerd refuses it refuses in the same words.
        let image = "127.0.0.1:1/a:v1";
        let (said, expected) = (ours.pull(image).err(), theirs.pull(image).err());
        let (said, expected) = (said.context("a pull")?, expected.context("a pull")?);
        ensure!(said.code() == expected.code(), "{said:?} {expected:?}");
        ensure!(
            said.message() == expected.message(),
            "{said:?} {expected:?}"
        );
        // So it does what no version of the CRI has.
        let said = ours.no_such_method().err().context("an answer")?;
        let expected = theirs.no_such_method().err().context("an answer")?;
        ensure!(said.code() == Code::Unimplemented, "{said:?}");
        ensure!(
            said.message() == expected.message(),
            "{said:?} {expected:?}"
        );
        Ok(())
    });
}

//! The roots of archives follow the images.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::NIX,
    daemon,
    host::test,
    node::reference,
    process::{SETTLE, poll, when},
    store::{Object, evict},
};

use super::{Cluster, archive, image};

#[test]
fn roots_follow_the_images_whoever_removes_them_and_whoever_is_down() {
    test(|host| {
        let mut cluster = Cluster::start(host)?;
        // By another client.
        let archive = archive(host, &[])?;
        let id = cluster.images.pull(&image(&archive))?;
        for name in [format!("{}:latest", image(&archive)), id] {
            cluster.node.containerd.remove_image(&name)?;
        }
        cluster.keeps_nothing()?;

        // While the daemon is down.
        let id = cluster.images.pull(&image(&archive))?;
        cluster.node.daemon.stop()?;
        for name in [format!("{}:latest", image(&archive)), id] {
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
        let id = cluster.images.pull(&image(&archive))?;
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

/// How many names an image gets, each with a label of 4,000 bytes: more than the 4 MiB that a client
/// of gRPC takes by default.
const MANY: u32 = 1_200;

/// How long the CRI may take to hear of them.
const MANY_BOUND: Duration = Duration::from_secs(120);

#[test]
fn roots_follow_the_images_however_many_there_are() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let pause = cluster.node.cri.images()?;
        let pause = pause.first().context("no image for pods")?;
        cluster.node.containerd.name_image_often(pause, MANY)?;
        cluster.has_heard_of_names(pause)?;
        let archive = archive(host, &[])?;
        let id = cluster.images.pull(&image(&archive))?;
        ensure!(cluster.held()?.len() == 1);
        for name in [format!("{}:latest", image(&archive)), id] {
            cluster.node.containerd.remove_image(&name)?;
        }
        cluster.holds_nothing()
    });
}

impl Cluster {
    /// Whether there is a root of an archive, and not only the place for one.
    pub(super) fn has_root(&self, archive: &Object) -> bool {
        let name = archive.path().trim_start_matches("/nix/store/");
        let dir = self.node.daemon.config().root().join("images").join(name);
        fs::read_dir(dir).is_ok_and(|mut roots| roots.next().is_some())
    }

    /// Waits until the CRI has heard of all names that images have got. It does not list those
    /// without a tag, but hears of one after the other: `image` gets two more, with tags.
    fn has_heard_of_names(&self, image: &str) -> Result<()> {
        // It labels what others name, and hears of that as well, which may be behind the first.
        for _ in 0..2 {
            let last = reference("last");
            self.node.containerd.name_image(image, &last)?;
            poll("the last name", MANY_BOUND, || {
                let is_known = self.node.cri.image_id(&last)?.is_some();
                if !is_known {
                    // It has enough to do.
                    thread::sleep(Duration::from_millis(200));
                }
                Ok(when(is_known))
            })?;
        }
        Ok(())
    }

    /// How many lines of the log of the running daemon have all these words.
    pub(super) fn said(&self, words: &[&str]) -> usize {
        let log = self.node.daemon.log();
        let has = |line: &&str| words.iter().all(|word| line.contains(word));
        log.lines().filter(has).count()
    }

    /// Has the daemon compare roots and images, and waits until it has.
    fn reconciles(&self, archive: &Object) -> Result<()> {
        let id = self.images.pull(&image(archive))?;
        ensure!(self.has_root(archive));
        self.images.remove_image(&id)?;
        poll("the release of an archive", SETTLE, || {
            Ok(when(!self.has_root(archive)))
        })
    }
}

#[test]
fn an_archive_that_takes_long_keeps_no_other_from_its_root() {
    test(|host| {
        // They are looked at in the order of their names.
        let mut archives = [
            archive(host, &[])?,
            archive(host, &[])?,
            archive(host, &[])?,
        ];
        archives.sort_by(|one, other| one.path().cmp(other.path()));
        let [slow, quick, removed] = &archives;
        let go = host.dir().join("go");
        let script = format!(
            "if [ \"$2\" = {slow} ]; then until [ -e {} ]; do sleep 0.05; done; fi; \
             exec nix-store --realise \"$2\" --add-root \"$1\"",
            go.display()
        );
        let builder = daemon::Config::builder;
        let mut built = Ok(());
        let mut cluster = Cluster::start_with(
            host,
            |daemon| {
                builder(daemon.clone(), &script).unwrap_or_else(|error| {
                    built = Err(error);
                    daemon
                })
            },
            |config| config,
        )?;
        built?;
        fs::write(&go, "")?;
        for archive in &archives {
            cluster.images.pull(&image(archive))?;
        }
        fs::remove_file(&go)?;
        cluster.node.daemon.stop()?;
        fs::remove_dir_all(cluster.node.daemon.config().root().join("images"))?;
        cluster.node.daemon.start_again()?;
        poll("the roots of the others", SETTLE, || {
            Ok(when(cluster.has_root(quick) && cluster.has_root(removed)))
        })?;
        // Nor from its release.
        cluster.images.wait()?;
        cluster.images.remove_image(&image(removed))?;
        poll("the release", SETTLE, || {
            Ok(when(!cluster.has_root(removed)))
        })?;
        ensure!(!cluster.has_root(slow));
        fs::write(&go, "")?;
        poll("the slow root", SETTLE, || Ok(when(cluster.has_root(slow))))
    });
}

#[test]
fn what_cannot_be_put_in_order_is_said_once() {
    test(|host| {
        let mut cluster = Cluster::start(host)?;
        let gone = archive(host, &[])?;
        cluster.images.pull(&image(&gone))?;
        cluster.node.daemon.stop()?;
        fs::remove_dir_all(cluster.node.daemon.config().root().join("images"))?;
        evict(&[gone])?;
        cluster.node.daemon.start_again()?;
        poll("a connection to containerd", SETTLE, || {
            let snapshots = cluster.node.containerd.snapshots(NIX)?;
            Ok(when(snapshots.names(&[]).is_ok()))
        })?;
        cluster.images.wait()?;
        let other = archive(host, &[])?;
        for _ in 0..3 {
            cluster.reconciles(&other)?;
        }
        let said = cluster.said(&["WARN", "gone from the store"]);
        ensure!(said == 1, "{said}: {}", cluster.node.daemon.log());

        // Nothing can be compared: said once, too, however often it is tried.
        let images = cluster.node.daemon.config().root().join("images");
        cluster.node.daemon.stop()?;
        fs::remove_dir(&images)?;
        fs::write(&images, "")?;
        cluster.node.daemon.start_again()?;
        let path = images.display().to_string();
        let warned = ["WARN", "not followed", &path];
        poll("a warning", SETTLE, || Ok(when(cluster.said(&warned) > 0)))?;
        // It is tried every second.
        thread::sleep(Duration::from_secs(4));
        ensure!(cluster.said(&warned) == 1, "{}", cluster.node.daemon.log());
        fs::remove_file(&images)?;
        cluster.images.wait()?;
        cluster.reconciles(&other)
    });
}

#[test]
fn a_containerd_that_is_away_is_no_warning() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        cluster.node.containerd.stop();
        thread::sleep(Duration::from_secs(3));
        ensure!(
            cluster.said(&["WARN", "not followed"]) == 0,
            "{}",
            cluster.node.daemon.log()
        );
        Ok(())
    });
}

//! The roots of archives follow the images.

use std::fs;

use anyhow::ensure;
use e2e::{
    containerd::NIX,
    host::test,
    process::{SETTLE, poll, when},
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

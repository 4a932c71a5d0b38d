//! A daemon that is killed while it pulls an image.

use std::{fs, thread};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::{
    host::{Host, test},
    image::Layer,
    node::{busybox_image, reference},
    process::{SETTLE, poll, succeed, when},
    store::{Object, Store},
};

use super::{Cluster, image};

/// An archive of an image with an ordinary layer that no other image has, and two with one store path:
/// what was realised for the import is for the first of them.
fn archive(host: &Host) -> Result<(Object, Object)> {
    let store = Store::new(host)?;
    let dir = store.build("dir", "$busybox mkdir $out", &[])?;
    let own = Layer::default().file("own", 0o644, dir.path().as_bytes())?;
    let layers = [
        own,
        Layer::per_path(&[dir.path()])?,
        Layer::per_path(&[dir.path()])?,
    ];
    let file = busybox_image(host, &reference("killed"), layers)?;
    Ok((store.add(&file, "nix-image-killed.tar")?, dir))
}

#[test]
fn what_a_killed_daemon_was_importing_is_gone_when_it_is_back() {
    test(|host| {
        let (archive, dir) = archive(host)?;
        let [hang, once, reached] = ["hang", "once", "reached"].map(|name| host.dir().join(name));
        // containerd waits for the snapshot of the last layer, and has all else.
        let builder = format!(
            "if [ \"$2\" = {dir} ] && [ -e {once} ] && [ -e {hang} ]; then : > {reached}; \
             while [ -e {hang} ]; do sleep 0.05; done; exit 1; fi; \
             if [ \"$2\" = {dir} ]; then : > {once}; fi; \
             exec nix-store --realise \"$2\" --add-root \"$1\"",
            hang = hang.display(),
            once = once.display(),
            reached = reached.display()
        );
        let mut building = Ok(());
        let daemon = |daemon: e2e::daemon::Config| {
            daemon.clone().builder(&builder).unwrap_or_else(|error| {
                building = Err(error);
                daemon
            })
        };
        let mut cluster = Cluster::start_with(host, daemon, |config| config)?;
        building?;
        let containerd = &cluster.node.containerd;
        let others = ["leases", "create", "--id", "of-another"];
        succeed(&mut containerd.ctr(&others))?;

        fs::write(&hang, "")?;
        let (client, name) = (cluster.images.clone(), image(&archive));
        let pull = thread::spawn(move || client.pull(&name));
        poll("the last layer", SETTLE, || Ok(when(reached.exists())))?;
        ensure!(containerd.leases()?.len() == 2, "{:?}", containerd.leases());
        ensure!(cluster.node.daemon.snapshots()?.names(&[])?.len() > 1);
        let orphans = cluster.node.daemon.descendants().clone();
        cluster.node.daemon.kill()?;
        fs::remove_file(&hang)?;
        orphans.end(SETTLE)?;
        let pulled = pull.join().map_err(|_| anyhow!("a client panicked"))?;
        ensure!(pulled.is_err(), "{pulled:?}");

        cluster.node.daemon.start_again()?;
        let containerd = &cluster.node.containerd;
        poll("the end of the lease", SETTLE, || {
            Ok(when(containerd.leases()? == ["of-another"]))
        })
        .with_context(|| format!("{:?}", containerd.leases()))?;
        // Without any other removal, after which containerd would look.
        let snapshots = cluster.node.daemon.snapshots()?;
        poll("the end of the snapshots", SETTLE, || {
            Ok(when(snapshots.names(&[])?.len() == 1))
        })
        .with_context(|| format!("{:?}", snapshots.names(&[])))?;
        let images = containerd.images()?;
        ensure!(
            !images.iter().any(|image| image.contains("nix:0")),
            "{images:?}"
        );
        succeed(&mut containerd.ctr(&["leases", "delete", "of-another"]))?;
        cluster.keeps_nothing()?;
        cluster.images.pull(&image(&archive))?;
        Ok(())
    });
}

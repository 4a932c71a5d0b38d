//! Daemons that go and come back while containers run.

use anyhow::{Result, ensure};
use e2e::{
    containerd::NIX,
    host::{Host, test},
    image::Layer,
    node::{BUSYBOX, Node, busybox_image, reference},
    process::{SETTLE, poll, when},
    store::{Object, Store},
};

/// A node with an image whose Nix layer has one file.
fn node_with_image(host: &Host) -> Result<(Node, String, Object)> {
    let node = Node::start(host)?;
    let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
    let image = reference("restart");
    let archive = busybox_image(host, &image, [Layer::per_path(&[object.path()])?])?;
    node.containerd.import(NIX, &archive)?;
    Ok((node, image, object))
}

#[test]
fn containers_go_on_while_the_daemon_is_away() {
    test(|host| {
        let (mut node, image, object) = node_with_image(host)?;
        for kill in [false, true] {
            let container =
                node.containerd
                    .run_detached(NIX, &[], &image, &[BUSYBOX, "sleep", "1000"])?;
            let read = [BUSYBOX, "cat", object.path()];
            let mounts = container.mounts(NIX)?;
            // Not while the daemon is away or its rows are compared.
            node.containerd.collect_garbage()?;
            let rows = node.daemon.snapshots()?.list(&[])?;
            if kill {
                node.daemon.kill()?;
            } else {
                node.daemon.stop()?;
            }
            ensure!(container.exec(&read)? == "content\n", "without the daemon");
            node.daemon.start_again()?;
            ensure!(container.exec(&read)? == "content\n", "with a new daemon");
            ensure!(container.mounts(NIX)? == mounts);
            ensure!(node.daemon.snapshots()?.list(&[])? == rows);

            let printed = node
                .containerd
                .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?
                .success()?;
            ensure!(printed == "content\n", "a new container");
            container.remove()?;
        }
        Ok(())
    });
}

#[test]
fn containerd_comes_back_to_what_the_daemon_has() {
    test(|host| {
        let (node, image, object) = node_with_image(host)?;
        let container =
            node.containerd
                .run_detached(NIX, &[], &image, &[BUSYBOX, "sleep", "1000"])?;
        let mounts = container.mounts(NIX)?;
        node.containerd.restart()?;
        ensure!(container.mounts(NIX)? == mounts);
        ensure!(container.exec(&[BUSYBOX, "cat", object.path()])? == "content\n");
        node.containerd.collect_garbage()?;
        let printed = node
            .containerd
            .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?
            .success()?;
        ensure!(printed == "content\n");
        container.remove()
    });
}

#[test]
fn containerd_may_start_before_the_daemon() {
    test(|host| {
        let (mut node, image, object) = node_with_image(host)?;
        node.daemon.stop()?;
        node.containerd.restart()?;
        let ended = node
            .containerd
            .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?;
        ensure!(
            !ended.status.success(),
            "there is no daemon, and a container ran"
        );
        node.daemon.start_again()?;
        // containerd waits up to three seconds between its attempts to connect.
        poll("a container", SETTLE, || {
            let ended = node
                .containerd
                .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?;
            Ok(when(
                ended.success().is_ok_and(|printed| printed == "content\n"),
            ))
        })
    });
}

//! `nix2container unload`: what it removes, and what it says.

use anyhow::{Result, ensure};
use e2e::{
    containerd::NIX,
    host::{test, unique},
    image::{Layer, NIX_STORE_PATH},
    node::{BUSYBOX, Node, busybox_image, reference},
    process::{SETTLE, poll, run, succeed, when},
    snapshots::says,
};

#[test]
fn what_was_loaded_is_gone_when_it_returns() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let hello = host.fixture("hello")?;
        let (one, two) = (reference("one"), reference("two"));
        for image in [&one, &two] {
            let archive = busybox_image(host, image, [Layer::per_path(&[&hello])?])?;
            containerd.load(NIX, &archive)?;
        }
        // Two names of one content: blobs and snapshots go with the last.
        succeed(&mut containerd.nix2container(&["unload", &one]))?;
        ensure!(containerd.images()? == [&*two]);
        containerd.run(NIX, &two, &[BUSYBOX, "true"])?.success()?;

        let removed = succeed(&mut containerd.nix2container(&["unload", &two, &two]))?;
        ensure!(removed == format!("{two}\n"), "{removed}");
        // No collector is called: `unload` has waited for containerd's.
        ensure!(containerd.blobs()?.is_empty(), "blobs are left");
        let snapshots = containerd.snapshots(NIX)?.names(&[])?;
        ensure!(snapshots.is_empty(), "{snapshots:?} are left");
        poll("the end of GC roots", SETTLE, || {
            Ok(when(node.daemon.config().kept()?.gc_roots.is_empty()))
        })?;
        node.keeps_nothing()
    });
}

#[test]
fn names_are_normalised_as_load_does_and_those_of_other_clients_are_taken_as_they_are() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let short = unique("short");
        let image = format!("docker.io/library/{short}:latest");
        let archive = busybox_image(host, &image, [])?;
        containerd.load(NIX, &archive)?;
        let other = "not normalised";
        containerd.name_image(&image, other)?;
        let removed = succeed(&mut containerd.nix2container(&["unload", &short, other]))?;
        ensure!(removed == format!("{image}\n{other}\n"), "{removed}");
        node.keeps_nothing()
    });
}

#[test]
fn an_unknown_name_is_answered_with_those_that_there_are_and_nothing_is_removed() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let unload = |names: &[&str]| -> Result<String> {
            run(containerd.nix2container(&["unload"]).args(names))?.failure()
        };
        says(&unload(&["nobody"])?, &["nobody", "none", "--namespace"])?;
        let image = reference("known");
        let layer =
            Layer::default().annotation(&format!("{NIX_STORE_PATH}0"), &host.fixture("hello")?);
        containerd.load(NIX, &busybox_image(host, &image, [layer])?)?;
        let said = unload(&[&image, "nobody"])?;
        says(&said, &["docker.io/library/nobody:latest", &image])?;
        ensure!(containerd.images()? == [&*image], "it is gone");
        succeed(&mut containerd.nix2container(&["unload", &image]))?;
        node.keeps_nothing()
    });
}

//! `nix2container load` of images for several platforms.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use e2e::{
    containerd::NIX,
    host::{Host, test, unique},
    image::{Image, Layer, architecture},
    node::{BUSYBOX, Node, busybox_layer, export, reference},
    process::{run, succeed},
    registry::{Registry, Settings},
    snapshots::says,
};

use crate::push::{at, push};

/// Another architecture than this machine's.
pub(crate) fn other() -> &'static str {
    match architecture() {
        "amd64" => "arm64",
        _ => "amd64",
    }
}

/// An image for this machine, and for one of another kind.
fn two_images(host: &Host, image: &str) -> Result<Vec<Image>> {
    Ok(vec![
        Image::new(image)
            .architecture(other())
            .layer(Layer::default().dir("other")?),
        Image::new(image).layer(busybox_layer(host)?),
    ])
}

/// Both as one image with an index.
pub(crate) fn for_two_platforms(host: &Host, image: &str) -> Result<PathBuf> {
    let archive = host.dir().join(unique("platforms"));
    Image::write_all(two_images(host, image)?, &archive)?;
    Ok(archive)
}

#[test]
fn a_platform_is_chosen_and_what_there_is_is_told() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let image = reference("platform");
        let (archive, other) = (for_two_platforms(host, &image)?, other());
        let load = |platform: &str| {
            let mut load = containerd.nix2container(&["load", "--platform", platform]);
            load.arg(&archive);
            load
        };
        containerd.load(NIX, &archive)?;
        containerd.run(NIX, &image, &[BUSYBOX, "true"])?.success()?;
        let here = containerd.image_digest(&image)?;
        succeed(&mut load(&format!("linux/{}", architecture())))?;
        ensure!(containerd.image_digest(&image)? == here);

        succeed(&mut load(&format!("linux/{other}")))?;
        let there = containerd.image_digest(&image)?;
        ensure!(there.is_some() && there != here, "{here:?} {there:?}");
        containerd.collect_garbage()?;
        ensure!(containerd.snapshots(NIX)?.list(&[])?.len() == 1);

        let said = run(&mut load("linux/s390x"))?.failure()?;
        says(&said, &["linux/s390x", "linux/amd64", "linux/arm64"])?;
        containerd.remove_image(&image)?;
        node.keeps_nothing()
    });
}

#[test]
fn all_platforms_are_kept_and_the_one_of_this_machine_is_unpacked() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let image = reference("all");
        let (archive, other) = (for_two_platforms(host, &image)?, other());
        let mut load = containerd.nix2container(&["load", "--all-platforms"]);
        succeed(load.arg(&archive))?;
        // Two images of three blobs each, and the index.
        let blobs = containerd.blobs()?;
        ensure!(blobs.len() == 7, "{blobs:?}");
        containerd.collect_garbage()?;
        ensure!(containerd.blobs()? == blobs, "blobs were collected");
        ensure!(containerd.snapshots(NIX)?.list(&[])?.len() == 1);
        containerd.run(NIX, &image, &[BUSYBOX, "true"])?.success()?;
        let list = succeed(&mut containerd.ctr(&["images", "list"]))?;
        says(&list, &["linux/amd64", "linux/arm64"])?;

        // As containerd's own export has it, everything is there.
        let exported = host.dir().join("exported");
        export(containerd, &["--all-platforms"], &image, &exported)?;
        containerd.remove_image(&image)?;
        node.keeps_nothing()?;
        let mut load = containerd.nix2container(&["load", "--platform", &format!("linux/{other}")]);
        succeed(load.arg(&exported))?;
        containerd.remove_image(&image)?;
        node.keeps_nothing()
    });
}

#[test]
fn manifests_without_an_index_get_the_one_that_a_push_makes() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let image = reference("flat");
        let archive = host.dir().join("flat");
        Image::write_flat(two_images(host, &image)?, &archive)?;
        let load = |archive: &PathBuf| {
            let mut load = containerd.nix2container(&["load", "--all-platforms"]);
            load.arg(archive);
            load
        };
        let named = succeed(&mut load(&archive))?;
        ensure!(named == format!("{image}\n"), "{named:?}");
        // Two images of three blobs each, and the index.
        let blobs = containerd.blobs()?;
        ensure!(blobs.len() == 7, "{blobs:?}");
        containerd.collect_garbage()?;
        ensure!(containerd.blobs()? == blobs, "blobs were collected");
        containerd.run(NIX, &image, &[BUSYBOX, "true"])?.success()?;
        let list = succeed(&mut containerd.ctr(&["images", "list"]))?;
        says(&list, &["linux/amd64", "linux/arm64"])?;

        let registry = Registry::start(host, Settings::default())?;
        let destination = at(registry.address());
        let pushed = succeed(push(host).args(["--ref", &destination]).arg(&archive))?;
        let digest = containerd.image_digest(&image)?.unwrap_or_default();
        ensure!(
            pushed.trim_end().ends_with(&digest),
            "{pushed:?}, and {digest} in containerd"
        );
        containerd.remove_image(&image)?;

        // No platform can have two images.
        let mut images = two_images(host, &image)?;
        images.push(
            Image::new(&image)
                .architecture(other())
                .layer(Layer::default().dir("another")?),
        );
        Image::write_flat(images, &archive)?;
        let said = run(&mut load(&archive))?.failure()?;
        says(&said, &[&image, "two images for", "--platform linux/"])?;
        ensure!(said.lines().count() == 1, "{said}");
        node.keeps_nothing()
    });
}

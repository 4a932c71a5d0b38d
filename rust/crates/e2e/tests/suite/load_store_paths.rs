//! Images whose layers have the same content, by which containerd knows a layer, and not the same
//! store paths.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::NIX,
    host::{Host, test},
    image::{Layer, NIX_CLOSURE, NIX_STORE_PATH},
    node::{BUSYBOX, Node, busybox_image, reference},
    process::run,
    snapshots::says,
    store::{Object, Store},
};

/// An image with a layer that has the directory of the store, and these annotations.
struct Image {
    reference: String,
    archive: PathBuf,
}

impl Image {
    fn new(host: &Host, annotations: &[(&str, &str)]) -> Result<Self> {
        let reference = reference("same");
        let layer = Layer::default().dir("nix")?.dir("nix/store")?;
        let layer = annotations
            .iter()
            .fold(layer, |layer, (name, value)| layer.annotation(name, value));
        let archive = busybox_image(host, &reference, [layer])?;
        Ok(Self { reference, archive })
    }
}

/// A file, and a closure-info of it.
fn objects(store: &Store) -> Result<[Object; 2]> {
    let file = store.build("file", "echo content > $out", &[])?;
    let info = store.closure_info(&[&file])?;
    Ok([file, info])
}

#[test]
fn an_image_does_not_get_the_store_paths_of_another() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let store = Store::new(host)?;
        let ([file, info], [other, other_info]) = (objects(&store)?, objects(&store)?);
        let path = |number: u32| format!("{NIX_STORE_PATH}{number}");
        let (zero, one) = (path(0), path(1));
        let per_path = [(&*zero, file.path())];
        let closure = [(NIX_CLOSURE, info.path())];
        for (first, second, words) in [
            (&per_path[..], &[(&*zero, other.path())][..], file.path()),
            (&closure, &[(NIX_CLOSURE, other_info.path())], info.path()),
            (&closure, &per_path, info.path()),
            (
                &[(&*zero, file.path()), (&*one, other.path())],
                &per_path,
                "and 1 more",
            ),
            (&[], &per_path, "without store paths"),
        ] {
            let (first, second) = (Image::new(host, first)?, Image::new(host, second)?);
            containerd.load(NIX, &first.archive)?;
            let blobs = containerd.blobs()?;
            let said = run(&mut containerd.load_command(NIX, &second.archive))?.failure()?;
            says(&said, &["snapshot sha256:", words, "ctr images rm --sync"])?;
            ensure!(containerd.images()? == [&*first.reference]);
            ensure!(containerd.blobs()? == blobs, "blobs are left of it");
            // The way out.
            containerd.remove_image(&first.reference)?;
            containerd.load(NIX, &second.archive)?;
            containerd
                .run(NIX, &second.reference, &[BUSYBOX, "true"])?
                .success()?;
            containerd.remove_image(&second.reference)?;
            node.keeps_nothing()
                .with_context(|| format!("after {words}"))?;
        }
        Ok(())
    });
}

#[test]
fn the_same_store_paths_are_the_same_layer_however_they_are_numbered() {
    test(|host| {
        let node = Node::start(host)?;
        let store = Store::new(host)?;
        let ([one, info], [other, _]) = (objects(&store)?, objects(&store)?);
        let path = |number: u32| format!("{NIX_STORE_PATH}{number}");
        let numbers = [path(0), path(1), path(7)];
        let numbers = numbers.each_ref().map(|number| &**number);
        let both = (NIX_CLOSURE, info.path());
        let annotations = [
            [(numbers[0], one.path()), (numbers[1], other.path()), both],
            [(numbers[2], one.path()), (numbers[0], other.path()), both],
        ];
        for annotations in &annotations {
            let image = Image::new(host, annotations)?;
            node.containerd.load(NIX, &image.archive)?;
            let cat = [BUSYBOX, "cat", other.path()];
            let ended = node.containerd.run(NIX, &image.reference, &cat)?;
            ensure!(ended.success()? == "content\n");
        }
        ensure!(node.containerd.snapshots(NIX)?.names(&[])?.len() == 2);
        Ok(())
    });
}

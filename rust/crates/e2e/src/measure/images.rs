//! What the size of a closure costs: images of a thousand store paths beside an ordinary one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Table, in_turns, timed};
use crate::{
    containerd::{Containerd, NIX, OVERLAYFS},
    host::{Host, unique},
    image::{Image, Layer},
    node::{Node, build, build_command, busybox_image, reference},
    process::succeed,
};

/// An image, and the snapshotter that it is for.
struct Subject {
    name: &'static str,
    snapshotter: &'static str,
    archive: PathBuf,
    image: String,
}

/// The ordinary image of one layer, and the closure in both formats.
fn subjects(host: &Host, many: &Path) -> Result<[Subject; 3]> {
    let many = many.to_str().context("a path in UTF-8")?;
    let subject = |name, snapshotter, archive: &dyn Fn(&str) -> Result<PathBuf>| {
        let image = reference("bench");
        Ok::<_, anyhow::Error>(Subject {
            name,
            snapshotter,
            archive: archive(&image)?,
            image,
        })
    };
    Ok([
        subject("ordinary, overlayfs", OVERLAYFS, &|image| {
            busybox_image(host, image, [])
        })?,
        subject("closure format", NIX, &|image| {
            build(host, image, &["/x"], many, &[])
        })?,
        subject("per-path format", NIX, &|image| {
            build(host, image, &["/x"], many, &["--annotations", "per-path"])
        })?,
    ])
}

/// Import and unpack by containerd's transfer service.
///
/// # Errors
/// What containerd says.
pub fn unpacking(host: &Host, node: &Node, many: &Path, table: &mut Table) -> Result<()> {
    measure_images(
        "import + unpack",
        &subjects(host, many)?,
        node,
        table,
        &|subject| {
            node.containerd
                .import(subject.snapshotter, &subject.archive)
        },
    )
}

/// The same by `nix2container load`, as a process.
///
/// # Errors
/// What the CLI says.
pub fn loading(host: &Host, node: &Node, many: &Path, table: &mut Table) -> Result<()> {
    measure_images(
        "nix2container load",
        &subjects(host, many)?,
        node,
        table,
        &|subject| node.containerd.load(subject.snapshotter, &subject.archive),
    )
}

fn measure_images(
    what: &str,
    subjects: &[Subject],
    node: &Node,
    table: &mut Table,
    bring: &dyn Fn(&Subject) -> Result<()>,
) -> Result<()> {
    let times = in_turns(subjects, |subject| {
        let time = timed(|| bring(subject))?;
        node.containerd.remove_image(&subject.image)?;
        node.containerd.collect_garbage()?;
        Ok(time)
    })?;
    for (subject, times) in subjects.iter().zip(times) {
        table.times(what, subject.name, times);
    }
    Ok(())
}

/// How many store paths a large closure has.
const LARGE: usize = 10_000;

/// `nix2container build`, as a process.
///
/// # Errors
/// What the CLI says.
pub fn building(host: &Host, many: &Path, table: &mut Table) -> Result<()> {
    let archive = host.dir().join(unique("archive"));
    let (store, list) = large_closure(host)?;
    let store = store.to_str().context("a path in UTF-8")?;
    let subjects = [
        ("closure format", many, &[][..]),
        ("per-path format", many, &["--annotations", "per-path"]),
        ("10,000 paths", &*list, &["--store-dir", store]),
    ];
    let times = in_turns(&subjects, |(_, closure, flags)| {
        let mut build = build_command(host, &reference("bench"), &["/x"], closure, &archive)?;
        build.args(*flags);
        timed(|| succeed(&mut build).map(drop))
    })?;
    for ((name, ..), times) in subjects.iter().zip(times) {
        table.times("nix2container build", name, times);
    }
    Ok(())
}

/// A store of [`LARGE`] directories that Nix does not know, and the list of them.
fn large_closure(host: &Host) -> Result<(PathBuf, PathBuf)> {
    let store = host.dir().join(unique("store"));
    let mut list = String::new();
    for number in 0..LARGE {
        let path = store.join(format!("{number:032}-package"));
        fs::create_dir_all(&path)?;
        list += path.to_str().context("a path in UTF-8")?;
        list.push('\n');
    }
    let file = host.dir().join(unique("list"));
    fs::write(&file, list)?;
    Ok((store, file))
}

/// `ctr run --rm --null-io` of a static program.
///
/// # Errors
/// What `ctr` says.
pub fn running(host: &Host, node: &Node, paths: &[String], table: &mut Table) -> Result<()> {
    let busybox = host.fixture("busybox")?;
    let program = format!("{busybox}/bin/busybox");
    let nix_image = |count: usize| -> Result<String> {
        let image = reference("bench");
        let mut closure: Vec<_> = paths.iter().take(count - 1).map(String::as_str).collect();
        closure.push(&busybox);
        let archive = host.dir().join(unique("archive"));
        let layer = Layer::per_path(&closure)?;
        Image::new(&image)
            .entrypoint(&[&program, "true"])
            .layer(layer)
            .write(&archive)?;
        node.containerd.import(NIX, &archive)?;
        Ok(image)
    };
    let ordinary = reference("bench");
    node.containerd
        .import(OVERLAYFS, &busybox_image(host, &ordinary, [])?)?;
    let subjects = [
        ("ordinary, overlayfs", OVERLAYFS, ordinary),
        ("5 paths", NIX, nix_image(5)?),
        ("1000 paths", NIX, nix_image(1000)?),
    ];
    let times = in_turns(&subjects, |(_, snapshotter, image)| {
        timed(|| container(&node.containerd, snapshotter, image))
    })?;
    for ((name, _, _), times) in subjects.iter().zip(times) {
        table.times("ctr run --rm --null-io", name, times);
    }
    Ok(())
}

fn container(containerd: &Containerd, snapshotter: &str, image: &str) -> Result<()> {
    let id = unique("bench");
    let run = [
        "run",
        "--rm",
        "--null-io",
        "--snapshotter",
        snapshotter,
        image,
        &id,
    ];
    succeed(&mut containerd.ctr(&run))?;
    Ok(())
}

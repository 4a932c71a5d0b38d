//! Measures the daemon and the CLI against containerd's own overlayfs snapshotter.
//!
//! `make bench` runs it in the sandbox. `NIX_SNAPSHOTTER_MANY` names a closure-info of
//! a thousand paths, `NIX_SNAPSHOTTER_DISK` a directory that is not in memory, and `FILTER` one of
//! the parts: images, push, cold pull, image service, cycles in memory, many snapshots, cycles on disk.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    host::Host,
    measure::{ROUNDS, Table, cold_pull, disk, image_service, images, pushing, snapshots},
    node::Node,
};

/// Names the closure-info of many paths.
const MANY: &str = "NIX_SNAPSHOTTER_MANY";
/// Names the parts to measure, all if it is empty: those that have it in their names.
const FILTER: &str = "FILTER";
/// Names a directory on a disk.
const DISK: &str = "NIX_SNAPSHOTTER_DISK";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let filter = env::var(FILTER).unwrap_or_default();
    let chosen = |part: &str| part.contains(&filter);
    let (many, paths) = many()?;
    let mut table = Table::default();
    let (mut memory, mut peaks) = (Vec::new(), Vec::new());

    let host = Host::detect()?;
    let mut node = Node::start(&host)?;
    if chosen("images") {
        memory.push(("before the first image", node.daemon.resident_kib()?));
        images::unpacking(&host, &node, &many, &mut table)?;
        images::loading(&host, &node, &many, &mut table)?;
        images::building(&host, &many, &mut table)?;
        images::running(&host, &node, &paths, &mut table)?;
        memory.push(("after the images", node.daemon.resident_kib()?));
    }
    if chosen("push") {
        pushing::pushing(&host, &mut table)?;
        peaks = pushing::peaks(&host)?;
    }
    if chosen("cold pull") {
        cold_pull::cold_pull(&host, &mut table)?;
    }
    if chosen("image service") {
        image_service::pulling(&host, &mut table)?;
        image_service::forwarding(&host, &mut table)?;
    }
    if chosen("cycles in memory") {
        snapshots::cycling(&node.containerd, "in memory", &mut table)?;
    }
    if chosen("many snapshots") {
        let found = snapshots::many(&mut node, &mut table)?;
        memory.extend([
            ("with 10,000 snapshots, after a start", found.idle),
            ("… the most during a List of all", found.list),
            ("… the most while 16 clients work", found.clients),
        ]);
    }
    drop(node);
    if chosen("cycles on disk") {
        // Nothing is durable in memory: here a sync costs something.
        let disk =
            env::var(DISK).with_context(|| format!("{DISK} is not set; run `make bench`"))?;
        let host = Host::detect_in(Path::new(&disk))?;
        disk::syncing(host.dir(), &mut table)?;
        let node = Node::start(&host)?;
        snapshots::cycling(&node.containerd, "on disk", &mut table)?;
    }

    println!("images of {} paths; medians of {ROUNDS}", paths.len());
    print!("{table}");
    for (what, figures) in [
        ("resident memory of the daemon", memory),
        ("most resident memory of nix2container", peaks),
    ] {
        if !figures.is_empty() {
            println!("\n{what}");
        }
        for (when, kib) in figures {
            println!("  {when:<38}{:>10}", mebibytes(kib));
        }
    }
    Ok(())
}

/// The closure-info of many paths, and the paths.
fn many() -> Result<(PathBuf, Vec<String>)> {
    let many = env::var(MANY).with_context(|| format!("{MANY} is not set; run `make bench`"))?;
    let many = fs::canonicalize(many)?;
    let paths = fs::read_to_string(many.join("store-paths"))?;
    let paths: Vec<_> = paths.lines().map(str::to_owned).collect();
    ensure!(
        paths.len() >= 1000,
        "{} lists {} paths only",
        many.display(),
        paths.len()
    );
    Ok((many, paths))
}

fn mebibytes(kib: u64) -> String {
    format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024)
}

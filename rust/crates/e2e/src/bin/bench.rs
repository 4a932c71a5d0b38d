//! Measures the daemon and the CLI against containerd's own overlayfs snapshotter.
//!
//! `make bench` runs it in the sandbox. `NIX_SNAPSHOTTER_MANY` names a closure-info of
//! a thousand paths, `NIX_SNAPSHOTTER_DISK` a directory that is not in memory.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    host::Host,
    measure::{ROUNDS, Table, cold_pull, images, snapshots},
    node::Node,
};

/// Names the closure-info of many paths.
const MANY: &str = "NIX_SNAPSHOTTER_MANY";
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
    let host = Host::detect()?;
    let (many, paths) = many()?;
    let mut table = Table::default();

    let mut node = Node::start(&host)?;
    let first = node.daemon.resident_kib()?;
    images::unpacking(&host, &node, &many, &mut table)?;
    images::loading(&host, &node, &many, &mut table)?;
    images::building(&host, &many, &mut table)?;
    images::running(&host, &node, &paths, &mut table)?;
    let images = node.daemon.resident_kib()?;
    cold_pull::cold_pull(&host, &mut table)?;
    snapshots::cycling(&node.containerd, "in memory", &mut table)?;
    let memory = snapshots::many(&mut node, &mut table)?;
    drop(node);
    on_disk(&mut table)?;

    println!("images of {} paths; medians of {ROUNDS}", paths.len());
    print!("{table}");
    println!("\nresident memory of the daemon");
    for (when, kib) in [
        ("before the first image", first),
        ("after the images", images),
        ("with 10,000 snapshots, after a start", memory.idle),
        ("… the most during a List of all", memory.list),
        ("… the most while 16 clients work", memory.clients),
    ] {
        println!("  {when:<38}{:>10}", mebibytes(kib));
    }
    Ok(())
}

/// Where a sync costs something: nothing is durable in memory.
fn on_disk(table: &mut Table) -> Result<()> {
    let disk = env::var(DISK).with_context(|| format!("{DISK} is not set; run `make bench`"))?;
    let host = Host::detect_in(Path::new(&disk))?;
    let node = Node::start(&host)?;
    snapshots::cycling(&node.containerd, "on disk", table)
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

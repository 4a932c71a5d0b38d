//! Measures the daemon and the CLI against containerd's own overlayfs snapshotter.
//!
//! `make bench` runs it in the sandbox. `NIX_SNAPSHOTTER_MANY` names a closure-info of
//! a thousand paths.

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use e2e::{
    host::Host,
    measure::{ROUNDS, Table, images},
    node::Node,
};

/// Names the closure-info of many paths.
const MANY: &str = "NIX_SNAPSHOTTER_MANY";

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

    let node = Node::start(&host)?;
    let idle = node.daemon.resident_kib()?;
    images::unpacking(&host, &node, &many, &mut table)?;
    images::loading(&host, &node, &many, &mut table)?;
    images::building(&host, &many, &mut table)?;
    images::running(&host, &node, &paths, &mut table)?;

    println!("{} paths, medians of {ROUNDS}", paths.len());
    print!("{table}");
    println!(
        "\nresident memory of the daemon: {}",
        mebibytes(node.daemon.resident_kib()?)
    );
    println!("  before the first image: {}", mebibytes(idle));
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

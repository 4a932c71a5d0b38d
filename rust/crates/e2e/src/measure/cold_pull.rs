//! What a pull of paths that are not in the store costs over Nix's own time to fetch them.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{Table, in_turns, timed};
use crate::{
    cache::Cache,
    daemon::{Config, Daemon},
    host::Host,
    image::NIX_STORE_PATH,
    process::succeed,
    snapshots::Snapshots,
    store::{Object, Store, are_gone, collect_garbage, evict},
};

/// How many store paths are pulled.
const PATHS: usize = 200;

/// Their size, in bytes of data that does not compress.
const BYTES_A_PATH: usize = 500_000;

/// The snapshot that is pulled into.
const KEY: &str = "cold-pull";

/// Pulls 200 paths of 100 MB in all from a binary cache on loopback into a store without
/// them, by Nix alone and by the daemon.
///
/// # Errors
/// What Nix or the daemon says, and something that holds the paths from one round to the next.
pub fn cold_pull(host: &Host, table: &mut Table) -> Result<()> {
    let cache = Cache::start(host)?;
    let objects = Store::new(host)?.incompressible(PATHS, BYTES_A_PATH)?;
    cache.add(&objects, Some(cache.key()))?;
    evict(&objects)?;
    let config = cache.substituter_of(Config::new(host, "cold-pull"), &[]);
    let daemon = Daemon::start(&config)?;
    let snapshots = daemon.snapshots()?;

    type Pull<'a> = &'a dyn Fn() -> Result<()>;
    let subjects: [(&str, Pull); 3] = [
        ("nix copy", &|| copy(&cache, &objects)),
        ("nix-store --realise", &|| realise(&cache, &objects)),
        ("Prepare", &|| prepare(&snapshots, &objects)),
    ];
    let times = in_turns(&subjects, |(_, pull)| {
        let time = timed(pull)?;
        is_complete(&objects)?;
        if snapshots.stat(KEY).is_ok() {
            snapshots.remove(KEY)?;
        }
        snapshots.cleanup()?;
        collect_garbage()?;
        are_gone(&objects)?;
        Ok(time)
    })?;
    for ((name, _), times) in subjects.iter().zip(times) {
        table.times("cold pull, 200 paths, 100 MB", name, times);
    }
    Ok(())
}

fn prepare(snapshots: &Snapshots, objects: &[Object]) -> Result<()> {
    let labels: Vec<_> = objects
        .iter()
        .enumerate()
        .map(|(number, object)| (format!("{NIX_STORE_PATH}{number}"), object.path()))
        .collect();
    let labels: Vec<_> = labels.iter().map(|(name, path)| (&**name, *path)).collect();
    snapshots.prepare(KEY, "", &labels)?;
    Ok(())
}

fn copy(cache: &Cache, objects: &[Object]) -> Result<()> {
    let mut nix = Command::new("nix");
    nix.args(["--extra-experimental-features", "nix-command", "copy"])
        .args(["--from", &cache.url()])
        .args(objects.iter().map(Object::path))
        .envs(cache.environment(&[]));
    succeed(&mut nix)?;
    Ok(())
}

fn realise(cache: &Cache, objects: &[Object]) -> Result<()> {
    let mut nix = Command::new("nix-store");
    nix.arg("--realise")
        .args(objects.iter().map(Object::path))
        .envs(cache.environment(&[]));
    succeed(&mut nix)?;
    Ok(())
}

fn is_complete(objects: &[Object]) -> Result<()> {
    let missing = objects.iter().find(|object| !object.exists());
    ensure!(missing.is_none(), "{missing:?} was not fetched");
    Ok(())
}

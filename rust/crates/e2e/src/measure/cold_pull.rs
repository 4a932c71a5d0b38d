//! What a pull of paths that are not in the store costs over Nix's own time to fetch them.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use super::timed;
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

/// Medians of several rounds, in which both took turns.
#[derive(Clone, Copy, Debug)]
pub struct ColdPull {
    /// Prepare of one layer of the snapshotter.
    pub pull: Duration,
    /// `nix-store --realise` of the same paths, without roots.
    pub nix: Duration,
}

impl ColdPull {
    /// How many times as long as Nix itself a pull takes.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        self.pull.as_secs_f64() / self.nix.as_secs_f64()
    }
}

/// Pulls 200 paths of 100 MB in all from a binary cache on loopback into a store without
/// them, by the daemon and by Nix alone, in this many rounds and one before that warms up.
///
/// # Errors
/// What Nix or the daemon says, and something that holds the paths from one round to the next.
pub fn cold_pull(host: &Host, rounds: usize) -> Result<ColdPull> {
    ensure!(rounds % 2 == 1, "a median needs an odd number of rounds");
    let cache = Cache::start(host)?;
    let objects = Store::new(host)?.incompressible(PATHS, BYTES_A_PATH)?;
    cache.add(&objects, Some(cache.key()))?;
    evict(&objects)?;

    let config = cache.substituter_of(Config::new(host, "cold-pull"), &[]);
    let daemon = Daemon::start(&config)?;
    let snapshots = daemon.snapshots()?;
    let (mut pulls, mut alone) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let pull = timed(|| pull(&snapshots, &objects))?;
        snapshots.remove("cold-pull")?;
        snapshots.cleanup()?;
        forget(&objects)?;
        let nix = timed(|| realise(&cache, &objects))?;
        forget(&objects)?;
        if round > 0 {
            pulls.push(pull);
            alone.push(nix);
        }
    }
    Ok(ColdPull {
        pull: median(pulls)?,
        nix: median(alone)?,
    })
}

fn pull(snapshots: &Snapshots, objects: &[Object]) -> Result<()> {
    let labels: Vec<_> = objects
        .iter()
        .enumerate()
        .map(|(number, object)| (format!("{NIX_STORE_PATH}{number}"), object.path()))
        .collect();
    let labels: Vec<_> = labels.iter().map(|(name, path)| (&**name, *path)).collect();
    snapshots.prepare("cold-pull", "", &labels)?;
    is_complete(objects)
}

fn realise(cache: &Cache, objects: &[Object]) -> Result<()> {
    let mut nix = Command::new("nix-store");
    nix.arg("--realise")
        .args(objects.iter().map(Object::path))
        .envs(cache.environment(&[]));
    succeed(&mut nix)?;
    is_complete(objects)
}

fn is_complete(objects: &[Object]) -> Result<()> {
    let missing = objects.iter().find(|object| !object.exists());
    ensure!(missing.is_none(), "{missing:?} was not fetched");
    Ok(())
}

fn forget(objects: &[Object]) -> Result<()> {
    collect_garbage()?;
    are_gone(objects)
}

fn median(mut times: Vec<Duration>) -> Result<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("no rounds")
}

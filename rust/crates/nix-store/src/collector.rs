//! Nix's garbage collector, as far as a realisation has to know of it.
//!
//! A collector looks for new temporary roots when it first visits a path, and never again before it
//! deletes the path, together with what refers to it (`libstore/gc.cc`, up to 2.34). A path that Nix
//! finds valid in between gets its root and is deleted all the same. So what was realised counts only
//! when the collector that was at work has ended.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

/// How long a collector is waited for. A large run takes many minutes, which no container can wait;
/// but from its look at a path to its deletion it is mostly some milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked for: less than what lies between the runs of two that follow each other.
const POLL: Duration = Duration::from_millis(5);

/// Nix's state directory unless the environment names another, for us as for the Nix that we call.
const STATE_DIR: &str = "/nix/var/nix";

/// Waits until a collector that is at work now has ended, up to two seconds.
///
/// It holds a lock, whose file only its owner can open: a daemon without privileges does not wait
/// for the collector of root's store.
pub(crate) async fn passes() {
    let state_dir = env::var_os("NIX_STATE_DIR").map_or(STATE_DIR.into(), PathBuf::from);
    passes_within(&state_dir.join("gc.lock"), PATIENCE).await;
}

async fn passes_within(lock: &Path, patience: Duration) {
    let Ok(lock) = File::open(lock) else { return };
    let start = Instant::now();
    while is_taken(&lock) && start.elapsed() < patience {
        tokio::time::sleep(POLL).await;
    }
}

/// Whether somebody has it for himself, as only the collector does.
fn is_taken(lock: &File) -> bool {
    let taken = flock(lock, FlockOperation::NonBlockingLockShared).is_err();
    // Not by closing: a child process that has not come to its exec yet has it open, too.
    let _ = flock(lock, FlockOperation::Unlock);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_collector_is_waited_for_and_only_as_long_as_it_runs_or_patience_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gc.lock");
        let patience = Duration::from_millis(300);
        let never = Duration::from_secs(3600);
        // Where there is no collector, nobody waits.
        passes_within(&path, never).await;
        let collector = File::create(&path).unwrap();
        passes_within(&path, never).await;
        // Nix itself shares the lock.
        flock(&collector, FlockOperation::LockShared).unwrap();
        passes_within(&path, never).await;

        flock(&collector, FlockOperation::LockExclusive).unwrap();
        let start = Instant::now();
        passes_within(&path, patience).await;
        assert!(start.elapsed() >= patience);
        let end = async {
            tokio::time::sleep(patience).await;
            flock(&collector, FlockOperation::Unlock).unwrap();
        };
        let start = Instant::now();
        tokio::join!(passes_within(&path, never), end);
        assert!(start.elapsed() >= patience);
    }
}

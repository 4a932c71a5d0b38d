//! What the realisations have come to since the daemon started.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Figures about realisations at one moment. Except for the first two they only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RealisationStats {
    /// Realisations that Nix, or the builder, works on now.
    pub(crate) running: u64,
    /// Realisations that wait until fewer than `max_realisations` are fetching.
    pub(crate) waiting: u64,
    /// Realisations that gave a closure.
    pub(crate) succeeded: u64,
    /// Realisations that failed, those among them that took too long.
    pub(crate) failed: u64,
    /// Realisations that ended early because nobody waited for them any more.
    pub(crate) cancelled: u64,
    /// How long realisations ran, all together and without their waiting, whatever came of them.
    pub(crate) time: Duration,
    /// Store paths that were fetched or built for a layer.
    pub(crate) paths: u64,
    /// The NAR size of those paths in bytes, as Nix has it; an external builder does not tell.
    pub(crate) bytes: u64,
}

/// The figures as they are counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) running: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) succeeded: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) nanoseconds: AtomicU64,
    pub(super) paths: AtomicU64,
    pub(super) bytes: AtomicU64,
}

impl Counters {
    pub(super) fn snapshot(&self) -> RealisationStats {
        RealisationStats {
            running: self.running.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            succeeded: self.succeeded.load(Relaxed),
            failed: self.failed.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            time: Duration::from_nanos(self.nanoseconds.load(Relaxed)),
            paths: self.paths.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

/// Counts one more for as long as it lives.
pub(super) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    pub(super) fn in_(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Relaxed);
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

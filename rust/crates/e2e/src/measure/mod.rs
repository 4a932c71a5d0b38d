//! Measurements for `make bench`.
//!
//! What is compared takes turns in one run, so that ratios mean something on any
//! machine; absolute figures do not.
//!
//! * [`cold_pull`]: what pulling costs over fetching.
//! * [`disk`]: what a sync costs, on which other figures depend.
//! * [`image_service`]: what a pull for kubelet costs, and what is forwarded.
//! * [`images`]: what the size of a closure costs.
//! * [`pushing`]: what a large layer costs.
//! * [`snapshots`]: how fast a snapshotter is, and how small the daemon stays.
//! * [`table`]: medians, and what they are compared with.

pub mod cold_pull;
pub mod disk;
pub mod image_service;
pub mod images;
pub mod pushing;
pub mod snapshots;
pub mod table;

use std::time::{Duration, Instant};

use anyhow::Result;

pub use table::Table;

/// How often each figure is measured.
pub const ROUNDS: usize = 9;

/// The time that a piece of work takes.
///
/// # Errors
/// Those of the work.
pub fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// Measures each subject [`ROUNDS`] times, taking turns, after a round that warms the caches. Gives
/// the figures of each.
fn in_turns<S, T>(subjects: &[S], mut measure: impl FnMut(&S) -> Result<T>) -> Result<Vec<Vec<T>>> {
    let mut figures: Vec<_> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        for (subject, figures) in subjects.iter().zip(&mut figures) {
            let figure = measure(subject)?;
            if round > 0 {
                figures.push(figure);
            }
        }
    }
    Ok(figures)
}

//! How fast a snapshotter is as containerd's clients see it, and how small the daemon stays.
//!
//! All calls go through containerd's Snapshots service, so that a proxied snapshotter and one of
//! containerd's own are measured by the same means. containerd adds its own share to each call: for
//! a cycle of Prepare, Commit and Remove, four transactions of its `meta.db`. It calls Commit
//! inside of one of them and Remove in its collector, one after the other however many clients
//! there are (`core/metadata/snapshot.go`).

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{containerd::Containerd, daemon::Daemon, host::unique, snapshots::Snapshots};

/// Labels as the unpacker of an ordinary image sends them, and the one that keeps containerd's
/// collector away.
const LABELS: [(&str, &str); 3] = [
    ("containerd.io/gc.root", "measured"),
    (
        "containerd.io/snapshot/cri.layer-digest",
        "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    (
        "containerd.io/snapshot/cri.image-ref",
        "registry.example.org/library/image:latest",
    ),
];

/// How many snapshots a full node has.
pub const MANY: usize = 10_000;

/// The name under which [`fill`] commits snapshot `number`.
#[must_use]
pub fn name(number: usize) -> String {
    format!("sha256:{number:064x}")
}

/// Cycles of Prepare, Commit and Remove per second, with so many clients at once, each on a
/// connection of its own. The collector's run at the end, which is what really removes, counts.
///
/// # Errors
/// The first of any call.
pub fn cycles(
    containerd: &Containerd,
    snapshotter: &str,
    clients: usize,
    each: usize,
) -> Result<f64> {
    let run = unique("cycles");
    let base = format!("{run}-base");
    let first = containerd.snapshots(snapshotter)?;
    first.layer(&base, "", &LABELS)?;
    let connections = (0..clients)
        .map(|_| containerd.snapshots(snapshotter))
        .collect::<Result<Vec<_>>>()?;

    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = connections
            .iter()
            .enumerate()
            .map(|(client, snapshots)| {
                let prefix = format!("{run}-{client}");
                let base = &base;
                scope.spawn(move || cycle(snapshots, &prefix, base, each))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    containerd.collect_garbage()?;
    let elapsed = start.elapsed();

    first.remove(&base)?;
    containerd.collect_garbage()?;
    Ok((clients * each) as f64 / elapsed.as_secs_f64())
}

fn cycle(snapshots: &Snapshots, prefix: &str, base: &str, count: usize) -> Result<()> {
    for number in 0..count {
        let layer = format!("{prefix}-{number}");
        snapshots.layer(&layer, base, &LABELS)?;
        snapshots.remove(&layer)?;
    }
    Ok(())
}

/// Makes [`MANY`] committed snapshots on one base.
///
/// # Errors
/// The first of any call.
pub fn fill(containerd: &Containerd, snapshotter: &str) -> Result<()> {
    const CLIENTS: usize = 16;
    containerd
        .snapshots(snapshotter)?
        .layer(&name(0), "", &LABELS)?;
    let connections = (0..CLIENTS)
        .map(|_| containerd.snapshots(snapshotter))
        .collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let threads: Vec<_> = connections
            .iter()
            .enumerate()
            .map(|(client, snapshots)| {
                scope.spawn(move || {
                    (1 + client..MANY).step_by(CLIENTS).try_for_each(|number| {
                        Ok(snapshots.layer(&name(number), &name(0), &LABELS)?)
                    })
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// The median time of a Stat, where [`fill`] was called.
///
/// # Errors
/// The first of any call.
pub fn stat(containerd: &Containerd, snapshotter: &str) -> Result<Duration> {
    let snapshots = containerd.snapshots(snapshotter)?;
    // A step that has no divisor in common with MANY visits the whole range.
    let times = (0..1000).map(|round| {
        let name = name(round * 7919 % MANY);
        let start = Instant::now();
        let info = snapshots.stat(&name)?;
        ensure!(info.name == name, "Stat of {name} gives {}", info.name);
        Ok(start.elapsed())
    });
    let mut times = times.collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// The time of one List of everything, where [`fill`] was called.
///
/// # Errors
/// The call's own, and one if it does not give all of them.
pub fn list(containerd: &Containerd, snapshotter: &str) -> Result<Duration> {
    let snapshots = containerd.snapshots(snapshotter)?;
    let start = Instant::now();
    let found = snapshots.list(&[])?.len();
    let elapsed = start.elapsed();
    ensure!(found >= MANY, "List gives {found} of {MANY} snapshots");
    Ok(elapsed)
}

/// The time of a start of the daemon, from its exec until it is ready. It is stopped in order
/// before.
///
/// # Errors
/// It does not stop or start.
pub fn start(daemon: &mut Daemon) -> Result<Duration> {
    daemon.stop()?;
    let start = Instant::now();
    daemon.start_again()?;
    Ok(start.elapsed())
}

/// The resident memory of the daemon, in kibibytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// After a start, with [`MANY`] snapshots stored.
    pub idle: u64,
    /// The most while 16 clients worked.
    pub clients: u64,
    /// The most during a List of all snapshots.
    pub list: u64,
}

/// Measures the memory of a daemon that is the snapshotter `nix` of `containerd`, where [`fill`]
/// was called. It is started anew.
///
/// # Errors
/// The first of any call.
pub fn memory(containerd: &Containerd, snapshotter: &str, daemon: &mut Daemon) -> Result<Memory> {
    start(daemon)?;
    // containerd connects again, and waits between attempts.
    crate::process::poll("containerd's connection", crate::process::SETTLE, || {
        let stat = containerd.snapshots(snapshotter)?.stat(&name(0));
        Ok(crate::process::when(stat.is_ok()))
    })?;
    let idle = daemon.resident_kib()?;
    // The daemon's own socket: containerd makes a Stat for each snapshot of a List.
    daemon.forget_peak()?;
    let listed = daemon.snapshots()?.list(&[])?.len();
    ensure!(listed >= MANY, "List gives {listed} of {MANY} snapshots");
    let list = daemon.peak_kib()?;
    daemon.forget_peak()?;
    cycles(containerd, snapshotter, 16, 50).context("the work of 16 clients")?;
    let clients = daemon.peak_kib()?;
    Ok(Memory {
        idle,
        clients,
        list,
    })
}

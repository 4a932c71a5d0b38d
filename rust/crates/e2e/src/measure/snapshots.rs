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

use super::{Table, in_turns};
use crate::{
    containerd::{Containerd, NIX, OVERLAYFS},
    daemon::Daemon,
    host::unique,
    node::Node,
    process::{SETTLE, poll, when},
    snapshots::Snapshots,
};

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
const MANY: usize = 10_000;

/// How many clients a busy one has.
const CLIENTS: usize = 16;

/// The two snapshotters, containerd's own first.
const SNAPSHOTTERS: [&str; 2] = [OVERLAYFS, NIX];

/// Cycles of Prepare, Commit and Remove a second, by one client and by many at once. `disk` names
/// what the roots are on.
///
/// # Errors
/// The first of any call.
pub fn cycling(containerd: &Containerd, disk: &str, table: &mut Table) -> Result<()> {
    for (clients, each) in [(1, 100), (CLIENTS, 10)] {
        let rates = in_turns(&SNAPSHOTTERS, |snapshotter| {
            cycles(containerd, snapshotter, clients, each)
        })?;
        for (snapshotter, rates) in SNAPSHOTTERS.iter().zip(rates) {
            table.rates(
                &format!("cycles, clients: {clients}, {disk}"),
                snapshotter,
                rates,
            );
        }
    }
    Ok(())
}

/// Stat, List and start with ten thousand snapshots, and the daemon's memory with them.
///
/// # Errors
/// The first of any call.
pub fn many(node: &mut Node, table: &mut Table) -> Result<Memory> {
    for snapshotter in SNAPSHOTTERS {
        fill(&node.containerd, snapshotter)?;
    }
    let mut compare = |what: &str, measure: fn(&Containerd, &str) -> Result<Duration>| {
        let times = in_turns(&SNAPSHOTTERS, |snapshotter| {
            measure(&node.containerd, snapshotter)
        })?;
        for (snapshotter, times) in SNAPSHOTTERS.iter().zip(times) {
            table.times(&format!("{what}, {MANY} snapshots"), snapshotter, times);
        }
        anyhow::Ok(())
    };
    compare("Stat", stat)?;
    compare("List", list)?;
    let daemon = &mut node.daemon;
    let mut starts = in_turns(&[()], |()| start(daemon))?;
    table.times(
        &format!("start until ready, {MANY} snapshots"),
        NIX,
        starts.remove(0),
    );
    memory(node)
}

/// Cycles a second, each client on a connection of its own. The collector's run at the end, which
/// is what really removes, counts.
fn cycles(containerd: &Containerd, snapshotter: &str, clients: usize, each: usize) -> Result<f64> {
    let run = unique("cycles");
    let base = format!("{run}-base");
    let first = containerd.snapshots(snapshotter)?;
    first.layer(&base, "", &LABELS)?;
    let start = Instant::now();
    at_once(containerd, snapshotter, clients, |client, snapshots| {
        (0..each).try_for_each(|number| {
            let layer = format!("{run}-{client}-{number}");
            snapshots.layer(&layer, &base, &LABELS)?;
            Ok(snapshots.remove(&layer)?)
        })
    })?;
    containerd.collect_garbage()?;
    let elapsed = start.elapsed();

    first.remove(&base)?;
    containerd.collect_garbage()?;
    Ok((clients * each) as f64 / elapsed.as_secs_f64())
}

/// The name under which [`fill`] commits snapshot `number`.
fn name(number: usize) -> String {
    format!("sha256:{number:064x}")
}

/// Makes [`MANY`] committed snapshots on one base.
fn fill(containerd: &Containerd, snapshotter: &str) -> Result<()> {
    containerd
        .snapshots(snapshotter)?
        .layer(&name(0), "", &LABELS)?;
    at_once(containerd, snapshotter, CLIENTS, |client, snapshots| {
        (1 + client..MANY)
            .step_by(CLIENTS)
            .try_for_each(|number| Ok(snapshots.layer(&name(number), &name(0), &LABELS)?))
    })
}

/// Has so many clients work at once, each with its number and a connection of its own.
fn at_once(
    containerd: &Containerd,
    snapshotter: &str,
    clients: usize,
    work: impl Fn(usize, &Snapshots) -> Result<()> + Sync,
) -> Result<()> {
    let connections = (0..clients)
        .map(|_| containerd.snapshots(snapshotter))
        .collect::<Result<Vec<_>>>()?;
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = connections
            .iter()
            .enumerate()
            .map(|(client, snapshots)| scope.spawn(move || work(client, snapshots)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// The median time of a Stat, where [`fill`] was called.
fn stat(containerd: &Containerd, snapshotter: &str) -> Result<Duration> {
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
fn list(containerd: &Containerd, snapshotter: &str) -> Result<Duration> {
    let snapshots = containerd.snapshots(snapshotter)?;
    let start = Instant::now();
    let found = snapshots.list(&[])?.len();
    let elapsed = start.elapsed();
    ensure!(found >= MANY, "List gives {found} of {MANY} snapshots");
    Ok(elapsed)
}

/// The time of a start of the daemon, from its exec until it is ready. It is stopped in order
/// before.
fn start(daemon: &mut Daemon) -> Result<Duration> {
    daemon.stop()?;
    let start = Instant::now();
    daemon.start_again()?;
    Ok(start.elapsed())
}

/// The resident memory of the daemon, in kibibytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// After a start, with ten thousand snapshots stored.
    pub idle: u64,
    /// The most while 16 clients worked.
    pub clients: u64,
    /// The most during a List of all snapshots.
    pub list: u64,
}

/// Measures the memory of the daemon, where [`fill`] was called. It is started anew.
fn memory(node: &mut Node) -> Result<Memory> {
    let Node { containerd, daemon } = node;
    start(daemon)?;
    // containerd connects again, and waits between attempts.
    poll("containerd's connection", SETTLE, || {
        let stat = containerd.snapshots(NIX)?.stat(&name(0));
        Ok(when(stat.is_ok()))
    })?;
    let idle = daemon.resident_kib()?;
    // The daemon's own socket: containerd makes a Stat for each snapshot of a List.
    daemon.forget_peak()?;
    let listed = daemon.snapshots()?.list(&[])?.len();
    ensure!(listed >= MANY, "List gives {listed} of {MANY} snapshots");
    let list = daemon.peak_kib()?;
    daemon.forget_peak()?;
    cycles(containerd, NIX, CLIENTS, 50).context("the work of 16 clients")?;
    let clients = daemon.peak_kib()?;
    Ok(Memory {
        idle,
        clients,
        list,
    })
}

//! What holds of a daemon at rest, whatever has happened to it before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    daemon::Daemon,
    image::{NIX_CLOSURE, NIX_STORE_PATH, SNAPSHOT_REF},
    snapshots::{Info, Kind, Snapshots, upper},
    store::registered_roots,
};

/// The line of a configuration that [`check`] needs: it tells the directory of each snapshot.
pub const CONFIG: &str = "upperdir_label = true";

/// Where the daemon says which directory a snapshot has.
pub const UPPERDIR: &str = "containerd.io/snapshot/overlay.upperdir";

/// Checks what a daemon keeps against what it lists, when nothing is under way any more, and
/// gives its snapshots by name.
///
/// * Each snapshot has its directories and its parent, and no directory is without a snapshot
///   after a clean-up.
/// * Each Nix snapshot has roots for all its store paths and for no other, Nix knows each of them,
///   and the paths exist. No other snapshot has roots.
/// * What is mounted is the closure of the whole chain.
/// * Nothing is mounted below the root, and nothing else lies in it.
///
/// # Errors
/// Names what is not as it should be.
pub fn check(daemon: &Daemon) -> Result<BTreeMap<String, Info>> {
    let service = daemon.snapshots()?;
    service.cleanup()?;
    let snapshots: BTreeMap<_, _> = service
        .list(&[])?
        .into_iter()
        .map(|info| (info.name.clone(), info))
        .collect();
    let kept = daemon.config().kept()?;

    let mut ids = BTreeSet::new();
    let mut nix = BTreeSet::new();
    for info in snapshots.values() {
        let of = || format!("snapshot {}", info.name);
        let id = id(info).with_context(of)?;
        ensure!(ids.insert(id.clone()), "{}: {id} is given twice", of());
        if !closure(info).with_context(of)?.is_empty() {
            nix.insert(id);
        }
        check_directories(info, &snapshots).with_context(of)?;
        check_mounts(&service, info, &snapshots).with_context(of)?;
    }
    ensure!(
        kept.snapshots == ids,
        "directories {:?}, but snapshots {ids:?}",
        kept.snapshots
    );
    ensure!(
        kept.gc_roots == nix,
        "GC roots of {:?}, but Nix snapshots {nix:?}",
        kept.gc_roots
    );

    let registered = registered_roots(daemon.config().root())?;
    for info in snapshots.values() {
        let roots = daemon.config().root().join("gcroots").join(id(info)?);
        check_roots(info, &roots, &registered)
            .with_context(|| format!("snapshot {}", info.name))?;
    }
    check_root(daemon)?;
    Ok(snapshots)
}

fn id(info: &Info) -> Result<String> {
    let layer = layer(info)?;
    let id = layer.parent().and_then(Path::file_name);
    Ok(id.context("no id")?.to_string_lossy().into_owned())
}

/// The directory of a snapshot's own layer.
///
/// # Errors
/// The daemon runs without [`CONFIG`].
pub fn layer(info: &Info) -> Result<PathBuf> {
    let layer = info.labels.get(UPPERDIR).context("no upperdir label")?;
    Ok(PathBuf::from(layer))
}

/// The store paths that the labels of a snapshot name.
fn closure(info: &Info) -> Result<BTreeSet<String>> {
    let mut closure = BTreeSet::new();
    for (name, value) in &info.labels {
        if name.starts_with(NIX_STORE_PATH) {
            closure.insert(value.clone());
        } else if name == NIX_CLOSURE {
            closure.extend(listed(value)?);
        }
    }
    Ok(closure)
}

/// The store paths that a closure-info lists.
fn listed(closure_info: &str) -> Result<Vec<String>> {
    let list = fs::read_to_string(Path::new(closure_info).join("store-paths"))
        .with_context(|| format!("closure-info {closure_info}"))?;
    Ok(list.lines().map(str::to_owned).collect())
}

fn check_directories(info: &Info, all: &BTreeMap<String, Info>) -> Result<()> {
    let layer = layer(info)?;
    ensure!(layer.is_dir(), "{} is missing", layer.display());
    if info.kind() == Kind::Active {
        ensure!(layer.with_file_name("work").is_dir(), "no work directory");
    }
    if !info.parent.is_empty() {
        let parent = all.get(&info.parent).context("its parent is missing")?;
        ensure!(parent.kind() == Kind::Committed, "parent: {parent:?}");
    }
    Ok(())
}

fn check_mounts(service: &Snapshots, info: &Info, all: &BTreeMap<String, Info>) -> Result<()> {
    if info.kind() == Kind::Committed {
        return Ok(());
    }
    let mounts = service.mounts(&info.name)?;
    if info.kind() == Kind::Active {
        ensure!(upper(&mounts)? == layer(info)?, "{mounts:?}");
    }
    let mut expected = BTreeSet::new();
    // What containerd unpacks into has the plain root.
    if !info.labels.contains_key(SNAPSHOT_REF) {
        let mut next = Some(info);
        while let Some(info) = next {
            expected.extend(closure(info)?);
            next = all.get(&info.parent);
        }
    }
    let targets: BTreeSet<_> = mounts[1..].iter().map(|m| m.target.clone()).collect();
    ensure!(targets == expected, "mounted {targets:?}, not {expected:?}");
    Ok(())
}

fn check_roots(info: &Info, roots: &Path, registered: &[PathBuf]) -> Result<()> {
    let expected = closure(info)?;
    if expected.is_empty() {
        return Ok(());
    }
    for path in &expected {
        ensure!(
            fs::symlink_metadata(path).is_ok(),
            "{path} is gone from the store"
        );
    }
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(roots)? {
        let link = entry?.path();
        let target = fs::read_link(&link)?.to_string_lossy().into_owned();
        ensure!(
            registered.contains(&link),
            "Nix does not know the root {}",
            link.display()
        );
        if info.labels.get(NIX_CLOSURE) == Some(&target) {
            held.extend(listed(&target)?);
        } else {
            held.insert(target);
        }
    }
    ensure!(held == expected, "{held:?} is held, not {expected:?}");
    Ok(())
}

fn check_root(daemon: &Daemon) -> Result<()> {
    let root = daemon.config().root();
    let mut others = daemon.config().kept()?.others;
    for file in daemon.config().metadata()? {
        others.remove(&*file.file_name().unwrap_or_default().to_string_lossy());
    }
    // It is made for the first image that Nix resolves.
    others.remove("images");
    ensure!(
        others.iter().eq(["gcroots", "lock", "snapshots"]),
        "in the root: {others:?}"
    );
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // The fifth field of proc_pid_mountinfo(5); the root itself may be a mount.
    let mounted = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|point| Path::new(point).starts_with(root) && Path::new(point) != root);
    ensure!(mounted.is_none(), "mounted below the root: {mounted:?}");
    Ok(())
}

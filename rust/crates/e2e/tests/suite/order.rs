//! The order in which a call changes the store and the directories, seen at the instant between the
//! two: a kill that falls into it leaves nothing that the next start cannot put right.

use std::{
    fmt::Debug,
    fs,
    path::PathBuf,
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::{
    daemon::{Config, Daemon},
    host::{Host, test},
    image::NIX_STORE_PATH,
    invariants,
    process::{SETTLE, poll, when},
    store::{Object, Store, registered_roots},
};
use rusqlite::Connection;
use tonic::Status;

/// How long a call is watched that waits for the store. Without having to wait it would take some
/// milliseconds.
const WATCHED: Duration = Duration::from_millis(500);

struct Subject {
    daemon: Daemon,
    label: String,
    object: Object,
}

impl Subject {
    fn new(host: &Host) -> Result<Self> {
        let config = Config::new(host, "daemon").line(invariants::CONFIG);
        Ok(Self {
            daemon: Daemon::start(&config)?,
            label: format!("{NIX_STORE_PATH}0"),
            object: Store::new(host)?.build("object", "echo content > $out", &[])?,
        })
    }

    /// The labels of a Nix layer.
    fn labels(&self) -> [(&str, &str); 1] {
        [(&*self.label, self.object.path())]
    }

    /// Has every change of the store wait until this is dropped.
    fn hold_store(&self) -> Result<Connection> {
        let root = self.daemon.config().root();
        let store = Connection::open(root.join("metadata.db"))?;
        store.busy_timeout(SETTLE)?;
        store.execute_batch("BEGIN IMMEDIATE")?;
        Ok(store)
    }

    /// The directories of all snapshots, and their GC roots as far as Nix knows them.
    fn on_disk(&self) -> Result<OnDisk> {
        let config = self.daemon.config();
        // Nix forgets a link that is gone when it collects.
        let mut roots = registered_roots(config.root())?;
        roots.retain(|root| fs::symlink_metadata(root).is_ok());
        Ok(OnDisk {
            snapshots: config.kept()?.snapshots.len(),
            roots,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
struct OnDisk {
    snapshots: usize,
    roots: Vec<PathBuf>,
}

/// The answer of a call, which is waited for.
fn answer<T>(call: ScopedJoinHandle<'_, Result<T, Status>>) -> Result<Result<T, Status>> {
    call.join().map_err(|_| anyhow!("a client panicked"))
}

/// Kills the daemon within a call, which has no answer then.
fn killed<T: Debug>(
    daemon: &mut Daemon,
    call: ScopedJoinHandle<'_, Result<T, Status>>,
) -> Result<()> {
    daemon.kill()?;
    let answer = answer(call)?;
    ensure!(answer.is_err(), "{answer:?}");
    Ok(())
}

/// Waits until the disk has what one Nix snapshot needs.
fn made(subject: &Subject) -> Result<()> {
    poll("directories and roots", SETTLE, || {
        let found = subject.on_disk()?;
        Ok(when(found.snapshots == 1 && found.roots.len() == 1))
    })
}

#[test]
fn directories_and_gc_roots_are_there_before_their_snapshot() {
    test(|host| {
        let mut subject = Subject::new(host)?;
        let empty = subject.daemon.config().kept()?;
        let snapshots = subject.daemon.snapshots()?;
        let (label, path) = (subject.label.clone(), subject.object.path().to_owned());
        let prepare = || snapshots.prepare("new", "", &[(&*label, &*path)]);

        let store = subject.hold_store()?;
        thread::scope(|scope| {
            let call = scope.spawn(prepare);
            made(&subject)?;
            ensure!(!call.is_finished(), "the snapshot is there already");
            drop(store);
            Ok::<_, anyhow::Error>(answer(call)?.map(drop)?)
        })?;
        snapshots.remove("new")?;
        snapshots.cleanup()?;

        // The same, and killed there.
        let store = subject.hold_store()?;
        thread::scope(|scope| {
            let call = scope.spawn(prepare);
            made(&subject)?;
            killed(&mut subject.daemon, call)
        })?;
        drop(store);
        subject.daemon.start_again()?;
        let infos = invariants::check(&subject.daemon)?;
        ensure!(infos.is_empty(), "{infos:?}");
        subject.daemon.keeps_only(&empty)
    });
}

#[test]
fn directories_and_gc_roots_outlast_their_snapshot() {
    test(|host| {
        let mut subject = Subject::new(host)?;
        let snapshots = subject.daemon.snapshots()?;
        snapshots.layer("layer", "", &subject.labels())?;
        let before = subject.on_disk()?;
        ensure!(
            before.snapshots == 1 && before.roots.len() == 1,
            "{before:?}"
        );
        let store = subject.hold_store()?;
        thread::scope(|scope| {
            let call = scope.spawn(|| snapshots.remove("layer"));
            let start = Instant::now();
            while start.elapsed() < WATCHED {
                let found = subject.on_disk()?;
                ensure!(found == before, "{found:?}, and the snapshot is there");
                thread::sleep(Duration::from_millis(5));
            }
            ensure!(!call.is_finished(), "the store did not wait");
            killed(&mut subject.daemon, call)
        })?;
        drop(store);
        subject.daemon.start_again()?;
        let infos = invariants::check(&subject.daemon)?;
        ensure!(infos.contains_key("layer"), "{infos:?}");

        let snapshots = subject.daemon.snapshots()?;
        snapshots.remove("layer")?;
        let infos = invariants::check(&subject.daemon).context("after the removal")?;
        ensure!(infos.is_empty(), "{infos:?}");
        Ok(())
    });
}

//! Threads that work against one another, and processes that are killed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use snapshots::{Code, Error, Kind, Labels, Options, Snapshotter};

fn open(root: &Path) -> Snapshotter {
    Snapshotter::open(root, &Options::default()).unwrap()
}

fn directories(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn keys(s: &Snapshotter) -> Vec<String> {
    let mut keys = Vec::new();
    s.list::<&str>(&[], |_, info| {
        keys.push(info.name);
        ControlFlow::Continue(())
    })
    .unwrap();
    keys
}

/// The directories of all snapshots, which must all be active.
fn rows(s: &Snapshotter) -> BTreeSet<String> {
    keys(s)
        .iter()
        .map(|key| s.snapshot(key).unwrap().0.id.to_string())
        .collect()
}

/// Makes a snapshot with an attachment, and says whether both survived until it was made.
fn make(s: &Snapshotter, key: &str) -> bool {
    let reservation = s.reserve();
    let attachment = reservation.attachment_dir();
    fs::create_dir(&attachment).unwrap();
    fs::write(attachment.join("root"), key).unwrap();
    let id = s
        .create(
            reservation,
            Kind::Active,
            key,
            None,
            Labels::new(),
            |made| Ok::<_, Error>(made.clone()),
        )
        .unwrap()
        .id;
    s.layer_dir(id).exists() && attachment.join("root").exists()
}

#[test]
fn cleanup_never_takes_what_is_being_made() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..3)
            .map(|thread| {
                let s = &s;
                scope.spawn(move || {
                    for round in 0..60 {
                        let key = format!("{thread} {round}");
                        assert!(make(s, &key));
                        match round % 3 {
                            0 => s.remove(&key).unwrap(),
                            1 => drop(s.reserve()),
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        let (s, done) = (&s, &done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                s.cleanup().unwrap();
            }
        });
        let made = makers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect::<Result<Vec<_>, _>>();
        done.store(true, Ordering::Relaxed);
        made.unwrap();
    });
    s.cleanup().unwrap();
    let rows = rows(&s);
    assert_eq!(rows.len(), 3 * 40);
    assert_eq!(directories(&root.path().join("snapshots")), rows);
    assert_eq!(directories(&root.path().join("attachments")), rows);
}

#[test]
fn of_many_that_want_a_key_one_gets_it() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    for round in 0..10 {
        let key = format!("{round}");
        let codes: Vec<_> = std::thread::scope(|scope| {
            let attempt = || {
                s.create(
                    s.reserve(),
                    Kind::Active,
                    &key,
                    None,
                    Labels::new(),
                    |made| Ok::<_, Error>(made.clone()),
                )
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(attempt)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap().map_err(|error| error.code()))
                .collect()
        });
        assert_eq!(codes.iter().filter(|code| code.is_ok()).count(), 1);
        assert_eq!(
            codes
                .iter()
                .filter(|code| **code == Err(Code::AlreadyExists))
                .count(),
            3
        );
    }
    assert_eq!(directories(&root.path().join("snapshots")), rows(&s));
}

const KILLED: &str = "SNAPSHOTS_TEST_KILLED_ROOT";

/// Not a test of its own: what the next one kills.
#[test]
fn works_until_it_is_killed() {
    let Some(root) = std::env::var_os(KILLED) else {
        return;
    };
    let s = open(Path::new(&root));
    println!("\nopened");
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let s = &s;
            scope.spawn(move || {
                for round in 0.. {
                    let key = format!("{} {thread} {round}", std::process::id());
                    make(s, &key);
                    if round % 2 == 0 {
                        s.remove(&key).unwrap();
                    }
                    s.cleanup().unwrap();
                }
            });
        }
    });
}

#[test]
fn a_kill_at_any_moment_is_repaired() {
    let root = tempfile::tempdir().unwrap();
    let mut before = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "works_until_it_is_killed", "--nocapture"])
            .env(KILLED, root.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap() == "opened"));
        std::thread::sleep(Duration::from_micros(20_000 + 3_137 * round));
        child.kill().unwrap();
        child.wait().unwrap();

        let s = open(root.path());
        let rows = rows(&s);
        assert_eq!(
            directories(&root.path().join("snapshots")),
            rows,
            "round {round}"
        );
        assert_eq!(
            directories(&root.path().join("attachments")),
            rows,
            "round {round}"
        );
        for id in &rows {
            assert!(
                root.path()
                    .join("attachments")
                    .join(id)
                    .join("root")
                    .exists()
            );
            assert_eq!(
                directories(&root.path().join("snapshots").join(id)).len(),
                2
            );
        }
        assert!(
            rows.len() >= before,
            "round {round}: {} after {before}",
            rows.len()
        );
        before = rows.len();
    }
    assert!(before > 0);
}

#[test]
fn waiting_for_the_store_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let s = &s;
            scope.spawn(move || {
                // Threads may miss one another by chance for a while.
                for round in 0.. {
                    make(s, &format!("{thread} {round}"));
                    if s.store_waits().waits > 0 || start.elapsed() > Duration::from_secs(60) {
                        break;
                    }
                }
            });
        }
    });
    let waits = s.store_waits();
    assert!(waits.waits > 0 && waits.total > Duration::ZERO, "{waits:?}");
    assert!(waits.total < 4 * start.elapsed(), "{waits:?}");
}

//! Opening a root: what is refused, and what is repaired.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use rusqlite::Connection;
use snapshots::{Code, Error, Info, Kind, Labels, Options, Snapshotter};

fn open(root: &Path) -> Result<Snapshotter, Error> {
    Snapshotter::open(root, &Options::default())
}

fn create(s: &Snapshotter, key: &str) -> String {
    let snapshot = s
        .create(
            s.reserve(),
            Kind::Active,
            key,
            None,
            Labels::new(),
            |made| Ok::<_, Error>(made.clone()),
        )
        .unwrap();
    snapshot.id.to_string()
}

fn infos(s: &Snapshotter) -> Vec<Info> {
    let mut infos = Vec::new();
    s.list::<&str>(&[], |_, info| {
        infos.push(info);
        ControlFlow::Continue(())
    })
    .unwrap();
    infos
}

fn names(s: &Snapshotter) -> Vec<String> {
    infos(s).into_iter().map(|info| info.name).collect()
}

fn refusal(root: &Path) -> String {
    match open(root) {
        Ok(_) => panic!("{root:?} was opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_root_with_a_long_path() {
    let dir = tempfile::tempdir().unwrap();
    let mut root = dir.path().to_owned();
    while root.as_os_str().len() < 380 {
        root.push("d".repeat(90));
    }
    root.push("d".repeat(480 - root.as_os_str().len() - 1));
    let s = open(&root).unwrap();
    create(&s, "a");
    drop(s);
    assert_eq!(names(&open(&root).unwrap()), ["a"]);

    root.as_mut_os_string().push("d");
    let message = refusal(&root);
    assert!(message.contains("longer than 480 bytes"), "{message}");
    assert!(!root.exists());
}

#[test]
fn one_process_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path()).unwrap();
    let error = open(root.path()).map(drop).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let message = error.to_string();
    assert!(message.contains(root.path().to_str().unwrap()), "{message}");
    assert!(
        message.contains(&format!("process {}", std::process::id())),
        "{message}"
    );
    let reservation = s.reserve();
    drop(s);
    assert!(
        refusal(root.path()).contains("in use"),
        "dropping a reservation deletes directories"
    );
    drop(reservation);
    open(root.path()).unwrap();
}

#[test]
fn a_check_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a");
    Snapshotter::check(&root, &Options::default()).unwrap();
    assert!(!root.exists());
    open(&root).unwrap();
}

#[test]
fn roots_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a:b", "a,b", "a\\b"] {
        let root = dir.path().join(name);
        assert!(
            refusal(&root).contains("separate the options of a mount"),
            "{name}"
        );
        assert!(!root.exists(), "{name}");
    }
    File::create(dir.path().join("file")).unwrap();
    let message = refusal(&dir.path().join("file"));
    assert!(message.contains("file\""), "{message}");
    let message = refusal(Path::new("/proc/nothing/here"));
    assert!(
        message.contains("make the directory \"/proc/nothing/here\""),
        "{message}"
    );
    // Not /sys, which the sandbox of a Nix build has not.
    let message = refusal(Path::new("/proc/self"));
    assert!(message.contains("/proc/self/lock"), "{message}");
}

#[test]
fn options_that_cannot_be() {
    let root = tempfile::tempdir().unwrap();
    for option in ["", "a,b", "lowerdir=/", "upperdir", "workdir=x"] {
        let options = Options {
            mount_options: vec![option.to_owned()],
            ..Options::default()
        };
        let error = Snapshotter::open(root.path(), &options)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(
            error.to_string().contains(&format!("{option:?}")),
            "{error}"
        );
    }
}

#[test]
fn a_store_of_another_program_is_left_alone() {
    let bolt: Vec<u8> = [&[0; 16], &0xED0C_DAED_u32.to_le_bytes()[..], &[0; 4000]].concat();
    for (content, words) in [
        (bolt.as_slice(), "bolt"),
        (b"", "unknown"),
        (b"SQLite format 3\0", "SQLite database of another program"),
        (b"redb\x1A\x0A\xA9\x0D\x0A", "before its first release"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("metadata.db");
        fs::write(&path, content).unwrap();
        let layer = root.path().join("snapshots/7/fs");
        fs::create_dir_all(&layer).unwrap();
        let message = refusal(root.path());
        assert!(
            message.contains(words) && message.contains("metadata.db"),
            "{message}"
        );
        assert!(layer.exists());
        assert_eq!(fs::read(&path).unwrap(), content);
    }
}

#[test]
fn a_store_that_is_missing_is_not_taken_for_an_empty_one() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path()).unwrap();
    let id = create(&s, "a");
    drop(s);
    fs::remove_file(root.path().join("metadata.db")).unwrap();
    let message = refusal(root.path());
    assert!(
        message.contains("metadata.db") && message.contains("missing"),
        "{message}"
    );
    assert!(root.path().join("snapshots").join(id).join("fs").exists());
    fs::remove_dir_all(root.path().join("snapshots")).unwrap();
    open(root.path()).unwrap();
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path()).unwrap();
    let id = create(&s, "a");
    drop(s);
    let db = Connection::open(root.path().join("metadata.db")).unwrap();
    db.pragma_update(None, "user_version", 2).unwrap();
    drop(db);
    let message = refusal(root.path());
    assert!(
        message.contains("schema 2") && message.contains("newer"),
        "{message}"
    );
    assert!(root.path().join("snapshots").join(id).join("fs").exists());
}

/// The files of a store. What the processes that use it share is made anew with each first one.
const FILES: [&str; 3] = ["metadata.db", "metadata.db-wal", "metadata.changes"];

type Files = Vec<(&'static str, Option<Vec<u8>>)>;

fn read(root: &Path) -> Files {
    let read = |name| (name, fs::read(root.join(name)).ok());
    FILES.map(read).into()
}

fn write(root: &Path, files: &Files) {
    let _ = fs::remove_file(root.join("metadata.db-shm"));
    for (name, content) in files {
        match content {
            Some(content) => fs::write(root.join(name), content).unwrap(),
            None => drop(fs::remove_file(root.join(name))),
        }
    }
}

/// Its directories would be deleted. After a stop in the middle of work, a store could also pass
/// for what it was some transactions before.
#[test]
fn a_damaged_store_never_passes_for_a_smaller_one() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path()).unwrap();
    let keys: Vec<_> = (10..30).map(|i| format!("key {i}")).collect();
    let ids: Vec<_> = keys.iter().map(|key| create(&s, key)).collect();
    let labels = Labels::from([("label".to_owned(), "value".repeat(20))]);
    for key in &keys {
        s.update::<&str>(key, &labels, &[]).unwrap();
    }
    let all = infos(&s);
    let in_use = read(root.path());
    drop(s);
    let closed = read(root.path());
    for whole in [in_use, closed] {
        let mut refused = [0; FILES.len()];
        for (file, refused) in refused.iter_mut().enumerate() {
            let length = whole[file].1.as_ref().map_or(0, Vec::len);
            // The log is long and mostly zeros.
            let step = if length < 100 { 1 } else { 797 };
            for at in (0..length.min(150_000)).step_by(step) {
                let mut damaged = whole.clone();
                damaged[file].1.as_mut().unwrap()[at] ^= 0x41;
                write(root.path(), &damaged);
                match open(root.path()) {
                    Ok(s) => assert_eq!(infos(&s), all, "byte {at} of {}", FILES[file]),
                    Err(_) => *refused += 1,
                }
                for id in &ids {
                    let layer = root.path().join("snapshots").join(id).join("fs");
                    assert!(layer.exists(), "byte {at} of {}", FILES[file]);
                }
            }
            let expected = whole[file].1.is_some();
            assert_eq!(*refused > 0, expected, "{}", FILES[file]);
        }
        // Whole transactions are missing.
        if whole[1].1.is_some() {
            let mut without = whole.clone();
            without[1].1 = None;
            write(root.path(), &without);
            let message = refusal(root.path());
            assert!(
                message.contains("damaged (it has 0 transactions, and had 40)"),
                "{message}"
            );
        }
        write(root.path(), &whole);
        assert_eq!(infos(&open(root.path()).unwrap()), all);
    }
}

#[test]
fn what_a_crash_left_is_deleted_and_its_ids_are_not_given_again() {
    let root = tempfile::tempdir().unwrap();
    // Between the file and its name.
    fs::write(root.path().join("metadata.db.new"), "half a store").unwrap();
    let s = open(root.path()).unwrap();
    let kept = create(&s, "kept");
    let attachment = root.path().join("attachments").join(&kept);
    fs::create_dir(&attachment).unwrap();
    drop(s);

    // Between the directories and the row, and between the roots and the directories.
    let orphan = root.path().join("snapshots/50");
    fs::create_dir_all(orphan.join("fs/etc")).unwrap();
    File::create(orphan.join("fs/etc/passwd"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let rooted = root.path().join("attachments/60");
    fs::create_dir(&rooted).unwrap();
    std::os::unix::fs::symlink("/nowhere", rooted.join("0")).unwrap();
    // Of someone else.
    let other = root.path().join("snapshots/lost+found");
    fs::create_dir(&other).unwrap();

    drop(open(root.path()).unwrap());
    assert!(!orphan.exists() && !rooted.exists());
    // Nothing on the disk tells of the ids any more, but a process of the one that crashed may.
    let s = open(root.path()).unwrap();
    assert!(other.exists() && attachment.exists());
    assert!(
        root.path()
            .join("snapshots")
            .join(&kept)
            .join("fs")
            .exists()
    );
    assert!(!root.path().join("metadata.db.new").exists());
    assert_eq!(create(&s, "next"), "61");
    assert_eq!(names(&s), ["kept", "next"]);
}

/// After a power cut, the file system may not have written what was new.
#[test]
fn a_snapshot_whose_directory_is_missing_stays() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path()).unwrap();
    let id = create(&s, "a");
    drop(s);
    fs::remove_dir_all(root.path().join("snapshots").join(&id)).unwrap();
    let s = open(root.path()).unwrap();
    assert_eq!(names(&s), ["a"]);
    assert_ne!(create(&s, "b"), id);
    s.remove("a").unwrap();
    s.cleanup().unwrap();
    assert_eq!(names(&s), ["b"]);
}

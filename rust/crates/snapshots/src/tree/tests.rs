use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};

use proptest::prelude::*;
use rustix::fs::mkdirat;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::*;
use crate::testing::{NAMESPACE, isolated};

fn write(path: &Path, bytes: usize) {
    File::create(path)
        .unwrap()
        .write_all(&vec![1; bytes])
        .unwrap();
}

/// Directories below one another, deeper than any path name can tell.
fn nest(top: &Path, depth: usize) {
    fs::create_dir(top).unwrap();
    let mut here = rustix::fs::open(top, OFlags::PATH, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&here, c"d", Mode::from_raw_mode(0o755)).unwrap();
        here = openat(&here, c"d", OFlags::PATH, Mode::empty()).unwrap();
    }
}

#[test]
fn links_are_deleted_and_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    fs::create_dir(&kept).unwrap();
    write(&kept.join("file"), 1);
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("a/b")).unwrap();
    symlink(&kept, top.join("a/link")).unwrap();
    symlink("nowhere", top.join("dangling")).unwrap();
    remove(&top).unwrap();
    assert!(!top.exists());
    symlink(&kept, &top).unwrap();
    remove(&top).unwrap();
    assert!(fs::symlink_metadata(&top).is_err());
    assert!(kept.join("file").exists());
    remove(&top).unwrap();
    remove(&kept.join("file")).unwrap();
    assert!(!kept.join("file").exists());
}

#[test]
fn depth_costs_neither_open_files_nor_stack() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    // More than the usual limit of open files, 1,024, and than a path can tell, 4,096 bytes.
    let depth = 2_100;
    nest(&top, depth);
    let walk = move || {
        let inodes = usage(&top).unwrap().unwrap().inodes;
        assert_eq!(inodes, depth as u64 + 1);
        remove(&top).unwrap();
        assert!(!top.exists());
    };
    std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(walk)
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn usage_counts_blocks_and_each_inode_once() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    assert_eq!(usage(&top).unwrap(), None);
    fs::create_dir_all(top.join("sub")).unwrap();
    write(&top.join("file"), 100_000);
    write(&top.join("sub/other"), 1);
    fs::hard_link(top.join("file"), top.join("sub/again")).unwrap();
    File::create(top.join("sparse"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    symlink("/", top.join("link")).unwrap();
    let of = |name: &str| fs::symlink_metadata(top.join(name)).unwrap().blocks() * 512;
    let size = ["", "sub", "file", "sub/other", "sparse", "link"]
        .into_iter()
        .map(of)
        .sum();
    assert!(size < 1 << 20);
    assert_eq!(usage(&top).unwrap(), Some(Usage { size, inodes: 6 }));
}

#[test]
fn what_is_mounted_inside_is_neither_deleted_nor_counted() {
    if !isolated(
        NAMESPACE,
        "tree::tests::what_is_mounted_inside_is_neither_deleted_nor_counted",
    ) {
        return;
    }

    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    fs::create_dir_all(store.join("sub")).unwrap();
    write(&store.join("sub/file"), 50_000);
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("nix/store")).unwrap();
    write(&top.join("plain"), 0);
    let empty = usage(&top).unwrap().unwrap();

    mount_bind(&store, top.join("nix/store")).unwrap();
    mount_bind(store.join("sub/file"), top.join("plain")).unwrap();
    let measured = usage(&top).unwrap().unwrap();
    assert_eq!(measured.inodes, empty.inodes - 2);
    assert!(measured.size < empty.size + 50_000);
    let error = remove(&top).unwrap_err().to_string();
    assert!(error.contains("top/"), "{error}");
    assert!(store.join("sub/file").metadata().unwrap().len() == 50_000);

    unmount(top.join("plain"), UnmountFlags::empty()).unwrap();
    let error = remove(&top).unwrap_err().to_string();
    assert!(error.contains("nix/store"), "{error}");
    assert!(store.join("sub/file").exists());
    mount_bind(&store, &top).unwrap();
    remove(&top).unwrap_err();
    assert!(store.join("sub/file").exists());
    unmount(&top, UnmountFlags::empty()).unwrap();
    unmount(top.join("nix/store"), UnmountFlags::empty()).unwrap();
    remove(&top).unwrap();
    assert!(!top.exists());
}

/// Others delete, make and move directories while a walk is among them.
#[test]
fn a_tree_that_changes_meanwhile_is_measured_without_error() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("stays/a/b")).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..400 {
                fs::create_dir_all(top.join("x/y/z")).unwrap();
                write(&top.join("x/y/z/file"), 1);
                let moved = top.join(format!("stays/a/b/{round}"));
                fs::rename(top.join("x/y"), &moved).unwrap();
                fs::remove_dir_all(if round % 2 == 0 { moved } else { top.join("x") }).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            assert!(usage(&top).unwrap().unwrap().inodes >= 4);
        }
    });
    remove(&top).unwrap();
}

#[test]
fn ascent_after_a_move_goes_on_where_the_way_still_leads() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("a/b/c")).unwrap();
    let open = |path: &Path| rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
    let level = |name: &CStr, path: &Path| Level::new(name, &attributes(open(path), c"").unwrap());
    let way = || {
        vec![
            level(c"", dir.path()),
            level(c"top", &top),
            level(c"a", &top.join("a")),
            level(c"b", &top.join("a/b")),
        ]
    };
    let here = open(&top.join("a/b/c"));
    let mut levels = way();
    let above = ascend(dir.path(), &here, &mut levels).unwrap();
    assert_eq!(
        (levels.len(), identity(&attributes(&above, c"").unwrap())),
        (4, levels[3].identity)
    );

    let mut levels = way();
    fs::rename(top.join("a/b/c"), dir.path().join("c")).unwrap();
    let above = ascend(dir.path(), &here, &mut levels).unwrap();
    assert_eq!(
        (levels.len(), identity(&attributes(&above, c"").unwrap())),
        (4, levels[3].identity)
    );

    let mut levels = way();
    fs::rename(top.join("a/b"), top.join("b")).unwrap();
    fs::create_dir(top.join("a/b")).unwrap();
    let above = ascend(dir.path(), &here, &mut levels).unwrap();
    assert_eq!(
        (levels.len(), identity(&attributes(&above, c"").unwrap())),
        (3, levels[2].identity)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_tree_is_counted_and_deleted_whole(
        paths in proptest::collection::vec("([ab]/){0,4}[ab]", 0..12),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut all = std::collections::BTreeSet::from([top.clone()]);
        for path in paths {
            let path = top.join(path);
            fs::create_dir_all(&path).unwrap();
            let inside = path.ancestors().take_while(|path| path.starts_with(&top));
            all.extend(inside.map(Path::to_owned));
            write(&path.join("file"), 1);
            all.insert(path.join("file"));
        }
        prop_assert_eq!(usage(&top).unwrap().unwrap().inodes, all.len() as u64);
        remove(&top).unwrap();
        prop_assert!(!top.exists());
    }
}

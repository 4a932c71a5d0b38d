//! What is on the disk: directories, their modes and owners, mounts, and a disk that is full.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind_recursive, mount_remount, unmount,
};

use super::*;
use crate::testing::{NAMESPACE, isolated};

#[test]
fn removal_deletes_attachments_at_once_and_layers_as_told() {
    for sync_remove in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let options = Options {
            sync_remove,
            attachments: "gcroots",
            ..Options::default()
        };
        let s = Snapshotter::open(root.path(), &options).unwrap();
        let reservation = s.reserve();
        let attachment = reservation.attachment_dir();
        fs::create_dir(&attachment).unwrap();
        symlink("/nowhere", attachment.join("0")).unwrap();
        let id = s
            .create(
                reservation,
                Kind::Active,
                "a",
                None,
                Labels::new(),
                no_content,
            )
            .unwrap()
            .id;
        assert_eq!(attachment, root.path().join("gcroots").join(id.to_string()));
        assert_eq!(attachment, s.attachment_dir(id));
        s.cleanup().unwrap();
        assert!(attachment.join("0").symlink_metadata().is_ok() && s.layer_dir(id).exists());
        s.remove("a").unwrap();
        assert!(!attachment.exists());
        assert_eq!(s.layer_dir(id).exists(), !sync_remove);
        s.cleanup().unwrap();
        assert!(!root.path().join("snapshots").join(id.to_string()).exists());
    }
}

#[test]
fn a_reservation_that_comes_to_nothing_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let made = |reservation: &Reservation| {
        fs::create_dir_all(reservation.attachment_dir().join("x")).unwrap();
        reservation.id()
    };
    let dropped = s.reserve();
    let first = made(&dropped);
    s.cleanup().unwrap();
    assert!(
        s.attachment_dir(first).join("x").exists(),
        "a reserved id is left alone"
    );
    drop(dropped);
    let refused = s.reserve();
    let second = made(&refused);
    s.create(
        refused,
        Kind::Active,
        "a",
        Some("none"),
        Labels::new(),
        no_content,
    )
    .unwrap_err();
    let unfilled = s.reserve();
    let third = made(&unfilled);
    let fill = |snapshot: &Snapshot| -> Result<()> {
        fs::write(s.layer_dir(snapshot.id).join("part"), "").unwrap();
        Err(Error::EmptyName { what: "name" })
    };
    s.create(unfilled, Kind::Active, "a", None, Labels::new(), fill)
        .unwrap_err();
    assert_eq!(s.stat("a").unwrap_err().code(), Code::NotFound);
    for id in [first, second, third] {
        assert!(!s.attachment_dir(id).exists() && !s.layer_dir(id).exists());
    }
    assert_eq!(entries(&root.path().join("snapshots")), [""; 0]);
}

#[test]
fn ids_are_never_given_again() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let early = s.reserve();
    let late = create(&s, Kind::Active, "late", "").unwrap().id;
    let early = s
        .create(
            early,
            Kind::Active,
            "early",
            None,
            Labels::new(),
            no_content,
        )
        .unwrap()
        .id;
    assert!(early < late);
    s.remove("late").unwrap();
    s.cleanup().unwrap();
    drop(s);
    let s = open(root.path());
    let next = create(&s, Kind::Active, "next", "").unwrap().id;
    assert!(next > late);
}

#[test]
fn modes_and_owners_do_not_depend_on_the_umask() {
    let umask = ["sh", "-c", "umask 0077; exec \"$@\"", "sh"];
    if !isolated(
        &umask,
        "snapshotter::tests::disk::modes_and_owners_do_not_depend_on_the_umask",
    ) {
        return;
    }

    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("new/root");
    let s = open(&root);
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
    let base = layer(&s, "base", "");
    let child = create(&s, Kind::Active, "child", "base").unwrap().id;
    let view = create(&s, Kind::View, "view", "base").unwrap().id;
    for (path, want) in [
        (String::new(), 0o700),
        ("snapshots".to_owned(), 0o700),
        ("attachments".to_owned(), 0o700),
        ("metadata.db".to_owned(), 0o600),
        ("metadata.db-wal".to_owned(), 0o600),
        ("metadata.db-shm".to_owned(), 0o600),
        ("metadata.changes".to_owned(), 0o600),
        ("lock".to_owned(), 0o600),
        (format!("snapshots/{base}"), 0o700),
        (format!("snapshots/{child}/fs"), 0o755),
        (format!("snapshots/{child}/work"), 0o711),
        (format!("snapshots/{view}/fs"), 0o755),
    ] {
        assert_eq!(mode(&path), want, "{path:?}");
    }
    assert_eq!(entries(&root.join(format!("snapshots/{view}"))), ["fs"]);

    if rustix::process::geteuid().is_root() {
        lchown(s.layer_dir(base), Some(1234), Some(5678)).unwrap();
        fs::set_permissions(s.layer_dir(base), PermissionsExt::from_mode(0o700)).unwrap();
        let heir = create(&s, Kind::Active, "heir", "base").unwrap().id;
        let layer = fs::metadata(s.layer_dir(heir)).unwrap();
        assert_eq!(
            (layer.uid(), layer.gid(), layer.mode() & 0o7777),
            (1234, 5678, 0o755)
        );
    }
}

/// Real mounts of the kernel, in a user namespace: bind, writable overlay, whiteouts, read-only
/// overlay.
#[test]
fn the_kernel_takes_the_mounts() {
    if !isolated(
        NAMESPACE,
        "snapshotter::tests::disk::the_kernel_takes_the_mounts",
    ) {
        return;
    }

    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    let mounted = |key: &str, body: &dyn Fn(&Path)| {
        let mounts = s.mounts(&s.snapshot(key).unwrap().0);
        mount_one(&mounts[0], &target);
        body(&target);
        unmount(&target, UnmountFlags::empty()).unwrap();
    };
    create(&s, Kind::Active, "1", "").unwrap();
    mounted("1", &|root| {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/a"), "a").unwrap();
        fs::write(root.join("b"), "b").unwrap();
    });
    s.commit("one", "1", None, Labels::new()).unwrap();
    create(&s, Kind::Active, "2", "one").unwrap();
    mounted("2", &|root| {
        assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o755);
        fs::remove_file(root.join("b")).unwrap();
        fs::remove_dir_all(root.join("dir")).unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/c"), "c").unwrap();
    });
    s.commit("two", "2", None, Labels::new()).unwrap();
    for (key, parent, want) in [("v1", "one", &["b", "dir"][..]), ("v2", "two", &["dir"])] {
        create(&s, Kind::View, key, parent).unwrap();
        mounted(key, &|root| {
            assert_eq!(entries(root), want);
            assert_eq!(
                entries(&root.join("dir")),
                [if key == "v1" { "a" } else { "c" }]
            );
            let error = fs::write(root.join("x"), "x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        });
    }
    for key in ["v1", "v2", "two", "one"] {
        s.remove(key).unwrap();
    }
    s.cleanup().unwrap();
    assert_eq!(entries(&dir.path().join("snapshots")), [""; 0]);
}

fn mount_one(what: &Mount, target: &Path) {
    if what.fstype == "bind" {
        mount_bind_recursive(&what.source, target).unwrap();
        if what.options.iter().any(|option| option == "ro") {
            mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        }
    } else {
        let data = std::ffi::CString::new(what.options.join(",")).unwrap();
        mount(
            &what.source,
            target,
            &what.fstype,
            MountFlags::empty(),
            Some(data.as_c_str()),
        )
        .unwrap();
    }
}

/// kubelet frees space by removing images, which must work when there is none.
#[test]
fn a_full_disk_is_survived() {
    if !isolated(
        NAMESPACE,
        "snapshotter::tests::disk::a_full_disk_is_survived",
    ) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    mount(
        "tmpfs",
        dir.path(),
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=4m"),
    )
    .unwrap();
    let s = open(&dir.path().join("root"));
    let filler = dir.path().join("filler");
    fs::write(&filler, vec![0; 500_000]).unwrap();
    let large = Labels::from([("l".to_owned(), "x".repeat(50_000))]);
    let add = |i: u32| {
        s.create(
            s.reserve(),
            Kind::Active,
            &i.to_string(),
            None,
            large.clone(),
            no_content,
        )
    };
    let made = (0..100).map(add).take_while(Result::is_ok).count();
    assert!((1..100).contains(&made), "{made}");
    let error = add(100).unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("full"), "{error}: {cause}");

    assert_eq!(s.stat("0").unwrap().kind, Kind::Active);
    s.remove("0").unwrap();
    assert_eq!(names(&s).len(), made - 1);
    fs::remove_file(&filler).unwrap();
    add(101).unwrap();
    s.cleanup().unwrap();
    assert_eq!(entries(&dir.path().join("root/snapshots")).len(), made);
    drop(s);
    assert_eq!(names(&open(&dir.path().join("root"))).len(), made);
    unmount(dir.path(), UnmountFlags::empty()).unwrap();
}

/// However long clients go on asking for new ones.
#[test]
fn snapshots_can_be_removed_from_a_full_disk() {
    if !isolated(
        NAMESPACE,
        "snapshotter::tests::disk::snapshots_can_be_removed_from_a_full_disk",
    ) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options = Some(c"size=4m");
    mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), options).unwrap();
    let s = open(&dir.path().join("root"));
    let key = |i: u32| format!("{i}");
    for i in 0..40 {
        create(&s, Kind::Active, &key(i), "").unwrap();
    }
    let filler = dir.path().join("filler");
    for block in [1 << 20, 4096] {
        let mut file = fs::OpenOptions::new();
        let mut file = file.create(true).append(true).open(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &vec![0; block]).is_ok() {}
    }
    let refused = (1000..3000).find(|i| create(&s, Kind::Active, &key(*i), "").is_err());
    let refused = refused.unwrap();
    for i in 0..200 {
        create(&s, Kind::Active, &key(refused + i), "").unwrap_err();
    }
    for i in 0..30 {
        s.remove(&key(i)).unwrap();
    }
    fs::remove_file(&filler).unwrap();
    create(&s, Kind::Active, "new", "").unwrap();
    drop(s);
    unmount(dir.path(), UnmountFlags::empty()).unwrap();
}

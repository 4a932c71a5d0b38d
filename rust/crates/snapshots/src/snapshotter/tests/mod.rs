mod disk;

use std::fs;
use std::time::SystemTime;

use super::*;
use crate::error::Code;

fn open(root: &Path) -> Snapshotter {
    Snapshotter::open(root, &Options::default()).unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// For snapshots whose content does not matter.
fn no_content(snapshot: &Snapshot) -> Result<Snapshot> {
    Ok(snapshot.clone())
}

fn create(s: &Snapshotter, kind: Kind, key: &str, parent: &str) -> Result<Snapshot> {
    s.create(
        s.reserve(),
        kind,
        key,
        Some(parent),
        labels(&[("l", "1")]),
        no_content,
    )
}

/// A committed snapshot.
fn layer(s: &Snapshotter, name: &str, parent: &str) -> Id {
    let id = create(s, Kind::Active, "being made", parent).unwrap().id;
    s.commit(name, "being made", None, Labels::new()).unwrap();
    id
}

fn all(s: &Snapshotter) -> Vec<Info> {
    let mut infos = Vec::new();
    s.list::<&str>(&[], |_, info| {
        infos.push(info);
        ControlFlow::Continue(())
    })
    .unwrap();
    infos
}

fn names(s: &Snapshotter) -> Vec<String> {
    all(s).into_iter().map(|info| info.name).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_commit_keeps_the_directory_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let active = create(&s, Kind::Active, "key", "").unwrap();
    fs::write(s.layer_dir(active.id).join("file"), "content").unwrap();
    let before = SystemTime::now();
    s.commit("name", "key", None, labels(&[("m", "2"), ("empty", "")]))
        .unwrap();
    let info = s.stat("name").unwrap();
    assert_eq!((info.kind, info.parent.as_str()), (Kind::Committed, ""));
    assert_eq!(info.created, info.updated);
    assert!(before <= info.created && info.created <= SystemTime::now());
    assert_eq!(
        info.labels,
        labels(&[("m", "2")]),
        "replaced, and without the empty one"
    );
    assert_eq!(s.stat("key").unwrap_err().code(), Code::NotFound);
    assert_eq!(names(&s), ["name"]);
    let view = create(&s, Kind::View, "key", "name").unwrap();
    assert_eq!(view.parents, [active.id]);
    assert_eq!(
        fs::read(s.layer_dir(active.id).join("file")).unwrap(),
        b"content"
    );
}

#[test]
fn labels_are_told_by_id() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let base = layer(&s, "base", "");
    let removed = create(&s, Kind::Active, "removed", "base").unwrap().id;
    s.remove("removed").unwrap();
    let active = create(&s, Kind::Active, "active", "base").unwrap().id;
    s.update("base", &labels(&[("b", "2")]), &["labels"])
        .unwrap();
    assert_eq!(
        s.labels(&[active, removed, base]).unwrap(),
        [labels(&[("l", "1")]), Labels::new(), labels(&[("b", "2")])]
    );
}

#[test]
fn every_refusal_has_its_code_and_changes_nothing() {
    use Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    layer(&s, "base", "");
    layer(&s, "layer", "base");
    create(&s, Kind::Active, "active", "layer").unwrap();
    create(&s, Kind::Active, "orphan", "").unwrap();
    create(&s, Kind::View, "view", "layer").unwrap();
    let before = all(&s);

    let new = |kind, key: &str, parent: &str| {
        let tested = s
            .check_new(kind, key, Some(parent), &Labels::new())
            .unwrap_err();
        let made = create(&s, kind, key, parent).map(drop).unwrap_err();
        assert_eq!(tested.to_string(), made.to_string());
        Err(made)
    };
    let commit =
        |name: &str, key: &str, parent: &str| s.commit(name, key, Some(parent), Labels::new());
    let update = |key: &str, path: &str| s.update(key, &Labels::new(), &[path]).map(drop);
    let cases = [
        (new(Kind::Active, "", ""), InvalidArgument, "key"),
        (new(Kind::Active, "x", "none"), NotFound, "parent \"none\""),
        (
            new(Kind::Active, "view", "none"),
            NotFound,
            "parent \"none\"",
        ),
        (
            new(Kind::Active, "x", "active"),
            InvalidArgument,
            "committed",
        ),
        (new(Kind::View, "x", "view"), InvalidArgument, "committed"),
        (
            new(Kind::View, "active", "base"),
            AlreadyExists,
            "\"active\"",
        ),
        (new(Kind::Active, "layer", ""), AlreadyExists, "\"layer\""),
        (new(Kind::Committed, "x", ""), InvalidArgument, "commit it"),
        (s.snapshot("none").map(drop), NotFound, "\"none\""),
        (s.snapshot("layer").map(drop), FailedPrecondition, "view"),
        (commit("", "active", ""), InvalidArgument, "name"),
        (commit("x", "", ""), InvalidArgument, "key"),
        (commit("x", "none", ""), NotFound, "\"none\""),
        (commit("base", "none", ""), NotFound, "\"none\""),
        (commit("base", "active", ""), AlreadyExists, "\"base\""),
        (commit("active", "active", ""), AlreadyExists, "\"active\""),
        (commit("base", "view", ""), AlreadyExists, "\"base\""),
        (commit("x", "view", ""), FailedPrecondition, "is view"),
        (commit("x", "layer", ""), FailedPrecondition, "is committed"),
        (
            commit("x", "active", "base"),
            InvalidArgument,
            "made on \"layer\"",
        ),
        (
            commit("x", "active", "none"),
            InvalidArgument,
            "made on \"layer\"",
        ),
        (commit("x", "orphan", "none"), NotFound, "parent \"none\""),
        (
            commit("x", "orphan", "active"),
            FailedPrecondition,
            "parent is active",
        ),
        (
            commit("x", "orphan", "orphan"),
            FailedPrecondition,
            "parent is active",
        ),
        (s.remove("none"), NotFound, "\"none\""),
        (s.remove(""), NotFound, "\"\""),
        (
            s.remove("layer"),
            FailedPrecondition,
            "cannot remove snapshot \"layer\": it has children",
        ),
        (s.stat("none").map(drop), NotFound, "\"none\""),
        (s.usage("none").map(drop), NotFound, "\"none\""),
        (update("none", "labels"), NotFound, "\"none\""),
        (update("none", "parent"), NotFound, "\"none\""),
        (update("active", "parent"), InvalidArgument, "\"parent\""),
        (
            s.list(&["name=x"], |_, _| ControlFlow::Break(())),
            InvalidArgument,
            "byte 4",
        ),
    ];
    for (i, (result, code, words)) in cases.into_iter().enumerate() {
        let error = result.expect_err(&format!("case {i}"));
        assert_eq!(error.code(), code, "case {i}: {error}");
        assert!(error.to_string().contains(words), "case {i}: {error}");
    }
    assert_eq!(all(&s), before);
    s.cleanup().unwrap();
    assert_eq!(entries(&root.path().join("snapshots")).len(), before.len());
}

/// Two endings turn a failed precondition into another error in containerd's clients (errdefs
/// `errgrpc`).
#[test]
fn no_name_gives_a_message_another_meaning() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    for ending in [": conflict", ": not modified"] {
        let [layer_name, child, active] = ["a", "b", "c"].map(|name| format!("{name}{ending}"));
        layer(&s, &layer_name, "");
        create(&s, Kind::View, &child, &layer_name).unwrap();
        create(&s, Kind::Active, &active, "").unwrap();
        let errors = [
            s.remove(&layer_name).unwrap_err(),
            s.snapshot(&layer_name).map(drop).unwrap_err(),
            s.commit("x", &child, None, Labels::new()).unwrap_err(),
            s.commit("x", &active, Some(&child), Labels::new())
                .unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.code(), Code::FailedPrecondition);
            assert!(!error.to_string().ends_with(ending), "{error}");
        }
    }
}

#[test]
fn a_snapshot_without_parent_can_get_one_at_commit() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let base = layer(&s, "base", "");
    let upper = create(&s, Kind::Active, "key", "").unwrap().id;
    s.commit("upper", "key", Some("base"), Labels::new())
        .unwrap();
    assert_eq!(s.stat("upper").unwrap().parent, "base");
    assert_eq!(
        s.remove("base").unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert_eq!(
        create(&s, Kind::Active, "top", "upper").unwrap().parents,
        [upper, base]
    );
    s.commit("same", "top", Some("upper"), Labels::new())
        .unwrap();
    for name in ["same", "upper", "base"] {
        s.remove(name).unwrap();
    }
}

#[test]
fn snapshots_are_counted_by_kind() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    assert_eq!(s.counts().unwrap(), Counts::default());
    layer(&s, "base", "");
    layer(&s, "layer", "base");
    for (kind, key) in [(Kind::View, "v"), (Kind::Active, "a"), (Kind::Active, "b")] {
        create(&s, kind, key, "layer").unwrap();
    }
    s.remove("b").unwrap();
    let counts = Counts {
        views: 1,
        active: 1,
        committed: 2,
    };
    assert_eq!(s.counts().unwrap(), counts);
    assert_eq!(
        s.store_waits(),
        StoreWaits::default(),
        "nobody else was there"
    );
}

#[test]
fn update_changes_labels_and_the_time_alone() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let before = {
        layer(&s, "base", "");
        create(&s, Kind::Active, "a", "base").unwrap();
        s.stat("a").unwrap()
    };
    let set = s
        .update(
            "a",
            &labels(&[("l", ""), ("m", "2"), ("n", "3")]),
            &["labels.l", "labels.m"],
        )
        .unwrap();
    assert_eq!(
        set,
        Info {
            labels: labels(&[("m", "2")]),
            updated: set.updated,
            ..before.clone()
        }
    );
    assert!(set.updated > before.updated);
    let replaced = s.update::<&str>("a", &labels(&[("x", "1")]), &[]).unwrap();
    assert_eq!(
        replaced,
        Info {
            labels: labels(&[("x", "1")]),
            updated: replaced.updated,
            ..before
        }
    );
    assert_eq!(s.stat("a").unwrap(), replaced);
}

#[test]
fn the_upperdir_label_is_shown_and_not_kept() {
    let root = tempfile::tempdir().unwrap();
    let options = Options {
        upperdir_label: true,
        ..Options::default()
    };
    let s = Snapshotter::open(root.path(), &options).unwrap();
    let id = create(&s, Kind::Active, "a", "").unwrap().id;
    let want = labels(&[
        ("l", "1"),
        (UPPERDIR_LABEL, s.layer_dir(id).to_str().unwrap()),
    ]);
    assert_eq!(s.stat("a").unwrap().labels, want);
    let updated = s.update("a", &Labels::new(), &["labels.none"]).unwrap();
    assert_eq!(updated.labels, want);
    // As clients do that update what stat has told them.
    let updated = s.update::<&str>("a", &want, &[]).unwrap();
    assert_eq!(updated.labels, want);
    let again = s.reserve();
    s.create(again, Kind::Active, "b", None, want.clone(), no_content)
        .unwrap();
    s.commit("c", "b", None, want.clone()).unwrap();
    let own = s.stat("c").unwrap().labels;
    assert_ne!(own[UPPERDIR_LABEL], want[UPPERDIR_LABEL]);
    assert_eq!(all(&s)[0].labels, want);
    drop(s);
    let s = open(root.path());
    for name in ["a", "c"] {
        assert_eq!(s.stat(name).unwrap().labels, labels(&[("l", "1")]));
    }
}

#[test]
fn a_list_is_of_one_moment_and_others_go_on_meanwhile() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    assert!(all(&s).is_empty());
    for key in ["a", "c", "b"] {
        create(&s, Kind::Active, key, "").unwrap();
    }
    let mut seen = Vec::new();
    s.list(&["kind==active"], |_, info| {
        if info.name == "a" {
            s.remove("b").unwrap();
            s.commit("aa", "c", None, Labels::new()).unwrap();
        } else if info.name == "b" {
            assert_eq!(s.stat("b").unwrap_err().code(), Code::NotFound);
        }
        seen.push(info.name);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, ["a", "c", "b"]);
    assert_eq!(names(&s), ["a", "aa"]);
    let mut count = 0;
    s.list::<&str>(&[], |_, _| {
        count += 1;
        ControlFlow::Break(())
    })
    .unwrap();
    assert_eq!(count, 1);
}

#[test]
fn usage_of_a_committed_snapshot_is_measured_once() {
    let root = tempfile::tempdir().unwrap();
    let s = open(root.path());
    let id = create(&s, Kind::Active, "a", "").unwrap().id;
    let write = |name: &str| fs::write(s.layer_dir(id).join(name), vec![1; 10_000]).unwrap();
    assert_eq!(s.usage("a").unwrap().inodes, 1);
    write("1");
    let active = s.usage("a").unwrap();
    assert!(active.inodes == 2 && active.size >= 10_000, "{active:?}");
    s.commit("c", "a", None, Labels::new()).unwrap();
    assert_eq!(s.usage("c").unwrap(), active);
    write("2");
    assert_eq!(s.usage("c").unwrap(), active);
    create(&s, Kind::View, "v", "c").unwrap();
    assert_eq!(s.usage("v").unwrap(), Usage::default());
    s.update::<&str>("c", &Labels::new(), &[]).unwrap();
    drop(s);
    assert_eq!(open(root.path()).usage("c").unwrap(), active);
}

//! The snapshotter against a model in memory: any sequence of calls gives the same results and
//! codes in both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use proptest::prelude::*;
use snapshots::{Code, Error, Kind, Labels, Options, Snapshotter};

#[derive(Debug, Clone)]
enum Call {
    Create {
        kind: Kind,
        key: String,
        parent: Option<String>,
        labels: Labels,
    },
    Commit {
        name: String,
        key: String,
        parent: Option<String>,
        labels: Labels,
    },
    Update {
        key: String,
        labels: Labels,
        paths: Vec<&'static str>,
    },
    Remove {
        key: String,
    },
    Mounts {
        key: String,
    },
    Usage {
        key: String,
    },
    Cleanup,
    Reopen,
}

/// Few names, so that calls meet.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![8 => "[a-f]", 1 => Just(String::new())]
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map("[kl]", "[12]?", 0..3)
}

fn call() -> impl Strategy<Value = Call> {
    let kind =
        prop_oneof![5 => Just(Kind::Active), 2 => Just(Kind::View), 1 => Just(Kind::Committed)];
    let parent = || proptest::option::of(name());
    let path = proptest::sample::select(vec!["labels.k", "labels.l", "labels", "kind"]);
    prop_oneof![
        8 => (kind, name(), parent(), labels())
            .prop_map(|(kind, key, parent, labels)| Call::Create { kind, key, parent, labels }),
        6 => (name(), name(), proptest::option::weighted(0.2, name()), labels())
            .prop_map(|(name, key, parent, labels)| Call::Commit { name, key, parent, labels }),
        3 => (name(), labels(), proptest::collection::vec(path, 0..3))
            .prop_map(|(key, labels, paths)| Call::Update { key, labels, paths }),
        4 => name().prop_map(|key| Call::Remove { key }),
        2 => name().prop_map(|key| Call::Mounts { key }),
        2 => name().prop_map(|key| Call::Usage { key }),
        1 => Just(Call::Cleanup),
        1 => Just(Call::Reopen),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    id: String,
    kind: Kind,
    parent: String,
    labels: Labels,
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<String, Entry>,
}

impl Model {
    fn get(&self, key: &str) -> Result<&Entry, Code> {
        self.entries.get(key).ok_or(Code::NotFound)
    }

    fn lineage<'a>(&'a self, mut name: &'a str) -> Vec<String> {
        let mut ids = Vec::new();
        while let Some(entry) = self.entries.get(name) {
            ids.push(entry.id.clone());
            name = &entry.parent;
        }
        ids
    }

    fn create(&mut self, kind: Kind, key: &str, parent: &str, labels: &Labels) -> Result<(), Code> {
        if key.is_empty() || kind == Kind::Committed {
            return Err(Code::InvalidArgument);
        }
        if !parent.is_empty() && self.get(parent)?.kind != Kind::Committed {
            return Err(Code::InvalidArgument);
        }
        if self.entries.contains_key(key) {
            return Err(Code::AlreadyExists);
        }
        let entry = Entry {
            id: String::new(),
            kind,
            parent: parent.to_owned(),
            labels: labels.clone(),
        };
        self.entries.insert(key.to_owned(), entry);
        Ok(())
    }

    fn commit(&mut self, name: &str, key: &str, parent: &str, labels: &Labels) -> Result<(), Code> {
        if name.is_empty() || key.is_empty() {
            return Err(Code::InvalidArgument);
        }
        let mut entry = self.get(key)?.clone();
        if self.entries.contains_key(name) {
            return Err(Code::AlreadyExists);
        }
        if entry.kind != Kind::Active {
            return Err(Code::FailedPrecondition);
        }
        if !parent.is_empty() && parent != entry.parent {
            if !entry.parent.is_empty() {
                return Err(Code::InvalidArgument);
            }
            if self.get(parent)?.kind != Kind::Committed {
                return Err(Code::FailedPrecondition);
            }
            entry.parent = parent.to_owned();
        }
        entry.kind = Kind::Committed;
        entry.labels = labels.clone();
        self.entries.remove(key);
        self.entries.insert(name.to_owned(), entry);
        Ok(())
    }

    fn update(&mut self, key: &str, labels: &Labels, paths: &[&str]) -> Result<(), Code> {
        let mut updated = self.get(key)?.labels.clone();
        for path in if paths.is_empty() { &["labels"] } else { paths } {
            match path.strip_prefix("labels.") {
                Some(name) => {
                    updated.remove(name);
                    updated.extend(
                        labels
                            .get(name)
                            .map(|value| (name.to_owned(), value.clone())),
                    );
                }
                None if *path == "labels" => updated = labels.clone(),
                None => return Err(Code::InvalidArgument),
            }
        }
        self.entries.get_mut(key).unwrap().labels = updated;
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<(), Code> {
        self.get(key)?;
        if self.entries.values().any(|entry| entry.parent == key) {
            return Err(Code::FailedPrecondition);
        }
        self.entries.remove(key);
        Ok(())
    }
}

fn drop_empty(labels: &Labels) -> Labels {
    labels
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn directories(root: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(root.join("snapshots"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn run(calls: Vec<Call>) {
    let root = tempfile::tempdir().unwrap();
    let open = || Snapshotter::open(root.path(), &Options::default()).unwrap();
    let mut snapshotter = Some(open());
    let mut model = Model::default();
    for call in calls {
        let s = snapshotter.as_ref().unwrap();
        let shown = format!("{call:?}");
        match call {
            Call::Create {
                kind,
                key,
                parent,
                labels,
            } => {
                let want = model.create(
                    kind,
                    &key,
                    parent.as_deref().unwrap_or(""),
                    &drop_empty(&labels),
                );
                let tested = s.check_new(kind, &key, parent.as_deref(), &labels);
                assert_eq!(tested.map_err(|error| error.code()), want, "{shown}");
                let made = s.create(s.reserve(), kind, &key, parent.as_deref(), labels, |made| {
                    Ok::<_, Error>(made.clone())
                });
                match made {
                    Ok(snapshot) => {
                        want.expect(&shown);
                        let entry = model.entries.get_mut(&key).unwrap();
                        entry.id = snapshot.id.to_string();
                        let parents: Vec<_> =
                            snapshot.parents.iter().map(ToString::to_string).collect();
                        assert_eq!(
                            parents,
                            model.lineage(parent.as_deref().unwrap_or("")),
                            "{shown}"
                        );
                        let info = s.stat(&key).unwrap();
                        assert_eq!(info.created, info.updated, "{shown}");
                    }
                    Err(error) => assert_eq!(Err(error.code()), want, "{shown}"),
                }
            }
            Call::Commit {
                name,
                key,
                parent,
                labels,
            } => {
                let want = model.commit(
                    &name,
                    &key,
                    parent.as_deref().unwrap_or(""),
                    &drop_empty(&labels),
                );
                let got = s.commit(&name, &key, parent.as_deref(), labels);
                assert_eq!(got.map_err(|error| error.code()), want, "{shown}");
            }
            Call::Update { key, labels, paths } => {
                let before = s.stat(&key).map(|info| info.created).ok();
                let want = model.update(&key, &drop_empty(&labels), &paths);
                match s.update(&key, &labels, &paths) {
                    Ok(info) => {
                        want.expect(&shown);
                        assert_eq!(Some(info.created), before, "{shown}");
                        assert!(info.updated >= info.created && info.updated <= SystemTime::now());
                        assert_eq!(s.stat(&key).unwrap(), info, "{shown}");
                    }
                    Err(error) => assert_eq!(Err(error.code()), want, "{shown}"),
                }
            }
            Call::Remove { key } => {
                let want = model.remove(&key);
                assert_eq!(
                    s.remove(&key).map_err(|error| error.code()),
                    want,
                    "{shown}"
                );
            }
            Call::Mounts { key } => {
                let want = model.get(&key).and_then(|entry| match entry.kind {
                    Kind::Committed => Err(Code::FailedPrecondition),
                    Kind::Active | Kind::View => {
                        Ok((entry.id.clone(), model.lineage(&entry.parent)))
                    }
                });
                let got = s.snapshot(&key).map(|(snapshot, _)| {
                    let parents = snapshot.parents.iter().map(ToString::to_string).collect();
                    (snapshot.id.to_string(), parents)
                });
                assert_eq!(got.map_err(|error| error.code()), want, "{shown}");
            }
            Call::Usage { key } => {
                let want = model
                    .get(&key)
                    .map(|entry| u64::from(entry.kind != Kind::View));
                let got = s.usage(&key).map(|usage| usage.inodes);
                assert_eq!(got.map_err(|error| error.code()), want, "{shown}");
            }
            Call::Cleanup => {
                s.cleanup().unwrap();
                assert_only_rows_have_directories(root.path(), &model);
            }
            Call::Reopen => {
                drop(snapshotter.take());
                snapshotter = Some(open());
                assert_only_rows_have_directories(root.path(), &model);
            }
        }
        assert_same(snapshotter.as_ref().unwrap(), &model, &shown);
    }
}

fn assert_only_rows_have_directories(root: &Path, model: &Model) {
    let mut ids: Vec<_> = model
        .entries
        .values()
        .map(|entry| entry.id.clone())
        .collect();
    ids.sort();
    assert_eq!(directories(root), ids);
}

fn assert_same(s: &Snapshotter, model: &Model, shown: &str) {
    let mut listed = BTreeMap::new();
    s.list::<&str>(&[], |_, info| {
        let id = model
            .entries
            .get(&info.name)
            .map(|entry| entry.id.clone())
            .unwrap_or_default();
        let entry = Entry {
            id,
            kind: info.kind,
            parent: info.parent,
            labels: info.labels,
        };
        listed.insert(info.name, entry);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(listed, model.entries, "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_sequence_of_calls(calls in proptest::collection::vec(call(), 1..60)) {
        run(calls);
    }
}

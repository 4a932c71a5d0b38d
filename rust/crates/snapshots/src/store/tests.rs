//! What no caller can bring about: a disk that fails, and a clock that is wrong.

use super::*;
use crate::filter::Filter;
use crate::model::{Id, Ids, Kind, Labels, Snapshot};
use crate::row::Nanos;

fn store(root: &Path) -> Store {
    if !Store::exists(root).unwrap() {
        Store::create(root).unwrap();
    }
    Store::open(root).unwrap()
}

fn add(store: &Store, id: u64) -> Result<()> {
    let snapshot = Snapshot {
        id: Id(id),
        kind: Kind::Active,
        parents: Vec::new(),
        ids: Ids::AsSeen,
    };
    store.insert(&snapshot, &id.to_string(), None, &Labels::new())
}

fn unconfirmed<T>(result: Result<T>) {
    let Err(error) = result.map(drop) else {
        panic!("it was confirmed");
    };
    assert!(matches!(error, Error::Unconfirmed { .. }), "{error}");
}

#[test]
fn a_sync_that_fails_is_told_and_made_up_for() {
    let root = tempfile::tempdir().unwrap();
    let mut store = store(root.path());
    add(&store, 1).unwrap();
    // Which cannot be synced.
    let log = store
        .durability
        .replace_log(File::open("/dev/null").unwrap());
    unconfirmed(add(&store, 2));
    // What cleanup deletes by must be on the disk.
    unconfirmed(store.ids());
    assert_eq!(
        store.info("2").unwrap().0,
        Id(2),
        "it may be there, so it is"
    );
    store.durability.replace_log(log);
    unconfirmed(store.ids());

    // A reader of the old log is in the way of a new one.
    let mut busy = None;
    let listed = store.list(&Filter::parse::<&str>(&[]).unwrap(), |_, _| {
        busy.get_or_insert_with(|| add(&store, 3).unwrap_err().to_string());
        std::ops::ControlFlow::Continue(())
    });
    listed.unwrap();
    assert!(busy.unwrap().contains("add a snapshot"));
    add(&store, 3).unwrap();
    assert_eq!(store.ids().unwrap(), [1, 2, 3].map(Id).into());
    drop(store);
    assert_eq!(self::store(root.path()).ids().unwrap().len(), 3);
}

#[test]
fn everybody_s_transaction_is_on_the_disk() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..50 {
                    add(store, 1 + thread * 50 + round).unwrap();
                    // A refusal takes nobody along.
                    add(store, 1 + thread * 50 + round).unwrap_err();
                }
            });
        }
    });
    assert_eq!(store.durability.durable(), 200);
    let witness = fs::read(durability::witness(&store.path)).unwrap();
    assert_eq!(witness[..8], 200_u64.to_le_bytes());
    assert_eq!(store.ids().unwrap().len(), 200);
    assert_eq!(store.note_given(Id(1)).unwrap(), Id(200));
}

/// A clock that was ahead and jumps back: nothing is refused for it, and nothing is lost.
#[test]
fn a_time_in_the_future_is_in_nobody_s_way() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let mut row = Row::new(Id(1), Kind::Active, None, &Labels::new());
    row.created = Nanos(i64::MAX);
    row.updated = row.created;
    store
        .write("add a snapshot", |txn| {
            calls::Snapshots(txn).insert("1", &row)
        })
        .unwrap();
    let info = store.update::<&str>("1", &Labels::new(), &[]).unwrap().1;
    assert_eq!(info.updated, info.created);
    assert_eq!(store.info("1").unwrap().1, info);
    store.commit("one", "1", None, &Labels::new()).unwrap();
    let info = store.info("one").unwrap().1;
    assert!(info.created <= std::time::SystemTime::now());
    store.remove("one").unwrap();
    drop(store);
    self::store(root.path());
}

//! What is known of snapshots, under the names of containerd's tests.

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use prost_types::Timestamp;
use tonic::{Code, Status};

use super::{GC_ROOT, Subject};
use crate::snapshots::{Info, Kind, refused};

/// More than containerd puts into one message of a List.
const MORE_THAN_A_MESSAGE: usize = 120;

/// What is prepared is active.
///
/// # Errors
/// It is not.
pub fn stat_active(subject: &Subject) -> Result<()> {
    let key = subject.key("preparing");
    subject.mount(&subject.prepare(&key, "")?)?.unmount()?;
    subject.is(&key, Kind::Active, "")?;
    Ok(())
}

/// What is committed is committed.
///
/// # Errors
/// It is not.
pub fn stat_committed(subject: &Subject) -> Result<()> {
    let (key, name) = (subject.key("preparing"), subject.key("committed"));
    subject.mount(&subject.prepare(&key, "")?)?.unmount()?;
    subject.commit(&name, &key)?;
    subject.is(&name, Kind::Committed, "")?;
    Ok(())
}

/// A snapshot knows its parent, and by that its parent's parent.
///
/// # Errors
/// It does not.
pub fn transitivity(subject: &Subject) -> Result<()> {
    let (a, b) = (subject.key("a"), subject.key("b"));
    subject.layer(&a, "", &|_| Ok(()))?;
    subject.layer(&b, &a, &|_| Ok(()))?;
    subject.is(&a, Kind::Committed, "")?;
    let info = subject.is(&b, Kind::Committed, &a)?;
    subject.is(&info.parent, Kind::Committed, "")?;
    Ok(())
}

/// A key is taken for Prepare and View alike.
///
/// # Errors
/// It is not.
pub fn prepare_view_failing(subject: &Subject) -> Result<()> {
    let base = subject.key("base");
    subject.empty_layer(&base, "")?;
    for (name, first_is_view, second_is_view) in [
        ("prepare and view", false, true),
        ("prepare twice", false, false),
        ("view twice", true, true),
        ("view and prepare", true, false),
    ] {
        let key = subject.key(name);
        let make = |view| match view {
            true => subject.view(&key, &base),
            false => subject.prepare(&key, &base),
        };
        make(first_is_view)?;
        refused(make(second_is_view), Code::AlreadyExists, &[&key])?;
    }
    Ok(())
}

/// Times, kinds, parents and labels of all kinds of snapshots, and how they change.
///
/// # Errors
/// One of them is not as it should be.
pub fn update(subject: &Subject) -> Result<()> {
    let before = SystemTime::now();
    let all = kinds(subject)?;
    let after = SystemTime::now();
    let mut digits = Vec::new();
    for (name, kind, parent) in all {
        let info = subject.is(name, kind, parent)?;
        let created = time(info.created_at)?;
        ensure!(
            before <= created && created <= after,
            "{name} was created at {created:?}, not between {before:?} and {after:?}"
        );
        ensure!(info.created_at == info.updated_at, "{info:?}");
        digits.extend(info.created_at.map(|time| time.nanos % 1000));
        labels(subject, name, kind, parent, &info)
            .with_context(|| format!("in updates of {name}"))?;
    }
    ensure!(
        digits.iter().any(|digits| *digits != 0),
        "the nanoseconds are cut off"
    );
    Ok(())
}

/// Updates the labels of a snapshot in all ways.
fn labels(subject: &Subject, name: &str, kind: Kind, parent: &str, old: &Info) -> Result<()> {
    let (root, created) = (GC_ROOT.0, old.created_at);
    let send = |labels: &HashMap<String, String>, mask: &[&str]| {
        let info = Info {
            // Nothing of this can be changed, nor is it looked at.
            parent: "does not exist".to_owned(),
            labels: labels.clone(),
            ..old.clone()
        };
        subject.snapshots.update(info, Some(mask))
    };

    let all = map(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3"), (root, "again")]);
    let before = SystemTime::now();
    let answer = send(&all, &[])?;
    let after = SystemTime::now();
    ensure!(answer.labels == all, "{answer:?}");
    ensure!(answer.created_at == created, "{answer:?}");
    let updated = time(answer.updated_at)?;
    ensure!(
        before <= updated && updated <= after,
        "updated at {updated:?}, not between {before:?} and {after:?}"
    );
    let same = answer.name == name && answer.kind == kind as i32 && answer.parent == parent;
    ensure!(same, "{answer:?}");
    ensure!(subject.is(name, kind, parent)? == answer, "{answer:?}");

    let some = map(&[("l1", "updated"), ("l4", "v4")]);
    let answer = send(&some, &["labels.l1", "labels.l2"])?;
    let expected = map(&[("l1", "updated"), ("l3", "v3"), (root, "again")]);
    ensure!(answer.labels == expected, "{answer:?}");

    let other = map(&[("l4", "v4"), (root, "again")]);
    let answer = send(&other, &["labels"])?;
    ensure!(answer.labels == other, "{answer:?}");

    refused(
        send(&other, &["parent"]),
        Code::InvalidArgument,
        &["parent"],
    )?;
    ensure!(subject.is(name, kind, parent)? == answer, "{answer:?}");
    Ok(())
}

/// A snapshot of each kind, with and without a parent, by name, kind and parent.
fn kinds(subject: &Subject) -> Result<[(&'static str, Kind, &'static str); 6]> {
    subject.empty_layer("c1", "")?;
    subject.empty_layer("c2", "c1")?;
    subject.prepare("a1", "c2")?;
    subject.prepare("a2", "")?;
    subject.view("v1", "c2")?;
    subject.view("v2", "")?;
    Ok([
        ("c1", Kind::Committed, ""),
        ("c2", Kind::Committed, "c1"),
        ("a1", Kind::Active, "c2"),
        ("a2", Kind::Active, ""),
        ("v1", Kind::View, "c2"),
        ("v2", Kind::View, ""),
    ])
}

/// The name of what is removed can be used again at once, for any kind.
///
/// # Errors
/// It cannot.
pub fn remove(subject: &Subject) -> Result<()> {
    subject.empty_layer("committed-1", "")?;
    subject.prepare("reuse-1", "committed-1")?;
    subject.snapshots.remove("reuse-1")?;
    subject.view("reuse-1", "committed-1")?;
    subject.snapshots.remove("reuse-1")?;
    subject.prepare("reuse-1", "")?;
    subject.snapshots.remove("committed-1")?;
    subject.commit("committed-1", "reuse-1")?;
    subject.is("committed-1", Kind::Committed, "")?;
    Ok(())
}

/// Filters by kind, name, parent and labels.
///
/// # Errors
/// One of them lets something else through.
pub fn walk(subject: &Subject) -> Result<()> {
    let labelled = |value| [GC_ROOT, ("l", value)];
    let all = &subject.snapshots;
    subject.prepare("a-np", "")?;
    subject.empty_layer("p", "")?;
    subject.prepare("a", "p")?;
    subject.view("v", "p")?;
    all.layer("p-wl", "", &labelled("1"))?;
    all.prepare("a-wl", "p-wl", &labelled("2"))?;
    all.view("v-wl", "p-wl", &labelled("3"))?;
    all.prepare("a-np-wl", "", &labelled("2"))?;

    let root = format!("labels.{:?}=={}", GC_ROOT.0, GC_ROOT.1);
    let rooted = |filter: &str| format!("{filter},{root}");
    for (filters, mut expected) in [
        (
            vec![root.clone()],
            vec!["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"],
        ),
        (
            vec![rooted("kind==active")],
            vec!["a-np", "a", "a-wl", "a-np-wl"],
        ),
        (vec![rooted("kind==view")], vec!["v", "v-wl"]),
        (vec![rooted("kind==committed")], vec!["p", "p-wl"]),
        (
            vec!["name==p".to_owned(), "name==a-np-wl".to_owned()],
            vec!["p", "a-np-wl"],
        ),
        (vec!["name==a-wl,labels.l".to_owned()], vec!["a-wl"]),
        (vec!["parent==p".to_owned()], vec!["a", "v"]),
        (
            vec![rooted(r#"parent!="""#)],
            vec!["a", "v", "a-wl", "v-wl"],
        ),
        (
            vec!["labels.l".to_owned()],
            vec!["p-wl", "a-wl", "v-wl", "a-np-wl"],
        ),
        (vec!["labels.l==2".to_owned()], vec!["a-wl", "a-np-wl"]),
    ] {
        let filters: Vec<_> = filters.iter().map(String::as_str).collect();
        expected.sort_unstable();
        let found = all.names(&filters)?;
        ensure!(
            found == expected,
            "{filters:?} lets {found:?} through, not {expected:?}"
        );
    }
    Ok(())
}

/// What is between others cannot be removed; from the top down, everything can.
///
/// # Errors
/// It is otherwise.
pub fn remove_intermediate_snapshot(subject: &Subject) -> Result<()> {
    let [base, middle, top] = ["base", "middle", "top"].map(|name| subject.key(name));
    subject.layer(&base, "", &|_| Ok(()))?;
    subject.empty_layer(&middle, &base)?;
    subject.prepare(&top, &middle)?;
    refused(
        subject.snapshots.remove(&middle),
        Code::FailedPrecondition,
        &["remove"],
    )?;
    for name in [&top, &middle, &base] {
        subject.snapshots.remove(name)?;
    }
    Ok(())
}

/// Stat can be called while a List is under way, and says the same.
///
/// # Errors
/// It cannot, or says otherwise.
pub fn stat_in_walk(subject: &Subject) -> Result<()> {
    kinds(subject)?;
    for number in 0..MORE_THAN_A_MESSAGE {
        subject.view(&format!("many-{number}"), "c2")?;
    }
    let mut count = 0;
    subject.snapshots.walk(&[], |info| {
        count += 1;
        let stat = subject.snapshots.stat(&info.name)?;
        match stat == info {
            true => Ok(()),
            false => Err(Status::unknown(format!("{info:?} is {stat:?} in a Stat"))),
        }
    })?;
    ensure!(count == MORE_THAN_A_MESSAGE + 6, "{count} are listed");
    Ok(())
}

/// A client that closes its connection, or two of them, changes nothing for others.
///
/// # Errors
/// It does.
pub fn close_twice(subject: &Subject) -> Result<()> {
    let clients = [subject.target.connect()?, subject.target.connect()?];
    for (number, client) in clients.into_iter().enumerate() {
        let name = format!("close-{number}");
        client.layer(&name, "", &[GC_ROOT])?;
        client.remove(&name)?;
    }
    ensure!(subject.target.connect()?.list(&[])?.is_empty());
    ensure!(subject.snapshots.list(&[])?.is_empty());
    Ok(())
}

fn map(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn time(time: Option<Timestamp>) -> Result<SystemTime> {
    Ok(time.context("a time is missing")?.try_into()?)
}

/// Everything that is listed, by name.
pub(super) fn listed(subject: &Subject) -> Result<BTreeMap<String, Info>> {
    let infos = subject.snapshots.list(&[])?;
    Ok(infos
        .into_iter()
        .map(|info| (info.name.clone(), info))
        .collect())
}

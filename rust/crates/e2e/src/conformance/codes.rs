//! What containerd's reference implementation answers, call by call: its overlayfs snapshotter on its
//! metadata store (`plugins/snapshots/overlay`, `core/snapshots/storage`, 1.7 to 2.4).
//!
//! The words that are asked for in messages name the thing that is refused.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};
use tonic::{
    Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown},
    Status,
};

use super::{GC_ROOT, Subject};
use crate::{
    image::SNAPSHOT_REF,
    snapshots::{Info, Kind, Mount, refused, says, upper},
};

/// An active snapshot, or why there is none.
///
/// # Errors
/// The answer is another.
pub fn prepare(subject: &Subject) -> Result<()> {
    making(subject, Kind::Active, &|key, parent| {
        subject.prepare(key, parent)
    })
}

/// A view, or why there is none.
///
/// # Errors
/// The answer is another.
pub fn view(subject: &Subject) -> Result<()> {
    making(subject, Kind::View, &|key, parent| {
        subject.view(key, parent)
    })
}

type Make<'a> = &'a dyn Fn(&str, &str) -> Result<Vec<Mount>, Status>;

fn making(subject: &Subject, kind: Kind, make: Make) -> Result<()> {
    subject.prepare("active", "")?;
    subject.view("view", "")?;
    subject.empty_layer("base", "")?;
    for (key, parent, code, named) in [
        ("active", "", AlreadyExists, "active"),
        ("view", "", AlreadyExists, "view"),
        ("base", "", AlreadyExists, "base"),
        ("new", "nothing", NotFound, "nothing"),
        ("new", "active", InvalidArgument, "active"),
        ("new", "view", InvalidArgument, "view"),
        ("active", "base", AlreadyExists, "active"),
    ] {
        refused(make(key, parent), code, &[named])
            .with_context(|| format!("{key} on {parent:?}"))?;
    }
    ensure!(subject.snapshots.names(&[])? == ["active", "base", "view"]);
    for parent in ["", "base"] {
        let key = format!("new on {parent}");
        ensure!(!make(&key, parent)?.is_empty());
        subject.is(&key, kind, parent)?;
    }
    Ok(())
}

/// Mounts are those of active snapshots and views, and the same at every call.
///
/// # Errors
/// They are otherwise.
pub fn mounts(subject: &Subject) -> Result<()> {
    subject.empty_layer("base", "")?;
    subject.empty_layer("top", "base")?;
    for parent in ["", "base", "top"] {
        for (key, made) in [
            ("active", subject.prepare("active", parent)?),
            ("view", subject.view("view", parent)?),
        ] {
            let again = subject.snapshots.mounts(key)?;
            ensure!(again == made, "{key}: {made:?} and {again:?}");
            subject.snapshots.remove(key)?;
        }
    }
    let (committed, nothing) = (
        subject.snapshots.mounts("base"),
        subject.snapshots.mounts("nothing"),
    );
    refused(committed, FailedPrecondition, &["base"])?;
    refused(nothing, NotFound, &["nothing"])
}

/// Mounts are a bind of one directory, or an overlay from the top to the bottom.
///
/// # Errors
/// They are something else.
pub fn mounts_of_each_kind(subject: &Subject) -> Result<()> {
    let bind = |mounts: &[Mount], access: &str| {
        let options = [access, "rbind"];
        mounts.len() == 1 && mounts[0].r#type == "bind" && mounts[0].options == options
    };
    let mounts = subject.prepare("extract-1", "")?;
    ensure!(bind(&mounts, "rw"), "{mounts:?}");
    let first = upper(&mounts)?;
    let attributes = fs::metadata(&first)?;
    ensure!(attributes.permissions().mode() & 0o7777 == 0o755 && attributes.uid() == 0);
    chown(&first, Some(7), Some(8))?;
    fs::set_permissions(&first, fs::Permissions::from_mode(0o700))?;
    subject.commit("1", "extract-1")?;

    let mounts = subject.view("empty view", "")?;
    ensure!(bind(&mounts, "ro"), "{mounts:?}");
    ensure!(fs::read_dir(&mounts[0].source)?.next().is_none());
    let mounts = subject.view("view of one", "1")?;
    ensure!(bind(&mounts, "ro"), "{mounts:?}");
    ensure!(Path::new(&mounts[0].source) == first, "{mounts:?}");

    let mount = overlay(&subject.prepare("extract-2", "1")?)?;
    let second = upper(std::slice::from_ref(&mount))?;
    ensure!(option(&mount, "lowerdir") == first.to_str(), "{mount:?}");
    // The root of a layer has the owner of the one below, and not its mode.
    let attributes = fs::metadata(&second)?;
    ensure!(attributes.permissions().mode() & 0o7777 == 0o755);
    ensure!((attributes.uid(), attributes.gid()) == (7, 8));
    let work = Path::new(option(&mount, "workdir").context("no workdir")?);
    ensure!(
        work.is_dir() && work.parent() == second.parent() && second != first,
        "{mount:?}"
    );
    subject.commit("2", "extract-2")?;

    let lower = format!("{}:{}", second.display(), first.display());
    let mount = overlay(&subject.view("view of two", "2")?)?;
    ensure!(option(&mount, "lowerdir") == Some(&*lower), "{mount:?}");
    ensure!(option(&mount, "upperdir").is_none(), "{mount:?}");
    let mount = overlay(&subject.prepare("container", "2")?)?;
    ensure!(option(&mount, "lowerdir") == Some(&*lower), "{mount:?}");
    Ok(())
}

fn overlay(mounts: &[Mount]) -> Result<Mount> {
    ensure!(
        mounts.len() == 1 && mounts[0].r#type == "overlay",
        "{mounts:?}"
    );
    Ok(mounts[0].clone())
}

fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

/// A committed snapshot in the place of an active one, with labels and times of its own, or why
/// there is none.
///
/// # Errors
/// The answer is another.
pub fn commit(subject: &Subject) -> Result<()> {
    let snapshots = &subject.snapshots;
    subject.empty_layer("base", "")?;
    subject.view("view", "base")?;
    let labels = [GC_ROOT, ("a", "of prepare"), ("b", "2")];
    let upper_dir = upper(&snapshots.prepare("active", "base", &labels)?)?;
    for (name, key, code, named) in [
        ("new", "nothing", NotFound, "nothing"),
        ("base", "active", AlreadyExists, "base"),
        ("new", "view", FailedPrecondition, "view"),
        ("new", "base", FailedPrecondition, "base"),
    ] {
        refused(subject.commit(name, key), code, &[named])
            .with_context(|| format!("{key} as {name}"))?;
    }
    ensure!(snapshots.names(&[])? == ["active", "base", "view"]);

    let before = SystemTime::now();
    snapshots.commit("new", "active", &[GC_ROOT, ("a", "of commit")])?;
    let after = SystemTime::now();
    refused(snapshots.stat("active"), NotFound, &["active"])?;
    let info = subject.is("new", Kind::Committed, "base")?;
    let expected = [GC_ROOT, ("a", "of commit")].map(owned);
    ensure!(info.labels == expected.into(), "{info:?}");
    let created = SystemTime::try_from(info.created_at.context("no created_at")?)?;
    ensure!(before <= created && created <= after, "{info:?}");
    ensure!(info.created_at == info.updated_at, "{info:?}");
    // The content stays where it is.
    let mount = overlay(&subject.prepare("container", "new")?)?;
    let lower = option(&mount, "lowerdir").context("no lowerdir")?;
    ensure!(lower.split(':').next() == upper_dir.to_str(), "{mount:?}");
    Ok(())
}

/// What has no children goes, and its name is free.
///
/// # Errors
/// The answer is another.
pub fn remove(subject: &Subject) -> Result<()> {
    let snapshots = &subject.snapshots;
    refused(snapshots.remove("nothing"), NotFound, &["nothing"])?;
    subject.empty_layer("base", "")?;
    for make in [
        &|| subject.prepare("child", "base").map(drop) as Result<(), Status>,
        &|| subject.view("child", "base").map(drop),
        &|| subject.empty_layer("child", "base"),
    ] as [&dyn Fn() -> Result<(), Status>; 3]
    {
        make()?;
        // The word is asked for by containerd's own suite.
        refused(snapshots.remove("base"), FailedPrecondition, &["remove"])?;
        snapshots.remove("child")?;
        refused(snapshots.stat("child"), NotFound, &["child"])?;
        refused(snapshots.remove("child"), NotFound, &["child"])?;
    }
    snapshots.remove("base")?;
    ensure!(snapshots.list(&[])?.is_empty());
    Ok(())
}

/// What is known of each kind.
///
/// # Errors
/// The answer is another.
pub fn stat(subject: &Subject) -> Result<()> {
    refused(subject.snapshots.stat("nothing"), NotFound, &["nothing"])?;
    refused(subject.snapshots.stat(""), NotFound, &[])?;
    subject.empty_layer("base", "")?;
    subject.prepare("active", "base")?;
    subject.view("view", "base")?;
    for (name, kind, parent) in [
        ("base", Kind::Committed, ""),
        ("active", Kind::Active, "base"),
        ("view", Kind::View, "base"),
    ] {
        let info = subject.is(name, kind, parent)?;
        ensure!(info.labels == [GC_ROOT].map(owned).into(), "{info:?}");
        ensure!(info.created_at.is_some() && info.updated_at.is_some());
    }
    Ok(())
}

/// Labels follow the mask: all of them, or one by one.
///
/// # Errors
/// The answer is another.
pub fn update(subject: &Subject) -> Result<()> {
    let snapshots = &subject.snapshots;
    let labels = [
        GC_ROOT,
        ("l1", "1"),
        ("l2", "2"),
        ("l3.with/dots", "3"),
        ("l4", "4"),
    ];
    snapshots.prepare("active", "", &labels)?;
    let old = snapshots.stat("active")?;
    let with = |labels: &[(&str, &str)]| Info {
        name: "active".to_owned(),
        labels: labels.iter().copied().map(owned).collect(),
        // Neither can be changed, and without a path of its own neither is looked at.
        parent: "bogus".to_owned(),
        kind: Kind::Committed as i32,
        ..Info::default()
    };

    // A label without value is no label.
    let new = with(&[("l1", "new"), ("l4", ""), ("l5", "5")]);
    let mask = ["labels.l1", "labels.l2", "labels.l4", "labels.no-such"];
    let updated = snapshots.update(new.clone(), Some(&mask))?;
    let expected = with(&[GC_ROOT, ("l1", "new"), ("l3.with/dots", "3")]).labels;
    let stored = snapshots.stat("active")?;
    ensure!(stored.labels == expected, "{stored:?}");
    ensure!(updated.created_at == old.created_at && updated.updated_at != old.updated_at);
    subject.is("active", Kind::Active, "")?;
    let other = with(&[("l3.with/dots", "changed")]);
    snapshots.update(other, Some(&["labels.l3.with/dots"]))?;
    let stored = snapshots.stat("active")?;
    ensure!(stored.labels["l3.with/dots"] == "changed", "{stored:?}");

    let new = with(&[GC_ROOT, ("l1", "new"), ("l5", "5")]);
    for mask in [Some(&["labels"][..]), Some(&[]), None] {
        let updated = snapshots.update(new.clone(), mask)?;
        ensure!(updated.labels == new.labels, "{mask:?}: {updated:?}");
        ensure!(snapshots.stat("active")? == updated, "{mask:?}");
        snapshots.update(with(&labels), Some(&["labels"]))?;
    }
    let old = snapshots.stat("active")?;
    for path in ["parent", "name", "kind", "created_at", "label", "labels/l1"] {
        let answer = snapshots.update(new.clone(), Some(&["labels.l1", path]));
        refused(answer, InvalidArgument, &[path])?;
    }
    ensure!(snapshots.stat("active")? == old);
    let nobody = Info {
        name: "nothing".to_owned(),
        ..Info::default()
    };
    refused(
        snapshots.update(nobody, Some(&["labels"])),
        NotFound,
        &["nothing"],
    )
}

/// Filters in containerd's grammar (`pkg/filters`).
///
/// # Errors
/// One of them lets something else through.
pub fn list(subject: &Subject) -> Result<()> {
    let snapshots = &subject.snapshots;
    ensure!(snapshots.list(&[])?.is_empty());
    let reference = format!("sha256:{}", "a".repeat(64));
    snapshots.layer(
        "1/base",
        "",
        &[GC_ROOT, (SNAPSHOT_REF, &reference), ("l", "one")],
    )?;
    snapshots.layer("2/top", "1/base", &[GC_ROOT, ("l", "two")])?;
    snapshots.prepare("3/active", "2/top", &[GC_ROOT])?;
    snapshots.view("4/view", "2/top", &[GC_ROOT, ("l", "")])?;
    let all = ["1/base", "2/top", "3/active", "4/view"];

    // The one that containerd itself sends.
    let by_reference = format!(r#"labels."{SNAPSHOT_REF}"=={reference},parent=="""#);
    for (filters, expected) in [
        (&[][..], &all[..]),
        (&[""], &all),
        (&["kind==active"], &all[2..3]),
        (&["kind==committed"], &all[..2]),
        (&["kind!=view,parent==2/top"], &all[2..3]),
        (&[r#"parent!="""#], &all[1..]),
        (&["labels.l"], &all[..2]),
        (&["labels.l==one", "labels.l==two"], &all[..2]),
        // What is absent is not equal.
        (&["labels.l!=one"], &all[1..]),
        (&[r#"labels."no-such"!=one"#], &all),
        (&["nothing!=one"], &all),
        (&["nothing"], &[]),
        (&["name~=/[13]/"], &[all[0], all[2]]),
        (&["labels.l~=/o$/"], &all[1..2]),
        (&[&*by_reference], &all[..1]),
        (&["kind==nothing"], &[]),
        (&["kind==nothing", "name==4/view"], &all[3..]),
    ] {
        let found = snapshots.names(filters)?;
        ensure!(
            found == expected,
            "{filters:?} lets {found:?} through, not {expected:?}"
        );
    }
    for filter in [
        "kind==",
        "kind=active",
        "==a",
        "name~=/unclosed",
        "kind==active,",
    ] {
        let Err(status) = snapshots.list(&[filter]) else {
            bail!("{filter} is taken for a filter");
        };
        // containerd's service says Unknown, with the words of an invalid argument: its List is the
        // one call that does not translate errors (`plugins/services/snapshots`, 1.7 to 2.4).
        let codes = [InvalidArgument, Unknown];
        ensure!(codes.contains(&status.code()), "{filter}: {status:?}");
        says(status.message(), &["filter"])?;
    }
    Ok(())
}

/// What the own layer takes, each file once.
///
/// # Errors
/// The answer is another.
pub fn usage(subject: &Subject) -> Result<()> {
    let snapshots = &subject.snapshots;
    let mebibyte = vec![7; 1024 * 1024];
    let dir = upper(&subject.prepare("extract-base", "")?)?;
    fs::write(dir.join("file"), &mebibyte)?;
    fs::hard_link(dir.join("file"), dir.join("the same file"))?;
    let usage = snapshots.usage("extract-base")?;
    // The root directory, and the file.
    ensure!(usage.inodes == 2, "{usage:?}");
    ensure!((1_048_576..1_200_000).contains(&usage.size), "{usage:?}");
    subject.commit("base", "extract-base")?;
    ensure!(snapshots.usage("base")? == usage);

    subject.prepare("active", "base")?;
    let usage = snapshots.usage("active")?;
    ensure!(usage.inodes == 1 && usage.size < 100_000, "{usage:?}");
    subject.view("view", "base")?;
    let usage = snapshots.usage("view")?;
    ensure!(usage.inodes == 0 && usage.size == 0, "{usage:?}");
    refused(snapshots.usage("nothing"), NotFound, &["nothing"])
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

//! The Snapshots service on the daemon's own socket: codes and semantics of containerd's
//! reference, which is its overlay snapshotter on its metadata store.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    daemon::{Config, Daemon},
    host::{Host, test},
    image::SNAPSHOT_REF,
    snapshots::{Info, Kind, Mount, Snapshots, refused, upper},
};
use tonic::Code;

fn start(host: &Host) -> Result<(Daemon, Snapshots)> {
    let daemon = Daemon::start(&Config::new(host, "daemon"))?;
    let snapshots = daemon.snapshots()?;
    Ok((daemon, snapshots))
}

fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

#[test]
fn prepare_and_view_refuse_what_the_reference_refuses() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        snapshots.prepare("active", "", &[])?;
        snapshots.view("view", "", &[])?;
        snapshots.layer("base", "", &[])?;
        for (key, parent, code) in [
            ("active", "", Code::AlreadyExists),
            ("view", "", Code::AlreadyExists),
            ("base", "", Code::AlreadyExists),
            ("new", "nothing", Code::NotFound),
            ("new", "active", Code::InvalidArgument),
            ("new", "view", Code::InvalidArgument),
        ] {
            refused(snapshots.prepare(key, parent, &[]), code, &[key])?;
            refused(snapshots.view(key, parent, &[]), code, &[key])?;
        }
        ensure!(snapshots.names(&[])? == ["active", "base", "view"]);
        Ok(())
    });
}

#[test]
fn mounts_are_those_of_active_snapshots_and_views() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let prepared = snapshots.prepare("active", "", &[])?;
        ensure!(snapshots.mounts("active")? == prepared);
        snapshots.layer("base", "", &[])?;
        refused(
            snapshots.mounts("base"),
            Code::FailedPrecondition,
            &["base"],
        )?;
        refused(snapshots.mounts("nothing"), Code::NotFound, &["nothing"])
    });
}

#[test]
fn mounts_are_those_of_the_overlay_snapshotter() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let mounts = snapshots.prepare("extract-1", "", &[])?;
        ensure!(mounts.len() == 1 && mounts[0].r#type == "bind" && mounts[0].target.is_empty());
        ensure!(mounts[0].options == ["rw", "rbind"], "{mounts:?}");
        let first = upper(&mounts)?;
        let attributes = fs::metadata(&first)?;
        ensure!(attributes.permissions().mode() & 0o7777 == 0o755 && attributes.uid() == 0);
        snapshots.commit("1", "extract-1", &[])?;

        let mounts = snapshots.view("empty view", "", &[])?;
        ensure!(
            mounts.len() == 1 && mounts[0].options == ["ro", "rbind"],
            "{mounts:?}"
        );
        ensure!(fs::read_dir(&mounts[0].source)?.next().is_none());

        let mounts = snapshots.view("view of one", "1", &[])?;
        ensure!(
            mounts.len() == 1 && mounts[0].r#type == "bind",
            "{mounts:?}"
        );
        ensure!(mounts[0].options == ["ro", "rbind"] && Path::new(&mounts[0].source) == first);

        let mounts = snapshots.prepare("extract-2", "1", &[])?;
        ensure!(
            mounts.len() == 1 && mounts[0].r#type == "overlay",
            "{mounts:?}"
        );
        let second = upper(&mounts)?;
        ensure!(
            option(&mounts[0], "lowerdir") == first.to_str(),
            "{mounts:?}"
        );
        let work = Path::new(option(&mounts[0], "workdir").context("no workdir")?);
        ensure!(
            work.is_dir() && work.parent() == second.parent(),
            "{mounts:?}"
        );
        snapshots.commit("2", "extract-2", &[])?;

        // From the top to the bottom.
        let lower = format!("{}:{}", second.display(), first.display());
        let mounts = snapshots.view("view of two", "2", &[])?;
        ensure!(
            mounts.len() == 1 && mounts[0].r#type == "overlay",
            "{mounts:?}"
        );
        ensure!(
            option(&mounts[0], "lowerdir") == Some(&*lower),
            "{mounts:?}"
        );
        ensure!(option(&mounts[0], "upperdir").is_none(), "{mounts:?}");
        let mounts = snapshots.prepare("container", "2", &[])?;
        ensure!(
            option(&mounts[0], "lowerdir") == Some(&*lower),
            "{mounts:?}"
        );
        Ok(())
    });
}

#[test]
fn commit_refuses_what_the_reference_refuses_and_takes_the_key_away() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        snapshots.layer("base", "", &[])?;
        snapshots.view("view", "base", &[])?;
        snapshots.prepare("active", "base", &[("a", "of prepare"), ("b", "2")])?;
        refused(
            snapshots.commit("new", "nothing", &[]),
            Code::NotFound,
            &["nothing"],
        )?;
        refused(
            snapshots.commit("base", "nothing", &[]),
            Code::NotFound,
            &["nothing"],
        )?;
        refused(
            snapshots.commit("base", "active", &[]),
            Code::AlreadyExists,
            &["base"],
        )?;
        refused(
            snapshots.commit("new", "view", &[]),
            Code::FailedPrecondition,
            &["view"],
        )?;
        refused(
            snapshots.commit("new", "base", &[]),
            Code::FailedPrecondition,
            &["base"],
        )?;

        snapshots.commit("new", "active", &[("a", "of commit")])?;
        refused(snapshots.stat("active"), Code::NotFound, &["active"])?;
        let info = snapshots.stat("new")?;
        ensure!(info.kind == Kind::Committed as i32 && info.parent == "base");
        // The labels of a commit replace those of the Prepare (core/snapshots/storage).
        ensure!(info.labels == [("a".to_owned(), "of commit".to_owned())].into());
        ensure!(info.created_at.is_some() && info.created_at == info.updated_at);
        Ok(())
    });
}

#[test]
fn remove_refuses_parents_and_frees_names() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        refused(snapshots.remove("nothing"), Code::NotFound, &["nothing"])?;
        snapshots.layer("base", "", &[])?;
        snapshots.layer("child", "base", &[])?;
        // The word is asked for by containerd's own test suite.
        refused(
            snapshots.remove("base"),
            Code::FailedPrecondition,
            &["remove", "base"],
        )?;
        snapshots.remove("child")?;
        snapshots.remove("base")?;
        for _ in 0..2 {
            snapshots.prepare("again", "", &[])?;
            snapshots.remove("again")?;
            snapshots.view("again", "", &[])?;
            snapshots.remove("again")?;
            snapshots.layer("again", "", &[])?;
            snapshots.remove("again")?;
        }
        ensure!(snapshots.list(&[])?.is_empty());
        Ok(())
    });
}

#[test]
fn removed_snapshots_leave_nothing_after_cleanup() {
    test(|host| {
        let (daemon, snapshots) = start(host)?;
        let empty = daemon.config().kept()?;
        let mounts = snapshots.prepare("active", "", &[])?;
        fs::create_dir_all(upper(&mounts)?.join("a/b"))?;
        fs::write(upper(&mounts)?.join("a/b/c"), "content")?;
        snapshots.remove("active")?;
        snapshots.cleanup()?;
        ensure!(daemon.config().kept()?.snapshots == empty.snapshots);
        Ok(())
    });
}

#[test]
fn sync_remove_deletes_at_once() {
    test(|host| {
        let daemon = Daemon::start(&Config::new(host, "daemon").line("sync_remove = true"))?;
        let snapshots = daemon.snapshots()?;
        let empty = daemon.config().kept()?;
        snapshots.prepare("active", "", &[])?;
        ensure!(daemon.config().kept()?.snapshots != empty.snapshots);
        snapshots.remove("active")?;
        ensure!(daemon.config().kept()?.snapshots == empty.snapshots);
        Ok(())
    });
}

#[test]
fn times_are_full_nanoseconds_and_equal_at_creation() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let mut nanos = BTreeSet::new();
        for n in 0..5 {
            let key = format!("active {n}");
            let before = SystemTime::now();
            snapshots.prepare(&key, "", &[])?;
            let after = SystemTime::now();
            let info = snapshots.stat(&key)?;
            ensure!(info.created_at == info.updated_at, "{info:?}");
            let created = info.created_at.context("no created_at")?;
            nanos.insert(created.nanos % 1000);
            let created = SystemTime::try_from(created)?;
            ensure!(
                before <= created && created <= after,
                "{before:?} {created:?} {after:?}"
            );
        }
        ensure!(
            nanos.len() > 1,
            "the last three digits of five times are all {nanos:?}"
        );
        Ok(())
    });
}

#[test]
fn update_follows_its_mask() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let labels = [("l1", "1"), ("l2", "2"), ("l3.with/dots", "3")];
        snapshots.prepare("active", "", &labels)?;
        let old = snapshots.stat("active")?;
        let with = |labels: &[(&str, &str)]| Info {
            name: "active".to_owned(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            // Neither may be changed, and without a path of its own neither is looked at.
            parent: "bogus".to_owned(),
            kind: Kind::Committed as i32,
            ..Info::default()
        };

        let new = with(&[("l1", "new"), ("l4", "4")]);
        let updated = snapshots.update(new.clone(), Some(&["labels.l1", "labels.l2"]))?;
        let expected = with(&[("l1", "new"), ("l3.with/dots", "3")]).labels;
        ensure!(updated.labels == expected, "{updated:?}");
        ensure!(updated.created_at == old.created_at && updated.updated_at != old.updated_at);
        ensure!(
            updated.parent.is_empty() && updated.kind == Kind::Active as i32,
            "{updated:?}"
        );
        ensure!(snapshots.stat("active")? == updated);

        for mask in [Some(&["labels"][..]), Some(&[]), None] {
            let updated = snapshots.update(new.clone(), mask)?;
            ensure!(
                updated.labels == new.labels && updated.parent.is_empty(),
                "{updated:?}"
            );
            snapshots.update(with(&labels), Some(&["labels"]))?;
        }
        for path in ["parent", "name", "kind", "created_at"] {
            let answer = snapshots.update(new.clone(), Some(&[path]));
            refused(answer, Code::InvalidArgument, &[path, "labels"])?;
        }
        ensure!(snapshots.stat("active")?.labels == with(&labels).labels);
        let nobody = Info {
            name: "nothing".to_owned(),
            ..Info::default()
        };
        refused(
            snapshots.update(nobody, Some(&["labels"])),
            Code::NotFound,
            &["nothing"],
        )
    });
}

#[test]
fn list_filters_as_containerd_does() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let reference = format!("sha256:{}", "a".repeat(64));
        snapshots.layer(
            "default/1/base",
            "",
            &[(SNAPSHOT_REF, &reference), ("l", "one")],
        )?;
        snapshots.layer("default/2/top", "default/1/base", &[("l", "two")])?;
        snapshots.prepare("default/3/active", "default/2/top", &[])?;
        snapshots.view("default/4/view", "default/2/top", &[("l", "")])?;
        let all = [
            "default/1/base",
            "default/2/top",
            "default/3/active",
            "default/4/view",
        ];

        let by_reference =
            format!(r#"labels."containerd.io/snapshot.ref"=={reference},parent=="""#);
        for (filters, expected) in [
            (&[][..], &all[..]),
            (&[""], &all),
            (&["kind==active"], &all[2..3]),
            (&["kind==committed"], &all[..2]),
            (&["kind!=view,parent==default/2/top"], &all[2..3]),
            (&[r#"parent!="""#], &all[1..]),
            (&["labels.l"], &all[..2]),
            (&["labels.l==one", "labels.l==two"], &all[..2]),
            (&["labels.l!=one"], &all[1..]),
            (&["name~=/[13]/"], &[all[0], all[2]]),
            (&[&*by_reference], &all[..1]),
            (&["kind==nothing"], &[]),
        ] {
            let found = snapshots.names(filters)?;
            ensure!(
                found == expected,
                "{filters:?} matches {found:?}, not {expected:?}"
            );
        }
        for filter in [
            "kind==",
            "kind=active",
            "==a",
            "name~=/unclosed",
            "kind==active,",
        ] {
            refused(snapshots.list(&[filter]), Code::InvalidArgument, &[filter])?;
        }
        for info in snapshots.list(&[])? {
            ensure!(info == snapshots.stat(&info.name)?, "{info:?}");
        }
        Ok(())
    });
}

#[test]
fn usage_is_that_of_the_own_layer() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let mebibyte = vec![7; 1024 * 1024];
        let mounts = snapshots.prepare("extract-base", "", &[])?;
        let dir = upper(&mounts)?;
        fs::write(dir.join("file"), &mebibyte)?;
        fs::hard_link(dir.join("file"), dir.join("the same file"))?;
        let usage = snapshots.usage("extract-base")?;
        // The root directory and the file, which counts once.
        ensure!(usage.inodes == 2, "{usage:?}");
        ensure!((1_048_576..1_200_000).contains(&usage.size), "{usage:?}");
        snapshots.commit("base", "extract-base", &[])?;
        ensure!(snapshots.usage("base")? == usage);

        snapshots.prepare("active", "base", &[])?;
        let usage = snapshots.usage("active")?;
        ensure!(usage.inodes == 1 && usage.size < 100_000, "{usage:?}");
        snapshots.view("view", "base", &[])?;
        let usage = snapshots.usage("view")?;
        ensure!(usage.inodes == 0 && usage.size == 0, "{usage:?}");
        refused(snapshots.usage("nothing"), Code::NotFound, &["nothing"])
    });
}

#[test]
fn large_messages_pass_as_containerd_lets_them_pass() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        // More than tonic's default of 4 MiB in one request, and together more than the
        // 16 MiB that containerd takes in one message.
        let long = "x".repeat(4000);
        let names: Vec<_> = (0..1500).map(|n| format!("label-{n}")).collect();
        let labels: Vec<_> = names.iter().map(|name| (&**name, &*long)).collect();
        for n in 0..4 {
            snapshots.layer(&format!("layer-{n}"), "", &labels)?;
        }
        ensure!(snapshots.list(&[])?.len() == 4);
        ensure!(snapshots.stat("layer-0")?.labels.len() == 1500);
        Ok(())
    });
}

#[test]
fn everything_survives_being_killed() {
    test(|host| {
        let (mut daemon, snapshots) = start(host)?;
        snapshots.layer("base", "", &[("l", "1")])?;
        snapshots.layer("top", "base", &[])?;
        snapshots.prepare("active", "top", &[("l", "2")])?;
        snapshots.view("view", "base", &[])?;
        let (rows, kept) = (snapshots.list(&[])?, daemon.config().kept()?);
        let mounts = snapshots.mounts("active")?;
        daemon.kill()?;
        daemon.start_again()?;
        let snapshots = daemon.snapshots()?;
        ensure!(snapshots.list(&[])? == rows);
        ensure!(snapshots.mounts("active")? == mounts);
        ensure!(daemon.config().kept()?.snapshots == kept.snapshots);
        Ok(())
    });
}

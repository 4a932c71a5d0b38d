//! What containerd relies on call by call, beyond its own suite.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    codes_suite,
    containerd::NIX,
    daemon::{Config, Daemon},
    host::{Host, test},
    image::NIX_STORE_PATH,
    process::{SETTLE, poll, when},
    snapshots::{Snapshots, refused, says, upper},
    store::{Store, roots_of},
};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tonic::Code;

codes_suite!(daemon, e2e::conformance::targets::daemon);
codes_suite!(
    nix_through_containerd,
    e2e::conformance::targets::nix_through_containerd
);
codes_suite!(
    overlayfs_through_containerd,
    e2e::conformance::targets::overlayfs_through_containerd
);

fn start(host: &Host) -> Result<(Daemon, Snapshots)> {
    let daemon = Daemon::start(&Config::new(host, "daemon"))?;
    let snapshots = daemon.snapshots()?;
    Ok((daemon, snapshots))
}

#[test]
fn commit_of_nothing_is_not_found_whatever_the_name() {
    test(|host| {
        // As the overlay snapshotter, which looks at the key first. Through containerd it is the
        // name that is looked at first.
        let (_daemon, snapshots) = start(host)?;
        snapshots.layer("base", "", &[])?;
        let answer = snapshots.commit("base", "nothing", &[]);
        refused(answer, Code::NotFound, &["nothing"])
    });
}

#[test]
fn a_commit_can_give_a_parent() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        snapshots.layer("base", "", &[])?;
        snapshots.layer("other", "", &[])?;
        let upper_dir = upper(&snapshots.prepare("orphan", "", &[])?)?;
        snapshots.prepare("child", "base", &[])?;
        snapshots.view("view", "", &[])?;
        for (parent, key, code, named) in [
            ("other", "child", Code::InvalidArgument, "other"),
            ("nothing", "child", Code::InvalidArgument, "nothing"),
            ("nothing", "orphan", Code::NotFound, "nothing"),
            ("child", "orphan", Code::FailedPrecondition, "child"),
            ("view", "orphan", Code::FailedPrecondition, "view"),
            ("orphan", "orphan", Code::FailedPrecondition, "orphan"),
        ] {
            let answer = snapshots.commit_onto(parent, "new", key, &[]);
            refused(answer, code, &[named]).with_context(|| format!("{key} onto {parent}"))?;
        }
        // Nothing of that has changed anything.
        let names = ["base", "child", "orphan", "other", "view"];
        ensure!(snapshots.names(&[])? == names);

        snapshots.commit_onto("base", "rebased", "orphan", &[])?;
        ensure!(snapshots.stat("rebased")?.parent == "base");
        let mounts = snapshots.view("of both", "rebased", &[])?;
        let lower = mounts[0]
            .options
            .iter()
            .find(|option| option.starts_with(&format!("lowerdir={}:", upper_dir.display())));
        ensure!(lower.is_some(), "{mounts:?}");
        let answer = snapshots.remove("base");
        refused(answer, Code::FailedPrecondition, &["remove", "base"])?;
        // The parent that it has already.
        snapshots.commit_onto("base", "same", "child", &[])?;
        ensure!(snapshots.stat("same")?.parent == "base");
        Ok(())
    });
}

#[test]
fn bad_requests_are_invalid_arguments() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        // What containerd's own service says otherwise, or cannot be sent to it.
        refused(
            snapshots.list(&["kind=active"]),
            Code::InvalidArgument,
            &["kind=active"],
        )?;
        refused(snapshots.update_nothing(), Code::InvalidArgument, &["info"])?;
        for key in ["prepare", "view"] {
            let answer = match key {
                "prepare" => snapshots.prepare("", "", &[]),
                _ => snapshots.view("", "", &[]),
            };
            refused(answer, Code::InvalidArgument, &["key"])?;
        }
        snapshots.prepare("active", "", &[])?;
        let answer = snapshots.commit("", "active", &[]);
        refused(answer, Code::InvalidArgument, &["name"])
    });
}

#[test]
fn no_failed_precondition_is_taken_for_another_error() {
    test(|host| {
        // By its ending (errdefs `errgrpc`): then a collection would not pass over it.
        let config = Config::new(host, "daemon");
        let config = config.builder("echo \"cannot: $(cat \"$0.words\")\" >&2; exit 1")?;
        let words = config.file().with_file_name("builder.words");
        let daemon = Daemon::start(&config)?;
        let snapshots = daemon.snapshots()?;
        for ending in [": conflict", ": not modified"] {
            let [layer, view, active] =
                ["layer", "view", "active"].map(|name| format!("{name}{ending}"));
            snapshots.layer(&layer, "", &[])?;
            snapshots.view(&view, &layer, &[])?;
            snapshots.prepare(&active, "", &[])?;
            fs::write(&words, &ending[2..])?;
            let path = format!("{NIX_STORE_PATH}0");
            let nobodys = "/nix/store/00000000000000000000000000000000-nobody-has-this";
            for (call, answer) in [
                ("Remove", snapshots.remove(&layer)),
                ("Mounts", snapshots.mounts(&layer).map(drop)),
                ("Commit", snapshots.commit("new", &view, &[])),
                (
                    "Commit onto",
                    snapshots.commit_onto(&view, "new", &active, &[]),
                ),
                (
                    "Prepare",
                    snapshots.prepare("new", "", &[(&path, nobodys)]).map(drop),
                ),
            ] {
                let status = answer.err().with_context(|| format!("{call} succeeded"))?;
                ensure!(
                    status.code() == Code::FailedPrecondition,
                    "{call}: {status:?}"
                );
                says(status.message(), &[ending])?;
                ensure!(!status.message().ends_with(ending), "{call}: {status:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn calls_with_and_without_a_namespace_are_the_same() {
    test(|host| {
        // containerd's collector sends no header, and everything else does.
        let (daemon, without) = start(host)?;
        let with = Snapshots::of_containerd(daemon.config().address(), NIX, "k8s.io")?;
        without.layer("base", "", &[])?;
        with.prepare("active", "base", &[])?;
        ensure!(with.list(&[])? == without.list(&[])?);
        ensure!(with.mounts("active")? == without.mounts("active")?);
        without.remove("active")?;
        with.remove("base")?;
        without.cleanup()?;
        ensure!(without.list(&[])?.is_empty() && with.list(&[])?.is_empty());
        Ok(())
    });
}

#[test]
fn cleanup_deletes_what_removed_snapshots_have_left() {
    test(|host| {
        let (daemon, snapshots) = start(host)?;
        let empty = daemon.config().kept()?;
        let dir = upper(&snapshots.prepare("active", "", &[])?)?;
        fs::create_dir_all(dir.join("a/b"))?;
        fs::write(dir.join("a/b/c"), "content")?;
        snapshots.layer("base", "", &[])?;
        let both = daemon.config().kept()?;
        snapshots.remove("active")?;
        snapshots.cleanup()?;
        let left = daemon.config().kept()?;
        ensure!(left.snapshots.len() + 1 == both.snapshots.len(), "{left:?}");
        snapshots.remove("base")?;
        snapshots.cleanup()?;
        snapshots.cleanup()?;
        ensure!(daemon.config().kept()?.snapshots == empty.snapshots);
        Ok(())
    });
}

/// Tells whether anybody opens one of some directories, or reads from it.
struct Watch(File);

impl Watch {
    fn on(dirs: &[&Path]) -> Result<Self> {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        for dir in dirs {
            inotify::add_watch(&watch, *dir, WatchFlags::OPEN | WatchFlags::ACCESS)?;
        }
        Ok(Self(watch.into()))
    }

    fn has_seen_something(&mut self) -> Result<bool> {
        match self.0.read(&mut [0; 4096]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[test]
fn no_call_that_containerd_waits_for_looks_into_a_snapshot() {
    test(|host| {
        // Stat is called for every snapshot of every listing, and Commit and Update inside of
        // containerd's write transaction: none of them may depend on the size of a snapshot.
        let (_daemon, snapshots) = start(host)?;
        let dir = upper(&snapshots.prepare("extract", "", &[])?)?;
        let sub = dir.join("sub");
        fs::create_dir(&sub)?;
        fs::write(sub.join("file"), "content")?;
        let mut watch = Watch::on(&[&dir, &sub])?;
        snapshots.stat("extract")?;
        snapshots.commit("layer", "extract", &[])?;
        let info = snapshots.stat("layer")?;
        snapshots.update(info, Some(&[]))?;
        snapshots.list(&[])?;
        snapshots.prepare("container", "layer", &[])?;
        snapshots.mounts("container")?;
        snapshots.remove("container")?;
        snapshots.cleanup()?;
        ensure!(
            !watch.has_seen_something()?,
            "a call has looked into the directories of a snapshot"
        );
        // The witness: Usage does look.
        snapshots.usage("layer")?;
        ensure!(watch.has_seen_something()?, "the watch sees nothing");
        Ok(())
    });
}

#[test]
fn what_is_being_made_is_seen_by_nobody() {
    test(|host| {
        // containerd's collector removes whatever it finds in a List and does not know.
        let go = host.dir().join("go");
        let config = Config::new(host, "daemon").builder(&format!(
            "nix-store --realise \"$2\" --add-root \"$1\"; until [ -e {} ]; do sleep 0.02; done",
            go.display()
        ))?;
        let daemon = Daemon::start(&config)?;
        let snapshots = daemon.snapshots()?;
        snapshots.layer("base", "", &[])?;
        let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
        let label = format!("{NIX_STORE_PATH}0");
        let slow = snapshots.begin_prepare("slow", "base", &[(&*label, object.path())]);
        poll("the GC root", SETTLE, || {
            let root = config.root().display().to_string();
            let roots = roots_of(object.path())?;
            Ok(when(roots.iter().any(|line| line.contains(&root))))
        })?;
        ensure!(snapshots.names(&[])? == ["base"]);
        refused(snapshots.stat("slow"), Code::NotFound, &["slow"])?;
        // Nor is it swept away.
        snapshots.cleanup()?;
        fs::write(&go, "")?;
        slow.answer()?;
        ensure!(snapshots.names(&[])? == ["base", "slow"]);
        ensure!(
            snapshots.mounts("slow")?.len() == 2,
            "the GC root was swept away"
        );
        Ok(())
    });
}

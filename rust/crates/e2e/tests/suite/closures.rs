//! Nix layers on the daemon's own socket: what is mounted for whom, and what holds it.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use e2e::{
    cache::Cache,
    closure::{Closure, FORMATS},
    daemon::{Config, Daemon},
    host::{Host, test, unique},
    image::{NIX_CLOSURE, NIX_STORE_PATH, SNAPSHOT_REF},
    process::{SETTLE, poll, succeed, when},
    snapshots::{Snapshots, refused, upper},
    store::{Store, are_gone, collect_garbage, evict},
};
use tonic::Code;

fn start(host: &Host) -> Result<(Daemon, Snapshots)> {
    let daemon = Daemon::start(&Config::new(host, "daemon"))?;
    let snapshots = daemon.snapshots()?;
    Ok((daemon, snapshots))
}

#[test]
fn a_container_gets_the_closures_of_all_its_parents_once() {
    test(|host| {
        let (daemon, snapshots) = start(host)?;
        let store = Store::new(host)?;
        let dir = store.build("dir", "$busybox mkdir $out", &[])?;
        let file = store.build("file", "echo content > $out", &[])?;
        let script = format!("$busybox mkdir $out; echo {dir} > $out/reference");
        let other = store.build("other", &script, &[&dir])?;
        let info = store.closure_info(&[&other])?;

        let path = |n: u32| format!("{NIX_STORE_PATH}{n}");
        let (first, second) = (path(0), path(1));
        snapshots.layer(
            "per path",
            "",
            &[(&first, dir.path()), (&second, file.path())],
        )?;
        snapshots.layer("plain", "per path", &[])?;
        snapshots.layer("closure", "plain", &[(NIX_CLOSURE, info.path())])?;

        let mut expected = [dir.path(), file.path(), other.path()];
        expected.sort_unstable();
        for (what, mounts) in [
            ("container", snapshots.prepare("container", "closure", &[])?),
            ("container again", snapshots.mounts("container")?),
            ("view", snapshots.view("view", "closure", &[])?),
        ] {
            let (root, objects) = mounts.split_first().context("no mounts")?;
            ensure!(
                root.r#type == "overlay" && root.target.is_empty(),
                "{what}: {root:?}"
            );
            let targets: Vec<_> = objects.iter().map(|mount| &*mount.target).collect();
            ensure!(targets == expected, "{what}: {targets:?}");
            for mount in objects {
                ensure!(
                    mount.r#type == "bind" && mount.source == mount.target,
                    "{mount:?}"
                );
                ensure!(
                    mount.options.iter().any(|option| option == "ro"),
                    "{mount:?}"
                );
            }
        }
        // The lower layers alone.
        ensure!(snapshots.prepare("lower", "plain", &[])?.len() == 3);
        ensure!(daemon.config().kept()?.gc_roots.len() == 2);
        Ok(())
    });
}

#[test]
fn a_layer_in_both_formats_mounts_the_union() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let store = Store::new(host)?;
        let listed = store.build("listed", "echo listed > $out", &[])?;
        let named = store.build("named", "echo named > $out", &[])?;
        // It refers to both, so that its root holds both, and lists one.
        let script = format!(
            "$busybox mkdir $out; echo {listed} > $out/store-paths; echo {named} > $out/reference"
        );
        let info = store.build("info", &script, &[&listed, &named])?;

        let first = format!("{NIX_STORE_PATH}0");
        let labels = [(NIX_CLOSURE, info.path()), (&first, named.path())];
        snapshots.layer("both", "", &labels)?;
        let mounts = snapshots.prepare("container", "both", &[])?;
        let targets: Vec<_> = mounts[1..].iter().map(|mount| &*mount.target).collect();
        let mut expected = [listed.path(), named.path()];
        expected.sort_unstable();
        ensure!(targets == expected, "{targets:?}");
        Ok(())
    });
}

#[test]
fn what_is_extracted_into_is_the_plain_writable_mount() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let store = Store::new(host)?;
        let dir = store.build("dir", "$busybox mkdir $out", &[])?;
        let label = format!("{NIX_STORE_PATH}0");
        let nix = [(&*label, dir.path())];
        let chain_id = format!("sha256:{}", "b".repeat(64));
        let marked = [(&*label, dir.path()), (SNAPSHOT_REF, &*chain_id)];
        snapshots.layer("nix layer", "", &nix)?;

        // By the label that the unpacker sends, or by the key of a client that sends none.
        let unlabelled = format!("default/7/extract-12345-abc= {chain_id}");
        for (key, parent, labels) in [
            ("default/5/extract", "", &marked[..]),
            ("default/6/extract", "nix layer", &marked),
            (&unlabelled, "nix layer", &[]),
        ] {
            for mounts in [
                snapshots.prepare(key, parent, labels)?,
                snapshots.mounts(key)?,
            ] {
                ensure!(
                    mounts.len() == 1 && mounts[0].target.is_empty(),
                    "{key}: {mounts:?}"
                );
                let options = &mounts[0].options;
                ensure!(
                    !options.iter().any(|option| option == "ro"),
                    "{key}: {mounts:?}"
                );
                ensure!(upper(&mounts)?.is_dir());
            }
        }
        ensure!(
            snapshots
                .prepare("default/8/container", "nix layer", &[])?
                .len()
                == 2
        );
        Ok(())
    });
}

#[test]
fn roots_go_with_their_snapshot() {
    test(|host| {
        let (daemon, snapshots) = start(host)?;
        let store = Store::new(host)?;
        let dir = store.build("dir", "$busybox mkdir $out", &[])?;
        let label = format!("{NIX_STORE_PATH}0");
        let empty = daemon.config().kept()?;
        snapshots.prepare("extract", "", &[(&*label, dir.path())])?;
        ensure!(daemon.config().kept()?.gc_roots.len() == 1);
        snapshots.commit("layer", "extract", &[])?;
        ensure!(
            daemon.config().kept()?.gc_roots.len() == 1,
            "a commit must not drop the roots"
        );
        snapshots.remove("layer")?;
        snapshots.cleanup()?;
        daemon.keeps_only(&empty)
    });
}

#[test]
fn calls_do_not_wait_for_a_realisation() {
    test(|host| {
        let go = host.dir().join("go");
        let config = Config::new(host, "daemon").builder(&format!(
            "until [ -e {} ]; do sleep 0.02; done; exec nix-store --realise \"$2\" --add-root \"$1\"",
            go.display()
        ))?;
        let daemon = Daemon::start(&config)?;
        let snapshots = daemon.snapshots()?;
        let dir = Store::new(host)?.build("dir", "$busybox mkdir $out", &[])?;
        let label = format!("{NIX_STORE_PATH}0");
        let slow = snapshots.begin_prepare("slow", "", &[(&*label, dir.path())]);
        poll("the builder", SETTLE, || {
            Ok(when(!daemon.config().kept()?.gc_roots.is_empty()))
        })?;

        // One that waited would never be answered: the builder may go on only afterwards.
        snapshots.layer("base", "", &[])?;
        snapshots.prepare("active", "base", &[])?;
        snapshots.remove("active")?;
        snapshots.cleanup()?;
        refused(snapshots.stat("slow"), Code::NotFound, &["slow"])?;

        fs::write(&go, "")?;
        ensure!(slow.answer()?.len() == 2);
        Ok(())
    });
}

#[test]
fn what_a_builder_provides_without_a_link_is_mounted_and_held() {
    test(|host| {
        for format in FORMATS {
            let cache = Cache::start(host)?;
            let closure = Closure::build(&Store::new(host)?, format, 1000)?;
            cache.add(closure.objects(), None)?;
            evict(closure.objects())?;
            // Of Nix's substituters none has the paths: only the builder knows where they are.
            let config = Config::new(host, &unique("daemon"))
                .environment("XDG_CACHE_HOME", host.dir().join(unique("lookups")))
                .builder(&format!(
                    "exec nix --extra-experimental-features nix-command copy --no-check-sigs --from {} \"$2\"",
                    cache.url()
                ))?;
            let daemon = Daemon::start(&config)?;
            let snapshots = daemon.snapshots()?;
            let before = config.kept()?;
            let mounts = closure.prepare(&snapshots, "container")?;
            for object in &closure.objects()[..2] {
                let is_mounted = mounts.iter().any(|mount| mount.target == object.path());
                ensure!(is_mounted, "{format:?}: {object} is not in {mounts:?}");
            }
            collect_garbage()?;
            closure.is_here()?;
            snapshots.remove("container")?;
            snapshots.cleanup()?;
            daemon.keeps_only(&before)?;
            collect_garbage()?;
            are_gone(closure.objects())?;
        }
        Ok(())
    });
}

/// The only directory of GC roots that is kept.
fn only_roots(daemon: &Daemon) -> Result<PathBuf> {
    let ids = daemon.config().kept()?.gc_roots;
    let id = ids.first().filter(|_| ids.len() == 1);
    let id = id.with_context(|| format!("not one directory of roots: {ids:?}"))?;
    Ok(daemon.config().root().join("gcroots").join(id))
}

/// What the labels name and no root holds would be missing in a container, or be collected under it.
#[test]
fn a_layer_that_has_lost_a_root_is_not_mounted_without_it() {
    test(|host| {
        let store = Store::new(host)?;
        let object = store.build("object", "echo content > $out", &[])?;
        let info = store.closure_info(&[&object])?;
        let label = format!("{NIX_STORE_PATH}0");
        for (number, label, held) in [(0, &*label, &object), (1, NIX_CLOSURE, &info)] {
            let daemon = Daemon::start(&Config::new(host, &format!("daemon-{number}")))?;
            let snapshots = daemon.snapshots()?;
            snapshots.layer("layer", "", &[(label, held.path())])?;
            snapshots.layer("plain", "layer", &[])?;
            snapshots.prepare("container", "plain", &[])?;
            let kept = daemon.config().kept()?;
            let roots = only_roots(&daemon)?;
            let refuses = |words: &[&str]| {
                for answer in [
                    snapshots.mounts("container"),
                    snapshots.prepare("another", "plain", &[]),
                    snapshots.view("another", "plain", &[]),
                ] {
                    refused(answer, Code::FailedPrecondition, words)?;
                }
                daemon.keeps_only(&kept)
            };

            let lost: Vec<_> = fs::read_dir(&roots)?.collect::<Result<_, _>>()?;
            ensure!(lost.len() == 1, "{lost:?}");
            fs::remove_file(lost[0].path())?;
            let link = roots.join(match label {
                NIX_CLOSURE => "closure-info",
                _ => held.path().trim_start_matches("/nix/store/"),
            });
            let path = held.path();
            let remedy = format!("nix-store --realise {path} --add-root {}", link.display());
            refuses(&[path, &remedy])?;
            fs::remove_dir(&roots)?;
            let words = [path, &*remedy];
            refused(
                snapshots.mounts("container"),
                Code::FailedPrecondition,
                &words,
            )?;
            // What unpacks into a snapshot mounts nothing of the store.
            let chain_id = format!("sha256:{}", "d".repeat(64));
            snapshots.prepare("extract", "plain", &[(SNAPSHOT_REF, &chain_id)])?;
            snapshots.remove("extract")?;

            succeed(Command::new("sh").args(["-c", &remedy]))?;
            let mounts = snapshots.mounts("container")?;
            ensure!(
                mounts.len() == 2 && mounts[1].target == object.path(),
                "{mounts:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_closure_info_that_was_deleted_by_force_is_named() {
    test(|host| {
        let (_daemon, snapshots) = start(host)?;
        let store = Store::new(host)?;
        let object = store.build("object", "echo content > $out", &[])?;
        let info = store.closure_info(&[&object])?;
        snapshots.layer("layer", "", &[(NIX_CLOSURE, info.path())])?;
        succeed(Command::new("nix-store").args(["--delete", "--ignore-liveness", info.path()]))?;
        let remedy = format!("nix-store --realise {info}");
        let answer = snapshots.prepare("container", "layer", &[]);
        let words = [info.path(), "gone from the store", &remedy];
        refused(answer, Code::FailedPrecondition, &words)
    });
}

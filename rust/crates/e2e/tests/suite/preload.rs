//! `nix-snapshotter preload`.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Result, ensure};
use e2e::{
    containerd::{Containerd, NIX},
    daemon::{Config, Daemon},
    host::{Host, test},
    node::{Node, build, reference},
    process::{SETTLE, poll, run, succeed, when},
    snapshots::says,
};
use serde_json::json;

fn preload(host: &Host, socket: &Path) -> Command {
    let mut preload = Command::new(host.nix_snapshotter());
    preload
        .arg("preload")
        .arg("--containerd-address")
        .arg(socket);
    preload
}

fn hello(host: &Host, image: &str) -> Result<std::path::PathBuf> {
    let hello = format!("{}/bin/hello", host.fixture("hello")?);
    build(
        host,
        image,
        &[&hello],
        &host.fixture("hello-closure-info")?,
        &[],
    )
}

#[test]
fn archives_are_loaded_into_their_namespaces_and_not_twice() {
    test(|host| {
        let node = Node::start(host)?;
        let socket = node.containerd.socket();
        let (first, second) = (reference("first"), reference("second"));
        let archives = [hello(host, &first)?, hello(host, &second)?];
        let targets = host.dir().join("targets");
        let namespace = node.containerd.namespace();
        fs::write(
            &targets,
            json!([
                { "archives": [archives[0], archives[1]], "namespace": namespace },
                { "archives": [archives[0]], "namespace": "k8s.io", "address": socket },
            ])
            .to_string(),
        )?;
        let mut with_targets = preload(host, &socket);
        with_targets.arg("--targets").arg(&targets);
        let told = succeed(&mut with_targets)?;
        let expected = [
            format!("{first} in {namespace}: loaded"),
            format!("{second} in {namespace}: loaded"),
            format!("{first} in k8s.io: loaded"),
        ];
        ensure!(told.lines().eq(expected), "{told}");
        let ended = node.containerd.run(NIX, &second, &[])?;
        says(&ended.success()?, &["Hello, world!"])?;

        let told = succeed(&mut with_targets)?;
        ensure!(told.matches(": was there already").count() == 3, "{told}");
        let leases = node.containerd.leases()?;
        ensure!(leases.is_empty(), "{leases:?}");
        Ok(())
    });
}

#[test]
fn what_cannot_be_loaded_does_not_keep_the_others_from_it() {
    test(|host| {
        let node = Node::start(host)?;
        let image = reference("after");
        let archive = hello(host, &image)?;
        let mut both = preload(host, &node.containerd.socket());
        both.args(["--namespace", node.containerd.namespace()]);
        let ended = run(both.arg("/nowhere.tar").arg(&archive))?;
        says(&ended.stdout, &[&image, ": loaded"])?;
        let said = ended.failure()?;
        says(&said, &["/nowhere.tar", "No such file"])?;
        ensure!(said.lines().count() == 1, "{said}");
        Ok(())
    });
}

/// Whether any process has a file open.
fn is_open(file: &Path) -> Result<bool> {
    let file = fs::canonicalize(file)?;
    for entry in fs::read_dir("/proc")? {
        // Others end while they are looked at, and not every entry is a process.
        let Ok(open) = fs::read_dir(entry?.path().join("fd")) else {
            continue;
        };
        let mut links = open.flatten().map(|link| fs::read_link(link.path()));
        if links.any(|target| target.is_ok_and(|target| target == file)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn containerd_and_the_daemon_are_waited_for() {
    test(|host| {
        let daemon = Config::new(host, "daemon");
        let node = Containerd::start(host, &daemon)?;
        node.stop();
        let archive = hello(host, &reference("early"))?;
        // Not for ever.
        let mut short = preload(host, &node.socket());
        let said = run(short.args(["--timeout", "1"]).arg(&archive))?.failure()?;
        says(&said, &["cannot connect to containerd", "start containerd"])?;

        let mut early = preload(host, &node.socket());
        early.args(["--namespace", node.namespace()]).arg(&archive);
        thread::scope(|scope| {
            let loading = scope.spawn(|| succeed(&mut early));
            poll("the archive in use", SETTLE, || {
                Ok(when(is_open(&archive)?))
            })?;
            thread::sleep(Duration::from_secs(1));
            // It has been read, and is not unpacked again with each attempt.
            fs::remove_file(&archive)?;
            node.restart()?;
            thread::sleep(Duration::from_secs(1));
            let _daemon = Daemon::start(&daemon)?;
            let told = loading.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            says(&told, &[": loaded"])
        })
    });
}

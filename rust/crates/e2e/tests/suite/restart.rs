//! Daemons that go and come back while containers run.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use e2e::{
    conformance::GC_ROOT,
    containerd::NIX,
    daemon::Daemon,
    host::{Host, test},
    image::Layer,
    node::{BUSYBOX, Node, busybox_image, reference},
    process::{SETTLE, poll, when},
    snapshots::Snapshots,
    store::{Object, Store},
};
use tonic::Code;

/// A node with an image whose Nix layer has one file.
fn node_with_image(host: &Host) -> Result<(Node, String, Object)> {
    let node = Node::start(host)?;
    let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
    let image = reference("restart");
    let archive = busybox_image(host, &image, [Layer::per_path(&[object.path()])?])?;
    node.containerd.import(NIX, &archive)?;
    Ok((node, image, object))
}

#[test]
fn containers_go_on_while_the_daemon_is_away() {
    test(|host| {
        let (mut node, image, object) = node_with_image(host)?;
        for kill in [false, true] {
            let container =
                node.containerd
                    .run_detached(NIX, &[], &image, &[BUSYBOX, "sleep", "1000"])?;
            let read = [BUSYBOX, "cat", object.path()];
            let mounts = container.mounts(NIX)?;
            // Not while the daemon is away or its rows are compared.
            node.containerd.collect_garbage()?;
            let rows = node.daemon.snapshots()?.list(&[])?;
            if kill {
                node.daemon.kill()?;
            } else {
                node.daemon.stop()?;
            }
            ensure!(container.exec(&read)? == "content\n", "without the daemon");
            node.daemon.start_again()?;
            ensure!(container.exec(&read)? == "content\n", "with a new daemon");
            ensure!(container.mounts(NIX)? == mounts);
            ensure!(node.daemon.snapshots()?.list(&[])? == rows);

            let printed = node
                .containerd
                .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?
                .success()?;
            ensure!(printed == "content\n", "a new container");
            container.remove()?;
        }
        Ok(())
    });
}

#[test]
fn who_calls_containerd_does_not_notice_a_restart() {
    const CALLERS: usize = 4;
    const RESTARTS: usize = 20;
    // containerd looks for the socket for one second (`pkg/dialer`), and then fails calls.
    const SHORT: Duration = Duration::from_millis(800);
    test(|host| {
        let mut node = Node::start(host)?;
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| node.containerd.snapshots(NIX))
            .collect::<Result<_>>()?;
        let (calls, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
        // How long each restart took. It is locked while the daemon is away.
        let absences = Mutex::new(Vec::new());
        let absences = || absences.lock().unwrap_or_else(PoisonError::into_inner);
        let was_long = || absences().last().is_some_and(|absence| *absence >= SHORT);
        let call = |number: usize, caller: &Snapshots| -> Result<()> {
            for time in 0.. {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("{number} {time}");
                let called = caller.layer(&name, "", &[GC_ROOT]);
                match called.and_then(|()| caller.remove(&name)) {
                    Err(status) if status.code() == Code::Unavailable && was_long() => continue,
                    called => called?,
                }
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let restart = |daemon: &mut Daemon| -> Result<()> {
            for _ in 0..RESTARTS {
                let before = calls.load(Ordering::Relaxed);
                let mut absences = absences();
                let start = Instant::now();
                daemon.stop()?;
                daemon.start_again()?;
                absences.push(start.elapsed());
                drop(absences);
                poll("calls after a restart", SETTLE, || {
                    let after = calls.load(Ordering::Relaxed) - before;
                    Ok(when(after >= 2 * CALLERS))
                })?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let call = &call;
            let calling: Vec<_> = callers
                .iter()
                .enumerate()
                .map(|(number, caller)| scope.spawn(move || call(number, caller)))
                .collect();
            let restarted = restart(&mut node.daemon);
            enough.store(true, Ordering::Relaxed);
            for caller in calling {
                caller.join().expect("no assertion in a caller")?;
            }
            restarted
        })?;
        let short = absences()
            .iter()
            .filter(|absence| **absence < SHORT)
            .count();
        ensure!(
            short >= RESTARTS / 2,
            "too slow a machine: {:?}",
            absences()
        );
        Ok(())
    });
}

#[test]
fn containerd_comes_back_to_what_the_daemon_has() {
    test(|host| {
        let (node, image, object) = node_with_image(host)?;
        let container =
            node.containerd
                .run_detached(NIX, &[], &image, &[BUSYBOX, "sleep", "1000"])?;
        let mounts = container.mounts(NIX)?;
        node.containerd.restart()?;
        ensure!(container.mounts(NIX)? == mounts);
        ensure!(container.exec(&[BUSYBOX, "cat", object.path()])? == "content\n");
        node.containerd.collect_garbage()?;
        let printed = node
            .containerd
            .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?
            .success()?;
        ensure!(printed == "content\n");
        container.remove()
    });
}

#[test]
fn containerd_may_start_before_the_daemon() {
    test(|host| {
        let (mut node, image, object) = node_with_image(host)?;
        node.daemon.stop()?;
        node.containerd.restart()?;
        let ended = node
            .containerd
            .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?;
        ensure!(
            !ended.status.success(),
            "there is no daemon, and a container ran"
        );
        node.daemon.start_again()?;
        // containerd waits up to three seconds between its attempts to connect.
        poll("a container", SETTLE, || {
            let ended = node
                .containerd
                .run(NIX, &image, &[BUSYBOX, "cat", object.path()])?;
            Ok(when(
                ended.success().is_ok_and(|printed| printed == "content\n"),
            ))
        })
    });
}

//! A store that a nix-daemon serves: everything here goes through its socket and its rights.

use std::ffi::OsString;

use anyhow::{Result, ensure};
use e2e::{
    cache::{Cache, Fault, Part},
    closure::{Closure, FORMATS, Format},
    containerd::NIX,
    daemon::{Config, Daemon, Kept},
    host::{Host, test},
    nix_daemon::NixDaemon,
    node::{Node, busybox_image, reference},
    process::{SETTLE, poll, when},
    snapshots::{Preparing, refused, says},
    store::{Store, are_gone, collect_garbage, evict, registered_roots, roots_of},
};
use tonic::Code;

const BYTES: usize = 200_000;

/// A closure that is in a cache and not in the store.
fn away(host: &Host, format: Format) -> Result<(Cache, Closure)> {
    let cache = Cache::start(host)?;
    let closure = Closure::build(&Store::new(host)?, format, BYTES)?;
    cache.add(closure.objects(), Some(cache.key()))?;
    evict(closure.objects())?;
    Ok((cache, closure))
}

/// Makes the store that of an administrator alone: root has no rights beyond a user's.
fn trusting_nobody(cache: &Cache) -> Vec<(&'static str, OsString)> {
    cache.environment(&["trusted-users = nobody"]).into()
}

#[test]
fn a_pull_is_substituted_and_held_by_nix_daemon() {
    test(|host| {
        for format in FORMATS {
            let (cache, closure) = away(host, format)?;
            let nix_daemon = NixDaemon::start(host, trusting_nobody(&cache))?;
            let config = nix_daemon.client(Config::new(host, "daemon"));
            let node = Node::start_with(host, &config)?;
            let image = reference("multi-user");
            let archive = busybox_image(host, &image, [closure.layer()?])?;
            node.containerd.import(NIX, &archive)?;
            collect_garbage()?;
            closure.is_here()?;
            let root = node.daemon.config().root().display().to_string();
            for object in closure.objects() {
                let roots = roots_of(object.path())?;
                ensure!(
                    roots.iter().any(|line| line.contains(&root)),
                    "{object} is held by {roots:?}"
                );
            }
            let check = closure.check();
            let check = check.each_ref().map(|word| &**word);
            node.containerd.run(NIX, &image, &check)?.success()?;

            node.containerd.remove_image(&image)?;
            node.keeps_nothing()?;
            collect_garbage()?;
            are_gone(closure.objects())?;
            let left = registered_roots(node.daemon.config().root())?;
            ensure!(left.is_empty(), "Nix has a note of {left:?}");
        }
        Ok(())
    });
}

#[test]
fn substituters_are_for_trusted_users_to_name() {
    test(|host| {
        let (cache, closure) = away(host, Format::PerPath)?;
        for (trusted, users) in [(false, "nobody"), (true, "root")] {
            // nix-daemon knows of no cache; the snapshotter does.
            let users = format!("trusted-users = {users}");
            let lines: OsString = format!("substituters =\n{users}\n").into();
            let nix_daemon = NixDaemon::start(host, [("NIX_CONFIG", lines)])?;
            let config = nix_daemon.client(Config::new(host, "daemon"));
            let daemon = Daemon::start(&cache.substituter_of(config, &[]))?;
            let snapshots = daemon.snapshots()?;
            let before = daemon.config().kept()?;
            let pulled = closure.prepare(&snapshots, "container");
            if trusted {
                pulled?;
                closure.is_here()?;
            } else {
                let path = closure.objects()[0].path();
                let words = ["nix-store", path, "not a trusted user"];
                refused(pulled, Code::FailedPrecondition, &words)?;
                ensure!(snapshots.list(&[])?.is_empty(), "a row is left");
                daemon.keeps_only(&before)?;
                ensure!(cache.take_requests(Part::Nars) == 0);
            }
        }
        Ok(())
    });
}

#[test]
fn a_nix_daemon_that_is_away_is_named_and_may_come_back() {
    test(|host| {
        let (cache, closure) = away(host, Format::PerPath)?;
        let mut nix_daemon = NixDaemon::start(host, cache.environment(&[]))?;
        let daemon = Daemon::start(&nix_daemon.client(Config::new(host, "daemon")))?;
        let snapshots = daemon.snapshots()?;
        let before = daemon.config().kept()?;

        nix_daemon.stop();
        let socket = nix_daemon.socket();
        let words = [
            "nix-store",
            "cannot connect to",
            &socket.display().to_string(),
        ];
        refused(
            closure.prepare(&snapshots, "container"),
            Code::FailedPrecondition,
            &words,
        )?;
        ensure!(snapshots.list(&[])?.is_empty(), "a row is left");
        daemon.keeps_only(&before)?;

        nix_daemon.start_again()?;
        closure.prepare(&snapshots, "container")?;
        closure.is_here()
    });
}

/// A pull through nix-daemon that is in the midst of a download without end.
struct Slow {
    cache: Cache,
    nix_daemon: NixDaemon,
    daemon: Daemon,
    /// What the disk held before.
    before: Kept,
    pull: Preparing,
}

impl Slow {
    fn pull(host: &Host) -> Result<Self> {
        let (cache, closure) = away(host, Format::PerPath)?;
        cache.fault(
            Part::Nars,
            Some(Fault::Slow {
                bytes_per_second: 100,
            }),
        );
        let nix_daemon = NixDaemon::start(host, cache.environment(&[]))?;
        let daemon = Daemon::start(&nix_daemon.client(Config::new(host, "daemon")))?;
        let before = daemon.config().kept()?;
        let pull = closure.begin_prepare(&daemon.snapshots()?, "container");
        poll("a download", SETTLE, || {
            Ok(when(cache.take_requests(Part::Nars) > 0))
        })?;
        Ok(Self {
            cache,
            nix_daemon,
            daemon,
            before,
            pull,
        })
    }
}

#[test]
fn a_nix_daemon_that_goes_away_meanwhile_is_named() {
    test(|host| {
        let Slow {
            cache: _cache,
            nix_daemon,
            daemon,
            before,
            pull,
        } = Slow::pull(host)?;
        nix_daemon.end_workers()?;
        let Err(status) = pull.answer() else {
            anyhow::bail!("a pull without a nix-daemon succeeded");
        };
        says(status.message(), &["nix-store", "Nix daemon"])?;
        ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
        daemon.keeps_only(&before)
    });
}

#[test]
fn a_pull_that_nobody_waits_for_ends_in_nix_daemon_too() {
    test(|host| {
        let Slow {
            cache,
            nix_daemon,
            daemon,
            before,
            pull,
        } = Slow::pull(host)?;
        ensure!(
            !nix_daemon.workers()?.is_empty(),
            "nobody works for the pull"
        );
        pull.abandon();
        poll("the end of its work", SETTLE, || {
            Ok(when(
                nix_daemon.workers()?.is_empty() && cache.in_flight() == 0,
            ))
        })?;
        daemon.keeps_only(&before)
    });
}

//! Pulls of what the store does not have yet, and what kubelet hears of the store.

use std::{fs, process::Command, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    cache::{Cache, Fault, Part},
    closure::{Closure, FORMATS},
    containerd::Config,
    host::{Host, test, unique},
    invariants,
    node::{busybox_image, reference},
    process::{SETTLE, poll, succeed, when},
    snapshots::says,
    store::{Object, Store, collect_garbage, evict},
};
use tonic::Code;

use super::{Cluster, archive, image};

/// How long kubelet waits here for what comes slowly.
const PATIENCE: Duration = Duration::from_secs(30);

/// An archive and the closure of its layer, which are in a cache and not in the store.
fn away(host: &Host, cache: &Cache, closure: &Closure) -> Result<Vec<Object>> {
    let file = busybox_image(host, &reference("away"), [closure.layer()?])?;
    let archive = [Store::new(host)?.add(&file, "nix-image-away.tar")?];
    cache.add(&archive, Some(cache.key()))?;
    cache.add(closure.objects(), Some(cache.key()))?;
    evict(&archive)?;
    evict(closure.objects())?;
    Ok(archive.into())
}

/// Has Nix fetch a store object by itself.
fn bring(cache: &Cache, object: &Object) -> Result<()> {
    let mut fetch = Command::new("nix-store");
    fetch.envs(cache.environment(&[]));
    succeed(fetch.args(["--realise", object.path()]))?;
    Ok(())
}

/// A cluster whose Nix gets what it has not from a cache.
fn start(host: &Host, cache: &Cache) -> Result<Cluster> {
    let daemon = |daemon| cache.substituter_of(daemon, &[]);
    Cluster::start_with(host, daemon, |containerd| containerd)
}

#[test]
fn archive_and_contents_come_from_a_cache() {
    test(|host| {
        for format in FORMATS {
            let cache = Cache::start(host)?;
            let closure = Closure::build(&Store::new(host)?, format, 100_000)?;
            let archive = &away(host, &cache, &closure)?[0];
            let cluster = start(host, &cache)?;
            let id = cluster.images.pull(&image(archive))?;
            ensure!(archive.exists());
            collect_garbage()?;
            closure.is_here()?;

            let pod = cluster.node.cri.run_pod()?;
            let program = closure.program();
            let container = pod.create_container(&id, &[&program, "sleep", "1000"], &[])?;
            pod.start_container(&container)?;
            pod.exec(&container, &[&program, "true"])?;
            pod.remove()?;

            cluster.images.remove_image(&id)?;
            cluster.keeps_nothing()?;
            collect_garbage()?;
            ensure!(!archive.exists(), "the archive is left");
        }
        Ok(())
    });
}

#[test]
fn a_pull_that_nobody_waits_for_any_more_leaves_nothing() {
    test(|host| {
        for format in FORMATS {
            // In the midst of the archive, and then in the midst of the closure.
            for archive_is_here in [false, true] {
                let cache = Cache::start(host)?;
                let closure = Closure::build(&Store::new(host)?, format, 100_000)?;
                let archive = &away(host, &cache, &closure)?[0];
                let cluster = start(host, &cache)?;
                let image = image(archive);
                if archive_is_here {
                    bring(&cache, archive)?;
                }
                let was_brought = cache.take_requests(Part::Nars) > 0;
                ensure!(was_brought == archive_is_here, "{was_brought}");
                let slow = Fault::Slow {
                    bytes_per_second: 1000,
                };
                cache.fault(Part::Nars, Some(slow));
                let given_up = cluster.images.begin_pull(&image);
                if archive_is_here {
                    poll("the root", PATIENCE, || Ok(when(cluster.has_root(archive))))?;
                }
                poll("the download", PATIENCE, || {
                    Ok(when(cache.take_requests(Part::Nars) > 0))
                })?;
                given_up.abandon()?;
                cluster.keeps_nothing()?;
                cache.fault(Part::Nars, None);
                cluster.images.pull(&image)?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_download_keeps_nobody_from_the_archive() {
    test(|host| {
        let cache = Cache::start(host)?;
        let closure = Closure::build(&Store::new(host)?, FORMATS[0], 100_000)?;
        let archive = &away(host, &cache, &closure)?[0];
        let cluster = start(host, &cache)?;
        bring(&cache, archive)?;
        let (images, image) = (&cluster.images, &*image(archive));
        let contradicted = format!("{image}@sha256:{}", "0".repeat(64));
        let slow = Fault::Slow {
            bytes_per_second: 1000,
        };
        cache.fault(Part::Nars, Some(slow));
        ensure!(cache.take_requests(Part::Nars) > 0, "nothing was brought");
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| images.pull_at_once(&[image], Duration::from_secs(12)));
            let begun = poll("the root and the download", SETTLE, || {
                let is_held = cluster.held()?.len() == 1;
                Ok(when(is_held && cache.take_requests(Part::Nars) > 0))
            });
            let second = images.pull_at_once(&[&contradicted], Duration::from_secs(10));
            (first.join(), begun.map(|()| second))
        });
        let first = first.ok().context("a panic")?;
        ensure!(first.iter().all(Option::is_none), "{first:?}");
        for answer in second? {
            let status = answer.context("it waits for the download")?.err();
            let status = status.context("a digest that the archive has not")?;
            ensure!(status.code() == Code::InvalidArgument, "{status:?}");
        }
        cluster.keeps_nothing()
    });
}

#[test]
fn who_goes_away_takes_nothing_from_who_waits_for_the_same() {
    test(|host| {
        let cache = Cache::start(host)?;
        let closure = Closure::build(&Store::new(host)?, FORMATS[0], 100_000)?;
        let archive = &away(host, &cache, &closure)?[0];
        let cluster = start(host, &cache)?;
        let (images, image) = (&cluster.images, &*image(archive));
        // The archive takes some seconds, and the second comes meanwhile.
        let slow = Fault::Slow {
            bytes_per_second: 100_000,
        };
        cache.fault(Part::Nars, Some(slow));
        let first = images.begin_pull(image);
        let mut requests = 0;
        poll("the download", PATIENCE, || {
            requests += cache.take_requests(Part::Nars);
            Ok(when(requests > 0))
        })?;
        let second = images.begin_pull(image);
        let waits = "waiting for the realisation of this closure that is under way";
        poll(waits, PATIENCE, || Ok(when(cluster.said(&[waits]) > 0)))?;
        first.abandon()?;
        cache.fault(Part::Nars, None);
        second.answer(PATIENCE)?;
        // The archive, the program and its data, each once.
        requests += cache.take_requests(Part::Nars);
        ensure!(requests == 3, "{requests} downloads");
        Ok(())
    });
}

#[test]
fn nothing_is_fetched_for_a_containerd_that_cannot_be_reached() {
    test(|host| {
        let cache = Cache::start(host)?;
        let closure = Closure::build(&Store::new(host)?, FORMATS[0], 100_000)?;
        let archive = &away(host, &cache, &closure)?[0];
        let cluster = start(host, &cache)?;
        cluster.node.containerd.stop();
        let pulled = cluster.images.pull(&image(archive));
        let status = pulled.err().context("a pull")?;
        ensure!(status.code() == Code::Unavailable, "{status:?}");
        says(
            status.message(),
            &["containerd cannot be reached at", "containerd_address"],
        )?;
        ensure!(cache.take_requests(Part::Nars) == 0, "it was fetched");
        ensure!(cluster.held()?.is_empty());
        Ok(())
    });
}

#[test]
fn kubelet_hears_of_the_store_where_it_is_told_to() {
    test(|host| {
        let cluster = Cluster::start_with(
            host,
            |daemon| daemon.line("image_service.count_store_paths = true"),
            |config| config,
        )?;
        let used = |cri: &e2e::cri::Cri| -> Result<u64> {
            let (_, used) = cri.image_usage()?.into_iter().next().context("nothing")?;
            Ok(used)
        };
        let archive = archive(host, &[])?;
        cluster.images.pull(&image(&archive))?;
        // What containerd counts comes every ten seconds, and ours may be older.
        let size = fs::metadata(archive.path())?.len() + 1_000_000;
        poll("the bytes of the store", Duration::from_secs(60), || {
            let (ours, theirs) = (used(&cluster.images)?, used(&cluster.node.cri)?);
            Ok(when(ours > theirs + size))
        })?;
        let (ours, theirs) = (
            cluster.images.image_filesystems()?,
            cluster.node.cri.image_filesystems()?,
        );
        ensure!(ours == theirs, "{ours:?} {theirs:?}");
        Ok(())
    });
}

#[test]
fn a_containerd_with_another_default_is_told_of() {
    test(|host| {
        for format in Config::formats()? {
            let cluster = Cluster::start_with(
                host,
                |daemon| daemon,
                |config| config.format(format).other_default_snapshotter(),
            )?;
            let archive = archive(host, &[])?;
            let status = match cluster.images.pull(&image(&archive)) {
                Ok(id) => bail!("pulled {id}"),
                Err(status) => status,
            };
            ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
            says(status.message(), &["overlayfs", "snapshotter = \"nix\""])?;
            ensure!(cluster.held()?.is_empty());
        }
        Ok(())
    });
}

#[test]
fn a_containerd_that_does_not_know_the_daemon_by_its_name_is_told_of() {
    test(|host| {
        let cluster = Cluster::start_with(
            host,
            |daemon| daemon.line("image_service.snapshotter = \"unheard-of\""),
            |config| config,
        )?;
        let archive = archive(host, &[])?;
        let pulled = cluster.images.pull(&image(&archive));
        let status = pulled.err().context("a pull")?;
        ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
        says(
            status.message(),
            &[
                "no snapshotter \"unheard-of\"",
                "as \"nix\"",
                "image_service.snapshotter",
            ],
        )?;
        invariants::check(&cluster.node.daemon)?;
        ensure!(cluster.held()?.is_empty());
        Ok(())
    });
}

/// As with the containerd of k3s, in which another snapshotter is called nix.
#[test]
fn the_root_may_be_called_after_another_snapshotter() {
    test(|host| {
        for exported in [true, false] {
            let root = host
                .dir()
                .join(unique("roots"))
                .join("io.containerd.snapshotter.v1.overlayfs");
            let cluster = Cluster::start_with(
                host,
                |daemon| daemon.root_at(&root),
                |config| match exported {
                    true => config.exporting_root(&root),
                    false => config,
                },
            )?;
            cluster.images.pull(&image(&archive(host, &[])?))?;
        }
        Ok(())
    });
}

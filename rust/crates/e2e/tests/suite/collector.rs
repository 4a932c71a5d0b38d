//! Nix's garbage collector, in a loop beside all that goes on: it gets what nothing uses, and nothing else.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    cache::Cache,
    closure::{Closure, Format},
    containerd::{Containerd, NIX},
    daemon::{Config, Daemon},
    host::{Host, test, unique},
    nix_daemon::NixDaemon,
    node::{Node, busybox_image, reference},
    process::{SETTLE, children, poll, succeed, when},
    snapshots::Snapshots,
    store::{Store, are_gone, collect_garbage, evict, registered_roots},
};

/// Bytes of data in a closure.
const BYTES: usize = 100_000;

/// How long a run of the collector may take that waits for others.
const COLLECTOR_BOUND: Duration = Duration::from_secs(60);

/// How often the collector has run, whether it is to stop, and because of what.
#[derive(Default)]
struct Collector {
    begun: AtomicU32,
    ended: AtomicU32,
    stop: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Collector {
    /// Runs the collector until [`Collector::stop`] is called, with nothing between its runs.
    fn run(&self) -> Result<()> {
        while !self.stopped() {
            self.begun.fetch_add(1, Ordering::SeqCst);
            collect_garbage()?;
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Stops because of this, unless something else came first, of which this follows.
    fn fail(&self, error: anyhow::Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
        self.stop();
    }

    /// Waits until a run has ended that began after this call.
    fn pass(&self) -> Result<()> {
        let begun = self.begun.load(Ordering::SeqCst);
        poll("a run of the collector", COLLECTOR_BOUND, || {
            ensure!(!self.stopped(), "the collector has stopped");
            Ok(when(self.ended.load(Ordering::SeqCst) > begun))
        })
    }
}

/// Stops the collector, and with it everybody, when its thread panics.
struct Watch<'a>(&'a Collector);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

type Work<'a> = &'a (dyn Fn(&Collector) -> Result<()> + Sync);

/// Runs the workers to their end beside the collector, and `beside` again and again meanwhile.
fn beside_the_collector(workers: &[Work], beside: Work) -> Result<()> {
    let collector = Collector::default();
    let working = AtomicUsize::new(workers.len());
    let to_its_end = |work: Work| {
        let _watch = Watch(&collector);
        if let Err(error) = work(&collector) {
            collector.fail(error);
        }
    };
    let until_stopped = |collector: &Collector| {
        while !collector.stopped() {
            beside(collector)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        scope.spawn(|| to_its_end(&Collector::run));
        scope.spawn(|| to_its_end(&until_stopped));
        for worker in workers {
            scope.spawn(|| {
                to_its_end(*worker);
                if working.fetch_sub(1, Ordering::SeqCst) == 1 {
                    collector.stop();
                }
            });
        }
    });
    let failure = collector.failure.into_inner();
    match failure.unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Builds closures and moves them into a cache.
fn away(host: &Host, formats: &[Format]) -> Result<(Cache, Vec<Closure>)> {
    let cache = Cache::start(host)?;
    let store = Store::new(host)?;
    let mut closures = Vec::new();
    for format in formats {
        let closure = Closure::build(&store, *format, BYTES)?;
        cache.add(closure.objects(), Some(cache.key()))?;
        evict(closure.objects())?;
        closures.push(closure);
    }
    Ok((cache, closures))
}

/// Checks that Nix holds nothing more for this daemon, and that its collector takes everything.
fn all_is_freed(config: &Config, closures: &[Closure]) -> Result<()> {
    collect_garbage()?;
    for closure in closures {
        are_gone(closure.objects())?;
    }
    let registered = registered_roots(config.root())?;
    ensure!(registered.is_empty(), "Nix has a note of {registered:?}");
    let roots = succeed(std::process::Command::new("nix-store").args(["--gc", "--print-roots"]))?;
    let own = config.root().display().to_string();
    ensure!(!roots.contains(&own), "roots are left: {roots}");
    Ok(())
}

/// Has an image pulled, run, and removed under a running container.
fn image_life(
    host: &Host,
    containerd: &Containerd,
    closure: &Closure,
    collector: &Collector,
    round: u32,
) -> Result<()> {
    let image = reference("collected");
    let archive = busybox_image(host, &image, [closure.layer()?])?;
    match round % 2 {
        0 => containerd.load(NIX, &archive)?,
        _ => containerd.import(NIX, &archive)?,
    }
    closure.is_here()?;
    let check = closure.check();
    let check = check.each_ref().map(|word| &**word);
    containerd.run(NIX, &image, &check)?.success()?;

    let program = closure.program();
    let container = containerd.run_detached(NIX, &[], &image, &[&program, "sleep", "1000"])?;
    containerd.remove_image(&image)?;
    collector.pass()?;
    closure.is_here()?;
    container.exec(&check)?;
    container.remove()
}

#[test]
fn soak_images_and_containers_beside_the_collector() {
    test(|host| {
        let rounds = host.repetitions(4, 200);
        let (cache, closures) = away(host, &[Format::PerPath, Format::ClosureInfo])?;
        let config = cache.substituter_of(Config::new(host, "daemon"), &[]);
        let node = Node::start_with(host, &config)?;
        let containerd = &node.containerd;
        let worker = |closure| {
            move |collector: &Collector| {
                (0..rounds).try_for_each(|round| {
                    image_life(host, containerd, closure, collector, round)
                        .with_context(|| format!("in round {round}"))
                })
            }
        };
        // Two images share a closure, and neither may take it from the other.
        let (alone, shared) = (worker(&closures[0]), worker(&closures[1]));
        beside_the_collector(&[&alone, &shared, &shared], &|_| {
            containerd.collect_garbage()
        })?;
        node.keeps_nothing()?;
        all_is_freed(node.daemon.config(), &closures)
    });
}

/// Has a layer and a container come and go, and some pulls end before their end.
fn snapshot_life(
    snapshots: &Snapshots,
    closure: &Closure,
    collector: &Collector,
    round: u32,
) -> Result<()> {
    if round % 3 == 1 {
        let pull = closure.begin_prepare(snapshots, &unique("abandoned"));
        thread::sleep(Duration::from_millis(u64::from(round) * 17 % 200));
        pull.abandon();
    }
    let (key, layer, container) = (unique("extract"), unique("layer"), unique("container"));
    closure.prepare(snapshots, &key)?;
    closure.is_here()?;
    snapshots.commit(&layer, &key, &[])?;
    snapshots.prepare(&container, &layer, &[])?;
    collector.pass()?;
    closure.is_here()?;
    snapshots.remove(&container)?;
    snapshots.remove(&layer)?;
    Ok(())
}

fn snapshots_beside_the_collector(
    host: &Host,
    cache: &Cache,
    config: &Config,
    closures: &[Closure],
    nix_daemon: Option<&NixDaemon>,
) -> Result<()> {
    let rounds = host.repetitions(6, 500);
    let daemon = Daemon::start(config)?;
    let snapshots = daemon.snapshots()?;
    let before = daemon.config().kept()?;
    let worker = |closure| {
        let snapshots = &snapshots;
        move |collector: &Collector| {
            (0..rounds).try_for_each(|round| {
                snapshot_life(snapshots, closure, collector, round)
                    .with_context(|| format!("in round {round}"))
            })
        }
    };
    // Several ask for the same at the same time, and some hang up.
    let (alone, shared) = (worker(&closures[0]), worker(&closures[1]));
    beside_the_collector(&[&alone, &shared, &shared, &shared], &|_| {
        Ok(snapshots.cleanup()?)
    })?;
    // What nix-daemon does for a client it holds until it has noticed that the client is gone.
    poll("the end of the last realisation", SETTLE, || {
        let workers = nix_daemon.map(NixDaemon::workers).transpose()?;
        Ok(when(
            children(daemon.pid())?.is_empty()
                && workers.is_none_or(|workers| workers.is_empty())
                && cache.in_flight() == 0,
        ))
    })?;
    // Of what was abandoned, some had been there before.
    for key in snapshots.names(&[])? {
        ensure!(key.starts_with("abandoned"), "{key} is left");
        snapshots.remove(&key)?;
    }
    snapshots.cleanup()?;
    daemon.keeps_only(&before)?;
    all_is_freed(config, closures)
}

#[test]
fn soak_snapshots_beside_the_collector() {
    test(|host| {
        let (cache, closures) = away(host, &[Format::ClosureInfo, Format::PerPath])?;
        let config = cache.substituter_of(Config::new(host, "daemon"), &[]);
        snapshots_beside_the_collector(host, &cache, &config, &closures, None)
    });
}

#[test]
fn soak_snapshots_of_a_nix_daemon_beside_the_collector() {
    test(|host| {
        let (cache, closures) = away(host, &[Format::ClosureInfo, Format::PerPath])?;
        let nix_daemon = NixDaemon::start(host, cache.environment(&[]))?;
        let config = nix_daemon.client(Config::new(host, "daemon"));
        snapshots_beside_the_collector(host, &cache, &config, &closures, Some(&nix_daemon))
    });
}

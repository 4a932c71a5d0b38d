//! A daemon that is killed at any instant, under the load of several clients.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::{
        RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::{
    daemon::{Config, Daemon},
    host::{Host, test},
    image::{NIX_CLOSURE, NIX_STORE_PATH},
    invariants,
    process::{SETTLE, poll, when},
    store::{Object, Store, collect_garbage},
    worker::{LayerLabels, Outages, Way, Worker},
};
use fastrand::Rng;

/// How long a daemon serves before it is killed, in milliseconds.
const LIFE_MS: u64 = 250;

/// How long one that is killed while it starts may live: beyond the time that a start takes.
const START_MS: u64 = 40;

/// How long the Nix processes of a killed daemon may go on: they end by themselves.
const ORPHAN_BOUND: Duration = Duration::from_secs(60);

/// What clients that run at the same time share.
#[derive(Default)]
struct Load {
    outages: Outages,
    /// Held by each client for a step, and by the test while everything is at rest.
    rest: RwLock<()>,
    stop: AtomicBool,
}

impl Load {
    /// Repeats a client's step until the load ends.
    fn work(&self, mut step: impl FnMut() -> Result<()>) -> Result<()> {
        while !self.stop.load(Ordering::SeqCst) {
            let _busy = self.rest.read();
            step()?;
        }
        Ok(())
    }

    /// Runs `kills` beside the clients, until it has ended or one of them has failed.
    fn run<'a>(
        &'a self,
        clients: Vec<Box<dyn FnMut() -> Result<()> + Send + 'a>>,
        kills: u32,
        mut kill: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        thread::scope(|scope| {
            let clients: Vec<_> = clients
                .into_iter()
                .map(|step| scope.spawn(|| self.work(step)))
                .collect();
            let killed = (0..kills)
                .take_while(|_| !clients.iter().any(thread::ScopedJoinHandle::is_finished))
                .try_for_each(|number| kill().with_context(|| format!("kill {number}")));
            self.stop.store(true, Ordering::SeqCst);
            // Nobody waits for a daemon that does not come back.
            self.outages.end();
            for client in clients {
                client.join().map_err(|_| anyhow!("a client panicked"))??;
            }
            killed
        })
    }
}

/// Sleeps for up to so many milliseconds.
fn sleep_up_to(random: &mut Rng, milliseconds: u64) {
    thread::sleep(Duration::from_millis(random.u64(0..=milliseconds)));
}

/// Kills a daemon, and perhaps its successors while they start, and starts the last one.
fn kill(daemon: &mut Daemon, random: &mut Rng) -> Result<()> {
    daemon.kill()?;
    while random.u32(0..4) == 0 {
        let after = Duration::from_millis(random.u64(0..=START_MS));
        daemon.config().start_and_kill(after)?;
    }
    daemon.start_again()
}

/// Layers in every format, of which some have to be built.
struct Layers {
    labels: Vec<LayerLabels>,
    _objects: Vec<Object>,
    builder: String,
}

impl Layers {
    fn new(host: &Host) -> Result<Self> {
        let store = Store::new(host)?;
        let dir = store.build("dir", "$busybox mkdir $out", &[])?;
        let file = store.build("file", "echo content > $out", &[])?;
        let info = store.closure_info(&[&dir])?;
        let path = |n: u32, path: &str| (format!("{NIX_STORE_PATH}{n}"), path.to_owned());
        let closure = (NIX_CLOSURE.to_owned(), info.path().to_owned());
        let mut labels = vec![
            vec![],
            vec![path(0, dir.path()), path(1, file.path())],
            vec![closure.clone()],
            vec![closure, path(0, file.path())],
        ];
        let mut objects = vec![dir, file, info];

        // An image names what a derivation builds, and the builder knows which derivation.
        let derivations = host.dir().join("derivations");
        fs::create_dir(&derivations)?;
        for milliseconds in [0, 100, 300] {
            let script = format!(
                "$busybox usleep {}; echo built > $out",
                milliseconds * 1000
            );
            let (derivation, output) = store.plan("built", &script)?;
            symlink(derivation.path(), derivations.join(&output[1..].replace('/', "-")))?;
            labels.push(vec![path(0, &output), path(1, objects[1].path())]);
            objects.push(derivation);
        }
        let builder = format!(
            r#"what={}/$(echo "$2" | tr / - | cut -c 2-)
if [ -L "$what" ]; then what=$(readlink "$what"); else what=$2; fi
exec nix-store --realise "$what" --add-root "$1""#,
            derivations.display()
        );
        Ok(Self {
            labels,
            _objects: objects,
            builder,
        })
    }
}

#[test]
fn soak_what_was_acknowledged_outlives_a_kill() {
    test(|host| {
        let mut random = host.random()?;
        let layers = Layers::new(host)?;
        let config = Config::new(host, "daemon")
            .line(invariants::CONFIG)
            .builder(&layers.builder)?;
        let mut daemon = Daemon::start(&config)?;
        let empty = config.kept()?;

        let load = Load::default();
        let mut workers = Vec::new();
        for name in ["a", "b", "c"] {
            workers.push(Worker::new(
                name,
                Way::Direct,
                daemon.snapshots()?,
                &load.outages,
                &layers.labels,
                random.fork(),
            ));
        }
        let clients = workers
            .iter_mut()
            .map(|worker| Box::new(|| worker.step()) as Box<dyn FnMut() -> Result<()> + Send>)
            .collect();
        load.run(clients, host.repetitions(12, 300), || {
            sleep_up_to(&mut random, LIFE_MS);
            let orphans = daemon.descendants().clone();
            load.outages.begin();
            kill(&mut daemon, &mut random)?;
            load.outages.end();

            let _rest = load.rest.write();
            orphans.end(ORPHAN_BOUND)?;
            invariants::check(&daemon)?;
            if random.u32(0..8) == 0 {
                // Only what a snapshot holds stays, so that the rest has to be built again.
                collect_garbage()?;
                invariants::check(&daemon)?;
            }
            Ok(())
        })?;
        for worker in &mut workers {
            worker.verify()?;
            worker.clear()?;
        }
        invariants::check(&daemon)?;
        ensure!(config.kept()? == empty, "{:?}", config.kept());
        Ok(())
    });
}

/// `nix-store --realise` makes the directory of its root anew where that was deleted.
#[test]
fn a_nix_process_of_a_killed_daemon_gives_its_root_to_no_other_snapshot() {
    test(|host| {
        let store = Store::new(host)?;
        let slow = store.build("slow", "$busybox mkdir $out", &[])?;
        let other = store.build("other", "echo content > $out", &[])?;
        let go = host.dir().join("go");
        let config = Config::new(host, "daemon")
            .line(invariants::CONFIG)
            .builder(&format!(
                r#"case "$2" in *-slow) until [ -e {} ]; do sleep 0.02; done;; esac
exec nix-store --realise "$2" --add-root "$1""#,
                go.display()
            ))?;
        let mut daemon = Daemon::start(&config)?;
        let label = format!("{NIX_STORE_PATH}0");
        let lost = daemon
            .snapshots()?
            .begin_prepare("lost", "", &[(&*label, slow.path())]);
        poll("the builder", SETTLE, || {
            Ok(when(!config.kept()?.gc_roots.is_empty()))
        })?;
        let orphans = daemon.descendants().clone();
        // At the second start, nothing on the disk tells of the first daemon's reservation.
        for _ in 0..2 {
            daemon.kill()?;
            daemon.start_again()?;
            ensure!(config.kept()?.gc_roots.is_empty());
        }
        ensure!(lost.answer().is_err());

        let snapshots = daemon.snapshots()?;
        snapshots.layer("other", "", &[(&*label, other.path())])?;
        fs::write(&go, "")?;
        orphans.end(SETTLE)?;
        ensure!(config.kept()?.gc_roots.len() == 2, "{:?}", config.kept());
        let mounts = snapshots.view("view", "other", &[])?;
        let targets: Vec<_> = mounts[1..].iter().map(|mount| &*mount.target).collect();
        ensure!(targets == [other.path()], "{targets:?}");
        // Its clean-up takes away what the process has left.
        invariants::check(&daemon)?;
        Ok(())
    });
}

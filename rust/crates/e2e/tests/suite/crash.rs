//! A daemon that is killed at any instant, under the load of several clients.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{
        Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::{
    cache::Cache,
    containerd::{Containerd, NIX},
    daemon::{Config, Daemon, Descendants},
    host::{Host, test},
    image::{Layer, NIX_CLOSURE, NIX_STORE_PATH},
    invariants,
    node::{BUSYBOX, Node, busybox_image, reference},
    process::{SETTLE, poll, when},
    snapshots::Snapshots,
    store::{Object, Store, collect_garbage},
    worker::{AWAY_BOUND, LayerLabels, Outages, Way, Worker},
};
use fastrand::Rng;

/// How long a daemon serves before it is killed, in milliseconds.
const LIFE_MS: u64 = 250;

/// The same under pulls and containers, which take longer.
const PULL_MS: u64 = 800;

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

/// Kills a daemon, and perhaps its successors while they start, and starts the last one. Gives what
/// the killed ones have started.
fn kill(daemon: &mut Daemon, random: &mut Rng) -> Result<Vec<Descendants>> {
    let mut orphans = vec![daemon.descendants().clone()];
    daemon.kill()?;
    while random.u32(0..4) == 0 {
        let after = Duration::from_millis(random.u64(0..=START_MS));
        orphans.push(daemon.config().start_and_kill(after)?);
    }
    daemon.start_again()?;
    Ok(orphans)
}

/// Waits until all of them have ended.
fn end(orphans: &mut Vec<Descendants>) -> Result<()> {
    orphans
        .drain(..)
        .try_for_each(|descendants| descendants.end(ORPHAN_BOUND))
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
            let script = format!("$busybox usleep {}; echo built > $out", milliseconds * 1000);
            let (derivation, output) = store.plan("built", &script)?;
            symlink(
                derivation.path(),
                derivations.join(output[1..].replace('/', "-")),
            )?;
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
        // Without Nix, a client makes many more calls between two kills.
        let plain = &layers.labels[..1];
        for (name, layers) in [
            ("nix-1", &*layers.labels),
            ("nix-2", &*layers.labels),
            ("plain-1", plain),
            ("plain-2", plain),
        ] {
            workers.push(Worker::new(
                name,
                Way::Direct,
                daemon.snapshots()?,
                &load.outages,
                layers,
                random.fork(),
            ));
        }
        let clients = workers
            .iter_mut()
            .map(|worker| Box::new(|| worker.step()) as Box<dyn FnMut() -> Result<()> + Send>)
            .collect();
        load.run(clients, host.repetitions(12, 300), || {
            sleep_up_to(&mut random, LIFE_MS);
            load.outages.begin();
            let mut orphans = kill(&mut daemon, &mut random)?;
            load.outages.end();

            let _rest = load.rest.write();
            end(&mut orphans)?;
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

/// An image that a client pulls, runs and removes.
struct Image {
    reference: String,
    archive: PathBuf,
    /// What prints "content" in a container of it.
    command: Vec<String>,
    /// Unknown after a call that a kill has cut off.
    present: Option<bool>,
}

impl Image {
    fn new(host: &Host, name: &str, layer: Layer, file: &str) -> Result<Self> {
        let reference = reference(name);
        Ok(Self {
            archive: busybox_image(host, &reference, [layer])?,
            reference,
            command: [BUSYBOX, "cat", file].map(str::to_owned).into(),
            present: Some(false),
        })
    }

    /// One of each sort: ordinary, and Nix layers in either format and in both at once.
    fn of_each_sort(host: &Host, store: &Store) -> Result<(Vec<Self>, Vec<Object>)> {
        let file = store.build("file", "echo content > $out", &[])?;
        let script = format!("$busybox mkdir $out; echo {file} > $out/reference");
        let dir = store.build("dir", &script, &[&file])?;
        let info = store.closure_info(&[&dir])?;
        let ordinary = Layer::default().file("file", 0o644, b"content\n")?;
        let per_path = Layer::per_path(&[dir.path(), file.path()])?;
        // containerd knows a layer by its content, whatever is annotated.
        let closure = Layer::default()
            .dir(&info.path()[1..].replace('/', "-"))?
            .annotation(NIX_CLOSURE, info.path());
        let both = Layer::per_path(&[file.path()])?.annotation(NIX_CLOSURE, info.path());
        let images = vec![
            Self::new(host, "ordinary", ordinary, "/file")?,
            Self::new(host, "per-path", per_path, file.path())?,
            Self::new(host, "closure", closure, file.path())?,
            Self::new(host, "both", both, file.path())?,
        ];
        Ok((images, vec![file, dir, info]))
    }

    fn run(&self, containerd: &Containerd) -> Result<()> {
        let command: Vec<_> = self.command.iter().map(|word| &**word).collect();
        let ended = containerd.run(NIX, &self.reference, &command)?;
        ensure!(ended.success()? == "content\n", "{}", self.reference);
        Ok(())
    }
}

/// A client that pulls, runs and removes images.
struct Puller<'a> {
    containerd: &'a Containerd,
    outages: &'a Outages,
    /// By containerd's own unpacker; else by `nix2container load`.
    transfer: bool,
    images: Vec<Image>,
    random: Rng,
}

impl Puller<'_> {
    fn step(&mut self) -> Result<()> {
        let since = self.outages.now();
        let at = self.random.usize(0..self.images.len());
        let image = &mut self.images[at];
        let (what, then) = match image.present {
            Some(true) if self.random.bool() => ("run", Some(true)),
            Some(true) => ("remove", Some(false)),
            Some(false) | None => ("pull", Some(true)),
        };
        let containerd = self.containerd;
        let done = match what {
            "run" => image.run(containerd),
            "remove" => containerd.remove_image(&image.reference),
            _ if self.transfer => containerd.import(NIX, &image.archive),
            _ => containerd.load(NIX, &image.archive),
        };
        match done {
            Ok(()) => image.present = then,
            Err(error) if !self.outages.excuse(since) => {
                return Err(error.context(format!("cannot {what} {}", image.reference)));
            }
            Err(_) if what == "run" => {}
            Err(_) => image.present = None,
        }
        Ok(())
    }

    /// Checks that each image which was acknowledged is there and runs, and no other.
    fn verify(&self) -> Result<()> {
        let names = self.containerd.images()?;
        for image in &self.images {
            let Some(present) = image.present else {
                continue;
            };
            ensure!(names.contains(&image.reference) == present, "{names:?}");
            if present {
                image.run(self.containerd)?;
            }
        }
        Ok(())
    }

    /// Pulls what is not known to be there, runs all, and removes all.
    fn finish(&mut self) -> Result<()> {
        for image in &self.images {
            if image.present != Some(true) {
                self.containerd.import(NIX, &image.archive)?;
            }
            image.run(self.containerd)?;
            self.containerd.remove_image(&image.reference)?;
        }
        Ok(())
    }
}

/// Waits until containerd, which does not connect at once, reaches the daemon again.
fn reached(snapshots: &Snapshots) -> Result<()> {
    poll("containerd's connection to the daemon", AWAY_BOUND, || {
        Ok(when(snapshots.list(&[]).is_ok()))
    })
}

/// Checks that containerd and the daemon have the same snapshots: the daemon's names are
/// `<namespace>/<n>/<name in containerd>` (`core/metadata`).
fn agree(containerd: &Containerd, daemon: &Daemon) -> Result<()> {
    // containerd's collector asks a snapshotter only after a removal, and does not repeat what
    // failed while the daemon was away (`core/metadata`, `dirtySS`).
    let client = containerd.snapshots(NIX)?;
    client.prepare("removal", "", &[("containerd.io/gc.root", "true")])?;
    client.remove("removal")?;
    containerd.collect_garbage()?;
    let ours = invariants::check(daemon)?;
    let mut ours: Vec<_> = ours
        .keys()
        .filter_map(|name| name.splitn(3, '/').nth(2))
        .collect();
    ours.sort_unstable();
    let theirs = client.names(&[])?;
    ensure!(
        ours == theirs,
        "the daemon has {ours:?}, containerd {theirs:?}"
    );
    Ok(())
}

#[test]
fn soak_containerd_and_the_daemon_agree_after_kills() {
    test(|host| {
        let mut random = host.random()?;
        let store = Store::new(host)?;
        let (mut first, mut objects) = Image::of_each_sort(host, &store)?;
        let (second, more) = Image::of_each_sort(host, &store)?;
        objects.extend(more);
        // What no image holds is collected, and each pull fetches it again.
        let cache = Cache::start(host)?;
        cache.add(&objects, Some(cache.key()))?;
        let config = Config::new(host, "daemon").line(invariants::CONFIG);
        let config = cache.substituter_of(config, &[]);
        let Node {
            containerd,
            mut daemon,
        } = Node::start_with(host, &config)?;
        let empty = config.kept()?;

        let layers: Vec<LayerLabels> = vec![
            vec![],
            vec![(NIX_CLOSURE.to_owned(), objects[2].path().to_owned())],
        ];
        let held = &mut first[1];
        containerd.import(NIX, &held.archive)?;
        held.present = Some(true);
        let container =
            containerd.run_detached(NIX, &[], &held.reference, &[BUSYBOX, "sleep", "100000"])?;
        let read: Vec<_> = held.command.clone();
        let read: Vec<_> = read.iter().map(|word| &**word).collect();
        let goes_on = || -> Result<()> {
            ensure!(container.exec(&read)? == "content\n");
            Ok(())
        };
        objects.iter().try_for_each(Object::release)?;

        let load = Load::default();
        let client = containerd.snapshots(NIX)?;
        let mut worker = Worker::new(
            "raw",
            Way::Containerd,
            client.clone(),
            &load.outages,
            &layers,
            random.fork(),
        );
        let puller = |transfer, images, random| Puller {
            containerd: &containerd,
            outages: &load.outages,
            transfer,
            images,
            random,
        };
        let first = Mutex::new(puller(true, first, random.fork()));
        let second = Mutex::new(puller(false, second, random.fork()));
        let lock = |puller| -> Result<_> {
            let puller: &Mutex<Puller<'_>> = puller;
            puller.lock().map_err(|_| anyhow!("a client panicked"))
        };
        let clients: Vec<Box<dyn FnMut() -> Result<()> + Send>> = vec![
            Box::new(|| worker.step()),
            Box::new(|| lock(&first)?.step()),
            Box::new(|| lock(&second)?.step()),
        ];
        let mut orphans = Vec::new();
        load.run(clients, host.repetitions(12, 300), || {
            sleep_up_to(&mut random, PULL_MS);
            load.outages.begin();
            orphans.extend(kill(&mut daemon, &mut random)?);
            goes_on()?;
            reached(&client)?;
            load.outages.end();
            if random.u32(0..3) > 0 {
                return Ok(());
            }

            let _rest = load.rest.write();
            end(&mut orphans)?;
            agree(&containerd, &daemon)?;
            lock(&first)?.verify()?;
            lock(&second)?.verify()?;
            collect_garbage()?;
            goes_on()?;
            agree(&containerd, &daemon)
        })?;
        worker.verify()?;
        worker.clear()?;
        container.remove()?;
        lock(&first)?.finish()?;
        lock(&second)?.finish()?;
        agree(&containerd, &daemon)?;
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
        let (begun, go) = (host.dir().join("begun"), host.dir().join("go"));
        let config = Config::new(host, "daemon")
            .line(invariants::CONFIG)
            .builder(&format!(
                r#"case "$2" in *-slow) : > {}; until [ -e {} ]; do sleep 0.02; done;; esac
exec nix-store --realise "$2" --add-root "$1""#,
                begun.display(),
                go.display()
            ))?;
        let mut daemon = Daemon::start(&config)?;
        let label = format!("{NIX_STORE_PATH}0");
        let lost = daemon
            .snapshots()?
            .begin_prepare("lost", "", &[(&*label, slow.path())]);
        poll("the builder", SETTLE, || Ok(when(begun.exists())))?;
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

//! Realisations: shared, limited, and ended with all that belongs to them when nobody waits.

use std::{
    fs,
    path::Path,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    daemon::{Config, Daemon, Kept, STOP_BOUND},
    host::{Host, test, unique},
    image::{NIX_CLOSURE, NIX_STORE_PATH},
    nix_daemon::NixDaemon,
    process::{SETTLE, poll, succeed, when},
    snapshots::{Preparing, Snapshots, refused, says},
    store::{Store, collect_garbage},
};
use rustix::process::Signal;
use tonic::Code;

/// How long Nix may take to begin with a build.
const BUILD_BOUND: Duration = Duration::from_secs(60);

/// A derivation whose builder, and what that has started, sleep for a time that no other does.
struct EndlessBuild {
    drv: String,
    seconds: String,
}

impl EndlessBuild {
    fn new(host: &Host) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let seconds = format!("{}{number:03}", process::id());
        let shell = format!("{}/bin/busybox", host.fixture("busybox")?);
        let expression = format!(
            "derivation {{ name = \"endless\"; system = builtins.currentSystem; \
             builder = builtins.storePath {fixture} + \"/bin/busybox\"; \
             args = [ \"sh\" \"-c\" \"{shell} sleep {seconds}; echo > $out\" ]; token = \"{token}\"; }}",
            fixture = host.fixture("busybox")?,
            token = unique("endless"),
        );
        let link = host.dir().join(unique("drv"));
        let mut instantiate = Command::new("nix-instantiate");
        instantiate
            .args(["--expr", &expression, "--add-root"])
            .arg(&link);
        succeed(&mut instantiate)?;
        let drv = fs::read_link(&link)?.to_str().context("UTF-8")?.to_owned();
        Ok(Self { drv, seconds })
    }

    /// Has it built for a layer, and waits until the builder runs.
    fn begin(&self, snapshots: &Snapshots) -> Result<Preparing> {
        let label = path_label(0);
        let preparing = snapshots.begin_prepare("endless", "", &[(&*label, &*self.drv)]);
        poll("the builder", BUILD_BOUND, || {
            Ok(when(!processes(&[&self.seconds])?.is_empty()))
        })?;
        Ok(preparing)
    }

    /// Waits until neither a process of the builder's, or of Nix's for it, nor anything of the
    /// snapshot is left.
    fn leaves_nothing(&self, daemon: &Daemon, before: &Kept) -> Result<()> {
        let left = || processes(&[&self.seconds, &self.drv]);
        poll("the end of the builder", SETTLE, || {
            Ok(when(left()?.is_empty()))
        })
        .with_context(|| format!("{:?} are left", left()))?;
        daemon.keeps_only(before)
    }
}

/// The numbers of the processes that have one of these on their command lines.
fn processes(words: &[&str]) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if words.iter().any(|word| line.contains(word)) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn path_label(number: usize) -> String {
    format!("{NIX_STORE_PATH}{number}")
}

/// Hangs up on a Prepare for which Nix builds, and checks what is left.
fn hang_up_on_a_build(host: &Host, config: &Config) -> Result<()> {
    let daemon = Daemon::start(config)?;
    let snapshots = daemon.snapshots()?;
    let before = daemon.config().kept()?;
    let build = EndlessBuild::new(host)?;
    let preparing = build.begin(&snapshots)?;
    ensure!(daemon.config().kept()?.gc_roots.len() == 1);
    preparing.abandon();
    build.leaves_nothing(&daemon, &before)?;
    ensure!(snapshots.list(&[])?.is_empty());
    Ok(())
}

#[test]
fn nix_and_its_builders_end_with_the_call() {
    test(|host| hang_up_on_a_build(host, &Config::new(host, "daemon")));
}

#[test]
fn builders_of_a_nix_daemon_end_with_the_call() {
    test(|host| {
        let nix_daemon = NixDaemon::start(host, [])?;
        hang_up_on_a_build(host, &nix_daemon.client(Config::new(host, "daemon")))
    });
}

#[test]
fn a_build_that_takes_too_long_ends_with_its_processes() {
    test(|host| {
        let config = Config::new(host, "daemon").line("realise_timeout = 5");
        let daemon = Daemon::start(&config)?;
        let snapshots = daemon.snapshots()?;
        let before = daemon.config().kept()?;
        let build = EndlessBuild::new(host)?;
        let preparing = build.begin(&snapshots)?;
        let words = ["nix-store", "5 s", "realise_timeout"];
        refused(preparing.answer(), Code::DeadlineExceeded, &words)?;
        build.leaves_nothing(&daemon, &before)
    });
}

#[test]
fn a_daemon_that_stops_takes_its_builds_along() {
    test(|host| {
        let config = Config::new(host, "daemon").line("shutdown_timeout = 1");
        let mut daemon = Daemon::start(&config)?;
        let before = daemon.config().kept()?;
        let build = EndlessBuild::new(host)?;
        let preparing = build.begin(&daemon.snapshots()?)?;
        daemon.signal(Signal::TERM)?;
        ensure!(preparing.answer().is_err());
        ensure!(daemon.wait(STOP_BOUND)?.success());
        build.leaves_nothing(&daemon, &before)
    });
}

/// A builder that waits before it fetches until the test makes the file `go`, and counts.
fn fetching(host: &Host, config: Config) -> Result<Config> {
    let (go, log) = (host.dir().join("go"), host.dir().join("fetched"));
    config.builder(&format!(
        "if ! [ -e \"$2\" ]; then echo fetch >> {log}; until [ -e {go} ]; do sleep 0.02; done; fi
         exec nix-store --realise \"$2\" --add-root \"$1\"",
        log = log.display(),
        go = go.display()
    ))
}

/// How often the builder has begun to fetch.
fn fetches(host: &Host) -> usize {
    fs::read_to_string(host.dir().join("fetched")).map_or(0, |log| log.lines().count())
}

/// Waits until the daemon has said this a number of times.
fn logs(daemon: &Daemon, words: &str, times: usize) -> Result<()> {
    poll(words, SETTLE, || {
        Ok(when(daemon.log().matches(words).count() == times))
    })
}

/// A store path that nobody has and nobody can make; each number names another.
fn nobodys(number: u32) -> String {
    format!("/nix/store/{number:032}-nobody-has-this")
}

#[test]
fn layers_of_one_closure_are_fetched_once() {
    test(|host| {
        let daemon = Daemon::start(&fetching(host, Config::new(host, "daemon"))?)?;
        let snapshots = daemon.snapshots()?;
        let before = daemon.config().kept()?;
        let label = path_label(0);
        let path = nobodys(1);
        let labels = [(&*label, &*path)];
        let calls: Vec<_> = ["a", "b", "c"]
            .map(|key| snapshots.begin_prepare(key, "", &labels))
            .into_iter()
            .collect();
        poll("the builder", SETTLE, || Ok(when(fetches(host) > 0)))?;
        logs(&daemon, "that is under way", 2)?;
        ensure!(daemon.config().kept()?.gc_roots.len() == 1);
        fs::write(host.dir().join("go"), "")?;
        for call in calls {
            refused(call.answer(), Code::FailedPrecondition, &[&path])?;
        }
        ensure!(fetches(host) == 1, "fetched {} times", fetches(host));
        daemon.keeps_only(&before)
    });
}

#[test]
fn what_waits_for_its_turn_can_hang_up_and_holds_up_nothing_that_is_present() {
    test(|host| {
        let config = Config::new(host, "daemon").line("max_realisations = 1");
        let daemon = Daemon::start(&fetching(host, config)?)?;
        let snapshots = daemon.snapshots()?;
        let object = Store::new(host)?.build("dir", "$busybox mkdir $out", &[])?;
        let label = path_label(0);
        let before = daemon.config().kept()?;
        let begin = |key: &str, number| {
            let path = nobodys(number);
            snapshots.begin_prepare(key, "", &[(&*label, &*path)])
        };
        let first = begin("first", 1);
        poll("the builder", SETTLE, || Ok(when(fetches(host) == 1)))?;
        let second = begin("second", 2);
        logs(&daemon, "waiting for a turn", 1)?;
        // It has all it needs, and so comes before the second.
        ensure!(
            snapshots
                .prepare("present", "", &[(&*label, object.path())])?
                .len()
                == 2
        );
        ensure!(fetches(host) == 1);
        second.abandon();
        logs(&daemon, "the client has hung up", 1)?;
        first.abandon();
        snapshots.remove("present")?;
        snapshots.cleanup()?;
        daemon.keeps_only(&before)?;
        ensure!(fetches(host) == 1, "one that had hung up got its turn");
        Ok(())
    });
}

#[test]
fn no_realisation_at_all_is_no_limit() {
    test(|host| {
        let config = Config::new(host, "daemon").line("max_realisations = 0");
        says(&config.refused()?, &["`max_realisations`", "1 or more"])
    });
}

#[test]
fn a_layer_may_name_thousands_of_paths() {
    test(|host| {
        let daemon = Daemon::start(&Config::new(host, "daemon"))?;
        let snapshots = daemon.snapshots()?;
        let before = daemon.config().kept()?;
        let paths = add_many(host, 5000)?;
        let labels: Vec<_> = paths
            .iter()
            .enumerate()
            .map(|(number, path)| (path_label(number), path))
            .collect();
        let labels: Vec<_> = labels
            .iter()
            .map(|(label, path)| (&**label, &***path))
            .collect();
        snapshots.layer("layer", "", &labels)?;
        let mounts = snapshots.prepare("container", "layer", &[])?;
        let targets: Vec<_> = mounts[1..].iter().map(|mount| &mount.target).collect();
        let mut expected: Vec<_> = paths.iter().collect();
        expected.sort_unstable();
        ensure!(targets == expected, "{} paths are mounted", targets.len());

        // Only the layer holds them, each by a root of its own.
        collect_garbage()?;
        ensure!(paths.iter().all(|path| Path::new(path).exists()));
        snapshots.remove("container")?;
        snapshots.remove("layer")?;
        snapshots.cleanup()?;
        daemon.keeps_only(&before)?;
        collect_garbage()?;
        ensure!(!paths.iter().any(|path| Path::new(path).exists()));
        Ok(())
    });
}

/// Adds files to the store that nothing holds yet.
fn add_many(host: &Host, number: usize) -> Result<Vec<String>> {
    let dir = host.dir().join("many");
    fs::create_dir(&dir)?;
    let token = unique("many");
    let mut add = Command::new("nix-store");
    add.arg("--add");
    for number in 0..number {
        let file = dir.join(format!("many-{number}"));
        fs::write(&file, format!("{token} {number}"))?;
        add.arg(file);
    }
    Ok(succeed(&mut add)?.lines().map(str::to_owned).collect())
}

#[test]
fn what_a_closure_info_lists_without_referring_to_it_is_held_too() {
    test(|host| {
        let daemon = Daemon::start(&Config::new(host, "daemon"))?;
        let snapshots = daemon.snapshots()?;
        let store = Store::new(host)?;
        let referred = store.build("referred", "echo referred > $out", &[])?;
        // More than one call of Nix makes the roots of.
        let mut listed = add_many(host, 600)?;
        listed.push(referred.path().to_owned());
        let list = host.dir().join("list");
        fs::write(&list, listed.join("\n"))?;
        let script = format!(
            "$busybox mkdir $out; echo {referred} > $out/reference; $busybox cp {} $out/store-paths",
            list.display()
        );
        let info = store.build("info", &script, &[&referred])?;
        snapshots.layer("layer", "", &[(NIX_CLOSURE, info.path())])?;
        info.release()?;
        referred.release()?;
        collect_garbage()?;
        ensure!(listed.iter().all(|path| Path::new(path).exists()));
        ensure!(snapshots.prepare("container", "layer", &[])?.len() == 602);
        Ok(())
    });
}

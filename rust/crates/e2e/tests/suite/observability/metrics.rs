//! The page of metrics: what moves it, and who may read it.

use std::{
    collections::BTreeSet, fs, net::TcpListener, os::unix::fs::PermissionsExt, process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    daemon::{Config, Daemon},
    host::{test, unique},
    image::NIX_STORE_PATH,
    observability::{Health, Http, Metrics, command},
    process::{SETTLE, poll, succeed, when},
    snapshots::{refused, says},
    store::Store,
};
use tonic::Code;

use super::{Missing, config, ends, metrics, status};

#[test]
fn calls_move_the_metrics() {
    test(|host| {
        let daemon = Daemon::start(&config(host))?;
        let snapshots = daemon.snapshots()?;
        let duration = "nix_snapshotter_rpc_duration_seconds";
        let fresh = metrics(host)?;
        for name in [
            "nix_snapshotter_snapshots",
            "nix_snapshotter_nix_layers",
            "nix_snapshotter_gc_roots",
            "nix_snapshotter_image_archives",
            "nix_snapshotter_realisations_under_way",
            "nix_snapshotter_realisations_total",
            "nix_snapshotter_realisation_seconds_total",
            "nix_snapshotter_realised_paths_total",
            "nix_snapshotter_realised_bytes_total",
            "nix_snapshotter_store_waits_total",
            "nix_snapshotter_store_wait_seconds_total",
            "process_cpu_seconds_total",
        ] {
            ensure!(fresh.has(name), "there is no {name}: {fresh:?}");
        }
        ensure!(!fresh.has(duration), "{fresh:?}");
        let version = fresh.label("nix_snapshotter_build_info", "version");
        ensure!(
            version.is_some_and(|version| version.contains('.')),
            "{version:?}"
        );
        ensure!(fresh.value("process_resident_memory_bytes", &[]) > 1e6);
        ensure!(fresh.value("process_open_fds", &[]) > 3.0);
        let start = fresh.value("process_start_time_seconds", &[]);
        let now = std::time::UNIX_EPOCH.elapsed()?.as_secs_f64();
        ensure!((now - 600.0..now + 1.0).contains(&start), "{start} {now}");

        let dir = Store::new(host)?.build("dir", "$busybox mkdir $out", &[])?;
        let label = format!("{NIX_STORE_PATH}0");
        snapshots.layer("base", "", &[(&label, dir.path())])?;
        snapshots.prepare("active", "base", &[])?;
        snapshots.view("view", "base", &[])?;
        refused(snapshots.stat("nothing"), Code::NotFound, &[])?;
        snapshots.list(&[])?;
        let expected = |page: &Metrics| -> Result<Option<()>> {
            let calls = |method, code| page.value(duration, &[("method", method), ("code", code)]);
            let kind = |kind| page.value("nix_snapshotter_snapshots", &[("kind", kind)]);
            Ok(when(
                calls("Prepare", "OK") == 2.0
                    && calls("Commit", "OK") == 1.0
                    && calls("View", "OK") == 1.0
                    && calls("Stat", "NotFound") == 1.0
                    && calls("List", "OK") == 1.0
                    && kind("committed") == 1.0
                    && kind("active") == 1.0
                    && kind("view") == 1.0
                    && page.value("nix_snapshotter_nix_layers", &[]) == 1.0
                    && page.value("nix_snapshotter_gc_roots", &[]) == 1.0,
            ))
        };
        // A call is counted when its last byte is sent, which its client may see first.
        let moved = poll("the calls in the metrics", SETTLE, || {
            let page = metrics(host)?;
            Ok(expected(&page)?.map(|()| page))
        })
        .with_context(|| format!("{:?}", metrics(host)))?;
        let sum = "nix_snapshotter_rpc_duration_seconds_sum";
        ensure!(moved.value(sum, &[("method", "Prepare")]) > 0.0);
        let succeeded = [("outcome", "succeeded")];
        ensure!(moved.value("nix_snapshotter_realisations_total", &succeeded) == 1.0);
        ensure!(moved.value("nix_snapshotter_realisation_seconds_total", &[]) > 0.0);

        snapshots.remove("active")?;
        snapshots.remove("view")?;
        snapshots.remove("base")?;
        let empty = metrics(host)?;
        ensure!(empty.value("nix_snapshotter_snapshots", &[("kind", "committed")]) == 0.0);
        ensure!(
            empty.value("nix_snapshotter_gc_roots", &[]) == 0.0,
            "{empty:?}"
        );
        Ok(())
    });
}

#[test]
fn what_is_under_way_shows_in_metrics_and_status() {
    test(|host| {
        let missing = Missing::new(host);
        let config = missing.builder(config(host).line("max_realisations = 1"))?;
        let daemon = Daemon::start(&config)?;
        let snapshots = daemon.snapshots()?;
        let (label, path) = missing.label();
        let first = snapshots.begin_prepare("first", "", &[(&label, &path)]);
        let value = |name: &str, labels: &[(&str, &str)]| -> Result<f64> {
            Ok(metrics(host)?.value(name, labels))
        };
        let under_way = "nix_snapshotter_realisations_under_way";
        let in_flight = "nix_snapshotter_rpcs_in_flight";
        poll("the builder", SETTLE, || {
            Ok(when(value(under_way, &[("state", "running")])? == 1.0))
        })?;
        ensure!(value(in_flight, &[("method", "Prepare")])? == 1.0);

        // One at a time: the next waits for its turn.
        let other = Missing::new(host);
        let (label, other_path) = other.label();
        let second = daemon
            .snapshots()?
            .begin_prepare("second", "", &[(&label, &other_path)]);
        poll("the second", SETTLE, || {
            Ok(when(value(under_way, &[("state", "waiting")])? == 1.0))
        })?;

        let status = status(host, &config)?;
        let realisations = &status["realisations"];
        ensure!(
            realisations["running"] == 1 && realisations["waiting"] == 1,
            "{status}"
        );
        let listed = realisations["under_way"].as_array().context("no list")?;
        ensure!(
            listed.len() == 2 && listed[0]["store_paths"][0] == path,
            "{status}"
        );
        ensure!(listed[0]["age_seconds"].as_f64() > listed[1]["age_seconds"].as_f64());
        let table = succeed(&mut command(host, &config, &["status"]))?;
        says(&table, &["1 running, 1 waiting", &path, &other_path])?;

        // The second hangs up, and the first gets what it asked for.
        second.abandon();
        poll("the end of the second", SETTLE, || {
            let cancelled = [("outcome", "cancelled")];
            Ok(when(
                value("nix_snapshotter_realisations_total", &cancelled)? == 1.0,
            ))
        })?;
        let lines = ends(&daemon, "Prepare", "second")?;
        ensure!(
            lines[0]["code"] == "Canceled" && lines[0]["level"] == "INFO",
            "{lines:?}"
        );
        fs::write(&missing.go, "")?;
        first.answer()?;
        poll("the end of the first", SETTLE, || {
            let canceled = [("method", "Prepare"), ("code", "Canceled")];
            let calls = value("nix_snapshotter_rpc_duration_seconds", &canceled)?;
            let in_flight = value(in_flight, &[("method", "Prepare")])?;
            let running = value(under_way, &[("state", "running")])?;
            let paths = value("nix_snapshotter_realised_paths_total", &[])?;
            Ok(when(
                (calls, in_flight, running, paths) == (1.0, 0.0, 0.0, 1.0),
            ))
        })?;

        // And one that fails.
        let socket = host.dir().join("failing.sock");
        let config = Config::new(host, "failing")
            .line(format!("metrics.address = \"unix://{}\"", socket.display()))
            .builder("exit 3")?;
        let failing = Daemon::start(&config)?;
        let (label, path) = Missing::new(host).label();
        let answer = failing.snapshots()?.prepare("bad", "", &[(&label, &path)]);
        refused(answer, Code::FailedPrecondition, &[])?;
        let page = Http::Unix(&socket).metrics()?;
        let failed = [("outcome", "failed")];
        ensure!(page.value("nix_snapshotter_realisations_total", &failed) == 1.0);
        Ok(())
    });
}

#[test]
fn what_nix_fetches_is_measured() {
    test(|host| {
        let object = Store::new(host)?.build("fetched", "echo content > $out", &[])?;
        let cache = host.dir().join("cache");
        let nix = |arguments: &[&str]| {
            let mut command = Command::new("nix");
            command.args(["--extra-experimental-features", "nix-command"]);
            command.args(arguments);
            succeed(&mut command)
        };
        let to = format!("file://{}", cache.display());
        nix(&["copy", "--to", &to, object.path()])?;
        let size = succeed(Command::new("nix-store").args(["--query", "--size", object.path()]))?;
        object.release()?;
        succeed(Command::new("nix-store").args(["--delete", object.path()]))?;

        let settings = format!("substituters = {to}\nrequire-sigs = false");
        let daemon = Daemon::start(&config(host).environment("NIX_CONFIG", settings))?;
        let label = format!("{NIX_STORE_PATH}0");
        daemon
            .snapshots()?
            .prepare("layer", "", &[(&label, object.path())])?;
        let size: f64 = size.trim().parse()?;
        // It is measured after the answer.
        poll("the size of what was fetched", SETTLE, || {
            let page = metrics(host)?;
            let paths = page.value("nix_snapshotter_realised_paths_total", &[]);
            let bytes = page.value("nix_snapshotter_realised_bytes_total", &[]);
            Ok(when(paths == 1.0 && bytes == size))
        })
        .with_context(|| format!("not {size}: {:?}", metrics(host)))
    });
}

#[test]
fn waits_for_the_store_are_counted() {
    test(|host| {
        let daemon = Daemon::start(&config(host))?;
        // Many writers at once, until two of them meet.
        poll("two calls that meet", Duration::from_secs(60), || {
            std::thread::scope(|scope| -> Result<()> {
                let writers: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| -> Result<()> {
                            let snapshots = daemon.snapshots()?;
                            for _ in 0..10 {
                                let key = unique("key");
                                snapshots.prepare(&key, "", &[])?;
                                snapshots.remove(&key)?;
                            }
                            Ok(())
                        })
                    })
                    .collect();
                for writer in writers {
                    writer.join().expect("no panic")?;
                }
                Ok(())
            })?;
            let page = metrics(host)?;
            let waits = page.value("nix_snapshotter_store_waits_total", &[]);
            let seconds = page.value("nix_snapshotter_store_wait_seconds_total", &[]);
            ensure!((waits > 0.0) == (seconds > 0.0), "{waits} {seconds}");
            Ok(when(waits > 0.0))
        })
    });
}

#[test]
fn strangers_cannot_make_the_page_grow() {
    test(|host| {
        let daemon = Daemon::start(&config(host))?;
        // A service that there is not, whose name the caller chooses.
        let health = Health::connect(daemon.config().address())?;
        refused(health.check("no such service"), Code::NotFound, &[])?;
        for n in 0..50 {
            let key = format!("{}-{n}", unique("key"));
            refused(daemon.snapshots()?.stat(&key), Code::NotFound, &[])?;
        }
        e2e::observability::call_unknown(daemon.config().address(), "/some.Service/MadeUp")?;
        let known: BTreeSet<_> = ["Check", "Stat", "other"].map(str::to_owned).into();
        poll("the calls in the metrics", SETTLE, || {
            let methods = metrics(host)?.label_values("method");
            Ok(when(methods.into_iter().collect::<BTreeSet<_>>() == known))
        })
        .with_context(|| format!("{:?}", metrics(host)))
    });
}

#[test]
fn the_endpoint_is_for_the_owner_or_for_this_machine_only() {
    test(|host| {
        let socket = host.dir().join("metrics");
        let mut daemon = Daemon::start(&config(host))?;
        let attributes = fs::metadata(&socket)?;
        ensure!(attributes.permissions().mode() & 0o777 == 0o600);
        let answer = Http::Unix(&socket).request("GET", "/")?;
        ensure!(answer.head.starts_with("HTTP/1.1 404 "), "{answer:?}");
        let answer = Http::Unix(&socket).request("POST", "/metrics")?;
        ensure!(answer.head.starts_with("HTTP/1.1 405 "), "{answer:?}");
        let answer = Http::Unix(&socket).request("HEAD", "/metrics")?;
        ensure!(answer.head.starts_with("HTTP/1.1 200 ") && answer.body.is_empty());
        daemon.stop()?;
        ensure!(!socket.exists(), "the socket is left");

        let taken = TcpListener::bind("127.0.0.1:0")?;
        let port = taken.local_addr()?.port();
        let on_port = Config::new(host, "port");
        let on_port = on_port.line(format!("metrics.address = \"127.0.0.1:{port}\""));
        let said = on_port.refused()?;
        says(&said, &["metrics", &port.to_string(), "metrics.address"])?;
        drop(taken);
        let _daemon = Daemon::start(&on_port)?;
        ensure!(
            Http::Port(port)
                .metrics()?
                .has("nix_snapshotter_build_info")
        );

        for (address, words) in [
            (
                "0.0.0.0:9600",
                &["0.0.0.0:9600", "no authentication", "127.0.0.1"][..],
            ),
            ("unix://relative", &["relative", "absolute"]),
        ] {
            let config = Config::new(host, &unique("refused"));
            let config = config.line(format!("metrics.address = {address:?}"));
            says(&config.refused()?, words)?;
        }
        Ok(())
    });
}

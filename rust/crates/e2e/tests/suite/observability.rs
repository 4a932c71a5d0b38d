//! What the daemon tells about itself: its log, its metrics, its health, its status.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    daemon::{Config, Daemon, STOP_BOUND},
    host::{Host, test, unique},
    image::NIX_STORE_PATH,
    node::{Node, busybox_image, reference},
    observability::{Health, Http, Metrics, command},
    process::{SETTLE, poll, run, succeed, when},
    snapshots::{Snapshots, refused, says},
    store::Store,
};
use rustix::process::Signal;
use serde_json::Value;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

/// The service that containerd uses.
const SNAPSHOTS: &str = "containerd.services.snapshots.v1.Snapshots";

/// A daemon that logs JSON and serves metrics on a socket.
fn config(host: &Host) -> Config {
    let socket = host.dir().join("metrics");
    Config::new(host, "daemon")
        .line("log_format = \"json\"")
        .line(format!("metrics.address = \"unix://{}\"", socket.display()))
        .environment("NIX_SNAPSHOTTER_LOG_LEVEL", "debug")
}

fn metrics(host: &Host) -> Result<Metrics> {
    Http::Unix(&host.dir().join("metrics")).metrics()
}

/// The lines of a log in JSON. Every line is one.
fn json_lines(log: &str) -> Result<Vec<Value>> {
    log.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

/// The lines that end the calls of a method with a key, by when the log has one.
fn ends(daemon: &Daemon, method: &str, key: &str) -> Result<Vec<Value>> {
    poll(&format!("the end of {method} {key}"), SETTLE, || {
        let mut lines = json_lines(&daemon.log())?;
        lines.retain(|line| {
            let span = &line["span"];
            line["code"].is_string() && span["method"] == method && span["key"] == key
        });
        Ok(Some(lines).filter(|lines| !lines.is_empty()))
    })
}

/// A store path that nobody has, and a builder that provides it once there is a file `go`.
struct Missing {
    path: PathBuf,
    go: PathBuf,
}

impl Missing {
    fn new(host: &Host) -> Self {
        let digits: String = unique("")
            .chars()
            .filter(char::is_ascii_digit)
            .rev()
            .take(32)
            .collect();
        Self {
            path: format!("/nix/store/{digits:0>32}-missing").into(),
            go: host.dir().join("go"),
        }
    }

    fn builder(&self, config: Config) -> Result<Config> {
        config.builder(&format!(
            "until [ -e {} ]; do sleep 0.02; done; mkdir -p \"$2\"; exec ln -s \"$2\" \"$1\"",
            self.go.display()
        ))
    }

    fn label(&self) -> (String, String) {
        let path = self.path.to_string_lossy().into_owned();
        (format!("{NIX_STORE_PATH}0"), path)
    }
}

impl Drop for Missing {
    fn drop(&mut self) {
        // Nix does not know it.
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
fn every_call_ends_with_a_line_that_says_what_it_was() {
    test(|host| {
        let daemon = Daemon::start(&config(host))?;
        let snapshots = daemon.snapshots()?;
        snapshots.layer("base", "", &[])?;
        snapshots.prepare("active", "base", &[])?;
        refused(snapshots.stat("nothing"), Code::NotFound, &["nothing"])?;
        let bad = (format!("{NIX_STORE_PATH}0"), "/etc/passwd".to_owned());
        let answer = snapshots.prepare("bad", "", &[(&bad.0, &bad.1)]);
        refused(answer, Code::InvalidArgument, &["/etc/passwd"])?;

        let prepared = &ends(&daemon, "Prepare", "active")?[0];
        let span = &prepared["span"];
        ensure!(
            span["parent"] == "base" && prepared["code"] == "OK",
            "{prepared}"
        );
        ensure!(prepared["level"] == "DEBUG", "{prepared}");
        ensure!(
            prepared["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0),
            "{prepared}"
        );
        // The directory of the snapshot, by its number.
        let id = span["snapshot"].as_str().context("no snapshot id")?;
        let kept = daemon.config().kept()?;
        ensure!(kept.snapshots.contains(id), "{prepared}");
        ensure!(span["namespace"].is_null(), "{prepared}");

        let committed = &ends(&daemon, "Commit", "extract-base")?[0];
        ensure!(committed["span"]["committed_as"] == "base", "{committed}");
        let missing = &ends(&daemon, "Stat", "nothing")?[0];
        ensure!(
            missing["code"] == "NotFound" && missing["level"] == "DEBUG",
            "{missing}"
        );
        let failed = &ends(&daemon, "Prepare", "bad")?[0];
        ensure!(
            failed["code"] == "InvalidArgument" && failed["level"] == "WARN",
            "{failed}"
        );
        ensure!(
            failed["error"]
                .as_str()
                .is_some_and(|error| error.contains("/etc/passwd"))
        );

        // With the header that containerd 2.x sends.
        let named = Snapshots::of_containerd(daemon.config().address(), "nix", "k8s.io")?;
        named.prepare("theirs", "", &[])?;
        let theirs = &ends(&daemon, "Prepare", "theirs")?[0];
        ensure!(theirs["span"]["namespace"] == "k8s.io", "{theirs}");
        Ok(())
    });
}

#[test]
fn whatever_is_in_a_key_is_one_line_of_bounded_length() {
    test(|host| {
        for format in ["text", "json"] {
            let name = format!("daemon-{format}");
            let config = Config::new(host, &name)
                .environment("NIX_SNAPSHOTTER_LOG_FORMAT", format)
                .environment("NIX_SNAPSHOTTER_LOG_LEVEL", "debug");
            let daemon = Daemon::start(&config)?;
            let snapshots = daemon.snapshots()?;
            let long = "k".repeat(1_000_000);
            for key in ["a\nFORGED\r\n\u{1b}[31mred\u{7}\u{85}", &long] {
                refused(snapshots.stat(key), Code::NotFound, &[])?;
                snapshots.prepare(key, "", &[])?;
            }
            poll("the last call", SETTLE, || {
                let ended = daemon.log().matches("call ended").count();
                Ok(when(ended == 2))
            })?;
            let log = daemon.log();
            for line in log.lines() {
                ensure!(line.len() < 20_000, "{format}: {} bytes", line.len());
                let begins = match format {
                    "json" => line.starts_with('{'),
                    _ => line.starts_with(|first: char| first.is_ascii_digit()),
                };
                ensure!(begins, "{format}: {line}");
            }
            if format == "json" {
                json_lines(&log)?;
            }
            let breaks = |c: char| c.is_control() && c != '\n';
            ensure!(!log.contains(breaks), "{format}: {log:?}");
            says(&log, &["FORGED", "(1000000 bytes)"])?;
        }
        Ok(())
    });
}

#[test]
fn the_journal_gets_severities_and_no_second_time() {
    test(|host| {
        // What systemd does: it names the file that standard error is.
        let config = Config::new(host, "daemon");
        let log = host.dir().join("daemon/log");
        fs::create_dir_all(host.dir().join("daemon"))?;
        fs::write(&log, "")?;
        let file = fs::metadata(&log)?;
        let stream = format!("{}:{}", file.dev(), file.ino());
        let first = |config: &Config| -> Result<String> {
            let daemon = Daemon::start(config)?;
            // It says that it serves right after it has told systemd.
            poll("the first line", SETTLE, || {
                let log = daemon.log();
                Ok(log.split_once('\n').map(|(first, _)| first.to_owned()))
            })
        };
        let line = first(&config.environment("JOURNAL_STREAM", stream))?;
        ensure!(line.starts_with("<6> INFO "), "{line}");

        // The journal of the program that started this one.
        let other = Config::new(host, "other").environment("JOURNAL_STREAM", "1:2");
        let line = first(&other)?;
        ensure!(line.starts_with("20"), "{line}");
        Ok(())
    });
}

#[test]
fn slow_calls_are_told_without_being_asked_for() {
    test(|host| {
        let missing = Missing::new(host);
        let config = missing.builder(Config::new(host, "daemon").line("log_format = \"json\""))?;
        let daemon = Daemon::start(&config)?;
        let snapshots = daemon.snapshots()?;
        let (label, path) = missing.label();
        snapshots.prepare("fast", "", &[])?;
        let slow = snapshots.begin_prepare("slow", "", &[(&label, &path)]);
        std::thread::sleep(Duration::from_millis(1_200));
        fs::write(&missing.go, "")?;
        slow.answer()?;
        let told = &ends(&daemon, "Prepare", "slow")?[0];
        ensure!(told["level"] == "INFO" && told["code"] == "OK", "{told}");
        ensure!(
            told["duration_ms"].as_f64().is_some_and(|ms| ms > 1_000.0),
            "{told}"
        );
        ensure!(!daemon.log().contains("\"fast\""), "{}", daemon.log());
        Ok(())
    });
}

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

#[test]
fn health_is_serving_until_the_daemon_stops() {
    test(|host| {
        let missing = Missing::new(host);
        let config = missing.builder(Config::new(host, "daemon").line("shutdown_timeout = 60"))?;
        let mut daemon = Daemon::start(&config)?;
        let health = Health::connect(config.address())?;
        let mut watches = Vec::new();
        for service in ["", SNAPSHOTS] {
            ensure!(health.check(service)? == ServingStatus::Serving);
            let mut watch = health.watch(service)?;
            ensure!(watch.change()? == Some(ServingStatus::Serving));
            watches.push(watch);
        }
        refused(health.check("no.such.Service"), Code::NotFound, &[])?;

        let (label, path) = missing.label();
        let slow = daemon
            .snapshots()?
            .begin_prepare("slow", "", &[(&label, &path)]);
        poll("the builder", SETTLE, || {
            Ok(when(!config.kept()?.gc_roots.is_empty()))
        })?;
        daemon.signal(Signal::TERM)?;
        // While a call keeps the daemon from ending.
        for watch in &mut watches {
            ensure!(watch.change()? == Some(ServingStatus::NotServing));
            ensure!(watch.change()?.is_none(), "a watch goes on for ever");
        }
        fs::write(&missing.go, "")?;
        slow.answer()?;
        ensure!(daemon.wait(STOP_BOUND)?.success());
        Ok(())
    });
}

/// What `status --json` prints.
fn status(host: &Host, config: &Config) -> Result<Value> {
    let printed = succeed(&mut command(host, config, &["status", "--json"]))?;
    Ok(serde_json::from_str(&printed)?)
}

#[test]
fn status_asks_the_running_daemon() {
    test(|host| {
        let config = config(host);
        let node = Node::start_with(host, &config)?;
        let image = reference("image");
        let archive = busybox_image(host, &image, [])?;
        node.containerd.import("nix", &archive)?;
        let dir = Store::new(host)?.build("dir", "$busybox mkdir $out", &[])?;
        let label = format!("{NIX_STORE_PATH}0");
        node.daemon
            .snapshots()?
            .prepare("active", "", &[(&label, dir.path())])?;

        let told = status(host, &config)?;
        ensure!(told["pid"] == node.daemon.pid(), "{told}");
        ensure!(
            told["address"].as_str().map(Path::new) == Some(config.address()),
            "{told}"
        );
        ensure!(
            told["root"].as_str().map(Path::new) == Some(config.root()),
            "{told}"
        );
        let kinds = &told["snapshots"];
        ensure!(
            kinds["committed"] == 1 && kinds["active"] == 1 && kinds["view"] == 0,
            "{told}"
        );
        ensure!(told["nix_layers"] == 1 && told["gc_roots"] == 1, "{told}");
        ensure!(
            told["uptime_seconds"]
                .as_f64()
                .is_some_and(|seconds| seconds > 0.0)
        );
        let resident = told["resident_bytes"].as_u64().context("no memory")? / 1024;
        let kernel = node.daemon.resident_kib()?;
        ensure!(
            (kernel / 2..kernel * 2).contains(&resident),
            "{resident} {kernel}"
        );
        let version = succeed(&mut command(host, &config, &["--version"]))?;
        let version = version.split_whitespace().last().context("no version")?;
        ensure!(told["version"] == version, "{told} {version}");

        let table = succeed(&mut command(host, &config, &["status"]))?;
        says(
            &table,
            &[
                version,
                &node.daemon.pid().to_string(),
                "1 committed, 1 active, 0 views",
            ],
        )
    });
}

#[test]
fn status_says_when_nobody_is_there() {
    test(|host| {
        let config = Config::new(host, "daemon");
        let mut daemon = Daemon::start(&config)?;
        daemon.kill()?;
        // A socket that a killed daemon has left, and none.
        for left in [true, false] {
            ensure!(config.address().exists() == left);
            let ended = run(&mut command(host, &config, &["status"]))?;
            ensure!(ended.status.code() == Some(3), "{ended:?}");
            let socket = config.address().display().to_string();
            says(&ended.stderr, &[&socket, "--address", "start"])?;
            if left {
                fs::remove_file(config.address())?;
            }
        }
        // containerd answers there, and knows of no such service.
        let node = Node::start_with(host, &Config::new(host, "another"))?;
        let socket = node.containerd.socket();
        let mut asking = command(host, &config, &["--address"]);
        let ended = run(asking.arg(&socket).arg("status"))?;
        ensure!(ended.status.code() == Some(1), "{ended:?}");
        says(
            &ended.stderr,
            &[&socket.display().to_string(), "another program"],
        )
    });
}

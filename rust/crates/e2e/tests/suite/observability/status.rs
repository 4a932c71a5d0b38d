//! Health, and the command `status`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use e2e::{
    daemon::{Config, Daemon, STOP_BOUND},
    host::test,
    image::NIX_STORE_PATH,
    node::{Node, busybox_image, reference},
    observability::{Health, command},
    process::{SETTLE, poll, run, succeed, when},
    snapshots::{refused, says},
    store::Store,
};
use rustix::process::Signal;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{Missing, config, metrics, status};

/// The service that containerd uses.
const SNAPSHOTS: &str = "containerd.services.snapshots.v1.Snapshots";

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
fn archives_that_are_held_are_counted_with_the_image_service_and_without() {
    test(|host| {
        let archive = Store::new(host)?.build("archive", "echo > $out", &[])?;
        for enable in [true, false] {
            let config = config(host).line(format!("image_service.enable = {enable}"));
            let _daemon = Daemon::start(&config)?;
            let count = || -> Result<_> {
                let told = status(host, &config)?["image_archives"].as_u64();
                let metric = metrics(host)?.value("nix_snapshotter_image_archives", &[]);
                let table = succeed(&mut command(host, &config, &["status"]))?;
                let line = format!("{}, held for images", told.context("no number")?);
                says(&table, &["archives", &line])?;
                Ok((told, metric))
            };
            ensure!(count()? == (Some(0), 0.0), "{:?}", count());
            // containerd is not there: nobody releases it.
            let name = archive.path().trim_start_matches("/nix/store/");
            let dir = config.root().join("images");
            let mut hold = Command::new("nix-store");
            hold.args(["--realise", archive.path(), "--add-root"]);
            succeed(hold.arg(dir.join(name).join("path")))?;
            ensure!(count()? == (Some(1), 1.0), "{:?}", count());
            fs::remove_dir_all(dir)?;
        }
        Ok(())
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

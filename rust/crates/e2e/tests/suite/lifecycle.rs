//! The life of the daemon: notifications, signals, its socket and its root.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    daemon::{Config, Daemon, STOP_BOUND},
    host::{Host, test},
    image::NIX_STORE_PATH,
    process::{SETTLE, is_alive, poll, succeed, when},
    snapshots::{Preparing, says},
    store::{Object, Store},
};
use rustix::process::Signal;

/// How long the daemon waits for requests in flight unless it is told otherwise.
const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon whose builder writes its process number to a file, and then waits for another file.
struct Slow<'h> {
    host: &'h Host,
    daemon: Daemon,
    object: Object,
}

impl<'h> Slow<'h> {
    fn start(host: &'h Host, config: Config) -> Result<Self> {
        let daemon = Daemon::start(&config.builder(&format!(
            "echo $$ > {dir}/pid.new; mv {dir}/pid.new {dir}/pid
             until [ -e {dir}/go ]; do sleep 0.02; done
             exec nix-store --realise \"$2\" --add-root \"$1\"",
            dir = host.dir().display()
        ))?)?;
        let object = Store::new(host)?.build("dir", "$busybox mkdir $out", &[])?;
        Ok(Self {
            host,
            daemon,
            object,
        })
    }

    fn label(&self) -> (String, String) {
        (format!("{NIX_STORE_PATH}0"), self.object.path().to_owned())
    }

    /// The process number of the builder, which is called by now or soon.
    fn builder(&self) -> Result<u32> {
        let file = self.host.dir().join("pid");
        poll("the builder", SETTLE, || Ok(fs::read_to_string(&file).ok()))?
            .trim()
            .parse()
            .context("the builder's process number")
    }

    /// Prepares the snapshot `active`, and asks the daemon to end while the builder works for it.
    fn prepare_and_stop(&mut self) -> Result<Preparing> {
        let (label, path) = self.label();
        let snapshots = self.daemon.snapshots()?;
        let prepare = snapshots.begin_prepare("active", "", &[(&label, &path)]);
        self.builder()?;
        self.daemon.signal(Signal::TERM)?;
        self.daemon.notified("STOPPING=1", STOP_BOUND)?;
        Ok(prepare)
    }

    fn go(&self) -> Result<()> {
        Ok(fs::write(self.host.dir().join("go"), "")?)
    }
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

#[test]
fn ready_is_said_by_a_daemon_that_serves() {
    test(|host| {
        let daemon = Daemon::start(&Config::new(host, "daemon"))?;
        // The first attempt: whoever was told so need not try again.
        ensure!(daemon.snapshots()?.list(&[])?.is_empty());
        Ok(())
    });
}

#[test]
fn both_signals_end_it_in_order() {
    test(|host| {
        for signal in [Signal::TERM, Signal::INT] {
            let config = Config::new(host, "daemon").line("shutdown_timeout = 3600");
            let mut daemon = Daemon::start(&config)?;
            // An idle connection, such as containerd keeps, holds up nothing.
            let snapshots = daemon.snapshots()?;
            snapshots.list(&[])?;
            daemon.signal(signal)?;
            daemon.notified("STOPPING=1", STOP_BOUND)?;
            let status = daemon.wait(STOP_BOUND)?;
            ensure!(status.success(), "{signal:?}: {status}");
            ensure!(
                !daemon.config().address().exists(),
                "{signal:?} left the socket"
            );
        }
        Ok(())
    });
}

#[test]
fn a_request_in_flight_is_finished() {
    test(|host| {
        let mut slow = Slow::start(host, Config::new(host, "daemon"))?;
        let prepare = slow.prepare_and_stop()?;
        slow.go()?;
        let mounts = prepare.answer()?;
        ensure!(mounts.len() == 2, "{mounts:?}");
        let status = slow.daemon.wait(STOP_BOUND)?;
        ensure!(status.success(), "{status}");

        slow.daemon.start_again()?;
        ensure!(slow.daemon.snapshots()?.mounts("active")? == mounts);
        Ok(())
    });
}

#[test]
fn a_client_that_says_nothing_holds_up_the_end_no_longer_than_requests_do() {
    test(|host| {
        let config = Config::new(host, "daemon").line("shutdown_timeout = 3600");
        let mut slow = Slow::start(host, config)?;
        let _silent = UnixStream::connect(slow.daemon.config().address())?;
        let prepare = slow.prepare_and_stop()?;
        // As long as the daemon would wait for silent clients several times over.
        thread::sleep(Duration::from_secs(2));
        slow.go()?;
        prepare.answer()?;
        let status = slow.daemon.wait(STOP_BOUND)?;
        ensure!(status.success(), "{status}");
        says(&slow.daemon.log(), &["without a request in flight"])
    });
}

#[test]
fn a_request_that_takes_too_long_is_abandoned_without_a_trace() {
    test(|host| {
        let config = Config::new(host, "daemon").line("shutdown_timeout = 1");
        let mut slow = Slow::start(host, config)?;
        let before = slow.daemon.config().kept()?;
        let snapshots = slow.daemon.snapshots()?;
        let (label, path) = slow.label();
        let prepare = snapshots.begin_prepare("active", "", &[(&label, &path)]);
        let builder = slow.builder()?;

        let start = Instant::now();
        slow.daemon.signal(Signal::TERM)?;
        slow.daemon.wait(STOP_BOUND)?;
        let taken = start.elapsed();
        ensure!(taken < DEFAULT_SHUTDOWN_TIMEOUT, "{taken:?}");
        ensure!(prepare.answer().is_err());
        poll("the end of the builder", SETTLE, || {
            Ok(when(!is_alive(builder)))
        })?;
        slow.daemon.keeps_only(&before)?;
        ensure!(!slow.daemon.config().address().exists());

        slow.daemon.start_again()?;
        ensure!(slow.daemon.snapshots()?.list(&[])?.is_empty());
        slow.daemon.keeps_only(&before)
    });
}

#[test]
fn what_a_killed_daemon_left_is_gone_after_the_next_start() {
    test(|host| {
        let mut slow = Slow::start(host, Config::new(host, "daemon"))?;
        let before = slow.daemon.config().kept()?;
        let snapshots = slow.daemon.snapshots()?;
        let (label, path) = slow.label();
        let prepare = snapshots.begin_prepare("active", "", &[(&label, &path)]);
        let builder = slow.builder()?;
        slow.daemon.kill()?;
        ensure!(prepare.answer().is_err());
        ensure!(
            slow.daemon.config().kept()? != before,
            "the test has nothing to repair"
        );
        // Nobody is left who could end the builder; it must do no harm when it goes on.
        slow.go()?;
        poll("the end of the builder", SETTLE, || {
            Ok(when(!is_alive(builder)))
        })?;

        slow.daemon.start_again()?;
        ensure!(slow.daemon.snapshots()?.list(&[])?.is_empty());
        slow.daemon.snapshots()?.cleanup()?;
        slow.daemon.keeps_only(&before)
    });
}

#[test]
fn a_client_that_hangs_up_takes_its_realisation_along() {
    test(|host| {
        let slow = Slow::start(host, Config::new(host, "daemon"))?;
        let before = slow.daemon.config().kept()?;
        let snapshots = slow.daemon.snapshots()?;
        let (label, path) = slow.label();
        let prepare = snapshots.begin_prepare("active", "", &[(&label, &path)]);
        let builder = slow.builder()?;
        prepare.abandon();
        poll("the end of the builder", SETTLE, || {
            Ok(when(!is_alive(builder)))
        })?;
        slow.daemon.keeps_only(&before)?;
        ensure!(snapshots.list(&[])?.is_empty());

        // The key is free, and the daemon as good as before.
        slow.go()?;
        ensure!(snapshots.prepare("active", "", &[(&label, &path)])?.len() == 2);
        Ok(())
    });
}

#[test]
fn the_root_has_one_daemon() {
    test(|host| {
        let first = Daemon::start(&Config::new(host, "first"))?;
        let second = Config::new(host, "second").root_at(first.config().root());
        let said = second.refused()?;
        let root = first.config().root().display().to_string();
        says(&said, &[&root, &first.pid().to_string()])?;
        ensure!(!second.address().exists());
        ensure!(first.snapshots()?.list(&[])?.is_empty());
        Ok(())
    });
}

#[test]
fn a_live_socket_is_never_taken() {
    test(|host| {
        let first = Daemon::start(&Config::new(host, "first"))?;
        let address = first.config().address();
        let said = Config::new(host, "second").address_at(address).refused()?;
        says(&said, &[&address.display().to_string(), "--address"])?;
        ensure!(first.snapshots()?.list(&[])?.is_empty());

        // Nor that of another program.
        let address = host.dir().join("foreign");
        let _foreign = UnixListener::bind(&address)?;
        let said = Config::new(host, "third").address_at(&address).refused()?;
        says(&said, &[&address.display().to_string(), "--address"])?;
        ensure!(address.exists());
        Ok(())
    });
}

#[test]
fn a_stale_socket_is_replaced() {
    test(|host| {
        let mut daemon = Daemon::start(&Config::new(host, "daemon"))?;
        daemon.kill()?;
        ensure!(
            daemon.config().address().exists(),
            "the test has no stale socket"
        );
        daemon.start_again()?;
        ensure!(daemon.snapshots()?.list(&[])?.is_empty());
        Ok(())
    });
}

#[test]
fn the_socket_is_the_owners_unless_a_group_is_named() {
    test(|host| {
        let daemon = Daemon::start(&Config::new(host, "owner"))?;
        ensure!(mode(daemon.config().address())? == 0o600);

        let group = "daemon";
        let line = succeed(Command::new("getent").args(["group", group]))?;
        let gid: u32 = line
            .split(':')
            .nth(2)
            .context("a group without number")?
            .parse()?;
        let config = Config::new(host, "group").line(format!("socket_group = {group:?}"));
        let daemon = Daemon::start(&config)?;
        ensure!(mode(daemon.config().address())? == 0o660);
        ensure!(fs::metadata(daemon.config().address())?.gid() == gid);

        let config = Config::new(host, "nobody").line(r#"socket_group = "no-such-group""#);
        says(&config.refused()?, &["socket_group", "no-such-group"])?;
        ensure!(!config.address().exists());
        Ok(())
    });
}

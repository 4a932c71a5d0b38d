//! What one machine of a cluster has: kubelet, containerd, the daemon, and a network for pods.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    archive::archive,
    containerd::{Config, Containerd, NIX},
    daemon::{self, Daemon},
    host::{Host, unique},
    node::{build, reference},
    observability::Http,
    process::{Ended, poll, run, succeed, when},
    store::Object,
};
use serde_json::Value;

use crate::kubelet::{Kubelet, PATIENCE};

/// The machine's own address on the network of its pods.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// The port of redis.
pub(crate) const REDIS: u16 = 6379;

/// A program that `make test-kubernetes` names by a variable.
pub(crate) fn tool(host: &Host, variable: &str) -> Result<PathBuf> {
    let named = env::var_os(variable).filter(|path| !path.is_empty());
    host.requires(named.is_some(), &format!("{variable} is not set"))?;
    Ok(PathBuf::from(named.unwrap_or_default()))
}

/// One machine.
pub(crate) struct Cluster {
    // Dropped in this order.
    pub(crate) kubelet: Kubelet,
    pub(crate) containerd: Containerd,
    pub(crate) daemon: Daemon,
    crictl: PathBuf,
    metrics: PathBuf,
    /// What the daemon had before the first pod.
    before: daemon::Kept,
}

impl Cluster {
    /// Starts everything, with an image for pods that Nix provides, too.
    pub(crate) fn start(host: &Host) -> Result<Self> {
        let crictl = tool(host, "CRICTL_BIN")?;
        let pause = reference("pause");
        // Where its socket is, containerd says when it runs.
        let socket = host.dir().join(unique("containerd-socket"));
        let metrics = host.dir().join(unique("metrics"));
        let config = daemon::Config::new(host, &unique("daemon"))
            .line(format!("image_service.containerd_address = {socket:?}"))
            .line(format!(
                "metrics.address = \"unix://{}\"",
                metrics.display()
            ));
        let daemon = Daemon::start(&config)?;
        let containerd = Config::with_cri(&pause)
            .with_network()
            .exporting_root(config.root());
        let containerd = Containerd::start_with(host, &containerd, daemon.config())?;
        symlink(containerd.socket(), socket)?;
        containerd.load(NIX, &pause_archive(host, &pause)?)?;
        let before = config.kept()?;
        let kubelet = Kubelet::start(host, &containerd.socket(), config.address())?;
        Ok(Self {
            kubelet,
            containerd,
            daemon,
            crictl,
            metrics,
            before,
        })
    }

    /// Calls `crictl`, with the image service where kubelet has it.
    pub(crate) fn crictl(&self, arguments: &[&str]) -> Command {
        let endpoint = |socket: &Path| format!("unix://{}", socket.display());
        let mut crictl = Command::new(&self.crictl);
        crictl
            .args(["--timeout", "60s"])
            .args(["--runtime-endpoint", &endpoint(&self.containerd.socket())])
            .args([
                "--image-endpoint",
                &endpoint(self.daemon.config().address()),
            ])
            .args(arguments);
        crictl
    }

    /// What a command of `crictl` prints as JSON.
    pub(crate) fn crictl_json(&self, command: &str, arguments: &[&str]) -> Result<Value> {
        let flags = [command, "--output", "json"];
        let printed = succeed(self.crictl(&flags).args(arguments))?;
        Ok(serde_json::from_str(&printed)?)
    }

    /// Waits until the CRI answers, after a restart.
    pub(crate) fn settles(&self) -> Result<()> {
        poll("the CRI", PATIENCE, || {
            Ok(when(self.crictl_json("images", &[]).is_ok()))
        })
    }

    /// How many pulls kubelet has had of the daemon.
    pub(crate) fn pulls(&self) -> Result<f64> {
        let labels = [("method", "PullImage"), ("code", "OK")];
        let metrics = Http::Unix(&self.metrics).metrics()?;
        Ok(metrics.value("nix_snapshotter_rpc_duration_seconds", &labels))
    }

    /// The archives that the daemon holds.
    pub(crate) fn held(&self) -> BTreeSet<String> {
        let dir = fs::read_dir(self.daemon.config().root().join("images"));
        let entries = dir.into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.collect()
    }

    /// Waits until nothing is left but the image for pods: no root of an archive or of a layer, no
    /// snapshot.
    pub(crate) fn keeps_nothing(&self) -> Result<()> {
        let released = poll("the release of archives", PATIENCE, || {
            Ok(when(self.held().is_empty()))
        });
        released.with_context(|| format!("{:?}", self.held()))?;
        let kept = || self.daemon.config().kept();
        let freed = poll("the end of cleaning up", PATIENCE, || {
            let kept = kept()?;
            let is_as_before =
                kept.snapshots == self.before.snapshots && kept.gc_roots == self.before.gc_roots;
            Ok(when(is_as_before))
        });
        freed.with_context(|| {
            let rows = self
                .daemon
                .snapshots()
                .and_then(|snapshots| Ok(snapshots.names(&[])?));
            format!("{:?} is kept with {rows:?}, not {:?}", kept(), self.before)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Only the network plugins can free the addresses and ports of pods for the next test.
        self.kubelet.stop();
        let ended = run(&mut self.crictl(&["rmp", "--all", "--force"]));
        if let Err(error) = ended.and_then(Ended::success) {
            eprintln!("pods are left: {error:#}");
        }
    }
}

fn pause_archive(host: &Host, reference: &str) -> Result<PathBuf> {
    let busybox = format!("{}/bin/busybox", host.fixture("busybox")?);
    let info = host.fixture("busybox-closure-info")?;
    let entrypoint = [&*busybox, "sleep", "100000"];
    build(host, reference, &entrypoint, &info, &[])
}

/// An archive with hello.
pub(crate) fn hello_archive(host: &Host) -> Result<Object> {
    let hello = format!("{}/bin/hello", host.fixture("hello")?);
    archive(host, "hello", &[&hello], &[])
}

/// Starts a redis that lets everybody in.
pub(crate) fn redis_command(host: &Host) -> Result<[String; 5]> {
    let server = format!("{}/bin/redis-server", host.fixture("redis")?);
    Ok([&server, "--protected-mode", "no", "--save", ""].map(str::to_owned))
}

/// An archive with redis.
pub(crate) fn redis_archive(host: &Host) -> Result<Object> {
    let command = redis_command(host)?;
    archive(host, "redis", &command.each_ref().map(|word| &**word), &[])
}

/// Waits until redis answers there.
pub(crate) fn redis_answers(address: Ipv4Addr, port: u16) -> Result<()> {
    let mut last = None;
    poll("redis", Duration::from_secs(20), || {
        last = Some(ping(address, port));
        Ok(last.as_ref().and_then(|last| last.as_ref().ok()).copied())
    })
    .with_context(|| format!("{address}:{port}: {last:?}"))
}

fn ping(address: Ipv4Addr, port: u16) -> Result<()> {
    let bound = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), bound)?;
    stream.set_read_timeout(Some(bound))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"+PONG\r\n", "{answer:?}");
    Ok(())
}

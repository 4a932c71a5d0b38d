//! A containerd of the test's own, with the daemon as its proxy plugin `nix`.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::{
    daemon,
    host::{Host, unique},
    process::{self, Ended, Process, poll, run, succeed, when},
    snapshots::{Mount, Snapshots},
    transfer,
};

mod config;
mod metadata;

pub use config::Config;

/// The name under which containerd knows the daemon.
pub const NIX: &str = "nix";

/// containerd's own snapshotter, which ordinary images are compared on.
pub const OVERLAYFS: &str = "overlayfs";

/// How long containerd may take to listen.
const START_BOUND: Duration = Duration::from_secs(30);

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    nix2container: PathBuf,
    namespace: String,
    // `None` while it is stopped. Containers hold on to this value meanwhile.
    process: Mutex<Option<Process>>,
}

impl Containerd {
    /// Starts a containerd whose snapshotter `nix` is on the socket of `daemon`, which
    /// need not run yet.
    ///
    /// # Errors
    /// It cannot be started, or does not listen within 30 seconds.
    pub fn start(host: &Host, daemon: &daemon::Config) -> Result<Self> {
        Self::start_with(host, &Config::default(), daemon)
    }

    /// As [`Containerd::start`], configured otherwise.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(host: &Host, config: &Config, daemon: &daemon::Config) -> Result<Self> {
        Self::start_from(host, config, daemon, |file| file)
    }

    /// As [`Containerd::start`], with what `edit` makes of the usual configuration file.
    ///
    /// # Errors
    /// As there.
    pub fn start_edited(
        host: &Host,
        daemon: &daemon::Config,
        edit: impl FnOnce(String) -> String,
    ) -> Result<Self> {
        Self::start_from(host, &Config::default(), daemon, edit)
    }

    fn start_from(
        host: &Host,
        config: &Config,
        daemon: &daemon::Config,
        edit: impl FnOnce(String) -> String,
    ) -> Result<Self> {
        let containerd = Self {
            dir: host.dir().join(unique("containerd")),
            nix2container: host.nix2container().to_owned(),
            namespace: config.namespace.clone(),
            process: Mutex::default(),
        };
        fs::create_dir_all(containerd.temporary())?;
        let file = config.file(&containerd.dir, &containerd.socket(), daemon.address());
        fs::write(containerd.config_file(), edit(file))?;
        if let Some(network) = config.network(&containerd.dir) {
            let networks = containerd.dir.join(config::NETWORKS);
            fs::create_dir(&networks)?;
            fs::write(networks.join("10-e2e.conflist"), network)?;
        }
        containerd.spawn()?;
        // containerd's collector, which runs soon after the start, closes the streams of
        // a namespace that has nothing in it yet (`plugins/streaming`).
        succeed(&mut containerd.ctr(&["namespaces", "create", &containerd.namespace]))?;
        Ok(containerd)
    }

    fn spawn(&self) -> Result<()> {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.config_file());
        command.env("TMPDIR", self.temporary());
        let mut process = Process::spawn("containerd", &mut command, &self.dir.join("log"))?;
        poll("the socket of containerd", START_BOUND, || {
            if let Some(status) = process.ended()? {
                anyhow::bail!("containerd ended with {status}: {}", process.log());
            }
            Ok(when(UnixStream::connect(self.socket()).is_ok()))
        })?;
        *self.process() = Some(process);
        Ok(())
    }

    /// Ends it, and starts it again with what it has on the disk. Containers go on meanwhile.
    ///
    /// # Errors
    /// As for [`Containerd::start`].
    pub fn restart(&self) -> Result<()> {
        self.stop();
        self.spawn()
    }

    /// Ends it; containers go on.
    pub fn stop(&self) {
        let process = self.process().take();
        drop(process);
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it has its temporary files, and mounts snapshots for a moment.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// Its configuration file, which it reads at each start.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    /// The namespace that everything of the test is in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Calls `ctr`.
    #[must_use]
    pub fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", &self.namespace])
            .args(arguments);
        command
    }

    /// Calls `nix2container` for this containerd.
    #[must_use]
    pub fn nix2container(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.nix2container);
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", &self.namespace])
            .args(arguments);
        command
    }

    /// Calls `nix2container load`.
    #[must_use]
    pub fn load_command(&self, snapshotter: &str, archive: &Path) -> Command {
        let mut command = self.nix2container(&["load", "--snapshotter", snapshotter]);
        command.arg(archive);
        command
    }

    /// Loads an archive by `nix2container load`.
    ///
    /// # Errors
    /// What it says.
    pub fn load(&self, snapshotter: &str, archive: &Path) -> Result<()> {
        succeed(&mut self.load_command(snapshotter, archive))?;
        Ok(())
    }

    /// Imports an archive by containerd's own transfer service.
    ///
    /// # Errors
    /// What containerd says.
    pub fn import(&self, snapshotter: &str, archive: &Path) -> Result<()> {
        transfer::import(&self.socket(), &self.namespace, snapshotter, archive)
    }

    /// Runs a container to its end, and gives what it did. A command replaces the
    /// image's entrypoint, as always with `ctr`.
    ///
    /// # Errors
    /// `ctr` cannot be run, or takes too long.
    pub fn run(&self, snapshotter: &str, image: &str, command: &[&str]) -> Result<Ended> {
        self.run_in(&self.namespace, snapshotter, image, command)
    }

    /// As [`Containerd::run`], in another namespace.
    ///
    /// # Errors
    /// As there.
    pub fn run_in(
        &self,
        namespace: &str,
        snapshotter: &str,
        image: &str,
        command: &[&str],
    ) -> Result<Ended> {
        let id = unique("once");
        // Of two namespaces, `ctr` takes the last.
        let mut ctr = self.ctr(&["--namespace", namespace, "run", "--rm"]);
        ctr.args(["--snapshotter", snapshotter]);
        self.run_logged(ctr, &[&[image, &id], command].concat())
    }

    /// Runs `ctr` for a process whose output, on both streams, the shim writes to a file.
    ///
    /// Of what passes through `ctr` itself, some is lost now and then: as soon as it hears of the
    /// end, it closes the pipes, whether or not they were read (containerd's `pkg/cio/io_unix.go`).
    fn run_logged(&self, mut ctr: Command, arguments: &[&str]) -> Result<Ended> {
        let log = self.dir.join(unique("output"));
        let uri = format!("file://{}", log.display());
        let mut ended = run(ctr.args(["--log-uri", &uri]).args(arguments))?;
        // There is none where no process was started.
        if log.exists() {
            ended.stdout += &String::from_utf8_lossy(&fs::read(&log)?);
            fs::remove_file(&log)?;
        }
        Ok(ended)
    }

    /// Starts a container that goes on until the value is dropped.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn run_detached(
        &self,
        snapshotter: &str,
        flags: &[&str],
        image: &str,
        command: &[&str],
    ) -> Result<Container<'_>> {
        let id = unique("container");
        // Made first: what a failed start leaves is removed as well.
        let container = Container {
            containerd: self,
            id: id.clone(),
        };
        let mut ctr = self.ctr(&["run", "--detach", "--snapshotter", snapshotter]);
        succeed(ctr.args(flags).args([image, &id]).args(command))?;
        Ok(container)
    }

    /// A client of a snapshotter through containerd.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn snapshots(&self, snapshotter: &str) -> Result<Snapshots> {
        Snapshots::of_containerd(&self.socket(), snapshotter, &self.namespace)
    }

    /// Removes an image and everything that nothing else refers to.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        succeed(&mut self.ctr(&["images", "rm", "--sync", image]))?;
        Ok(())
    }

    /// The names of all images.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn images(&self) -> Result<Vec<String>> {
        let list = succeed(&mut self.ctr(&["images", "list", "--quiet"]))?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// The identifiers of leases that exist.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn leases(&self) -> Result<Vec<String>> {
        let list = succeed(&mut self.ctr(&["leases", "list", "--quiet"]))?;
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// Ends what a failed test, or a containerd that was stopped, has left running.
    fn end_containers(&self) -> Result<()> {
        for shim in self.shims()? {
            for container in process::children(shim)? {
                // Either may end by the end of the other.
                let _ = process::signal(container, Signal::KILL);
            }
            let _ = process::signal(shim, Signal::KILL);
            poll("the end of a shim", process::SETTLE, || {
                Ok(when(!process::is_alive(shim)))
            })?;
        }
        Ok(())
    }

    /// The shims that were started for this containerd: they have its socket on their command line.
    fn shims(&self) -> Result<Vec<u32>> {
        let socket = self.socket();
        let mut shims = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A process may end meanwhile.
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = command.split(|byte| *byte == 0).collect();
            let is_shim = words[0].ends_with(b"containerd-shim-runc-v2");
            if is_shim && words.contains(&socket.as_os_str().as_encoded_bytes()) {
                shims.push(pid);
            }
        }
        Ok(shims)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = self.end_containers() {
            eprintln!("containers are left: {error:#}");
        }
    }
}

/// A container in the background, which is killed and removed with this value.
#[derive(Debug)]
pub struct Container<'a> {
    containerd: &'a Containerd,
    id: String,
}

impl Container<'_> {
    /// Runs a command in it, and gives what that writes.
    ///
    /// # Errors
    /// The command's own, and the container's end.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        let exec = unique("exec");
        let ctr = self.containerd.ctr(&["tasks", "exec", "--exec-id", &exec]);
        let arguments = [&[&*self.id], command].concat();
        let ended = self.containerd.run_logged(ctr, &arguments)?;
        ended.success().with_context(|| format!("{command:?}"))
    }

    /// How its snapshot is to be mounted.
    ///
    /// # Errors
    /// What containerd says.
    pub fn mounts(&self, snapshotter: &str) -> Result<Vec<Mount>> {
        Ok(self.containerd.snapshots(snapshotter)?.mounts(&self.id)?)
    }

    /// Where its root is mounted on the host.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        let tasks = self
            .containerd
            .dir
            .join("state/io.containerd.runtime.v2.task");
        tasks
            .join(&self.containerd.namespace)
            .join(&self.id)
            .join("rootfs")
    }

    /// Kills and removes it, with its snapshot.
    ///
    /// # Errors
    /// What `ctr` says.
    pub fn remove(self) -> Result<()> {
        self.end()?;
        ensure!(
            !self.root().exists(),
            "the root of a removed container is left"
        );
        // What remains to be done was done.
        std::mem::forget(self);
        Ok(())
    }

    fn end(&self) -> Result<()> {
        let ctr = |arguments: &[&str]| succeed(&mut self.containerd.ctr(arguments));
        ctr(&["tasks", "rm", "--force", &self.id])?;
        ctr(&["containers", "rm", &self.id])?;
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // After a failed test there may be nothing to remove, or nobody to ask; the
        // containerd's own end does the rest.
        let _ = self.end();
    }
}

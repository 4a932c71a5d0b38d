//! The daemon under test, with a root and a socket of its own, started as systemd starts it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    io::ErrorKind,
    os::unix::{net::UnixDatagram, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::{
    host::{Host, unique},
    process::{self, Process, poll},
    snapshots::Snapshots,
};

/// How long the daemon may take to serve, or to refuse to.
pub const START_BOUND: Duration = Duration::from_secs(20);

/// How long the daemon may take to end once nothing is in flight any more.
pub const STOP_BOUND: Duration = Duration::from_secs(20);

/// In the environment of a daemon, and so of all that it starts: which daemon it is.
const MARK: &str = "E2E_DAEMON";

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its root, socket, log and configuration file are, in the test's directory.
    dir: PathBuf,
    program: PathBuf,
    root: PathBuf,
    address: PathBuf,
    lines: String,
    wrapper: Vec<&'static str>,
    environment: BTreeMap<String, OsString>,
}

impl Config {
    /// The defaults, with everything in the subdirectory `name` of the test's directory.
    #[must_use]
    pub fn new(host: &Host, name: &str) -> Self {
        let dir = host.dir().join(name);
        Self {
            program: host.nix_snapshotter().to_owned(),
            root: dir.join("root"),
            address: dir.join("sock"),
            dir,
            lines: String::new(),
            wrapper: Vec::new(),
            environment: BTreeMap::new(),
        }
    }

    /// Adds a line to the configuration file.
    #[must_use]
    pub fn line(mut self, line: impl AsRef<str>) -> Self {
        self.lines += line.as_ref();
        self.lines.push('\n');
        self
    }

    /// Another root.
    #[must_use]
    pub fn root_at(mut self, root: &Path) -> Self {
        root.clone_into(&mut self.root);
        self
    }

    /// Another socket.
    #[must_use]
    pub fn address_at(mut self, address: &Path) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    /// Another variable in its environment, which is otherwise that of the test.
    #[must_use]
    pub fn environment(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// Starts it by a command that becomes the daemon, such as `unshare`.
    #[must_use]
    pub fn wrapped(mut self, command: &[&'static str]) -> Self {
        self.wrapper = command.to_owned();
        self
    }

    /// Uses a shell script as the external builder: `$1` is the link to make, `$2` the store path.
    ///
    /// # Errors
    /// The script cannot be written.
    pub fn builder(self, script: &str) -> Result<Self> {
        fs::create_dir_all(&self.dir)?;
        let file = self.dir.join("builder");
        write_script(&file, script)?;
        let line = format!("external_builder = {file:?}");
        Ok(self.line(line))
    }

    /// Its socket.
    #[must_use]
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Its root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its configuration file, which is written at each start.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn write_file(&self) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        let text = format!(
            "address = {:?}\nroot = {:?}\n{}",
            self.address, self.root, self.lines
        );
        Ok(fs::write(self.file(), text)?)
    }

    /// The files of the metadata store.
    ///
    /// # Errors
    /// The root cannot be read.
    pub fn metadata(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for name in names(&self.root)? {
            let file = self.root.join(&name);
            if file.is_file() && name != "lock" {
                files.push(file);
            }
        }
        Ok(files)
    }

    fn spawn(&self, mark: &str) -> Result<(Process, UnixDatagram)> {
        self.write_file()?;
        let notify = self.dir.join("notify");
        match fs::remove_file(&notify) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let notified = UnixDatagram::bind(&notify)?;
        notified.set_read_timeout(Some(Duration::from_millis(50)))?;

        let mut words = self.wrapper.iter().map(OsString::from);
        let program = words.next();
        let mut command = match &program {
            Some(wrapper) => Command::new(wrapper),
            None => Command::new(&self.program),
        };
        if program.is_some() {
            command.args(words).arg(&self.program);
        }
        command
            .arg("--config")
            .arg(self.file())
            .env("NOTIFY_SOCKET", &notify)
            .env(MARK, mark);
        command.envs(&self.environment);
        let process = Process::spawn("nix-snapshotter", &mut command, &self.dir.join("log"))?;
        Ok((process, notified))
    }

    /// Starts a daemon that must refuse to, and gives what it says.
    ///
    /// # Errors
    /// It serves, or does not end by itself, or dies otherwise than by saying why.
    pub fn refused(&self) -> Result<String> {
        let (mut process, notified) = self.spawn("refused")?;
        let status = process.wait(START_BOUND)?;
        ensure!(
            status.code().is_some_and(|code| code != 0 && code != 101),
            "expected a refusal, and the daemon ended with {status}"
        );
        ensure!(
            received(&notified)?.is_none(),
            "a daemon that refused had notified systemd"
        );
        Ok(process.log())
    }

    /// Starts a daemon and kills it after a while, ready or not.
    ///
    /// # Errors
    /// It cannot be started, or has ended by itself.
    pub fn start_and_kill(&self, after: Duration) -> Result<Descendants> {
        let mark = unique("daemon");
        let (process, notified) = self.spawn(&mark)?;
        let mut daemon = Daemon::new(self, process, notified, mark);
        thread::sleep(after);
        daemon.kill()?;
        Ok(daemon.descendants)
    }

    /// What is kept on the disk below the root for one snapshot or another.
    ///
    /// # Errors
    /// The root cannot be read.
    pub fn kept(&self) -> Result<Kept> {
        Ok(Kept {
            snapshots: names(&self.root.join("snapshots"))?,
            gc_roots: names(&self.root.join("gcroots"))?,
            // SQLite has files beside its database while that is open.
            others: names(&self.root)?
                .into_iter()
                .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
                .collect(),
        })
    }
}

/// The names of what is kept below a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Directories of snapshots, temporary ones among them.
    pub snapshots: BTreeSet<String>,
    /// Directories of GC roots.
    pub gc_roots: BTreeSet<String>,
    /// What lies in the root itself.
    pub others: BTreeSet<String>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    config: Config,
    process: Process,
    notified: UnixDatagram,
    descendants: Descendants,
}

/// Whatever a daemon has started, which may outlive it.
#[derive(Clone, Debug)]
pub struct Descendants {
    mark: String,
}

impl Descendants {
    /// Waits until none is left.
    ///
    /// # Errors
    /// Names those that are left after `bound`.
    pub fn end(&self, bound: Duration) -> Result<()> {
        let variable = format!("{MARK}={}", self.mark);
        let mut left = Vec::new();
        poll("the end of what the daemon has started", bound, || {
            left = process::with_variable(&variable)?;
            Ok(process::when(left.is_empty()))
        })
        .with_context(|| format!("{left:?}"))
    }
}

impl Daemon {
    /// Starts a daemon and waits until it has told systemd that it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready within [`START_BOUND`].
    pub fn start(config: &Config) -> Result<Self> {
        let mark = unique("daemon");
        let (process, notified) = config.spawn(&mark)?;
        let mut daemon = Self::new(config, process, notified, mark);
        daemon.notified("READY=1", START_BOUND)?;
        Ok(daemon)
    }

    fn new(config: &Config, process: Process, notified: UnixDatagram, mark: String) -> Self {
        Self {
            config: config.clone(),
            process,
            notified,
            descendants: Descendants { mark },
        }
    }

    /// Waits until the daemon has told systemd this.
    ///
    /// # Errors
    /// It ends first, or does not say so within `bound`.
    pub fn notified(&mut self, state: &str, bound: Duration) -> Result<()> {
        poll(&format!("the notification {state}"), bound, || {
            // Looked at first: what it sent before its end is not missed.
            let ended = self.process.ended()?;
            match received(&self.notified)? {
                Some(message) if message.lines().any(|line| line == state) => Ok(Some(())),
                Some(_) => Ok(None),
                None => match ended {
                    Some(status) => bail!("the daemon ended with {status}: {}", self.process.log()),
                    None => Ok(None),
                },
            }
        })
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// A client on a connection of its own.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn snapshots(&self) -> Result<Snapshots> {
        Snapshots::of_daemon(self.config.address())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// It does not within `bound`.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus> {
        self.process.wait(bound)
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    /// It does not end in order.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait(STOP_BOUND)?;
        ensure!(
            status.success(),
            "the daemon ended with {status}: {}",
            self.log()
        );
        Ok(())
    }

    /// Kills it, but not what it has started.
    ///
    /// # Errors
    /// It has ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        let status = self.wait(STOP_BOUND)?;
        ensure!(
            status.signal() == Some(Signal::KILL.as_raw()),
            "the daemon had ended with {status}: {}",
            self.log()
        );
        Ok(())
    }

    /// What it has started.
    #[must_use]
    pub fn descendants(&self) -> &Descendants {
        &self.descendants
    }

    /// Starts it again, after its end.
    ///
    /// # Errors
    /// Those of [`Daemon::start`].
    pub fn start_again(&mut self) -> Result<()> {
        let again = Self::start(&self.config)?;
        *self = again;
        Ok(())
    }

    /// Its resident memory in kibibytes, as the kernel counts it.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most resident memory that it has had, in kibibytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn peak_kib(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// Lets [`Daemon::peak_kib`] begin at what is resident now (proc_pid_clear_refs(5)).
    ///
    /// # Errors
    /// It has ended.
    pub fn forget_peak(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?)
    }

    fn memory(&self, field: &str) -> Result<u64> {
        process::memory_kib(self.pid(), field)
    }

    /// Waits until the disk holds again what it held before.
    ///
    /// # Errors
    /// Names the difference when that takes too long.
    pub fn keeps_only(&self, before: &Kept) -> Result<()> {
        let same = poll("the end of cleaning up", process::SETTLE, || {
            Ok(process::when(self.config.kept()? == *before))
        });
        same.with_context(|| format!("{:#?} is kept, not {before:#?}", self.config.kept()))
    }
}

/// Writes a shell script that can be executed.
///
/// # Errors
/// The file cannot be written.
pub fn write_script(file: &Path, script: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(file, format!("#!/bin/sh\n{script}\n"))?;
    Ok(fs::set_permissions(
        file,
        fs::Permissions::from_mode(0o755),
    )?)
}

fn received(socket: &UnixDatagram) -> Result<Option<String>> {
    let mut buffer = [0; 4096];
    match socket.recv(&mut buffer) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&buffer[..bytes]).into_owned())),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn names(dir: &Path) -> Result<BTreeSet<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list {}", dir.display())),
    }
}

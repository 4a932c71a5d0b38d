//! Programs that end with the value that holds them, and bounded waiting.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::host;

/// How long a program gets to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(15);

/// How long a command that is run to its end may take.
const COMMAND_BOUND: Duration = Duration::from_secs(120);

/// How long an effect may take that follows an answer rather than precedes it.
pub const SETTLE: Duration = Duration::from_secs(10);

/// How often a condition is looked at while it is waited for.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `probe` has an answer.
///
/// # Errors
/// Those of `probe`, and one that names `what` when there is no answer within `bound`.
pub fn poll<T>(
    what: &str,
    bound: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        ensure!(start.elapsed() < bound, "{what}: not within {bound:?}");
        thread::sleep(INTERVAL);
    }
}

/// A condition as an answer for [`poll`].
#[must_use]
pub fn when(condition: bool) -> Option<()> {
    condition.then_some(())
}

/// Whether a process with this number exists, zombies aside.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('Z')))
        .is_some_and(|zombie| !zombie)
}

/// The processes that have `variable`, as `NAME=value`, in the environment that they were started
/// with, zombies aside: each as its number and command line.
///
/// # Errors
/// `/proc` cannot be read.
pub fn with_variable(variable: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let dir = entry?.path();
        // Of a zombie it is empty, and a process may end meanwhile.
        let environment = fs::read(dir.join("environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == variable.as_bytes())
        {
            let command = fs::read(dir.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push(format!("{} {command}", dir.display()));
        }
    }
    Ok(found)
}

/// The processes that a process has started, zombies aside.
///
/// # Errors
/// There is no such process.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let list = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        children.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .filter(|pid| is_alive(*pid)),
        );
    }
    Ok(children)
}

/// Sends a signal to a process that the caller knows to be its own.
///
/// # Errors
/// The process does not exist.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.context("not the number of a process")?;
    kill_process(pid, signal).with_context(|| format!("cannot signal process {pid:?}"))
}

/// A figure of the memory of a process in kibibytes, by its field of proc_pid_status(5).
///
/// # Errors
/// It has ended.
pub fn memory_kib(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let number = number.with_context(|| format!("no {field} in /proc/{pid}/status"))?;
    Ok(number.parse()?)
}

/// The time that processors have spent on a process and on what it had done by the kernel, from
/// proc_pid_stat(5).
///
/// # Errors
/// It has ended.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses, which may have spaces.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let mut ticks = 0;
    for field in fields.split_whitespace().skip(11).take(2) {
        ticks += field.parse::<u64>()?;
    }
    Ok(Duration::from_millis(
        ticks * 1000 / rustix::param::clock_ticks_per_second(),
    ))
}

/// A program that runs in the background and writes to a log file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose output goes to the end of the file `log`.
    ///
    /// # Errors
    /// The program cannot be started, or the file not be written.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self::signal(self.pid(), signal).with_context(|| self.name.clone())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within `bound`.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        poll(&what, bound, || self.ended())
    }

    /// Asks it to end, and kills it when it does not.
    fn end(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.signal(Signal::TERM)?;
            if self.wait(GRACE).is_err() {
                self.child.kill()?;
                self.child.wait()?;
            }
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot end {}: {error:#}", self.name);
        }
        host::remember(&self.name, &self.log());
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Ended {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ended {
    /// What it wrote to standard output.
    ///
    /// # Errors
    /// It failed; its words are in the error.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "{}: {}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// What it wrote to standard error.
    ///
    /// # Errors
    /// It succeeded, or it was killed, or it panicked.
    pub fn failure(self) -> Result<String> {
        let Self {
            status,
            stdout,
            stderr,
        } = self;
        ensure!(
            status.code().is_some_and(|code| code != 0 && code != 101),
            "expected a failure: {status}: {stdout}{stderr}"
        );
        Ok(stderr)
    }
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started, or takes more than two minutes and is killed.
pub fn run(command: &mut Command) -> Result<Ended> {
    let name = format!("{command:?}");
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let status = poll(&name, COMMAND_BOUND, || Ok(child.try_wait()?));
    if status.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let (stdout, stderr) = (text(&mut stdout)?, text(&mut stderr)?);
    match status {
        Ok(status) => Ok(Ended {
            status,
            stdout,
            stderr,
        }),
        Err(error) => bail!("{error}: {stdout}{stderr}"),
    }
}

/// Runs a command that must succeed, and gives what it wrote to standard output.
///
/// # Errors
/// Those of [`run`], and the command's own.
pub fn succeed(command: &mut Command) -> Result<String> {
    let name = format!("{command:?}");
    run(command)?.success().context(name)
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

//! Running Nix, or a builder in its place, so that it can hang, flood or be abandoned.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time,
};
use tokio_util::sync::CancellationToken;

/// How much of standard error is kept: its end, where the reason stands.
const STDERR_TAIL: usize = 4 * 1024;

/// Most that a query may answer.
const MAX_STDOUT: usize = 64 * 1024 * 1024;

/// How long the output of a program that has ended is waited for, in case that it
/// left a child behind which holds the pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// How long a program gets to end after SIGTERM before it is killed.
///
/// Nix needs the time to take its builders along: each is in a session of its own
/// (`libstore/unix/build`, `commonChildInit`), out of reach of a signal to our group.
const TERMINATION: Duration = Duration::from_secs(3);

/// How often it is looked whether a program has ended after SIGTERM.
const TERMINATION_POLL: Duration = Duration::from_millis(10);

/// What a program said before it ended.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// Why there is no [`Output`].
pub(crate) enum Stopped {
    /// The program could not be started, or not be waited for.
    Io(io::Error),
    /// It took longer than allowed; what it had written to standard error by then.
    TimedOut(String),
    /// Nobody wants it any more.
    Cancelled,
}

/// Runs a command to its end, without standard input.
///
/// The command leads a process group of its own, so that a builder's children end
/// with it. When the time is over or `cancel` says so, all of them are asked to end,
/// then killed, and when this returns they have ended. When the future is dropped
/// they are only killed.
pub(crate) async fn run(
    command: &mut Command,
    timeout: Option<Duration>,
    cancel: &CancellationToken,
) -> Result<Output, Stopped> {
    // Nobody wants it any more: it need not begin.
    if cancel.is_cancelled() {
        return Err(Stopped::Cancelled);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(Stopped::Io)?;
    let group = Group::of(child.id());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());

    let waiting = async {
        let status = {
            let reading = async {
                tokio::join!(
                    keep(out, &mut stdout, Keep::Start(MAX_STDOUT)),
                    keep(err, &mut stderr, Keep::End(STDERR_TAIL)),
                );
            };
            tokio::pin!(reading);
            tokio::select! {
                status = child.wait() => {
                    // Dropped in time or not, what was read so far is kept.
                    let _ = time::timeout(DRAIN, reading).await;
                    status
                }
                () = &mut reading => child.wait().await,
            }
        };
        status.map_err(Stopped::Io)
    };
    let limit = async {
        match timeout {
            Some(limit) => time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        status = waiting => Ended::ByItself(status),
        () = limit => Ended::Late,
        () = cancel.cancelled() => Ended::Cancelled,
    };
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    match ended {
        Ended::ByItself(status) => {
            group.disarm();
            Ok(Output {
                status: status?,
                stdout,
                stderr,
            })
        }
        Ended::Late => {
            group.terminate(&mut child).await;
            Err(Stopped::TimedOut(stderr))
        }
        Ended::Cancelled => {
            group.terminate(&mut child).await;
            Err(Stopped::Cancelled)
        }
    }
}

/// What came first.
enum Ended {
    ByItself(Result<ExitStatus, Stopped>),
    Late,
    Cancelled,
}

/// Which part of a stream is worth its memory.
#[derive(Clone, Copy)]
enum Keep {
    Start(usize),
    End(usize),
}

/// Reads a pipe until its end, or until it breaks, which says as much.
async fn keep(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>, which: Keep) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 8 * 1024];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        match which {
            Keep::Start(most) => {
                let room = most.saturating_sub(kept.len());
                kept.extend_from_slice(&buffer[..read.min(room)]);
            }
            Keep::End(most) => {
                kept.extend_from_slice(&buffer[..read]);
                kept.drain(..kept.len().saturating_sub(most));
            }
        }
    }
}

/// Kills a process group when dropped, unless its leader has been waited for:
/// from then on the number may belong to somebody else.
struct Group(Option<Pid>);

impl Group {
    fn of(leader: Option<u32>) -> Self {
        let leader = leader.and_then(|pid| i32::try_from(pid).ok());
        Self(leader.and_then(Pid::from_raw))
    }

    fn disarm(mut self) {
        self.0 = None;
    }

    /// Asks everybody in the group to end, kills who does not, and waits for that.
    ///
    /// The leader is waited for meanwhile. As long as others are in its group, the
    /// kernel gives its number to nobody else.
    async fn terminate(self, leader: &mut Child) {
        let Some(group) = self.0 else { return };
        for signal in [Signal::TERM, Signal::KILL] {
            // It fails only where the group has ended by itself.
            let _ = kill_process_group(group, signal);
            // Bounded: who hangs in the kernel does not die of a kill either.
            let ended = ended(group, leader);
            if time::timeout(TERMINATION, ended).await.is_ok() {
                self.disarm();
                return;
            }
        }
    }
}

/// Waits until a group and its leader have ended.
async fn ended(group: Pid, leader: &mut Child) {
    while leader.try_wait().is_ok_and(|status| status.is_none())
        || test_kill_process_group(group).is_ok()
    {
        time::sleep(TERMINATION_POLL).await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Instant};

    use super::*;

    /// How long anything may take that is certain to happen.
    const BOUND: Duration = Duration::from_secs(60);

    /// As [`super::run`], for nobody who could cancel it.
    async fn run(command: &mut Command, timeout: Option<Duration>) -> Result<Output, Stopped> {
        super::run(command, timeout, &CancellationToken::new()).await
    }

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// Whether a process that the script wrote the id of is running.
    fn alive(pid_file: &Path) -> bool {
        let pid = std::fs::read_to_string(pid_file).unwrap();
        // A zombie is dead: it has no command line any more.
        std::fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty())
    }

    async fn until(condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(BOUND, waiting).await.expect("in time");
    }

    /// Waits until the script has written the id of a process.
    async fn written(pid_file: &Path) {
        until(|| std::fs::read_to_string(pid_file).is_ok_and(|pid| !pid.is_empty())).await;
    }

    #[tokio::test]
    async fn output_and_status_come_back() {
        let Ok(output) = run(&mut sh("echo out; echo err >&2; exit 3"), None).await else {
            panic!("not run");
        };
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], "err\n"));
    }

    #[tokio::test]
    async fn only_the_end_of_a_flood_is_kept() {
        let flood =
            "i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; echo reason >&2";
        let Ok(output) = run(&mut sh(flood), None).await else {
            panic!("not run");
        };
        assert_eq!(output.stderr.len(), STDERR_TAIL);
        assert!(output.stderr.ends_with("reason\n"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_has_ended_with_its_children() {
        let hang = async |trap: &str| {
            let dir = tempfile::tempdir().unwrap();
            let pid = dir.path().join("pid");
            let script = format!(
                "{trap} echo waiting >&2; sleep 1000 & echo $! > {}; wait; wait; sleep 1000",
                pid.display()
            );
            // Long enough for the script to start its child.
            let stopped = run(&mut sh(&script), Some(Duration::from_secs(5))).await;
            let Err(Stopped::TimedOut(stderr)) = stopped else {
                panic!("it ended");
            };
            assert_eq!(stderr, "waiting\n");
            assert!(!alive(&pid), "{trap}");
        };
        // By itself, by the signal, and not before it is killed.
        tokio::join!(hang(""), hang("trap 'exit 0' TERM;"), hang("trap '' TERM;"));
    }

    #[tokio::test]
    async fn a_cancelled_program_has_ended_with_its_children_and_could_clean_up() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let cleaned = dir.path().join("cleaned");
        let script = format!(
            "trap 'echo yes > {}; exit 0' TERM; sleep 1000 & echo $! > {}; wait",
            cleaned.display(),
            pid.display()
        );
        let cancel = CancellationToken::new();
        let mut command = sh(&script);
        let (stopped, ()) = tokio::join!(super::run(&mut command, None, &cancel), async {
            written(&pid).await;
            cancel.cancel();
        });
        assert!(matches!(stopped, Err(Stopped::Cancelled)));
        assert!(!alive(&pid));
        assert!(cleaned.exists());
    }

    #[tokio::test]
    async fn a_program_whose_future_is_dropped_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        let mut command = sh(&script);
        tokio::select! {
            _ = run(&mut command, None) => panic!("it ended"),
            () = written(&pid) => {}
        }
        until(|| !alive(&pid)).await;
    }

    #[tokio::test]
    async fn a_child_left_behind_does_not_hold_the_caller() {
        let start = Instant::now();
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 20 & echo $! > {}; echo done >&2", pid.display());
        let Ok(output) = run(&mut sh(&script), None).await else {
            panic!("not run");
        };
        assert_eq!(output.stderr, "done\n");
        assert!(start.elapsed() < Duration::from_secs(10));
        let pid = std::fs::read_to_string(&pid)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
}

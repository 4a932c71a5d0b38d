//! What the machine offers, a test's own directory, and the frame of every test.

use std::{
    cell::RefCell,
    env,
    ffi::OsString,
    fmt, fs,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

/// Names the daemon to test.
const DAEMON: &str = "NIX_SNAPSHOTTER_BIN";
/// Names the CLI to test.
const CLI: &str = "NIX2CONTAINER_BIN";
/// Names the directory of links to the store objects that tests run.
const FIXTURES: &str = "NIX_SNAPSHOTTER_FIXTURES";
/// Set for a long run of the tests whose strength is in repetition.
const SOAK: &str = "NIX_SNAPSHOTTER_SOAK";
/// Repeats the random choices of a test that has failed.
const SEED: &str = "NIX_SNAPSHOTTER_SEED";

/// Programs that tests call by name.
const TOOLS: [&str; 6] = [
    "containerd",
    "ctr",
    "runc",
    "nix-store",
    "nix-build",
    "mount",
];

/// How many characters of a program's log are shown when a test fails.
const LOG_TAIL: usize = 4000;

thread_local! {
    /// The logs of programs that have ended during this test, shown if it fails.
    static LOGS: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// Ends a test that needs something which not every machine has.
#[derive(Debug)]
struct Skipped {
    reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Skipped {}

/// What a test is given: the programs to test, and a directory that goes with the test.
#[derive(Debug)]
pub struct Host {
    nix_snapshotter: PathBuf,
    nix2container: PathBuf,
    fixtures: PathBuf,
    dir: TempDir,
}

/// Runs the body of a test with the machine that it needs.
///
/// Where nothing says which programs to test, as in a plain `cargo test`, the test
/// is skipped with a line that says so. In the sandbox, whatever is missing fails it.
/// After a failure, the ends of the logs of all programs that took part are printed.
///
/// # Panics
/// When the body returns an error or panics itself.
pub fn test<F: FnOnce(&Host) -> Result<()>>(body: F) {
    let skip = |reason: &str| {
        let name = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
        // Not print!, which the test harness captures.
        let _ = writeln!(io::stdout(), "SKIPPED: {name}: {reason}");
    };
    if env::var_os(DAEMON).is_none() {
        return skip(&format!("{DAEMON} is not set; run it by `make test`"));
    }
    LOGS.take();
    let done = catch_unwind(AssertUnwindSafe(|| {
        Host::detect().and_then(|host| body(&host))
    }));
    let done = match done {
        Ok(Err(error)) if error.is::<Skipped>() => return skip(&error.to_string()),
        done => done,
    };
    if !matches!(done, Ok(Ok(()))) {
        for (name, log) in LOGS.take() {
            eprintln!("---- the end of the log of {name}\n{}", tail(&log));
        }
    }
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}"),
        Err(panic) => resume_unwind(panic),
    }
}

impl Host {
    /// Looks at the environment and makes a directory for this test.
    ///
    /// # Errors
    /// Names the variable, program or fixture that is missing.
    pub fn detect() -> Result<Self> {
        // A short path: those of sockets have about 100 bytes.
        Self::detect_in(Path::new("/tmp"))
    }

    /// The same, with the directory below `parent`, which decides on the file system.
    ///
    /// # Errors
    /// As for [`Host::detect`].
    pub fn detect_in(parent: &Path) -> Result<Self> {
        let file = |variable| -> Result<PathBuf> {
            let path = env::var_os(variable).with_context(|| format!("{variable} is not set"))?;
            let path = PathBuf::from(path);
            ensure!(
                path.exists(),
                "{variable} names {}, which does not exist",
                path.display()
            );
            Ok(path)
        };
        for tool in TOOLS {
            ensure!(is_on_path(tool), "{tool} is not on the PATH");
        }
        Ok(Self {
            nix_snapshotter: file(DAEMON)?,
            nix2container: file(CLI)?,
            fixtures: file(FIXTURES)?,
            dir: tempfile::Builder::new().prefix("e2e-").tempdir_in(parent)?,
        })
    }

    /// Skips the test where a program is missing that nothing but this test needs.
    ///
    /// # Errors
    /// One that [`test()`] understands.
    pub fn needs(&self, tool: &str) -> Result<()> {
        if !is_on_path(tool) {
            let reason = format!("{tool} is not on the PATH");
            bail!(Skipped { reason });
        }
        Ok(())
    }

    /// Skips the test where something is not so that nothing but this test needs.
    ///
    /// # Errors
    /// One that [`test()`] understands.
    pub fn requires(&self, condition: bool, reason: &str) -> Result<()> {
        if !condition {
            let reason = reason.to_owned();
            bail!(Skipped { reason });
        }
        Ok(())
    }

    /// How often to repeat what may fail once in many times: `test` times in `make test`, `soak`
    /// times in `make soak`.
    #[must_use]
    pub fn repetitions(&self, test: u32, soak: u32) -> u32 {
        match env::var_os(SOAK) {
            Some(_) => soak,
            None => test,
        }
    }

    /// Random choices, which a failed test names and its next run can be told to repeat.
    ///
    /// # Errors
    /// The environment names a seed that is none.
    pub fn random(&self) -> Result<Rng> {
        let seed = match env::var(SEED) {
            Ok(seed) => seed
                .parse()
                .with_context(|| format!("{SEED}={seed} is not a number"))?,
            Err(_) => fastrand::u64(..),
        };
        eprintln!("repeat its choices with {SEED}={seed}");
        Ok(Rng::with_seed(seed))
    }

    /// The daemon to test.
    #[must_use]
    pub fn nix_snapshotter(&self) -> &Path {
        &self.nix_snapshotter
    }

    /// The CLI to test.
    #[must_use]
    pub fn nix2container(&self) -> &Path {
        &self.nix2container
    }

    /// A directory that is deleted at the end of the test, with all mounts below it undone.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The store path of a fixture: `hello`, `redis`, `busybox`, and each with `-closure-info`.
    ///
    /// # Errors
    /// There is no such fixture.
    pub fn fixture(&self, name: &str) -> Result<String> {
        let link = self.fixtures.join(name);
        let path = fs::read_link(&link)
            .with_context(|| format!("there is no fixture at {}", link.display()))?;
        store_path(path.into_os_string())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = unmount_below(self.dir()) {
            // Deleting a directory with mounts in it would reach through them.
            self.dir.disable_cleanup(true);
            eprintln!("{} is left: {error:#}", self.dir().display());
        }
    }
}

fn is_on_path(tool: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

fn store_path(path: OsString) -> Result<String> {
    match path.into_string() {
        Ok(path) if path.starts_with("/nix/store/") => Ok(path),
        other => bail!("{other:?} is not a store path"),
    }
}

/// A name that no other test and no other run uses, for containers, images and store objects.
#[must_use]
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!(
        "{name}-{}-{number}-{:x}",
        std::process::id(),
        now.as_micros()
    )
}

/// Keeps the log of a program that has ended, in case that the test fails.
pub(crate) fn remember(name: &str, log: &str) {
    LOGS.with_borrow_mut(|logs| {
        // A program that was started again goes on in the same file.
        logs.retain(|(_, earlier)| !log.starts_with(earlier));
        logs.push((name.to_owned(), log.to_owned()));
    });
}

fn tail(text: &str) -> &str {
    let start = text
        .char_indices()
        .rev()
        .nth(LOG_TAIL)
        .map_or(0, |(at, _)| at);
    &text[start..]
}

/// Undoes all mounts below a directory, the latest first.
///
/// # Errors
/// The mount table cannot be read, or a mount not be undone.
pub fn unmount_below(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    // The fifth field of proc_pid_mountinfo(5); spaces in it are escaped, and ours has none.
    let below = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(dir));
    for point in below.collect::<Vec<_>>().into_iter().rev() {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}

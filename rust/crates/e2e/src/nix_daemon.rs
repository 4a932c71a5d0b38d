//! A nix-daemon of the test's own, by which one store serves many users.

use std::{
    collections::BTreeMap, ffi::OsString, os::unix::net::UnixStream, path::PathBuf,
    process::Command, time::Duration,
};

use anyhow::{Result, bail};
use rustix::process::Signal;

use crate::{
    daemon,
    host::{Host, unique},
    process::{self, Process, poll, when},
};

/// How long nix-daemon may take to listen.
const START_BOUND: Duration = Duration::from_secs(20);

/// A nix-daemon for the machine's store.
#[derive(Debug)]
pub struct NixDaemon {
    dir: PathBuf,
    environment: BTreeMap<String, OsString>,
    /// `None` while it is stopped.
    process: Option<Process>,
}

impl NixDaemon {
    /// Starts one with these variables in its environment.
    ///
    /// # Errors
    /// It cannot be started, or does not listen within 20 seconds.
    pub fn start<'a>(
        host: &Host,
        environment: impl IntoIterator<Item = (&'a str, OsString)>,
    ) -> Result<Self> {
        let mut daemon = Self {
            dir: host.dir().join(unique("nix-daemon")),
            environment: environment
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            process: None,
        };
        std::fs::create_dir_all(&daemon.dir)?;
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Starts it again, after its end.
    ///
    /// # Errors
    /// Those of [`NixDaemon::start`].
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new("nix-daemon");
        command
            .env("NIX_DAEMON_SOCKET_PATH", self.socket())
            .env_remove("NIX_REMOTE")
            .envs(&self.environment);
        let mut process = Process::spawn("nix-daemon", &mut command, &self.dir.join("log"))?;
        poll("the socket of nix-daemon", START_BOUND, || {
            if let Some(status) = process.ended()? {
                bail!("nix-daemon ended with {status}: {}", process.log());
            }
            Ok(when(UnixStream::connect(self.socket()).is_ok()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// Makes a daemon its client.
    #[must_use]
    pub fn client(&self, config: daemon::Config) -> daemon::Config {
        config
            .environment("NIX_REMOTE", "daemon")
            .environment("NIX_DAEMON_SOCKET_PATH", self.socket())
    }

    /// Its processes that serve a client each.
    ///
    /// # Errors
    /// It is stopped.
    pub fn workers(&self) -> Result<Vec<u32>> {
        match &self.process {
            Some(process) => process::children(process.pid()),
            None => bail!("nix-daemon is stopped"),
        }
    }

    /// Stops it, so that it takes connections and does nothing with them, or lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        match &self.process {
            Some(process) if frozen => process.signal(Signal::STOP),
            Some(process) => process.signal(Signal::CONT),
            None => bail!("nix-daemon is stopped"),
        }
    }

    /// Kills the processes that serve a client.
    ///
    /// # Errors
    /// One has ended by itself.
    pub fn end_workers(&self) -> Result<()> {
        self.workers()?
            .into_iter()
            .try_for_each(|worker| process::signal(worker, Signal::KILL))
    }
}

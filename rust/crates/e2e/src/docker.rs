//! Debian's Docker engine, with its images in graph drivers or in a containerd of its own.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, bail};
use serde_json::json;

use crate::{
    host::{Host, unique},
    process::{Process, poll, run, when},
};

/// How long the engine may take to listen.
const START_BOUND: Duration = Duration::from_secs(30);

/// Where an engine keeps images.
#[derive(Clone, Copy, Debug)]
pub enum ImageStore {
    /// In its own format, by layers. What it does not know of a manifest is lost.
    GraphDriver,
    /// In containerd's content store, as they are.
    Containerd,
}

/// An engine without a network, which runs until it is dropped.
#[derive(Debug)]
pub struct Docker {
    /// At its end it ends the containerd that it has started.
    process: Process,
    dir: PathBuf,
}

impl Docker {
    /// Starts one that has nothing.
    ///
    /// # Errors
    /// It is not installed, cannot be started, or does not listen within 30 seconds.
    pub fn start(host: &Host, images: ImageStore) -> Result<Self> {
        host.needs("dockerd")?;
        host.needs("docker")?;
        let dir = host.dir().join(unique("docker"));
        fs::create_dir_all(&dir)?;
        let mut command = Command::new("dockerd");
        for (flag, name) in [
            ("--data-root", "data"),
            ("--exec-root", "exec"),
            ("--pidfile", "pid"),
        ] {
            command.arg(flag).arg(dir.join(name));
        }
        command
            .arg("--host")
            .arg(format!("unix://{}", dir.join("socket").display()))
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        let config = dir.join("config.json");
        let in_containerd = matches!(images, ImageStore::Containerd);
        let features = json!({ "features": { "containerd-snapshotter": in_containerd } });
        fs::write(&config, features.to_string())?;
        command.arg("--config-file").arg(config);
        let process = Process::spawn("dockerd", &mut command, &dir.join("log"))?;
        let mut docker = Self { process, dir };
        poll("dockerd", START_BOUND, || {
            if let Some(status) = docker.process.ended()? {
                bail!("dockerd ended with {status}: {}", docker.process.log());
            }
            let answer = run(&mut docker.command(&["version"]))?;
            Ok(when(answer.success().is_ok()))
        })?;
        Ok(docker)
    }

    /// A call of its client.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .arg("--host")
            .arg(format!("unix://{}", self.dir.join("socket").display()))
            .args(arguments);
        command
    }
}

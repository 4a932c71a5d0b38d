//! What the daemon tells about itself.

mod log;
mod metrics;
mod status;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use e2e::{
    daemon::{Config, Daemon},
    host::{Host, unique},
    image::NIX_STORE_PATH,
    observability::{Http, Metrics, command},
    process::{SETTLE, poll, succeed},
};
use serde_json::Value;

/// A daemon that logs JSON and serves metrics on a socket.
fn config(host: &Host) -> Config {
    let socket = host.dir().join("metrics");
    Config::new(host, "daemon")
        .line("log_format = \"json\"")
        .line(format!("metrics.address = \"unix://{}\"", socket.display()))
        .environment("NIX_SNAPSHOTTER_LOG_LEVEL", "debug")
}

fn metrics(host: &Host) -> Result<Metrics> {
    Http::Unix(&host.dir().join("metrics")).metrics()
}

/// The lines of a log in JSON. Every line is one.
fn json_lines(log: &str) -> Result<Vec<Value>> {
    log.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

/// The lines that end the calls of a method with a key, by when the log has one.
fn ends(daemon: &Daemon, method: &str, key: &str) -> Result<Vec<Value>> {
    poll(&format!("the end of {method} {key}"), SETTLE, || {
        let mut lines = json_lines(&daemon.log())?;
        lines.retain(|line| {
            let span = &line["span"];
            line["code"].is_string() && span["method"] == method && span["key"] == key
        });
        Ok(Some(lines).filter(|lines| !lines.is_empty()))
    })
}

/// A store path that nobody has, and a builder that provides it once there is a file `go`.
struct Missing {
    path: PathBuf,
    go: PathBuf,
}

impl Missing {
    fn new(host: &Host) -> Self {
        let digits: String = unique("")
            .chars()
            .filter(char::is_ascii_digit)
            .rev()
            .take(32)
            .collect();
        Self {
            path: format!("/nix/store/{digits:0>32}-missing").into(),
            go: host.dir().join("go"),
        }
    }

    fn builder(&self, config: Config) -> Result<Config> {
        config.builder(&format!(
            "until [ -e {} ]; do sleep 0.02; done; mkdir -p \"$2\"; exec ln -s \"$2\" \"$1\"",
            self.go.display()
        ))
    }

    fn label(&self) -> (String, String) {
        let path = self.path.to_string_lossy().into_owned();
        (format!("{NIX_STORE_PATH}0"), path)
    }
}

impl Drop for Missing {
    fn drop(&mut self) {
        // Nix does not know it.
        let _ = fs::remove_dir(&self.path);
    }
}

/// What `status --json` prints.
fn status(host: &Host, config: &Config) -> Result<Value> {
    let printed = succeed(&mut command(host, config, &["status", "--json"]))?;
    Ok(serde_json::from_str(&printed)?)
}

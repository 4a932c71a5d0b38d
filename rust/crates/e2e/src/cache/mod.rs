//! A binary cache on loopback HTTP, which Nix fills and signs, with faults that can be switched on.

mod server;

use std::{ffi::OsString, fs, path::PathBuf, process::Command};

use anyhow::Result;

pub use server::{Fault, Part};

use crate::{
    daemon,
    host::{Host, unique},
    process::succeed,
    store::Object,
};
use server::Server;

/// A pair of keys, as `nix-store --generate-binary-cache-key` makes it.
#[derive(Debug)]
pub struct Key {
    secret: PathBuf,
    public: String,
}

impl Key {
    /// A new pair.
    ///
    /// # Errors
    /// What Nix says.
    pub fn new(host: &Host) -> Result<Self> {
        let name = unique("e2e");
        let secret = host.dir().join(format!("{name}.secret"));
        let public = host.dir().join(format!("{name}.public"));
        let mut generate = Command::new("nix-store");
        generate
            .args(["--generate-binary-cache-key", &name])
            .args([&secret, &public]);
        succeed(&mut generate)?;
        Ok(Self {
            secret,
            public: fs::read_to_string(public)?.trim_end().to_owned(),
        })
    }
}

/// A binary cache that serves on 127.0.0.1 until it is dropped.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    /// Nix's own cache of what substituters have, `nix-cache-info` in particular, which
    /// would outlive the test.
    lookups: PathBuf,
    key: Key,
    server: Server,
}

impl Cache {
    /// A cache that has nothing yet.
    ///
    /// # Errors
    /// There is no key, or no port.
    pub fn start(host: &Host) -> Result<Self> {
        let dir = host.dir().join(unique("cache"));
        fs::create_dir_all(&dir)?;
        Ok(Self {
            lookups: host.dir().join(unique("lookups")),
            key: Key::new(host)?,
            server: Server::start(&dir)?,
            dir,
        })
    }

    /// Copies the closure of these objects into the cache, signed by this key or by none.
    ///
    /// # Errors
    /// What Nix says.
    pub fn add(&self, objects: &[Object], key: Option<&Key>) -> Result<()> {
        let mut url = OsString::from("file://");
        url.push(&self.dir);
        url.push("?compression=zstd");
        if let Some(key) = key {
            url.push("&secret-key=");
            url.push(&key.secret);
        }
        let mut copy = Command::new("nix");
        copy.args(["--extra-experimental-features", "nix-command", "copy"])
            .arg("--to")
            .arg(url)
            .args(objects.iter().map(Object::path));
        succeed(&mut copy)?;
        Ok(())
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// The key that its users trust.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Variables that make Nix, and whatever calls it, use this cache and trust its key,
    /// with further lines of `nix.conf`, which win over these.
    #[must_use]
    pub fn environment(&self, lines: &[&str]) -> [(&'static str, OsString); 2] {
        let config = format!(
            "substituters = {}\ntrusted-public-keys = {}\n\
             narinfo-cache-positive-ttl = 0\nnarinfo-cache-negative-ttl = 0\n{}\n",
            self.url(),
            self.key.public,
            lines.join("\n")
        );
        [
            ("NIX_CONFIG", config.into()),
            ("XDG_CACHE_HOME", self.lookups.clone().into()),
        ]
    }

    /// Lets a daemon use this cache, with further lines of `nix.conf`.
    #[must_use]
    pub fn substituter_of(&self, config: daemon::Config, lines: &[&str]) -> daemon::Config {
        self.environment(lines)
            .into_iter()
            .fold(config, |config, (name, value)| {
                config.environment(name, value)
            })
    }

    /// Switches a fault on, in place of another, or off.
    pub fn fault(&self, part: Part, fault: Option<Fault>) {
        self.server.fault(part, fault);
    }

    /// How often anything of this part was asked for since the start or the last call.
    #[must_use]
    pub fn take_requests(&self, part: Part) -> usize {
        self.server.take_requests(part)
    }

    /// How many requests are being answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.server.in_flight()
    }
}

//! Debian's `docker-registry` with the logins and certificates of a test, and registries that fail.

mod between;
mod faults;
mod resuming;
mod tokens;

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail};
pub use between::{Cutting, Holding};
pub use faults::{Answering, status};
pub use resuming::Resuming;
pub use tokens::{FirstTokens, IDENTITY, SHORT, TokenServer};

use crate::{
    host::{Host, unique},
    process::{Process, poll, succeed, when},
};

/// How long a registry may take to listen.
const START_BOUND: Duration = Duration::from_secs(20);

/// What a registry asks of its clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings<'a> {
    /// A user and a password.
    pub login: Option<(&'a str, &'a str)>,
    /// Encryption with this certificate.
    pub certificate: Option<&'a Certificate>,
    /// Tokens of this server.
    pub tokens: Option<&'a TokenServer>,
    /// Another server that blobs are read from, by redirection.
    pub blobs_at: Option<&'a str>,
    /// Another server that blobs are uploaded to.
    pub uploads_at: Option<&'a str>,
}

/// A registry that serves on 127.0.0.1 until it is dropped.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    address: SocketAddr,
    process: Process,
}

impl Registry {
    /// Starts one that has nothing.
    ///
    /// # Errors
    /// It cannot be started, or does not listen within 20 seconds.
    pub fn start(host: &Host, settings: Settings<'_>) -> Result<Self> {
        host.needs("docker-registry")?;
        let dir = host.dir().join(unique("registry"));
        fs::create_dir_all(&dir)?;
        let address = free_address()?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: {address}\n  secret: x\n  relativeurls: true\n",
            dir.join("data").display()
        );
        if let Some(elsewhere) = settings.uploads_at {
            config += &format!("  host: {elsewhere}\n");
        }
        if let Some(certificate) = settings.certificate {
            config += &format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                certificate.file().display(),
                certificate.key().display()
            );
        }
        if let Some((user, password)) = settings.login {
            let line = succeed(Command::new("htpasswd").args(["-Bbn", user, password]))?;
            let file = dir.join("htpasswd");
            fs::write(&file, line)?;
            config += &format!(
                "auth: {{htpasswd: {{realm: tests, path: {}}}}}\n",
                file.display()
            );
        }
        if let Some(tokens) = settings.tokens {
            config += &format!(
                "auth: {{token: {{realm: \"{}\", service: tests, issuer: tests, rootcertbundle: {}}}}}\n",
                tokens.realm(),
                tokens.certificate().file().display()
            );
        }
        if let Some(elsewhere) = settings.blobs_at {
            config += &format!(
                "middleware: {{storage: [{{name: redirect, options: {{baseurl: \"{elsewhere}\"}}}}]}}\n"
            );
        }
        let file = dir.join("config.yml");
        fs::write(&file, config)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file);
        let mut process = Process::spawn("docker-registry", &mut command, &dir.join("log"))?;
        poll("docker-registry", START_BOUND, || {
            if let Some(status) = process.ended()? {
                bail!("docker-registry ended with {status}: {}", process.log());
            }
            Ok(when(TcpStream::connect(address).is_ok()))
        })?;
        Ok(Self {
            dir,
            address,
            process,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests that it has answered so far that have these words in their line of the log.
    #[must_use]
    pub fn requests(&self, words: &str) -> usize {
        self.process
            .log()
            .lines()
            .filter(|line| line.contains(words))
            .count()
    }

    /// The directory that has all it was given.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// How many uploads have begun in a repository, and neither ended nor been given up.
    ///
    /// # Errors
    /// Its directory cannot be read.
    pub fn uploads(&self, repository: &str) -> Result<usize> {
        let uploads = format!("docker/registry/v2/repositories/{repository}/_uploads");
        let entries = match fs::read_dir(self.data().join(uploads)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        // It writes the state of the hash once more behind an upload that it has given up.
        let is_upload = |entry: &fs::DirEntry| entry.path().join("startedat").exists();
        Ok(entries.flatten().filter(is_upload).count())
    }

    /// Whether it was given nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let repositories = self.data().join("docker/registry/v2/repositories");
        fs::read_dir(repositories).map_or(true, |mut entries| entries.next().is_none())
    }
}

/// An address that nobody listens at.
///
/// # Errors
/// There is none left.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A certificate for 127.0.0.1 and localhost that nobody else has signed.
#[derive(Debug)]
pub struct Certificate {
    dir: PathBuf,
}

impl Certificate {
    /// A new one.
    ///
    /// # Errors
    /// What `openssl` says.
    pub fn new(host: &Host) -> Result<Self> {
        host.needs("openssl")?;
        let dir = host.dir().join(unique("certificate"));
        fs::create_dir_all(&dir)?;
        let certificate = Self { dir };
        succeed(
            Command::new("openssl")
                .args([
                    "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                ])
                .args(["-subj", "/CN=tests", "-addext"])
                .arg("subjectAltName=IP:127.0.0.1,DNS:localhost")
                .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
                .arg(certificate.key())
                .arg("-out")
                .arg(certificate.file()),
        )?;
        Ok(certificate)
    }

    /// The certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.join("certificate.pem")
    }

    /// Its private key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.dir.join("key.pem")
    }
}

/// Writes a file of credentials as `skopeo login` does, and gives its path.
///
/// # Errors
/// It cannot be written.
pub fn auth_file(dir: &Path, key: &str, auth: &serde_json::Value) -> Result<PathBuf> {
    let file = dir.join(unique("auth.json"));
    fs::write(
        &file,
        serde_json::json!({ "auths": { key: auth } }).to_string(),
    )?;
    Ok(file)
}

//! `nix-snapshotter preload`: images that containerd has before anybody asks for them.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use image_loader::{Containerd, Error, ImageArchive, PlannedImage, Platforms, Silent};
use nix_image::Platform;
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::{
    cli::print,
    config::{self, Config},
    error::chain,
};

/// How long to wait before containerd is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What the id of a lease begins with.
const LEASE: &str = "nix-snapshotter-preload";

/// What to load, and where.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// containerd's socket; without it, the one in `image_service.containerd_address`.
    #[arg(long, value_name = "SOCKET")]
    containerd_address: Option<PathBuf>,

    /// containerd's namespace; Kubernetes has `k8s.io`.
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,

    /// The snapshotter; without it, the one in `image_service.snapshotter`.
    #[arg(long, value_name = "NAME")]
    snapshotter: Option<String>,

    /// How many seconds to wait for containerd and its snapshotter.
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    timeout: u64,

    /// A JSON file with more of them: a list of `{ "archives": […], "address": "…", "namespace": "…" }`,
    /// of which `address` and `namespace` may be left out.
    #[arg(long, value_name = "FILE", required_unless_present = "archives")]
    targets: Option<PathBuf>,

    /// Archives of images.
    #[arg(value_name = "ARCHIVE")]
    archives: Vec<PathBuf>,
}

/// Archives for one namespace of one containerd.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    archives: Vec<PathBuf>,
    address: Option<PathBuf>,
    namespace: Option<String>,
}

/// Loads them all, and says of each what has come of it. The exit code is 1 where one could not be
/// loaded.
///
/// # Errors
/// The configuration or the file of the targets is unusable, or standard output cannot be written.
pub(crate) fn run(
    config: Result<Config, config::Error>,
    options: &Options,
) -> anyhow::Result<ExitCode> {
    let config = config?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let snapshotter = options
        .snapshotter
        .as_ref()
        .unwrap_or(&config.image_service.snapshotter);
    let address = options
        .containerd_address
        .as_ref()
        .unwrap_or(&config.image_service.containerd_address);
    let until = Instant::now() + Duration::from_secs(options.timeout);
    let mut failed = false;
    for target in targets(options)? {
        let address = target.address.as_ref().unwrap_or(address);
        let namespace = target.namespace.as_ref().unwrap_or(&options.namespace);
        for file in &target.archives {
            let place = Place {
                address,
                namespace,
                snapshotter,
                until,
            };
            match runtime.block_on(place.load(file)) {
                Ok(told) => print(&told)?,
                Err(error) => {
                    failed = true;
                    let file = file.display();
                    eprintln!("nix-snapshotter: cannot preload {file}: {}", chain(&error));
                }
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn targets(options: &Options) -> anyhow::Result<Vec<Target>> {
    let mut targets: Vec<Target> = match &options.targets {
        Some(file) => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read the targets in {}", file.display()))?;
            serde_json::from_str(&text)
                .with_context(|| format!("{} is no list of targets", file.display()))?
        }
        None => Vec::new(),
    };
    targets.push(Target {
        archives: options.archives.clone(),
        address: None,
        namespace: None,
    });
    if targets.iter().all(|target| target.archives.is_empty()) {
        bail!("there is no archive to load: name one, or several in the file of --targets");
    }
    Ok(targets)
}

/// Where an archive is loaded to.
struct Place<'a> {
    address: &'a Path,
    namespace: &'a str,
    snapshotter: &'a str,
    /// When containerd is not waited for any more.
    until: Instant,
}

impl Place<'_> {
    /// Loads the images of an archive as soon as containerd can take them, and tells of each.
    async fn load(&self, file: &Path) -> Result<String, Error> {
        // Once, and before containerd is waited for: a compressed archive is unpacked here.
        let mut archive = image_loader::open(file)?;
        let platform = Platforms::One(Platform::host());
        let images = image_loader::images(&mut archive, &platform, None)?;
        loop {
            match self.try_to_load(&mut archive, &images).await {
                Err(error) if may_come(&error) && Instant::now() + RETRY < self.until => {
                    tracing::debug!(error = chain(&error), "waiting for containerd");
                    sleep(RETRY).await;
                }
                done => return done,
            }
        }
    }

    async fn try_to_load(
        &self,
        archive: &mut ImageArchive,
        images: &[PlannedImage],
    ) -> Result<String, Error> {
        let mut containerd = Containerd::connect(self.address, self.namespace).await?;
        let load = async |containerd: &Containerd| {
            let mut told = String::new();
            for image in images {
                let was_there = was_there(containerd, image).await?;
                let (labels, progress) = (HashMap::new(), &Silent);
                image_loader::load(
                    containerd,
                    archive,
                    self.snapshotter,
                    image,
                    &labels,
                    progress,
                )
                .await?;
                for name in &image.names {
                    let outcome = match was_there {
                        true => "was there already",
                        false => "loaded",
                    };
                    told += &format!("{name} in {}: {outcome}\n", self.namespace);
                }
            }
            Ok(told)
        };
        containerd.under_lease(LEASE, &HashMap::new(), load).await
    }
}

/// Whether all names of an image mean it already.
async fn was_there(containerd: &Containerd, image: &PlannedImage) -> Result<bool, Error> {
    for name in &image.names {
        let found = containerd.image(&name.to_string()).await?;
        if found.is_none_or(|found| found.target.digest != image.target.digest) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a moment later all may be well: containerd, or its snapshotter, has not started yet.
fn may_come(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } => true,
        Error::Refused { status, .. } => status.code() == Code::Unavailable,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn read(json: &str, archives: &[&str]) -> Result<Vec<Target>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, json).unwrap();
        let words = ["preload", "--targets", file.path().to_str().unwrap()];
        let cli = Cli::parse_from(words.iter().chain(archives));
        targets(&cli.options).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn targets_come_from_the_file_and_from_the_command_line() {
        let json =
            r#"[{"archives":["a","b"],"namespace":"k8s.io"},{"archives":["c"],"address":"/s"}]"#;
        let targets = read(json, &["d"]).unwrap();
        let archives: Vec<_> = targets.iter().map(|target| target.archives.len()).collect();
        assert_eq!(archives, [2, 1, 1]);
        assert_eq!(targets[0].namespace.as_deref(), Some("k8s.io"));
        assert_eq!(targets[1].address.as_deref(), Some(Path::new("/s")));
    }

    #[test]
    fn what_is_no_list_of_targets_is_refused() {
        for (json, reason) in [
            ("[]", "no archive"),
            ("{}", "no list"),
            (r#"[{"archives":["a"],"adress":"x"}]"#, "adress"),
            (r#"[{"archives":"a"}]"#, "no list"),
        ] {
            let message = read(json, &[]).unwrap_err();
            assert!(message.contains(reason), "{json}: {message}");
        }
        assert!(Cli::try_parse_from(["preload"]).is_err());
    }
}

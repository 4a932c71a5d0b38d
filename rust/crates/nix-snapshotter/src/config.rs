//! The configuration file, its defaults, and what the command line lays over them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix_store::StoreDir;
use serde::Deserialize;
use snapshots::Snapshotter;

use crate::{logging::LogFormat, metrics::MetricsAddress, nix_snapshotter::GC_ROOTS, socket};

/// Read when no other file is named, and not missed when it does not exist.
pub(crate) const DEFAULT_FILE: &str = "/etc/nix-snapshotter/config.toml";

/// The keys of the configuration file with their defaults.
///
/// `docs/daemon.md` describes them for users; a key that is not listed here is refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The unix socket to serve on.
    pub(crate) address: PathBuf,
    /// Where snapshots, their metadata and their GC roots are kept.
    pub(crate) root: PathBuf,
    /// Group, by name or number, that may use the socket; none but the owner without it.
    pub(crate) socket_group: Option<String>,
    /// Seconds that requests in flight get to finish after SIGTERM.
    pub(crate) shutdown_timeout: u64,
    /// The store directory of the machine's Nix.
    pub(crate) store_dir: String,
    /// A program called with a link to make and a store path, in place of Nix.
    pub(crate) external_builder: Option<PathBuf>,
    /// Seconds that one call of Nix or the builder may take; 0 is without limit.
    pub(crate) realise_timeout: u64,
    /// How many realisations may fetch something at once.
    pub(crate) max_realisations: u16,
    /// Delete directories in Remove already, not only in Cleanup.
    pub(crate) sync_remove: bool,
    /// Tell each snapshot's upper directory in a label.
    pub(crate) upperdir_label: bool,
    /// Additional options of every overlay mount.
    pub(crate) mount_options: Vec<String>,
    /// Who lays the layers over one another.
    pub(crate) overlay: Overlay,
    /// Whether mounts map the ids of containers in user namespaces.
    pub(crate) remap_ids: RemapIds,
    /// What lines of the log look like.
    pub(crate) log_format: LogFormat,
    /// Figures for Prometheus.
    pub(crate) metrics: Metrics,
    /// The CRI image service.
    pub(crate) image_service: ImageService,
}

/// Values of `overlay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Overlay {
    /// The kernel's overlayfs.
    Kernel,
    /// The program of this name.
    FuseOverlayfs,
}

/// Values of `remap_ids`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub(crate) enum RemapIds {
    /// `"auto"`: where the machine can.
    Auto,
    /// `true` or `false`.
    Fixed(bool),
}

impl TryFrom<toml::Value> for RemapIds {
    type Error = &'static str;

    fn try_from(value: toml::Value) -> Result<Self, Self::Error> {
        match value {
            toml::Value::Boolean(fixed) => Ok(Self::Fixed(fixed)),
            toml::Value::String(word) if word == "auto" => Ok(Self::Auto),
            _ => Err("expected \"auto\", true or false"),
        }
    }
}

/// Keys of the table `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// Where to serve them; nowhere without it.
    pub(crate) address: Option<MetricsAddress>,
}

/// Keys of the table `[image_service]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImageService {
    /// Whether to serve it.
    pub(crate) enable: bool,
    /// containerd's own socket.
    pub(crate) containerd_address: PathBuf,
    /// The name that this daemon has among containerd's proxy plugins.
    pub(crate) snapshotter: String,
    /// Add the bytes of store paths to what kubelet hears of the file system of images.
    pub(crate) count_store_paths: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "/run/nix-snapshotter/nix-snapshotter.sock".into(),
            root: "/var/lib/containerd/io.containerd.snapshotter.v1.nix".into(),
            socket_group: None,
            shutdown_timeout: 10,
            store_dir: StoreDir::default().as_str().to_owned(),
            external_builder: None,
            realise_timeout: 3600,
            max_realisations: 8,
            sync_remove: false,
            upperdir_label: false,
            mount_options: Vec::new(),
            overlay: Overlay::Kernel,
            remap_ids: RemapIds::Auto,
            log_format: LogFormat::default(),
            metrics: Metrics::default(),
            image_service: ImageService::default(),
        }
    }
}

impl Default for ImageService {
    fn default() -> Self {
        Self {
            enable: true,
            containerd_address: "/run/containerd/containerd.sock".into(),
            snapshotter: "nix".to_owned(),
            count_store_paths: false,
        }
    }
}

/// What the command line and the environment say; each wins over the file.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) address: Option<PathBuf>,
    pub(crate) root: Option<PathBuf>,
    pub(crate) log_format: Option<LogFormat>,
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", .file.display())]
    Read { file: PathBuf, source: io::Error },
    /// It is not TOML, or a key is unknown or of the wrong type.
    #[error("{} is not a valid configuration: {message}", .file.display())]
    Parse { file: PathBuf, message: String },
    /// A value cannot work.
    #[error("`{key}` {reason}")]
    Value { key: &'static str, reason: String },
    /// Snapshots cannot be kept like this.
    #[error(transparent)]
    Snapshots(#[from] snapshots::Error),
}

impl Config {
    /// Defaults, then the file, then the command line.
    pub(crate) fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, Error> {
        let mut config = match file {
            Some(file) => Self::read(file)?,
            None => match Self::read(Path::new(DEFAULT_FILE)) {
                Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    Self::default()
                }
                read => read?,
            },
        };
        config.address = overrides.address.unwrap_or(config.address);
        config.root = overrides.root.unwrap_or(config.root);
        config.log_format = overrides.log_format.unwrap_or(config.log_format);
        config.check()?;
        Ok(config)
    }

    /// Reads and checks a file by itself.
    pub(crate) fn check_file(file: &Path) -> Result<(), Error> {
        Self::read(file)?.check()
    }

    fn read(file: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(file).map_err(|source| Error::Read {
            file: file.to_owned(),
            source,
        })?;
        let config: Self = toml::from_str(&text).map_err(|error| Error::Parse {
            file: file.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        Ok(config.without_empty_paths())
    }

    /// With the defaults in place of paths that are empty, as the Go project reads them: a template
    /// may write every key, whether it has a value or not.
    fn without_empty_paths(mut self) -> Self {
        let defaults = Self::default();
        let is_empty = |path: &Path| path.as_os_str().is_empty();
        for (path, default) in [
            (&mut self.address, defaults.address),
            (&mut self.root, defaults.root),
            (
                &mut self.image_service.containerd_address,
                defaults.image_service.containerd_address,
            ),
        ] {
            if is_empty(path) {
                *path = default;
            }
        }
        self.external_builder = self.external_builder.filter(|path| !is_empty(path));
        self
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |key, reason: String| Err(Error::Value { key, reason });
        for (key, path) in [
            ("root", Some(&self.root)),
            ("external_builder", self.external_builder.as_ref()),
            (
                "image_service.containerd_address",
                Some(&self.image_service.containerd_address),
            ),
        ] {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return refuse(
                    key,
                    format!("is {path:?}: write an absolute path, without `unix://`"),
                );
            }
        }
        if let Err(reason) = socket::check_path(&self.address) {
            return refuse("address", format!("is {:?}, which {reason}", self.address));
        }
        if self.max_realisations == 0 {
            return refuse(
                "max_realisations",
                "is 0, with which no image could be pulled: write how many realisations may \
                 fetch something at once, 1 or more"
                    .to_owned(),
            );
        }
        Snapshotter::check(&self.root, &self.snapshot_options())?;
        self.store_dir().map(|_| ())
    }

    /// The store directory, parsed.
    pub(crate) fn store_dir(&self) -> Result<StoreDir, Error> {
        StoreDir::new(&self.store_dir).map_err(|error| Error::Value {
            key: "store_dir",
            reason: format!("is unusable: {error}"),
        })
    }

    /// How snapshots are kept and mounted.
    pub(crate) fn snapshot_options(&self) -> snapshots::Options {
        snapshots::Options {
            sync_remove: self.sync_remove,
            upperdir_label: self.upperdir_label,
            mount_options: self.mount_options.clone(),
            overlay: match self.overlay {
                Overlay::Kernel => snapshots::Overlay::Kernel,
                Overlay::FuseOverlayfs => snapshots::Overlay::Fuse,
            },
            remap_ids: match self.remap_ids {
                RemapIds::Auto => snapshots::RemapIds::Auto,
                RemapIds::Fixed(true) => snapshots::RemapIds::Always,
                RemapIds::Fixed(false) => snapshots::RemapIds::Never,
            },
            attachments: GC_ROOTS,
        }
    }

    /// How long a call of Nix may take, or `None` for ever.
    pub(crate) fn realise_timeout(&self) -> Option<Duration> {
        (self.realise_timeout > 0).then(|| Duration::from_secs(self.realise_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, overrides: Overrides) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        fs::write(&file, text).unwrap();
        Config::load(Some(&file), overrides).map_err(|error| error.to_string())
    }

    fn refusal(text: &str) -> String {
        load(text, Overrides::default()).unwrap_err()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(load("", Overrides::default()).unwrap(), Config::default());
    }

    /// The modules write every key, with defaults of their own.
    #[test]
    fn the_defaults_of_the_modules_are_the_same() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../../tests/golden/rootful/files/nix-snapshotter.toml");
        if !golden.exists() {
            println!(
                "SKIPPED: the_defaults_of_the_modules_are_the_same: only the programs are here"
            );
            return;
        }
        let config = Config::load(Some(&golden), Overrides::default()).unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn a_configuration_of_the_go_project_is_taken() {
        let config = load(
            r#"
            address = "/run/a.sock"
            root = "/var/lib/a"
            external_builder = "/bin/builder"
            [image_service]
            enable = false
            containerd_address = "/run/c.sock"
            "#,
            Overrides::default(),
        )
        .unwrap();
        assert_eq!(config.address, Path::new("/run/a.sock"));
        assert_eq!(config.root, Path::new("/var/lib/a"));
        assert_eq!(config.external_builder, Some("/bin/builder".into()));
        assert!(!config.image_service.enable);
        assert_eq!(
            config.image_service.containerd_address,
            Path::new("/run/c.sock")
        );
    }

    #[test]
    fn a_path_that_is_empty_is_the_default() {
        let config = load(
            r#"
            address = ""
            root = ""
            external_builder = ""
            [image_service]
            containerd_address = ""
            "#,
            Overrides::default(),
        );
        assert_eq!(config.unwrap(), Config::default());
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let overrides = Overrides {
            root: Some("/flag".into()),
            log_format: Some(LogFormat::Text),
            ..Overrides::default()
        };
        let file = "address = '/file.sock'\nroot = '/file'\nlog_format = 'json'";
        let config = load(file, overrides).unwrap();
        assert_eq!(config.log_format, LogFormat::Text);
        assert_eq!(config.address, Path::new("/file.sock"));
        assert_eq!(config.root, Path::new("/flag"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_line_and_the_known_keys() {
        let message = refusal("root = '/a'\nadress = '/b'\n");
        for expected in [
            "config.toml",
            "line 2",
            "`adress`",
            "`address`",
            "`store_dir`",
        ] {
            assert!(message.contains(expected), "{expected} is not in {message}");
        }
        let message = refusal("[image_service]\nenabled = true\n");
        for expected in ["line 2", "`enabled`", "`containerd_address`"] {
            assert!(message.contains(expected), "{expected} is not in {message}");
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused_with_its_line() {
        let message = refusal("\n[metrics]\naddress = '0.0.0.0:9600'\n");
        for expected in [
            "line 3",
            "0.0.0.0:9600",
            "no authentication",
            "127.0.0.1:9600",
        ] {
            assert!(message.contains(expected), "{expected} is not in {message}");
        }
        let message = refusal("log_format = 'xml'\n");
        for expected in ["line 1", "`xml`", "`text`", "`json`"] {
            assert!(message.contains(expected), "{expected} is not in {message}");
        }
        let message = refusal("\nsync_remove = 'yes'\n");
        assert!(
            message.contains("line 2") && message.contains("boolean"),
            "{message}"
        );
    }

    #[test]
    fn overlays_are_chosen_by_words() {
        let options = |text| load(text, Overrides::default()).map(|c| c.snapshot_options());
        let defaults = options("").unwrap();
        assert_eq!(
            (defaults.overlay, defaults.remap_ids),
            (snapshots::Overlay::Kernel, snapshots::RemapIds::Auto)
        );
        assert_eq!(
            options("overlay = 'kernel'\nremap_ids = 'auto'").unwrap(),
            defaults
        );
        let fuse = options("overlay = 'fuse-overlayfs'\nremap_ids = true").unwrap();
        assert_eq!(
            (fuse.overlay, fuse.remap_ids),
            (snapshots::Overlay::Fuse, snapshots::RemapIds::Always)
        );
        let never = options("remap_ids = false").unwrap();
        assert_eq!(never.remap_ids, snapshots::RemapIds::Never);
        for (text, words) in [
            ("\noverlay = 'fuse'", ["line 2", "fuse-overlayfs"]),
            ("\nremap_ids = 'yes'", ["line 2", "\"auto\""]),
            ("\nremap_ids = 1", ["line 2", "true or false"]),
        ] {
            let message = refusal(text);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_key() {
        for (text, expected) in [
            ("address = 'unix:///run/a.sock'", "`address`"),
            ("root = 'var/lib'", "`root`"),
            ("root = '/a:b'", "the root directory"),
            ("store_dir = 'nix/store'", "`store_dir`"),
            ("external_builder = 'builder'", "`external_builder`"),
            ("max_realisations = 0", "`max_realisations`"),
            ("mount_options = ['upperdir=/etc']", "mount_options"),
            (
                "overlay = 'fuse-overlayfs'\nmount_options = ['userxattr']",
                "fuse-overlayfs does not know it",
            ),
            (
                "mount_options = ['volatile,lowerdir=/etc']",
                "mount_options",
            ),
            (
                "[image_service]\ncontainerd_address = 'a'",
                "`image_service.containerd_address`",
            ),
        ] {
            let message = refusal(text);
            assert!(message.contains(expected), "{text} gave {message}");
        }
        let long = format!("address = '/{}'", "a".repeat(100));
        assert!(refusal(&long).contains("101 bytes"));
    }

    #[test]
    fn a_named_file_that_does_not_exist_is_an_error() {
        let error = Config::load(Some(Path::new("/nowhere.toml")), Overrides::default());
        assert!(matches!(error, Err(Error::Read { .. })));
    }
}

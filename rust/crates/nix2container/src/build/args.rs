//! What `build` is asked for.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use nix_image::{Compression, Platform, Reference};

/// The argument that stands for standard output.
pub(crate) const STDOUT: &str = "-";

#[derive(Args)]
pub(crate) struct BuildArgs {
    /// An image to build upon: an archive, OCI or `docker save`, plain, gzip or zstd; or a
    /// directory with an OCI image layout.
    #[arg(long, value_name = "PATH")]
    pub(crate) from_image: Option<PathBuf>,
    /// JSON file with the object `config` of the image config: Entrypoint, Env, …
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The store paths of the image: a closure-info store path (nixpkgs' `closureInfo`), or a
    /// file that lists them, one a line.
    #[arg(long, value_name = "PATH")]
    pub(crate) closure: Option<PathBuf>,
    /// JSON file with a list of store paths whose files the image has below `/`, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) copy_to_root: Option<PathBuf>,
    /// What becomes of those files. A few that are read before anything is mounted, such as
    /// /etc/passwd, are copied in any case.
    #[arg(long, value_name = "MODE", default_value = "symlink")]
    pub(crate) copy_to_root_mode: CopyMode,
    /// Add what is missing of /etc/passwd, /etc/group, /etc/nsswitch.conf, /tmp and the other
    /// directories that programs expect.
    #[arg(long)]
    pub(crate) base_layout: bool,
    /// The name of the image [default: `nix:0OUT:latest`, which Nix resolves].
    #[arg(long, value_name = "REFERENCE", value_parser = Reference::parse)]
    pub(crate) r#ref: Option<Reference>,
    /// What the image runs on, and which image of several to build upon [default: this machine].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    /// When the image was made: an RFC 3339 time, or seconds since 1970 [default: that of the
    /// image to build upon, or none].
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) created: Option<String>,
    /// A label of the image, in addition to those of --config. May be repeated.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// An annotation of the image's manifest. May be repeated.
    #[arg(long = "annotation", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) manifest_annotations: Vec<(String, String)>,
    /// How the layer is compressed. Layers of --from-image stay as they are.
    #[arg(long, value_name = "COMPRESSION", default_value = "gzip")]
    pub(crate) compression: LayerCompression,
    /// How the image names its store paths [default: `closure` if --closure is a closure-info].
    #[arg(long, value_name = "FORMAT")]
    pub(crate) annotations: Option<Annotations>,
    /// The directory of the Nix store.
    #[arg(long, value_name = "DIR", default_value = "/nix/store", value_parser = nix_store::StoreDir::new)]
    pub(crate) store_dir: nix_store::StoreDir,
    /// Whether to write an archive or a directory; both have an OCI image layout.
    #[arg(long, value_name = "FORMAT", default_value = "archive")]
    pub(crate) format: Format,
    /// The archive or directory to write; `-` writes an archive to standard output.
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
}

/// What becomes of a file of `--copy-to-root`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CopyMode {
    /// A symbolic link into the store.
    Symlink,
    /// A file of the image, which its root user can write.
    Copy,
}

/// How an image names its store paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Annotations {
    /// By the store path of a closure-info.
    Closure,
    /// Each by itself: for snapshotters that do not know the other format.
    PerPath,
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayerCompression {
    /// Not at all.
    None,
    /// What everything that reads images knows.
    Gzip,
    /// Smaller and faster; containerd 1.5, docker 23 and newer know it.
    Zstd,
}

impl From<LayerCompression> for Compression {
    fn from(compression: LayerCompression) -> Self {
        match compression {
            LayerCompression::None => Self::None,
            LayerCompression::Gzip => Self::Gzip,
            LayerCompression::Zstd => Self::Zstd,
        }
    }
}

/// What holds the image layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A tar archive, which `docker load` reads, too.
    Archive,
    /// A directory.
    Directory,
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE"),
    }
}

/// A time in UTC, in the format of RFC 3339.
fn time(text: &str) -> Result<String, &'static str> {
    let time = match text.parse::<i64>() {
        Ok(seconds) => Timestamp::from_second(seconds).ok(),
        Err(_) => text.parse::<Timestamp>().ok(),
    };
    // RFC 3339 has four digits for a year.
    time.filter(|time| (0..=253_402_300_799).contains(&time.as_second()))
        .map(|time| time.to_string())
        .ok_or("it is neither a time as in 2026-01-31T12:00:00Z nor a number of seconds since 1970")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_one_way() {
        for (text, expected) in [
            ("0", "1970-01-01T00:00:00Z"),
            ("1767225600", "2026-01-01T00:00:00Z"),
            ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00Z"),
            ("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.5Z"),
        ] {
            assert_eq!(time(text).as_deref(), Ok(expected));
        }
        for text in ["", "now", "yesterday", "2026-01-01", "-1", "99999999999999"] {
            time(text).unwrap_err();
        }
    }

    #[test]
    fn labels_have_a_name() {
        assert_eq!(pair("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(pair("a=").unwrap(), ("a".to_owned(), String::new()));
        pair("a").unwrap_err();
        pair("=b").unwrap_err();
    }
}

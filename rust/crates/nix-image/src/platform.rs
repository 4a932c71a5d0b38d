//! The platform that an image is for.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, error::shorten};

/// Operating system and processor, in the names of Go that OCI uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Processor architecture: `amd64`, `arm64`, …
    pub architecture: String,
    /// Operating system: `linux`.
    pub os: String,
    /// Variant of the architecture where it has some: `v7` of `arm`, `v8` of `arm64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that this program was compiled for.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" if cfg!(target_feature = "v7") => ("arm", Some("v7")),
            "arm" => ("arm", Some("v6")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            // riscv64, s390x, … have one name everywhere.
            other => (other, None),
        };
        Self {
            architecture: architecture.to_owned(),
            os: std::env::consts::OS.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well an image for `image` runs here; `None` if it does not, and the
    /// greater the better.
    ///
    /// An ARM processor runs what was built for an older variant, too.
    #[must_use]
    pub fn suits(&self, image: &Self) -> Option<u32> {
        let (host_arch, host_variant) = self.normal();
        let (arch, variant) = image.normal();
        if self.os != image.os || host_arch != arch {
            return None;
        }
        if host_variant == variant {
            return Some(u32::MAX);
        }
        let number = |variant: &str| variant.strip_prefix('v')?.parse::<u32>().ok();
        let level = number(&variant)?;
        (arch.starts_with("arm") && level < number(&host_variant).unwrap_or(8)).then_some(level)
    }

    /// Whether it says that it is none, as manifests of attestations do, which lie beside those of
    /// images.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Whether it is the same platform, by whichever synonym.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.os == other.os && self.normal() == other.normal()
    }

    /// Architecture and variant with the synonyms resolved that are found in
    /// images (containerd's `platforms.Normalize`).
    fn normal(&self) -> (Cow<'_, str>, Cow<'_, str>) {
        let variant = self.variant.as_deref().unwrap_or_default();
        match (self.architecture.as_str(), variant) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64".into(), "".into()),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64".into(), "".into()),
            ("armhf", _) | ("arm", "" | "7") => ("arm".into(), "v7".into()),
            ("armel", _) => ("arm".into(), "v6".into()),
            ("arm", "5" | "6" | "8") => ("arm".into(), format!("v{variant}").into()),
            (architecture, variant) => (architecture.into(), variant.into()),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Parses `os/architecture` or `os/architecture/variant`, in the names that OCI uses.
    fn from_str(text: &str) -> Result<Self, Error> {
        let is_name = |part: &&str| {
            let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| is_of_name(c) || matches!(c, '.' | '_' | '-'))
        };
        let parts: Vec<_> = text.split('/').collect();
        match *parts {
            [os, architecture, ref variant @ ..]
                if variant.len() < 2 && parts.iter().all(is_name) =>
            {
                Ok(Self {
                    architecture: architecture.to_owned(),
                    os: os.to_owned(),
                    variant: variant.first().map(|variant| (*variant).to_owned()),
                })
            }
            _ => Err(Error::PlatformName {
                platform: shorten(text),
            }),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn a_platform_is_what_is_written() {
        for text in [
            "linux/amd64",
            "linux/arm/v7",
            "linux/x86_64",
            "linux/loong64",
        ] {
            assert_eq!(platform(text).to_string(), text);
        }
        for text in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm/",
            "linux/arm/v7/x",
            "Linux/amd64",
            "linux/a b",
            "linux/a\u{1b}",
        ] {
            let message = text.parse::<Platform>().unwrap_err().to_string();
            assert!(message.contains(&format!("{text:?}")), "{message}");
            assert!(message.contains("linux/arm64"), "{message}");
        }
    }

    #[test]
    fn synonyms_are_the_same_platform() {
        assert!(platform("linux/arm64").is_same(&platform("linux/aarch64/v8")));
        assert!(!platform("linux/arm/v6").is_same(&platform("linux/arm/v7")));
        assert!(!platform("linux/amd64").is_same(&platform("windows/amd64")));
    }

    #[test]
    fn an_image_runs_where_its_platform_is_found() {
        for (host, image, runs) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v1", true),
            ("linux/amd64", "linux/x86_64", true),
            ("linux/amd64", "linux/amd64/v3", false),
            ("linux/amd64", "linux/386", false),
            ("linux/amd64", "linux/arm64/v8", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/amd64", "unknown/unknown", false),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/aarch64/8", true),
            ("linux/arm64/v8", "linux/arm64/v9", false),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/arm/v7", "linux/armhf", true),
            ("linux/arm/v7", "linux/arm/v6", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/riscv64", "linux/riscv64", true),
        ] {
            let suits = platform(host).suits(&platform(image)).is_some();
            assert_eq!(suits, runs, "{image} on {host}");
        }
    }

    #[test]
    fn the_nearest_variant_is_the_best() {
        let host = platform("linux/arm/v7");
        let rank = |image| host.suits(&platform(image));
        assert!(rank("linux/arm/v7") > rank("linux/arm/v6"));
        assert!(rank("linux/arm/v6") > rank("linux/arm/v5"));
    }

    #[test]
    fn the_host_suits_itself() {
        assert_eq!(Platform::host().suits(&Platform::host()), Some(u32::MAX));
    }
}

//! Names of images that Nix resolves: `nix:0` and the store path of an archive.

use nix_image::{NIX_PREFIX, Reference};
use nix_store::{StoreDir, StorePath};

use crate::error::Error;

/// The tag that kubelet and `docker` add where there is none.
const DEFAULT_TAG: &str = "latest";

/// A name that Nix resolves, taken apart.
#[derive(Clone, Debug)]
pub(super) struct NixReference {
    /// The name as containerd keeps it.
    pub(super) reference: Reference,
    /// The archive.
    pub(super) archive: StorePath,
}

impl NixReference {
    /// Whether a name is for Nix to resolve, valid or not: no registry can have it.
    pub(super) fn is_one(image: &str) -> bool {
        image
            .strip_prefix(NIX_PREFIX)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// Takes a name apart.
    ///
    /// # Errors
    /// It is no reference, or its path is none of an object in the store.
    pub(super) fn parse(image: &str, store_dir: &StoreDir) -> Result<Self, Error> {
        let reference = Reference::parse(image)?;
        let archive = store_dir.parse(&format!("/{}", reference.repository()))?;
        Ok(Self { reference, archive })
    }

    /// Whether an archive that gives its image this name may be meant. A tag that the archive does
    /// not have is another version of the image; but `latest` is mostly none that anybody wrote.
    pub(super) fn check_tag(&self, name_in_archive: Option<&str>) -> Result<(), Error> {
        let own = name_in_archive.and_then(|name| Reference::parse(name).ok());
        let Some(own) = own.filter(|own| !own.is_digest() && !self.reference.is_digest()) else {
            return Ok(());
        };
        let (asked, tag) = (self.reference.tag_or_digest(), own.tag_or_digest());
        match asked == DEFAULT_TAG || asked == tag {
            true => Ok(()),
            false => Err(Error::Contradiction {
                image: self.reference.to_string(),
                archive: format!("has the tag {tag}: write that, or none"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHIVE: &str = "/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-image.tar";

    fn parse(image: &str) -> Result<NixReference, String> {
        NixReference::parse(image, &StoreDir::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_taken_apart() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (end, expected) in [
            ("", ":latest"),
            (":v1", ":v1"),
            (&*format!("@{digest}"), &*format!("@{digest}")),
            (&*format!(":v1@{digest}"), &*format!("@{digest}")),
        ] {
            let image = format!("nix:0{ARCHIVE}{end}");
            assert!(NixReference::is_one(&image));
            let parsed = parse(&image).unwrap();
            assert_eq!(parsed.archive.as_str(), ARCHIVE);
            assert_eq!(
                parsed.reference.to_string(),
                format!("nix:0{ARCHIVE}{expected}")
            );
        }
    }

    #[test]
    fn what_is_no_store_path_is_refused() {
        for (image, reason) in [
            ("nix:0/etc/passwd", "below /nix/store"),
            ("nix:0/nix/store/x", "hash"),
            (&*format!("nix:0{ARCHIVE}/inside"), "inside a store object"),
            ("nix:0/nix/store/../../etc/passwd", "nix:0"),
            ("nix:0/", "nix:0"),
            (&*format!("nix:0{ARCHIVE}@sha256:1"), "sha256"),
        ] {
            assert!(NixReference::is_one(image), "{image}");
            let message = parse(image).unwrap_err();
            assert!(message.contains(reason), "{image}: {message}");
        }
        for image in [
            "nix:01/nix/store/x",
            "nix/store",
            "nix:0",
            "",
            "docker.io/nix:0/x",
        ] {
            assert!(!NixReference::is_one(image), "{image}");
        }
    }

    #[test]
    fn a_tag_is_that_of_the_archive_or_none() {
        let check = |end: &str, name: Option<&str>| {
            parse(&format!("nix:0{ARCHIVE}{end}"))
                .unwrap()
                .check_tag(name)
                .is_ok()
        };
        assert!(check("", Some("redis:v1")));
        assert!(check(":latest", Some("redis:v1")));
        assert!(check(":v1", Some("redis:v1")));
        assert!(check(":v1", None));
        assert!(!check(":v2", Some("redis:v1")));
        assert!(!check(":v2", Some("nix:0/nix/store/x")));
    }
}

//! Names of images that Nix resolves: `nix:0` and the store path of an archive.

use std::collections::BTreeSet;

use nix_image::{Descriptor, NIX_PREFIX, Reference, archive::ArchiveImage};
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
    /// It is no reference, or its path is none of an object in the store, or a derivation.
    pub(super) fn parse(image: &str, store_dir: &StoreDir) -> Result<Self, Error> {
        let reference = Reference::parse(image)?;
        let archive = store_dir.parse(&format!("/{}", reference.repository()))?;
        // Nix would build it.
        if archive.base_name().ends_with(".drv") {
            return Err(Error::Derivation { path: archive });
        }
        Ok(Self { reference, archive })
    }

    /// Refuses an archive that has something else than the name says. `images` is what the archive
    /// lists, all of it for one image, and `target` is the manifest of that for this machine.
    ///
    /// # Errors
    /// [`Error::Contradiction`].
    pub(super) fn check(&self, images: &[ArchiveImage], target: &Descriptor) -> Result<(), Error> {
        self.check_digest(images, target)?;
        self.check_tag(images.iter().filter_map(|image| image.name.as_deref()))
    }

    /// A digest is that of the manifest, or of an index that has it. The manifest for another machine
    /// is another image.
    fn check_digest(&self, images: &[ArchiveImage], target: &Descriptor) -> Result<(), Error> {
        let Some(digest) = self.reference.digest() else {
            return Ok(());
        };
        let roots = images.iter().flat_map(|image| &image.roots);
        let mut own = roots.filter(|root| root.is_index()).chain([target]);
        match own.any(|own| own.digest == digest) {
            true => Ok(()),
            false => Err(self.contradicted(format!(
                "has the digest {} for this machine: write that, or none",
                target.digest
            ))),
        }
    }

    /// A tag that the archive does not have is another version of the image; but `latest` is mostly
    /// none that anybody wrote.
    fn check_tag<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let asked = self.reference.tag_or_digest();
        if self.reference.is_digest() || asked == DEFAULT_TAG {
            return Ok(());
        }
        let own = names.filter_map(|name| Reference::parse(name).ok());
        let own = own.filter(|own| !own.is_digest());
        let tags: BTreeSet<_> = own.map(|own| own.tag_or_digest()).collect();
        if tags.is_empty() || tags.contains(&asked) {
            return Ok(());
        }
        let tags: Vec<_> = tags.into_iter().collect();
        Err(self.contradicted(match &*tags {
            [tag] => format!("has the tag {tag}: write that, or none"),
            tags => format!(
                "has the tags {}: write one of them, or none",
                tags.join(", ")
            ),
        }))
    }

    fn contradicted(&self, archive: String) -> Error {
        Error::Contradiction {
            image: self.reference.to_string(),
            archive,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix_image::media_type;

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
    fn a_derivation_is_no_image() {
        let message = parse(&format!("nix:0{ARCHIVE}.drv")).unwrap_err();
        assert!(message.contains("derivation"), "{message}");
    }

    fn descriptor(media_type: &str, content: &str) -> Descriptor {
        Descriptor::of(media_type, content.as_bytes())
    }

    /// What an archive lists under a name: an index of two manifests, of which the first is ours.
    fn listed(name: Option<&str>) -> ArchiveImage {
        ArchiveImage {
            name: name.map(str::to_owned),
            roots: vec![descriptor(media_type::INDEX, "index")],
            manifests: ["ours", "theirs"]
                .map(|content| descriptor(media_type::MANIFEST, content))
                .into(),
        }
    }

    fn check(end: &str, images: &[ArchiveImage]) -> Result<(), String> {
        let target = descriptor(media_type::MANIFEST, "ours");
        let name = parse(&format!("nix:0{ARCHIVE}{end}")).unwrap();
        name.check(images, &target)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_tag_is_one_of_the_archive_or_none() {
        let one = [listed(Some("redis:v1"))];
        let two = [listed(Some("redis:v1")), listed(Some("redis:v2"))];
        let nameless = [listed(None)];
        let other = [listed(Some("nix:0/nix/store/x"))];
        assert_eq!(check("", &one), Ok(()));
        assert_eq!(check(":latest", &one), Ok(()));
        assert_eq!(check(":v1", &one), Ok(()));
        assert_eq!(check(":v1", &nameless), Ok(()));
        assert_eq!(check(":v2", &two), Ok(()));
        for (images, tag) in [(&one[..], ":v2"), (&two, ":v3"), (&other, ":v2")] {
            let message = check(tag, images).unwrap_err();
            assert!(message.contains(tag), "{message}");
        }
        let message = check(":v3", &two).unwrap_err();
        assert!(message.contains("v1, v2"), "{message}");
    }

    #[test]
    fn a_digest_is_that_of_the_index_or_of_the_manifest_for_this_machine() {
        let images = [listed(Some("redis:v1")), listed(Some("redis:v2"))];
        let digest = |media_type, content| format!("@{}", descriptor(media_type, content).digest);
        assert_eq!(check(&digest(media_type::INDEX, "index"), &images), Ok(()));
        assert_eq!(
            check(&digest(media_type::MANIFEST, "ours"), &images),
            Ok(())
        );
        for content in ["theirs", "nobody's"] {
            let message = check(&digest(media_type::MANIFEST, content), &images).unwrap_err();
            let own = descriptor(media_type::MANIFEST, "ours").digest.to_string();
            assert!(message.contains(&own), "{message}");
        }
        // An archive may list the manifests themselves.
        let flat = [ArchiveImage {
            roots: listed(None).manifests,
            ..listed(None)
        }];
        assert_eq!(check(&digest(media_type::MANIFEST, "ours"), &flat), Ok(()));
        assert!(check(&digest(media_type::MANIFEST, "theirs"), &flat).is_err());
    }
}

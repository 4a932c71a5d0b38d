//! Names of images.
//!
//! The grammar and the defaults are those of distribution's `reference` package,
//! which containerd, the CRI and nerdctl look images up by: `hello` is an image
//! of Docker Hub and becomes `docker.io/library/hello:latest`.

use std::{fmt, path::Path};

use crate::{Digest, Error, error::shorten};

/// What the name of an image begins with that Nix resolves, not a registry: a
/// store path follows, the image's archive.
///
/// Host `nix`, port `0`: no registry can have it, and a reference must not begin
/// with a slash.
pub const NIX_PREFIX: &str = "nix:0";

/// What to name an image.
const REMEDY: &str = "name it as in `ghcr.io/user/image:tag`";

/// What to name the archive of an image, where it names the image.
const NIX_REMEDY: &str = "rename the archive, or the derivation that makes it, so that its path has lower-case \
    letters and digits only, and between them single `.`, `_` or `-`, as in `nix-image-redis.tar`";

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL_REPOSITORY: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// Longest name that registries take, without tag and digest.
const MAX_NAME_LEN: usize = 255;

/// A normalised image reference: domain, path, and a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    object: Object,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// Parses and normalises a reference as `docker run` takes it.
    ///
    /// Where it has both a tag and a digest, the digest counts, as for containerd.
    ///
    /// # Errors
    /// [`Error::Reference`] with the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let parse = || -> Result<Self, String> {
            let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
            if text.len() == 64 && text.chars().all(is_hex) {
                return Err("64 hexadecimal digits are the identifier of an image".to_owned());
            }
            let (name, digest) = match text.split_once('@') {
                None => (text, None),
                Some((name, digest)) => {
                    let digest = digest
                        .parse::<Digest>()
                        .map_err(|error| error.to_string())?;
                    (name, Some(digest))
                }
            };
            let (domain, rest) = split_domain(name);
            let (path, tag) = match rest.split_once(':') {
                None => (rest, None),
                Some((path, tag)) => (path, Some(tag)),
            };
            check_domain(domain)?;
            check_path(path)?;
            if let Some(tag) = tag {
                check_tag(tag)?;
            }
            let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
                format!("{OFFICIAL_REPOSITORY}{path}")
            } else {
                path.to_owned()
            };
            if domain.len() + 1 + path.len() > MAX_NAME_LEN {
                return Err(format!(
                    "without its tag it is longer than {MAX_NAME_LEN} characters"
                ));
            }
            Ok(Self {
                domain: domain.to_owned(),
                path,
                object: match digest {
                    Some(digest) => Object::Digest(digest),
                    None => Object::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
                },
            })
        };
        parse().map_err(|reason| Error::Reference {
            reference: shorten(text),
            reason,
            remedy: match text.starts_with(NIX_PREFIX) {
                true => NIX_REMEDY,
                false => REMEDY,
            },
        })
    }

    /// The reference `nix:0<archive>:latest` of an image that Nix resolves by its
    /// archive.
    ///
    /// # Errors
    /// [`Error::Reference`] if the path has a character that references cannot have.
    pub fn nix(archive: &Path) -> Result<Self, Error> {
        Self::parse(&format!("{NIX_PREFIX}{}:{DEFAULT_TAG}", archive.display()))
    }

    /// Whether a digest stands where a tag could.
    #[must_use]
    pub fn is_digest(&self) -> bool {
        matches!(self.object, Object::Digest(_))
    }

    /// Whether Nix resolves it, not a registry: see [`NIX_PREFIX`].
    #[must_use]
    pub fn is_resolved_by_nix(&self) -> bool {
        self.domain == NIX_PREFIX
    }

    /// The host, with its port if it has one: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository at that host: `library/hello`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.path
    }

    /// The tag, or else the digest: what registries know a manifest by.
    #[must_use]
    pub fn tag_or_digest(&self) -> String {
        match &self.object {
            Object::Tag(tag) => tag.clone(),
            Object::Digest(digest) => digest.to_string(),
        }
    }

    /// The digest, if that is what it has.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match self.object {
            Object::Tag(_) => None,
            Object::Digest(digest) => Some(digest),
        }
    }

    /// What has this digest, in the same repository.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            object: Object::Digest(digest),
            ..self.clone()
        }
    }

    /// The short form that docker shows and that `manifest.json` of an archive has:
    /// without `docker.io/` and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let path = match self.path.strip_prefix(OFFICIAL_REPOSITORY) {
            Some(path) if !path.contains('/') => path,
            _ => &self.path,
        };
        match self.domain.as_str() {
            // Not where the first component would be read as a domain.
            DEFAULT_DOMAIN if split_domain(path) == (DEFAULT_DOMAIN, path) => {
                format!("{path}{}", self.object)
            }
            domain => format!("{domain}/{}{}", self.path, self.object),
        }
    }

    /// The value of `org.opencontainers.image.ref.name` in an archive: the tag,
    /// or for want of one the whole reference (containerd's `ociReferenceName`).
    #[must_use]
    pub fn ref_name(&self) -> String {
        match &self.object {
            Object::Tag(tag) => tag.clone(),
            Object::Digest(_) => self.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.object)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// The first component is a domain only if it cannot be the namespace of a user
/// of Docker Hub.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn check_domain(domain: &str) -> Result<(), String> {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let is_address = |address: &str| {
        !address.is_empty() && address.chars().all(|c| c.is_ascii_hexdigit() || c == ':')
    };
    let port = if let Some(rest) = domain.strip_prefix('[') {
        match rest.split_once(']') {
            Some((address, "")) if is_address(address) => None,
            Some((address, port)) if is_address(address) && port.starts_with(':') => {
                Some(&port[1..])
            }
            _ => return Err(format!("{} is not an IPv6 address", shorten(domain))),
        }
    } else {
        let (host, port) = match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        };
        if !host.split('.').all(is_label) {
            return Err(format!("{} is not the name of a host", shorten(host)));
        }
        port
    };
    match port {
        Some(port) if port.is_empty() || !port.chars().all(|c| c.is_ascii_digit()) => {
            Err(format!("{} is not the number of a port", shorten(port)))
        }
        _ => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), String> {
    if let Some(upper) = path.chars().find(char::is_ascii_uppercase) {
        return Err(format!(
            "it has the upper-case letter {upper:?} outside its tag"
        ));
    }
    for component in path.split('/') {
        if component.is_empty() {
            return Err("a component of its path is empty".to_owned());
        }
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_separator = |c: char| matches!(c, '.' | '_' | '-');
        if let Some(other) = component.chars().find(|&c| !is_word(c) && !is_separator(c)) {
            return Err(format!("it has the character {other:?} outside its tag"));
        }
        if component.starts_with(is_separator) || component.ends_with(is_separator) {
            return Err(format!(
                "{} does not begin and end with a letter or digit",
                shorten(component)
            ));
        }
        let separators = component.split(is_word);
        if !separators
            .into_iter()
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.chars().all(|c| c == '-'))
        {
            return Err(format!(
                "{} has letters and digits apart by more than `.`, `_`, `__` or dashes",
                shorten(component)
            ));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if tag.is_empty() || tag.len() > 128 {
        return Err("its tag has not 1 to 128 characters".to_owned());
    }
    if !tag.starts_with(is_word) || !tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-')) {
        return Err(
            "its tag has a character other than A-Z a-z 0-9 _ . - or begins with . or -".to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn the_parts_of_a_reference_are_those_that_registries_are_asked_with() {
        let reference = Reference::parse("localhost:5000/a/b:v1").unwrap();
        assert_eq!(reference.domain(), "localhost:5000");
        assert_eq!(reference.repository(), "a/b");
        assert_eq!(reference.tag_or_digest(), "v1");
        assert_eq!(reference.digest(), None);
        assert!(!reference.is_resolved_by_nix());

        let digest = Digest::of(b"");
        let pinned = reference.with_digest(digest);
        assert_eq!(pinned.to_string(), format!("localhost:5000/a/b@{digest}"));
        assert_eq!(pinned.tag_or_digest(), digest.to_string());
        assert_eq!(pinned.digest(), Some(digest));

        let archive = Path::new("/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a.tar");
        assert!(Reference::nix(archive).unwrap().is_resolved_by_nix());
    }

    #[test]
    fn references_are_normalised_as_docker_does() {
        let by_digest = format!("ghcr.io/a/b@sha256:{HEX}");
        for (text, name, familiar, ref_name) in [
            (
                "hello",
                "docker.io/library/hello:latest",
                "hello:latest",
                "latest",
            ),
            (
                "hello:1.0",
                "docker.io/library/hello:1.0",
                "hello:1.0",
                "1.0",
            ),
            (
                "docker.io/hello",
                "docker.io/library/hello:latest",
                "hello:latest",
                "latest",
            ),
            (
                "index.docker.io/hello",
                "docker.io/library/hello:latest",
                "hello:latest",
                "latest",
            ),
            (
                "ann/hello",
                "docker.io/ann/hello:latest",
                "ann/hello:latest",
                "latest",
            ),
            (
                "library/a/b",
                "docker.io/library/a/b:latest",
                "library/a/b:latest",
                "latest",
            ),
            (
                "localhost/x",
                "localhost/x:latest",
                "localhost/x:latest",
                "latest",
            ),
            (
                "localhost:5000/x:v1",
                "localhost:5000/x:v1",
                "localhost:5000/x:v1",
                "v1",
            ),
            (
                "[::1]:5000/x",
                "[::1]:5000/x:latest",
                "[::1]:5000/x:latest",
                "latest",
            ),
            (
                "Ghcr/library/x",
                "Ghcr/library/x:latest",
                "Ghcr/library/x:latest",
                "latest",
            ),
            (
                "ghcr.io/a/b__c.d--e:V_1",
                "ghcr.io/a/b__c.d--e:V_1",
                "ghcr.io/a/b__c.d--e:V_1",
                "V_1",
            ),
            (&by_digest, &by_digest, &by_digest, &by_digest),
            (
                &format!("ghcr.io/a/b:v1@sha256:{HEX}"),
                &by_digest,
                &by_digest,
                &by_digest,
            ),
            (
                "nix:0/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-nix-image-hello.tar",
                "nix:0/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-nix-image-hello.tar:latest",
                "nix:0/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-nix-image-hello.tar:latest",
                "latest",
            ),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), name, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(reference.ref_name(), ref_name, "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "is empty"),
            ("/nix/store/x", "is empty"),
            ("Hello", "upper-case letter 'H'"),
            ("ghcr.io/a+b", "character '+'"),
            ("ghcr.io/a/", "is empty"),
            ("ghcr.io/-a", "begin and end"),
            ("ghcr.io/a._b", "apart by more"),
            ("ghcr.io/a___b", "apart by more"),
            ("gh_cr.io/a", "name of a host"),
            ("-ghcr.io/a", "name of a host"),
            ("ghcr.io:/a", "number of a port"),
            ("[::z]/a", "IPv6"),
            ("a:", "1 to 128"),
            ("a:.b", "its tag"),
            ("a:b:c", "its tag"),
            ("a@sha256:0", "64 hexadecimal"),
            (&"a/".repeat(128), "is empty"),
            (&"a".repeat(240), "longer than 255"),
        ] {
            let message = Reference::parse(text).unwrap_err().to_string();
            assert!(message.contains(reason), "{text:?} gave {message:?}");
        }
    }

    #[test]
    fn an_archive_gives_a_reference_for_nix() {
        let reference = Reference::nix(Path::new("/nix/store/x.tar")).unwrap();
        assert_eq!(reference.to_string(), "nix:0/nix/store/x.tar:latest");
        assert!(Reference::nix(Path::new("/home/Ann/x.tar")).is_err());
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(text in "([a-zA-Z0-9.:-]{1,9}/){0,3}[a-z0-9._-]{1,9}(:[a-z0-9.]{0,4})?") {
            if let Ok(reference) = Reference::parse(&text) {
                let again = Reference::parse(&reference.to_string()).unwrap();
                prop_assert_eq!(&again, &reference);
                prop_assert_eq!(Reference::parse(&reference.familiar()).unwrap(), reference);
            }
        }

        #[test]
        fn parsing_never_panics(text in ".{0,60}") {
            let _ = Reference::parse(&text);
        }
    }
}

//! Store directories and store paths.

use std::{fmt, fs, path::Path, sync::Arc};

use crate::Error;

/// Characters of Nix's base 32: digits and lower-case letters without `e`, `o`, `t`, `u`.
const BASE32: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Length of the hash part: 160 bits, 5 a character.
const HASH_LEN: usize = 32;

/// Longest name that Nix accepts: a file name of 255 bytes, less hash, dash and
/// room for the suffixes `.lock` and `.drv` (`StorePath::MaxPathLen`).
const MAX_NAME_LEN: usize = 211;

/// The directory that holds a Nix store, `/nix/store` on nearly every machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreDir(Arc<str>);

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".into())
    }
}

impl StoreDir {
    /// Takes an absolute path without `.`, `..`, empty components and control characters.
    ///
    /// # Errors
    /// [`Error::InvalidStoreDir`] for anything else, and for `/` itself.
    pub fn new(dir: &str) -> Result<Self, Error> {
        let refuse = |reason| {
            Err(Error::InvalidStoreDir {
                dir: shorten(dir),
                reason,
            })
        };
        let Some(relative) = dir.strip_prefix('/') else {
            return refuse("it is not absolute");
        };
        if relative
            .split('/')
            .any(|part| matches!(part, "" | "." | ".."))
        {
            return refuse("it has an empty, `.` or `..` component");
        }
        if dir.chars().any(char::is_control) {
            return refuse("it has a control character");
        }
        Ok(Self(dir.into()))
    }

    /// The directory as a string, without a slash at the end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses the store path of one store object, as in `/nix/store/<hash>-<name>`.
    ///
    /// The rules are Nix's own (`libstore/path.cc`, 2.26): a hash of 32 characters
    /// of base 32, a dash, and a name of 1 to 211 letters, digits and `+-._?=`
    /// that does not read as `.` or `..` up to its end or its first dash.
    ///
    /// # Errors
    /// [`Error::InvalidStorePath`], which says which rule the text breaks. A path
    /// *inside* a store object breaks one too.
    pub fn parse(&self, text: &str) -> Result<StorePath, Error> {
        let refuse = |reason: String| Error::InvalidStorePath {
            path: shorten(text),
            reason,
        };
        let base = text
            .strip_prefix(&*self.0)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| refuse(format!("it is not directly below {}", self.0)))?;
        check_base_name(base).map_err(|reason| refuse(reason.to_owned()))?;
        Ok(StorePath {
            path: text.into(),
            base_at: text.len() - base.len(),
        })
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_base_name(base: &str) -> Result<(), &'static str> {
    if base.contains('/') {
        return Err("it names a file inside a store object, or has a slash at the end");
    }
    let (Some(hash), Some(rest)) = (base.get(..HASH_LEN), base.get(HASH_LEN..)) else {
        return Err("its hash is shorter than 32 characters");
    };
    if !hash.bytes().all(|byte| BASE32.contains(&byte)) {
        return Err("its hash is not 32 characters of Nix's base 32 (0-9 a-z without e, o, t, u)");
    }
    let Some(name) = rest.strip_prefix('-') else {
        return Err("no `-` follows the 32 characters of its hash");
    };
    if name.is_empty() {
        return Err("its name is empty");
    }
    if name.len() > MAX_NAME_LEN {
        return Err("its name is longer than 211 characters");
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte))
    {
        return Err("its name has a character other than A-Z a-z 0-9 + - . _ ? =");
    }
    if matches!(name.split('-').next(), Some("." | "..")) {
        return Err("its name reads as `.` or `..`");
    }
    Ok(())
}

/// The path of one store object, valid by Nix's rules.
///
/// That the object exists is not said: only [`Realiser`](crate::Realiser) sees to that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    path: Arc<str>,
    base_at: usize,
}

impl StorePath {
    /// The whole path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// The whole path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.path)
    }

    /// Whether something of this name is in the store. A store object that is a symbolic link is,
    /// wherever it leads.
    pub(crate) fn exists(&self) -> bool {
        fs::symlink_metadata(self.as_path()).is_ok()
    }

    /// Hash and name: the last component of the path.
    #[must_use]
    pub fn base_name(&self) -> &str {
        &self.path[self.base_at..]
    }

    /// The name behind the hash, `hello-2.12` for instance.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.path[self.base_at + HASH_LEN + 1..]
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// The text for an error message: quoted, escaped, and cut where a hostile label would flood it.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 300;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}… ({} bytes)", &text[..cut], text.len()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr";

    fn refusal(text: &str) -> String {
        StoreDir::default().parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_store_path_gives_its_parts() {
        let path = StoreDir::default()
            .parse(&format!("/nix/store/{HASH}-hello-2.12.1"))
            .unwrap();
        assert_eq!(path.name(), "hello-2.12.1");
        assert_eq!(path.base_name(), format!("{HASH}-hello-2.12.1"));
        assert_eq!(path.to_string(), format!("/nix/store/{HASH}-hello-2.12.1"));
    }

    #[test]
    fn another_store_directory_is_another_prefix() {
        let dir = StoreDir::new("/home/ann/nix/store").unwrap();
        assert!(dir.parse(&format!("/home/ann/nix/store/{HASH}-a")).is_ok());
        assert!(dir.parse(&format!("/nix/store/{HASH}-a")).is_err());
    }

    #[test]
    fn what_is_no_store_path_is_refused_with_the_reason() {
        for (text, reason) in [
            (String::new(), "not directly below"),
            ("/etc/passwd".into(), "not directly below"),
            (format!("/nix/store2/{HASH}-a"), "not directly below"),
            (format!("nix/store/{HASH}-a"), "not directly below"),
            (
                format!("/nix/store/../store/{HASH}-a"),
                "inside a store object",
            ),
            (
                format!("/nix/store/{HASH}-a/../../../etc"),
                "inside a store object",
            ),
            (format!("/nix/store/{HASH}-a/bin"), "inside a store object"),
            (format!("/nix/store/{HASH}-a/"), "inside a store object"),
            ("/nix/store/".into(), "shorter than 32"),
            ("/nix/store/..".into(), "shorter than 32"),
            (format!("/nix/store/{}-a", &HASH[1..]), "base 32"),
            (format!("/nix/store/e{}-a", &HASH[1..]), "base 32"),
            (format!("/nix/store/{}-a", HASH.to_uppercase()), "base 32"),
            (format!("/nix/store/{HASH}"), "no `-`"),
            (format!("/nix/store/{HASH}-"), "name is empty"),
            (format!("/nix/store/{HASH}-."), "reads as"),
            (format!("/nix/store/{HASH}-..-a"), "reads as"),
            (format!("/nix/store/{HASH}-a b"), "other than"),
            (format!("/nix/store/{HASH}-a\0"), "other than"),
            (format!("/nix/store/{HASH}-ü"), "other than"),
            (
                format!("/nix/store/{HASH}-{}", "a".repeat(212)),
                "longer than 211",
            ),
        ] {
            let message = refusal(&text);
            assert!(message.contains(reason), "{text:?} gave {message:?}");
        }
    }

    #[test]
    fn a_long_text_does_not_flood_the_message() {
        let message = refusal(&format!("/nix/store/{HASH}-{}", "a".repeat(5000)));
        assert!(message.len() < 600, "{} bytes", message.len());
        assert!(message.contains("(5044 bytes)"), "{message}");
    }

    #[test]
    fn a_store_directory_is_absolute_and_normal() {
        for dir in [
            "",
            "/",
            "nix/store",
            "/nix/store/",
            "/nix//store",
            "/nix/../etc",
            "/nix/\n",
        ] {
            assert!(StoreDir::new(dir).is_err(), "{dir:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(text in ".{0,80}") {
            if let Ok(path) = StoreDir::default().parse(&text) {
                prop_assert_eq!(path.as_str(), text);
            }
        }

        #[test]
        fn whatever_follows_the_rules_is_taken(
            hash in "[0-9a-df-np-sv-z]{32}",
            name in "[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,210}",
        ) {
            let text = format!("/nix/store/{hash}-{name}");
            let path = StoreDir::default().parse(&text).unwrap();
            prop_assert_eq!(path.name(), name);
            // One component below the store: it can leave it nowhere.
            prop_assert_eq!(path.as_path().parent(), Some(Path::new("/nix/store")));
        }
    }
}

//! What programs expect below `/` of any system, for images that have nothing of it.

use crate::LayerTree;

/// Directories with their modes (FHS 3.0; `tmp` and `root` as every distribution has them).
const DIRECTORIES: [(&str, u32); 11] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

/// Files with their contents. 65534 is whom a user namespace does not map.
const FILES: [(&str, &str); 3] = [
    ("etc/group", "root:x:0:\nnobody:x:65534:\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    ),
];

/// The paths that a base layout may bring, for [`Archive::brings`](crate::archive::Archive::brings).
#[must_use]
pub fn base_layout_paths() -> Vec<&'static str> {
    let directories = DIRECTORIES.iter().map(|(path, _)| *path);
    directories
        .chain(FILES.iter().map(|(path, _)| *path))
        .collect()
}

impl LayerTree {
    /// Adds the base layout, except for what is there already or what `is_in_base` says of.
    pub fn add_base_layout(&mut self, is_in_base: impl Fn(&str) -> bool) {
        for (path, mode) in DIRECTORIES {
            if !is_in_base(path) {
                self.default_directory(path, mode);
            }
        }
        for (path, text) in FILES {
            if !is_in_base(path) {
                self.default_file(path, text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_named_once_and_below_one_another() {
        let paths = base_layout_paths();
        for (n, path) in paths.iter().enumerate() {
            assert!(!path.starts_with('/') && !paths[..n].contains(path));
            if let Some((above, _)) = path.rsplit_once('/') {
                assert!(paths[..n].contains(&above), "{path}");
            }
        }
    }
}

//! What a layer asks for, and the store paths that it comes to.

use std::{
    fs::File,
    io::{self, Read},
};

use rustix::fs::{Mode, OFlags};

use crate::{Error, StoreDir, StorePath};

/// The most store paths that one layer may name.
///
/// The largest closures in use, whole NixOS systems, have some 5,000; each path
/// is a mount in every container, and 100,000 mounts are the kernel's default
/// limit for a mount namespace (`fs.mount-max`).
pub const MAX_CLOSURE_PATHS: usize = 50_000;

/// Largest `store-paths` file that is read: [`MAX_CLOSURE_PATHS`] of the longest paths.
const MAX_LIST_BYTES: u64 = MAX_CLOSURE_PATHS as u64 * 256;

/// What the annotations of a Nix layer ask for: the union of its two parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LayerClosure {
    /// A store object of the shape that nixpkgs' `closureInfo` builds: a directory
    /// whose file `store-paths` lists the closure, one path a line.
    pub closure_info: Option<StorePath>,
    /// Store paths by name.
    pub paths: Closure,
}

/// A set of store paths, sorted, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Closure(Vec<StorePath>);

impl Closure {
    /// The paths in ascending order.
    #[must_use]
    pub fn paths(&self) -> &[StorePath] {
        &self.0
    }

    /// Whether `path` is one of them.
    #[must_use]
    pub fn contains(&self, path: &StorePath) -> bool {
        self.0.binary_search(path).is_ok()
    }

    /// Those paths for which `gone` is false.
    pub(crate) fn without(&self, gone: impl Fn(&StorePath) -> bool) -> Self {
        Self(self.0.iter().filter(|path| !gone(path)).cloned().collect())
    }

    /// Parses a list of store paths, one a line as Unix ends lines; empty lines do not count.
    ///
    /// # Errors
    /// The errors of [`StoreDir::parse`], and [`Error::ClosureTooLarge`].
    pub fn parse_list(store_dir: &StoreDir, list: &str) -> Result<Self, Error> {
        list.split('\n')
            .filter(|line| !line.is_empty())
            .map(|line| store_dir.parse(line))
            .collect::<Result<Self, Error>>()?
            .check_size()
    }

    /// Reads the closure that the store object `closure_info` lists.
    ///
    /// No symbolic link is followed: the object comes from wherever the image's
    /// author got it signed, and must not make us read another file.
    ///
    /// # Errors
    /// [`Error::NoStorePaths`] when the file is missing or not a regular file,
    /// [`Error::ReadClosureInfo`] when it cannot be read, and the errors of
    /// [`Closure::parse_list`].
    pub fn read_closure_info(
        store_dir: &StoreDir,
        closure_info: &StorePath,
    ) -> Result<Self, Error> {
        let read = |source: io::Error| Error::ReadClosureInfo {
            closure_info: closure_info.clone(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || {
            let dir = rustix::fs::open(
                closure_info.as_path(),
                flags | OFlags::DIRECTORY,
                Mode::empty(),
            )?;
            rustix::fs::openat(dir, "store-paths", flags, Mode::empty())
        };
        let no_list = || Error::NoStorePaths {
            closure_info: closure_info.clone(),
        };
        let file = match open() {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                return Err(no_list());
            }
            Err(errno) => return Err(read(errno.into())),
        };
        if !file.metadata().map_err(read)?.is_file() {
            return Err(no_list());
        }
        let mut list = String::new();
        let bytes = file
            .take(MAX_LIST_BYTES + 1)
            .read_to_string(&mut list)
            .map_err(read)?;
        if bytes as u64 > MAX_LIST_BYTES {
            return Err(Error::ClosureTooLarge);
        }
        Self::parse_list(store_dir, &list)
    }

    /// Refuses more than [`MAX_CLOSURE_PATHS`] paths.
    ///
    /// # Errors
    /// [`Error::ClosureTooLarge`].
    pub fn check_size(self) -> Result<Self, Error> {
        if self.0.len() > MAX_CLOSURE_PATHS {
            return Err(Error::ClosureTooLarge);
        }
        Ok(self)
    }
}

impl FromIterator<StorePath> for Closure {
    fn from_iter<I: IntoIterator<Item = StorePath>>(paths: I) -> Self {
        let mut paths: Vec<_> = paths.into_iter().collect();
        paths.sort_unstable();
        paths.dedup();
        Self(paths)
    }
}

impl IntoIterator for Closure {
    type Item = StorePath;
    type IntoIter = std::vec::IntoIter<StorePath>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const A: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a";
    const B: &str = "9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-b";

    #[test]
    fn a_closure_is_sorted_and_has_each_path_once() {
        let list = format!("/nix/store/{B}\n\n/nix/store/{A}\n/nix/store/{B}\n");
        let closure = Closure::parse_list(&StoreDir::default(), &list).unwrap();
        let names: Vec<_> = closure.paths().iter().map(StorePath::base_name).collect();
        assert_eq!(names, [A, B]);
    }

    #[test]
    fn a_line_that_is_no_store_path_is_refused() {
        let list = format!("/nix/store/{A}\n/etc/passwd\n");
        let error = Closure::parse_list(&StoreDir::default(), &list).unwrap_err();
        assert!(error.to_string().contains("/etc/passwd"), "{error}");
    }

    #[test]
    fn a_closure_info_is_read_without_following_links() {
        let store = tempfile::tempdir().unwrap();
        let store_dir = StoreDir::new(store.path().to_str().unwrap()).unwrap();
        let info = store_dir.parse(&format!("{store_dir}/{A}")).unwrap();
        let read = || Closure::read_closure_info(&store_dir, &info);

        assert!(
            matches!(read(), Err(Error::NoStorePaths { .. })),
            "no object"
        );
        fs::write(info.as_path(), "").unwrap();
        assert!(matches!(read(), Err(Error::NoStorePaths { .. })), "a file");
        fs::remove_file(info.as_path()).unwrap();
        fs::create_dir(info.as_path()).unwrap();
        assert!(
            matches!(read(), Err(Error::NoStorePaths { .. })),
            "no file in it"
        );

        let list = info.as_path().join("store-paths");
        let elsewhere = store.path().join("elsewhere");
        fs::write(&elsewhere, format!("{store_dir}/{B}\n")).unwrap();
        symlink(&elsewhere, &list).unwrap();
        assert!(matches!(read(), Err(Error::NoStorePaths { .. })), "a link");

        fs::remove_file(&list).unwrap();
        fs::rename(&elsewhere, &list).unwrap();
        assert_eq!(read().unwrap().paths()[0].base_name(), B);
    }
}

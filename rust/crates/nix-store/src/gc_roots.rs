//! The directory of GC roots of one layer.
//!
//! ```text
//! <dir>/closure-info      -> /nix/store/…-closure-info   stands for all paths that it lists
//! <dir>/path, path-2, …   -> /nix/store/…                each stands for itself
//! <dir>/path.1, path.1-2  -> /nix/store/…                the same, made by another call of Nix
//! <dir>/<hash>-<name>     -> /nix/store/…                the same, made by an external builder
//! ```
//! The links are indirect GC roots: Nix knows them from `/nix/var/nix/gcroots/auto`
//! and forgets them when they are gone. They are also the only record of what a
//! layer mounts. One fact, kept in one place: what is mounted is what is held.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::{Closure, Error, StoreDir, StorePath};

const CLOSURE_INFO: &str = "closure-info";
const PATH: &str = "path";

/// The GC roots of one layer.
#[derive(Clone, Debug)]
pub struct GcRoots {
    dir: PathBuf,
    store_dir: StoreDir,
}

impl GcRoots {
    /// The GC roots in `dir`, which need not exist.
    #[must_use]
    pub fn new(dir: PathBuf, store_dir: StoreDir) -> Self {
        Self { dir, store_dir }
    }

    /// Where the links are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory and its parents.
    pub(crate) fn create(&self) -> Result<(), Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|source| error("create", &self.dir, source))
    }

    /// Where the root of a closure-info object goes.
    pub(crate) fn closure_info_link(&self) -> PathBuf {
        self.dir.join(CLOSURE_INFO)
    }

    /// Where the roots of one call for many paths go: Nix appends `-2`, `-3`, … to the name.
    pub(crate) fn paths_link(&self, call: usize) -> PathBuf {
        match call {
            0 => self.dir.join(PATH),
            _ => self.dir.join(format!("{PATH}.{call}")),
        }
    }

    /// Where the root of a path that is realised alone goes.
    pub(crate) fn link_of(&self, path: &StorePath) -> PathBuf {
        self.dir.join(path.base_name())
    }

    /// The closure that the roots hold, or `None` where there are none.
    ///
    /// # Errors
    /// [`Error::GcRoots`] when the directory cannot be read or holds something else,
    /// and the errors of [`Closure::read_closure_info`].
    pub fn read(&self) -> Result<Option<Closure>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error("list", &self.dir, source)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| error("list", &self.dir, source))?;
            let target = self.target(&entry.path())?;
            if entry.file_name() == CLOSURE_INFO {
                paths.extend(Closure::read_closure_info(&self.store_dir, &target)?);
            } else {
                paths.push(target);
            }
        }
        Ok(Some(paths.into_iter().collect()))
    }

    fn target(&self, link: &Path) -> Result<StorePath, Error> {
        let fail = |source| error("read", link, source);
        let target = fs::read_link(link).map_err(fail)?;
        let target = target
            .to_str()
            .ok_or_else(|| fail(io::Error::other("the link does not name a store path")))?;
        self.store_dir
            .parse(target)
            .map_err(|error| fail(io::Error::other(error)))
    }
}

fn error(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::GcRoots {
        operation,
        path: path.to_owned(),
        source,
    }
}

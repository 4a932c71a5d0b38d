//! The directory of GC roots of one layer.
//!
//! ```text
//! <dir>/closure-info      -> /nix/store/…-closure-info   stands for all paths that it lists
//! <dir>/path, path-2, …   -> /nix/store/…                each stands for itself
//! <dir>/path.1, path.1-2  -> /nix/store/…                the same, made by another call of Nix
//! <dir>/<hash>-<name>     -> /nix/store/…                the same, made by an external builder, or for it
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

use crate::{Closure, Error, LayerClosure, StoreDir, StorePath};

const CLOSURE_INFO: &str = "closure-info";
const PATH: &str = "path";

/// The GC roots of one layer.
#[derive(Clone, Debug)]
pub struct GcRoots {
    dir: PathBuf,
    store_dir: StoreDir,
}

/// What the links are to.
#[derive(Default)]
struct Held {
    closure_info: Option<StorePath>,
    closure: Closure,
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
    /// [`Error::ObjectGone`] for a closure-info, and the errors of
    /// [`Closure::read_closure_info`].
    pub fn read(&self) -> Result<Option<Closure>, Error> {
        Ok(self.held()?.map(|held| held.closure))
    }

    /// The closure that the roots hold, which has to be all that `layer` names.
    ///
    /// # Errors
    /// Those of [`GcRoots::read`], and [`Error::NotHeld`], which names the first path without a
    /// root.
    pub fn read_all_of(&self, layer: &LayerClosure) -> Result<Closure, Error> {
        let held = self.held()?.unwrap_or_default();
        let not_held = |path: &StorePath, link| Error::NotHeld {
            path: path.clone(),
            link,
        };
        if let Some(closure_info) = &layer.closure_info
            && held.closure_info.as_ref() != Some(closure_info)
        {
            return Err(not_held(closure_info, self.closure_info_link()));
        }
        let mut named = layer.paths.paths().iter();
        match named.find(|path| !held.closure.contains(path)) {
            Some(path) => Err(not_held(path, self.link_of(path))),
            None => Ok(held.closure),
        }
    }

    fn held(&self) -> Result<Option<Held>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error("list", &self.dir, source)),
        };
        let mut closure_info = None;
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| error("list", &self.dir, source))?;
            let target = self.target(&entry.path())?;
            if entry.file_name() == CLOSURE_INFO {
                if !target.exists() {
                    return Err(Error::ObjectGone { path: target });
                }
                paths.extend(Closure::read_closure_info(&self.store_dir, &target)?);
                closure_info = Some(target);
            } else {
                paths.push(target);
            }
        }
        Ok(Some(Held {
            closure_info,
            closure: paths.into_iter().collect(),
        }))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const A: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a";
    const B: &str = "9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-b";
    const INFO: &str = "7kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-closure-info";
    const OTHER: &str = "6kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-closure-info";

    /// A store with two closure-infos, of which one lists A, and roots.
    struct Fixture {
        dir: tempfile::TempDir,
        store_dir: StoreDir,
        roots: GcRoots,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store_dir = StoreDir::new(dir.path().to_str().unwrap()).unwrap();
            for (info, list) in [(INFO, format!("{store_dir}/{A}\n")), (OTHER, String::new())] {
                fs::create_dir(dir.path().join(info)).unwrap();
                fs::write(dir.path().join(info).join("store-paths"), list).unwrap();
            }
            let roots = GcRoots::new(dir.path().join("roots"), store_dir.clone());
            Self {
                dir,
                store_dir,
                roots,
            }
        }

        fn path(&self, base: &str) -> StorePath {
            let path = format!("{}/{base}", self.store_dir);
            self.store_dir.parse(&path).unwrap()
        }

        /// Roots anew, as links with these names.
        fn link(&self, links: &[(&str, &str)]) {
            let _ = fs::remove_dir_all(self.roots.dir());
            self.roots.create().unwrap();
            for (name, base) in links {
                symlink(self.path(base).as_path(), self.roots.dir().join(name)).unwrap();
            }
        }

        /// What is held of a layer, or the path that is not and where its root goes.
        fn all_of(&self, info: Option<&str>, paths: &[&str]) -> Result<Closure, (String, PathBuf)> {
            let layer = LayerClosure {
                closure_info: info.map(|base| self.path(base)),
                paths: paths.iter().map(|base| self.path(base)).collect(),
            };
            self.roots.read_all_of(&layer).map_err(|error| match error {
                Error::NotHeld { path, link } => (path.base_name().to_owned(), link),
                error => panic!("{error}"),
            })
        }
    }

    #[test]
    fn all_that_a_layer_names_has_to_be_held() {
        let fixture = Fixture::new();
        let closure = |bases: &[&str]| bases.iter().map(|base| fixture.path(base)).collect();
        let lacks = |base: &str, link: &str| {
            let link = fixture.dir.path().join("roots").join(link);
            Err((base.to_owned(), link))
        };
        assert_eq!(fixture.roots.read().unwrap(), None);
        assert_eq!(fixture.all_of(None, &[A]), lacks(A, A));
        assert_eq!(fixture.all_of(Some(INFO), &[]), lacks(INFO, CLOSURE_INFO));

        fixture.link(&[("path", A)]);
        assert_eq!(fixture.all_of(None, &[A]), Ok(closure(&[A])));
        assert_eq!(fixture.all_of(None, &[A, B]), lacks(B, B));
        assert_eq!(fixture.all_of(Some(INFO), &[A]), lacks(INFO, CLOSURE_INFO));
        assert_eq!(fixture.roots.read().unwrap(), Some(closure(&[A])));

        // What the closure-info lists counts, and what is held besides is told, too.
        fixture.link(&[(CLOSURE_INFO, INFO), (B, B)]);
        assert_eq!(fixture.all_of(Some(INFO), &[A]), Ok(closure(&[A, B])));
        assert_eq!(fixture.all_of(None, &[]), Ok(closure(&[A, B])));
        let other = fixture.all_of(Some(OTHER), &[]);
        assert_eq!(other, lacks(OTHER, CLOSURE_INFO));
    }

    #[test]
    fn a_closure_info_that_is_gone_is_named() {
        let fixture = Fixture::new();
        fixture.link(&[(CLOSURE_INFO, INFO)]);
        fs::remove_dir_all(fixture.path(INFO).as_path()).unwrap();
        let error = fixture.roots.read().unwrap_err();
        assert!(
            matches!(&error, Error::ObjectGone { path } if path.base_name() == INFO),
            "{error}"
        );
    }
}

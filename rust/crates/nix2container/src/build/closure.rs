//! What `--closure` asks for.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix_image::NodeKind;
use nix_store::{Closure, LayerClosure, StoreDir, StorePath};

use super::args::Annotations;

/// The store paths of an image.
#[derive(Debug, Default)]
pub(crate) struct ImageClosure {
    /// What the layer's annotations name.
    pub(crate) layer: LayerClosure,
    /// What the snapshotter will mount for them.
    pub(crate) mounted: Closure,
}

impl ImageClosure {
    /// What the layer has a place for, so that its chain ID is its own: what its annotations name.
    ///
    /// Every daemon that knows the closure format makes the mount points itself. Those that know
    /// the per-path format alone rely on the layer for them.
    pub(crate) fn named(&self) -> impl Iterator<Item = &StorePath> {
        self.layer
            .closure_info
            .iter()
            .chain(self.layer.paths.paths())
    }
}

/// Reads the closure that `given` names, in the format that was chosen or else suits it.
///
/// `config` is the file of the image config. In a list it does not count: the list
/// has it where Nix made it of all that the image refers to, and no container needs
/// it. A closure-info stays whole, for the snapshotter mounts what it lists.
pub(crate) fn read(
    store_dir: &StoreDir,
    given: &Path,
    format: Option<Annotations>,
    config: Option<&Path>,
) -> anyhow::Result<ImageClosure> {
    match (closure_info(store_dir, given), format) {
        (Some(info), None | Some(Annotations::Closure)) => Ok(ImageClosure {
            mounted: Closure::read_closure_info(store_dir, &info)?,
            layer: LayerClosure {
                closure_info: Some(info),
                paths: Closure::default(),
            },
        }),
        (None, Some(Annotations::Closure)) => bail!(
            "{} is not a closure-info in {store_dir}, and `--annotations closure` needs one: pass the store path \
             that nixpkgs' `closureInfo` makes, or leave out `--annotations`",
            given.display()
        ),
        (info, None | Some(Annotations::PerPath)) => {
            let all = match info {
                Some(info) => Closure::read_closure_info(store_dir, &info)?,
                None => read_list(store_dir, given)?,
            };
            let paths: Closure = all
                .into_iter()
                .filter(|path| Some(path.as_path()) != config)
                .collect();
            Ok(ImageClosure {
                mounted: paths.clone(),
                layer: LayerClosure {
                    closure_info: None,
                    paths,
                },
            })
        }
    }
}

/// The closure-info that `given` is, has as its file `store-paths`, or links to.
fn closure_info(store_dir: &StoreDir, given: &Path) -> Option<StorePath> {
    let named = |path: &Path| {
        let info = match path.file_name() {
            Some(name) if name == "store-paths" => path.parent()?,
            _ => path,
        };
        let info = store_dir.parse(info.to_str()?).ok()?;
        info.as_path().is_dir().then_some(info)
    };
    // A result link of `nix build` is resolved; an odd store path of its own right is not.
    named(given).or_else(|| named(&fs::canonicalize(given).ok()?))
}

fn read_list(store_dir: &StoreDir, list: &Path) -> anyhow::Result<Closure> {
    let content = fs::read_to_string(list)
        .with_context(|| format!("cannot read the closure {}", list.display()))?;
    Closure::parse_list(store_dir, &content)
        .with_context(|| format!("{} is not a list of store paths", list.display()))
}

/// What a store path is, without following it.
pub(crate) fn kind(path: &StorePath) -> anyhow::Result<NodeKind> {
    let lstat = || -> std::io::Result<NodeKind> {
        let metadata = fs::symlink_metadata(path.as_path())?;
        Ok(if metadata.is_dir() {
            NodeKind::Directory
        } else if metadata.is_symlink() {
            let target: PathBuf = fs::read_link(path.as_path())?;
            NodeKind::Symlink { target }
        } else {
            let executable = metadata.permissions().mode() & 0o111 != 0;
            NodeKind::File { executable }
        })
    };
    lstat().with_context(|| {
        format!(
            "cannot look at {path}; `nix-store --realise {path}` gets a store path that is missing"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const A: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a";
    const CONFIG: &str = "9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-config.json";
    const INFO: &str = "akvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-closure-info";

    struct Store {
        dir: tempfile::TempDir,
        store_dir: StoreDir,
    }

    /// A store with a closure-info of `A` and `CONFIG`, and a list of the same beside it.
    fn store() -> Store {
        let dir = tempfile::tempdir().unwrap();
        let store_dir = StoreDir::new(dir.path().to_str().unwrap()).unwrap();
        let list = format!("{store_dir}/{CONFIG}\n{store_dir}/{A}\n");
        fs::create_dir(dir.path().join(INFO)).unwrap();
        fs::write(dir.path().join(INFO).join("store-paths"), &list).unwrap();
        fs::write(dir.path().join("list"), list).unwrap();
        symlink(dir.path().join(INFO), dir.path().join("result")).unwrap();
        Store { dir, store_dir }
    }

    impl Store {
        fn read(&self, given: &str, format: Option<Annotations>) -> anyhow::Result<ImageClosure> {
            let config = self.dir.path().join(CONFIG);
            read(
                &self.store_dir,
                &self.dir.path().join(given),
                format,
                Some(&config),
            )
        }
    }

    fn names(closure: &Closure) -> Vec<&str> {
        closure.paths().iter().map(StorePath::base_name).collect()
    }

    #[test]
    fn a_closure_info_is_known_by_its_store_path() {
        let store = store();
        for given in [
            INFO.to_owned(),
            format!("{INFO}/store-paths"),
            "result".to_owned(),
        ] {
            let closure = store.read(&given, None).unwrap();
            assert_eq!(closure.layer.closure_info.unwrap().base_name(), INFO);
            assert_eq!(names(&closure.layer.paths), [""; 0]);
            // The daemon mounts the config file, too.
            assert_eq!(names(&closure.mounted), [A, CONFIG]);
        }
    }

    #[test]
    fn a_list_names_each_path_but_the_config() {
        let store = store();
        for (given, format) in [("list", None), (INFO, Some(Annotations::PerPath))] {
            let closure = store.read(given, format).unwrap();
            assert_eq!(closure.layer.closure_info, None);
            assert_eq!(names(&closure.layer.paths), [A]);
            assert_eq!(names(&closure.mounted), [A]);
        }
    }

    #[test]
    fn what_is_no_closure_is_refused() {
        let store = store();
        fs::write(store.dir.path().join("bad"), "/etc/passwd\n").unwrap();
        fs::create_dir(store.dir.path().join(A)).unwrap();
        for (given, format, reason) in [
            ("list", Some(Annotations::Closure), "is not a closure-info"),
            ("missing", None, "cannot read the closure"),
            ("bad", None, "/etc/passwd"),
            (A, None, "no regular file `store-paths`"),
        ] {
            let message = format!("{:#}", store.read(given, format).unwrap_err());
            assert!(message.contains(reason), "{given} gave {message}");
        }
    }

    #[test]
    fn the_kind_of_a_store_path_is_told_without_following_it() {
        let store = store();
        let path = |name: &str| {
            let path = format!("{}/{A}-{name}", store.store_dir);
            store.store_dir.parse(&path).unwrap()
        };
        fs::create_dir(path("d").as_path()).unwrap();
        fs::write(path("f").as_path(), "").unwrap();
        fs::set_permissions(path("f").as_path(), fs::Permissions::from_mode(0o444)).unwrap();
        fs::write(path("x").as_path(), "").unwrap();
        fs::set_permissions(path("x").as_path(), fs::Permissions::from_mode(0o555)).unwrap();
        symlink("nowhere", path("l").as_path()).unwrap();

        assert_eq!(kind(&path("d")).unwrap(), NodeKind::Directory);
        assert_eq!(
            kind(&path("f")).unwrap(),
            NodeKind::File { executable: false }
        );
        assert_eq!(
            kind(&path("x")).unwrap(),
            NodeKind::File { executable: true }
        );
        assert_eq!(
            kind(&path("l")).unwrap(),
            NodeKind::Symlink {
                target: "nowhere".into()
            }
        );
        let message = format!("{:#}", kind(&path("missing")).unwrap_err());
        assert!(message.contains("nix-store --realise"), "{message}");
    }
}

//! What `--copy-to-root` brings to the image's root: directories, and for each file in them a link
//! or a copy.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use nix_image::{LayerTree, RootEntry, RootNode};
use nix_store::{StoreDir, StorePath};

use super::args::CopyMode;

/// What is copied in any case.
///
/// containerd looks users and groups up in the image before it mounts anything, and since 2.2 not
/// through absolute links; runtimes mount over the files that tell of the network; scanners read
/// which system it is from the layers.
const COPIED: [&str; 10] = [
    "etc/group",
    "etc/gshadow",
    "etc/hostname",
    "etc/hosts",
    "etc/nsswitch.conf",
    "etc/os-release",
    "etc/passwd",
    "etc/resolv.conf",
    "etc/shadow",
    "usr/lib/os-release",
];

/// Most files and directories that the trees may have together. Links to
/// directories are followed, and a few of them make very many paths.
const MAX_ENTRIES: u32 = 500_000;

/// Reads the JSON list of store paths.
pub(crate) fn read_list(store_dir: &StoreDir, list: &Path) -> anyhow::Result<Vec<StorePath>> {
    let read = || -> anyhow::Result<Vec<StorePath>> {
        let paths: Vec<String> = serde_json::from_slice(&fs::read(list)?)
            .context("it is not a JSON list of store paths")?;
        paths
            .iter()
            .map(|path| Ok(store_dir.parse(path)?))
            .collect()
    };
    read().with_context(|| format!("cannot read --copy-to-root {}", list.display()))
}

/// Adds the trees of `roots` to a layer.
pub(crate) fn add(
    tree: &mut LayerTree,
    store_dir: &StoreDir,
    roots: &[StorePath],
    mode: CopyMode,
) -> anyhow::Result<()> {
    if roots.is_empty() {
        return Ok(());
    }
    let mut walk = Walk {
        tree,
        store_dir: Path::new(store_dir.as_str()),
        real_store_dir: fs::canonicalize(store_dir.as_str())
            .with_context(|| format!("cannot find the store {store_dir}"))?,
        mode,
        ancestors: Vec::new(),
        left: MAX_ENTRIES,
    };
    for root in roots {
        fs::metadata(root.as_path())
            .with_context(|| format!("cannot find {root} of --copy-to-root"))?;
        let Some(directory) = walk.directory_in_store(root.as_path()) else {
            bail!(
                "{root} of --copy-to-root is not a directory of the store, and nothing else can come to `/`: put \
                 a file into a directory with nixpkgs' `linkFarm`"
            );
        };
        walk.directory(&directory, Path::new(""))?;
    }
    Ok(())
}

struct Walk<'a> {
    tree: &'a mut LayerTree,
    store_dir: &'a Path,
    /// Where the store is if its directory is a link.
    real_store_dir: PathBuf,
    mode: CopyMode,
    /// The directories from the root to the one that is being walked.
    ancestors: Vec<PathBuf>,
    left: u32,
}

impl Walk<'_> {
    /// Adds what is in `source`, a directory without links in its path, at `path`.
    fn directory(&mut self, source: &Path, path: &Path) -> anyhow::Result<()> {
        let read = || format!("cannot read the directory {}", source.display());
        self.ancestors.push(source.to_owned());
        for entry in fs::read_dir(source).with_context(read)? {
            let entry = entry.with_context(read)?;
            self.left = self.left.checked_sub(1).with_context(|| {
                format!("the trees of --copy-to-root have more than {MAX_ENTRIES} files")
            })?;
            let path = path.join(entry.file_name());
            let source = entry.path();
            if entry.file_type().with_context(read)?.is_dir() {
                self.subdirectory(&source, &path)?;
            } else if let Some(directory) = self.linked_directory(&source) {
                self.subdirectory(&directory, &path)?;
            } else {
                let node = self.leaf(&path, &source)?;
                self.tree
                    .add_root_entry(&RootEntry { path, source, node })?;
            }
        }
        self.ancestors.pop();
        Ok(())
    }

    fn subdirectory(&mut self, source: &Path, path: &Path) -> anyhow::Result<()> {
        self.tree.add_root_entry(&RootEntry {
            path: path.to_owned(),
            source: source.to_owned(),
            node: RootNode::Directory,
        })?;
        self.directory(source, path)
    }

    /// What becomes of anything but a directory.
    fn leaf(&self, path: &Path, source: &Path) -> anyhow::Result<RootNode> {
        // A link that leads nowhere here may lead somewhere in the container.
        let file = fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
        let is_copied =
            self.mode == CopyMode::Copy || COPIED.iter().any(|copied| Path::new(copied) == path);
        // Out of the store, it would be a file of this machine.
        if is_copied && file.starts_with(&self.real_store_dir) {
            let look = || format!("cannot look at {}", source.display());
            let metadata = fs::symlink_metadata(&file).with_context(look)?;
            if metadata.is_file() {
                return Ok(RootNode::Copy {
                    executable: metadata.permissions().mode() & 0o111 != 0,
                    size: metadata.len(),
                    file,
                });
            }
        }
        Ok(RootNode::Link { file })
    }

    /// The directory in the store that a link leads to.
    ///
    /// It becomes a directory of the image: a link in its place would hide what a
    /// base image or another tree has there, and nothing could be mounted in it, as
    /// runtimes do in `/etc`. A link up to a directory that is being walked stays
    /// one, or the walk would have no end; and a link out of the store, as to `/run`,
    /// means the container's directory, not that of this machine.
    fn linked_directory(&self, link: &Path) -> Option<PathBuf> {
        self.directory_in_store(link)
            .filter(|target| !self.ancestors.contains(target))
    }

    /// The directory that `path` leads to in the end, if it is one in the store.
    fn directory_in_store(&self, path: &Path) -> Option<PathBuf> {
        let real = fs::canonicalize(path).ok().filter(|real| real.is_dir())?;
        let below = real.strip_prefix(&self.real_store_dir).ok()?;
        Some(self.store_dir.join(below))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs::File, io::Read, os::unix::fs::symlink};

    use nix_image::{Compression, Layer};
    use nix_store::LayerClosure;

    use super::*;

    struct Store {
        dir: tempfile::TempDir,
        store_dir: StoreDir,
    }

    impl Store {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store_dir = StoreDir::new(dir.path().to_str().unwrap()).unwrap();
            Self { dir, store_dir }
        }

        fn path(&self, name: &str) -> StorePath {
            let path = format!("{}/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-{name}", self.store_dir);
            self.store_dir.parse(&path).unwrap()
        }

        fn file(&self, root: &str, file: &str) -> PathBuf {
            let path = self.path(root).as_path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        }

        fn link(&self, root: &str, link: &str, target: impl AsRef<Path>) {
            let path = self.path(root).as_path().join(link);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        }

        /// What the layer has outside the store: directories, and links with their targets.
        fn farm(&self, roots: &[&str]) -> anyhow::Result<BTreeMap<String, String>> {
            self.root(roots, CopyMode::Symlink)
        }

        /// The same with the contents of files, behind their modes.
        fn root(&self, roots: &[&str], mode: CopyMode) -> anyhow::Result<BTreeMap<String, String>> {
            let roots: Vec<_> = roots.iter().map(|root| self.path(root)).collect();
            let mut tree = LayerTree::default();
            add(&mut tree, &self.store_dir, &roots, mode)?;
            let (closure, plain) = (LayerClosure::default(), Compression::None);
            let mut layer = Vec::new();
            Layer::pack(&tree, &closure, plain, |path| File::open(path), &mut layer)?;
            let mut tar = tar::Archive::new(&*layer);
            let entries = tar.entries()?.map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                let mut what = String::new();
                if let Some(target) = entry.link_name().unwrap() {
                    what = target.display().to_string();
                } else if entry.header().entry_type().is_file() {
                    what = format!("{:o} ", entry.header().mode().unwrap());
                    entry.read_to_string(&mut what).unwrap();
                }
                (path, what)
            });
            Ok(entries.collect())
        }

        fn expected(&self, files: &[(&str, &str)]) -> BTreeMap<String, String> {
            let prefix = format!(
                "{}/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-",
                self.dir.path().display()
            );
            let target = |target: &str| match target {
                "" => String::new(),
                target => format!("{prefix}{target}"),
            };
            files
                .iter()
                .map(|(path, to)| ((*path).to_owned(), target(to)))
                .collect()
        }
    }

    #[test]
    fn trees_become_directories_and_links() {
        let store = Store::new();
        store.file("a", "bin/hello");
        store.file("b", "bin/sh");
        store.file("b", "etc/motd");
        fs::create_dir(store.path("b").as_path().join("empty")).unwrap();
        let expected = store.expected(&[
            ("bin/", ""),
            ("bin/hello", "a/bin/hello"),
            ("bin/sh", "b/bin/sh"),
            ("empty/", ""),
            ("etc/", ""),
            ("etc/motd", "b/etc/motd"),
        ]);
        assert_eq!(store.farm(&["a", "b"]).unwrap(), expected);
    }

    #[test]
    fn links_to_directories_of_the_store_are_walked_through() {
        let store = Store::new();
        store.file("real", "bin/hello");
        store.file("other", "bin/sh");
        store.link("env", "bin", store.path("real").as_path().join("bin"));
        store.link("env", "sbin", "bin");
        symlink(store.path("env").as_path(), store.path("link").as_path()).unwrap();
        let expected = store.expected(&[
            ("bin/", ""),
            ("bin/hello", "real/bin/hello"),
            ("bin/sh", "other/bin/sh"),
            ("sbin/", ""),
            ("sbin/hello", "real/bin/hello"),
        ]);
        // The root itself may be a link, too.
        for root in ["env", "link"] {
            assert_eq!(store.farm(&[root, "other"]).unwrap(), expected);
        }
    }

    #[test]
    fn links_that_lead_up_out_or_nowhere_stay_links() {
        let store = Store::new();
        store.link("a", "sub/up", "..");
        store.link("a", "run", "/proc");
        store.link("a", "lost", "/nowhere");
        let expected = store.expected(&[
            ("lost", "a/lost"),
            ("run", "a/run"),
            ("sub/", ""),
            ("sub/up", "a/sub/up"),
        ]);
        assert_eq!(store.farm(&["a"]).unwrap(), expected);
    }

    #[test]
    fn two_trees_may_bring_the_same_file_but_not_two_files() {
        let store = Store::new();
        let bash = store.file("bash", "bin/bash");
        store.link("env", "bin/bash", bash);
        store.farm(&["env", "bash"]).unwrap();

        store.file("other", "bin/bash");
        let message = format!("{:#}", store.farm(&["bash", "other"]).unwrap_err());
        for name in ["-bash/bin/bash", "-other/bin/bash", " /bin/bash"] {
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn a_store_that_is_a_link_is_called_by_its_name() {
        let store = Store::new();
        store.file("real", "bin/hello");
        let outside = tempfile::tempdir().unwrap();
        let link = outside.path().join("store");
        symlink(store.dir.path(), &link).unwrap();
        let linked = Store {
            store_dir: StoreDir::new(link.to_str().unwrap()).unwrap(),
            dir: store.dir,
        };
        linked.link("env", "bin", linked.path("real").as_path().join("bin"));
        let target = format!("{}/bin/hello", linked.path("real"));
        assert_eq!(linked.farm(&["env"]).unwrap()["bin/hello"], target);
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let store = Store::new();
        fs::write(store.path("f").as_path(), "").unwrap();
        for (root, reason) in [("f", "is not a directory"), ("missing", "cannot find")] {
            let message = format!("{:#}", store.farm(&[root]).unwrap_err());
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn what_is_read_before_anything_is_mounted_is_copied() {
        let store = Store::new();
        let passwd = store.file("users", "etc/passwd");
        fs::write(&passwd, "root").unwrap();
        store.link("env", "etc/passwd", &passwd);
        store.link("env", "etc/group", "/etc/group");
        store.link("env", "etc/hosts", "nowhere");
        let tool = store.file("env", "bin/tool");
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o555)).unwrap();
        let link = |file: &str| store.expected(&[("", file)])[""].clone();
        let mut expected: BTreeMap<_, _> = [
            ("bin/", String::new()),
            ("bin/tool", link("env/bin/tool")),
            ("etc/", String::new()),
            // Not the file of this machine.
            ("etc/group", link("env/etc/group")),
            ("etc/hosts", link("env/etc/hosts")),
            ("etc/passwd", "644 root".to_owned()),
        ]
        .map(|(path, what)| (path.to_owned(), what))
        .into();
        assert_eq!(store.root(&["env"], CopyMode::Symlink).unwrap(), expected);

        expected.insert("bin/tool".to_owned(), "755 ".to_owned());
        assert_eq!(store.root(&["env"], CopyMode::Copy).unwrap(), expected);
    }

    #[test]
    fn a_list_is_json_and_of_store_paths() {
        let store = Store::new();
        let list = store.dir.path().join("list");
        let read = |json: &str| {
            fs::write(&list, json).unwrap();
            read_list(&store.store_dir, &list)
        };
        assert_eq!(read("[]").unwrap(), []);
        assert_eq!(
            read(&format!("[\"{}\"]", store.path("a"))).unwrap(),
            [store.path("a")]
        );
        for (json, reason) in [("{}", "JSON list"), ("[\"/etc\"]", "\"/etc\"")] {
            let message = format!("{:#}", read(json).unwrap_err());
            assert!(message.contains(reason), "{message}");
        }
    }
}

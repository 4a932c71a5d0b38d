use std::{
    fs::{self, File},
    io::{self, Read},
};

use proptest::{collection::vec, prelude::*};

use tar::EntryType;

use super::*;

const HASH: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr";

fn store_path(name: &str) -> StorePath {
    StoreDir::default()
        .parse(&format!("/nix/store/{HASH}-{name}"))
        .unwrap()
}

fn tree() -> LayerTree {
    LayerTree::new(&StoreDir::default()).unwrap()
}

fn entry(path: &str, source: &str, file: Option<&str>) -> RootEntry {
    RootEntry {
        path: path.into(),
        source: source.into(),
        node: match file {
            None => RootNode::Directory,
            Some(file) => RootNode::Link { file: file.into() },
        },
    }
}

/// The entries of a layer, each as a line of type, mode, path and target.
fn list(tree: &LayerTree) -> Vec<String> {
    let mut layer = Vec::new();
    tree.write(&mut layer, |path| File::open(path)).unwrap();
    let mut archive = tar::Archive::new(&*layer);
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 0);
            assert_eq!(
                (header.username(), header.groupname()),
                (Ok(Some("")), Ok(Some("")))
            );
            let kind = match header.entry_type() {
                EntryType::Directory => 'd',
                EntryType::Regular => '-',
                EntryType::Symlink => 'l',
                other => panic!("{other:?}"),
            };
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let target = entry.link_name().unwrap();
            let target = target.map_or(String::new(), |target| format!(" -> {}", target.display()));
            let mode = header.mode().unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            if !content.is_empty() {
                content = format!(" {content:?}");
            }
            format!("{kind}{mode:o} {path}{target}{content}")
        })
        .collect()
}

#[test]
fn a_mount_point_is_of_the_kind_of_its_store_path() {
    let mut tree = tree();
    for (name, kind) in [
        ("d", NodeKind::Directory),
        ("x", NodeKind::File { executable: true }),
        ("f", NodeKind::File { executable: false }),
        (
            "l",
            NodeKind::Symlink {
                target: "../e/./x".into(),
            },
        ),
    ] {
        tree.add_place(&store_path(name), kind).unwrap();
    }
    assert_eq!(
        list(&tree),
        [
            "d755 nix/".to_owned(),
            "d755 nix/store/".to_owned(),
            format!("d755 nix/store/{HASH}-d/"),
            format!("-444 nix/store/{HASH}-f"),
            format!("l777 nix/store/{HASH}-l -> ../e/./x"),
            format!("-555 nix/store/{HASH}-x"),
        ]
    );
}

#[test]
fn another_store_directory_has_other_parents() {
    let store_dir = StoreDir::new("/home/ann/store").unwrap();
    let tree = LayerTree::new(&store_dir).unwrap();
    assert_eq!(
        list(&tree),
        ["d755 home/", "d755 home/ann/", "d755 home/ann/store/"]
    );
}

#[test]
fn trees_are_joined_into_one_farm_of_links() {
    let mut tree = tree();
    for entry in [
        entry(
            "bin/sh",
            "/nix/store/a/bin/sh",
            Some("/nix/store/bash/bin/bash"),
        ),
        entry("bin", "/nix/store/b/bin", None),
        entry("bin/ls", "/nix/store/b/bin/ls", Some("/nix/store/b/bin/ls")),
        // The same file by another way.
        entry(
            "bin/sh",
            "/nix/store/b/bin/sh",
            Some("/nix/store/bash/bin/bash"),
        ),
    ] {
        tree.add_root_entry(&entry).unwrap();
    }
    assert_eq!(
        list(&tree),
        [
            "d755 bin/",
            "l777 bin/ls -> /nix/store/b/bin/ls",
            "l777 bin/sh -> /nix/store/a/bin/sh",
            "d755 nix/",
            "d755 nix/store/",
        ]
    );
}

#[test]
fn a_file_is_copied_as_it_was_when_it_was_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "content").unwrap();
    let copy = |path: &str, executable| RootEntry {
        path: path.into(),
        source: "/s/a".into(),
        node: RootNode::Copy {
            file: file.clone(),
            executable,
            size: 7,
        },
    };
    let mut tree = LayerTree::default();
    tree.add_root_entry(&copy("etc/file", false)).unwrap();
    tree.add_root_entry(&copy("bin/file", true)).unwrap();
    // The same file once more, and another.
    tree.add_root_entry(&copy("bin/file", true)).unwrap();
    let other = entry("bin/file", "/s/b/bin/file", Some("/s/b/bin/file"));
    tree.add_root_entry(&other).unwrap_err();
    assert_eq!(
        list(&tree),
        [
            "d755 bin/",
            "-755 bin/file \"content\"",
            "d755 etc/",
            "-644 etc/file \"content\"",
        ]
    );
    for changed in ["conten", "content and more", ""] {
        fs::write(&file, changed).unwrap();
        let error = tree
            .write(io::sink(), |path| File::open(path))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("changed") && error.contains("/file"),
            "{error}"
        );
    }
    fs::remove_file(&file).unwrap();
    let error = tree
        .write(io::sink(), |path| File::open(path))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/file"), "{error}");
}

#[test]
fn what_collides_is_named_with_both_sources() {
    let file = |path: &str, source: &str| entry(path, source, Some(source));
    for (first, second) in [
        (file("bin/sh", "/s/a/bin/sh"), file("bin/sh", "/s/b/bin/sh")),
        (file("bin", "/s/a/bin"), file("bin/sh", "/s/b/bin/sh")),
        (file("bin/sh", "/s/a/bin/sh"), file("bin", "/s/b/bin")),
        (file("bin", "/s/a/bin"), entry("bin", "/s/b/bin", None)),
    ] {
        let mut tree = tree();
        tree.add_root_entry(&first).unwrap();
        let message = tree.add_root_entry(&second).unwrap_err().to_string();
        for source in [&first.source, &second.source] {
            assert!(message.contains(source.to_str().unwrap()), "{message}");
        }
    }
    let error = tree()
        .add_root_entry(&file("nix/store", "/s/a/nix/store"))
        .unwrap_err();
    assert!(matches!(error, Error::Collision { .. }), "{error}");
}

#[test]
fn a_name_that_deletes_files_is_refused() {
    for path in [".wh.etc", "etc/.wh..wh..opq"] {
        let error = tree()
            .add_root_entry(&entry(path, "/s/a", Some("/s/a")))
            .unwrap_err();
        assert!(matches!(error, Error::Whiteout { .. }), "{error}");
    }
}

proptest! {
    #[test]
    fn any_name_survives(names in vec("[^/\\x00]{1,120}", 1..6), target in "/[^\\x00]{1,150}[a-z]") {
        let path: PathBuf = names.iter().filter(|name| !matches!(name.as_str(), "." | "..")).collect();
        prop_assume!(path.file_name().is_some());
        prop_assume!(!names.iter().any(|name| name.starts_with(".wh.")));
        let mut tree = LayerTree::default();
        tree.add_root_entry(&RootEntry {
            path: path.clone(),
            source: target.clone().into(),
            node: RootNode::Link {
                file: target.clone().into(),
            },
        })
        .unwrap();
        let lines = list(&tree);
        prop_assert_eq!(lines.len(), path.components().count());
        let link = format!("l777 {} -> {}", path.display(), target);
        prop_assert_eq!(lines.last().unwrap(), &link);
    }
}

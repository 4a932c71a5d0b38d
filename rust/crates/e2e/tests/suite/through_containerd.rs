//! What containerd makes of the daemon: namespaces, collections, limits of labels, and images.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Result, ensure};
use e2e::{
    conformance::GC_ROOT,
    containerd::{Containerd, NIX, OVERLAYFS},
    daemon::{Config, Daemon},
    host::test,
    image::{Image, Layer, NIX_STORE_PATH, SNAPSHOT_REF},
    mounting::Mounted,
    node::{BUSYBOX, Node, busybox_image, busybox_layer, reference},
    snapshots::{Info, Kind, Snapshots, refused, upper},
    store::Store,
    transfer,
};
use serde_json::json;
use tonic::Code;

/// A namespace beside that of all other tests.
const OTHER: &str = "other";

/// A client in each of two namespaces.
fn in_two_namespaces(node: &Node, snapshotter: &str) -> Result<[Snapshots; 2]> {
    let other = Snapshots::of_containerd(&node.containerd.socket(), snapshotter, OTHER)?;
    Ok([node.containerd.snapshots(snapshotter)?, other])
}

/// Checks that the daemon has what containerd has in these two namespaces, and nothing else: its
/// keys are theirs, with the namespace and a number before them.
fn rows_are_those_of(node: &Node, clients: &[Snapshots; 2]) -> Result<()> {
    let mut expected = BTreeSet::new();
    for (client, namespace) in clients.iter().zip([node.containerd.namespace(), OTHER]) {
        for name in client.names(&[])? {
            expected.insert((namespace.to_owned(), name));
        }
    }
    let rows = node.daemon.snapshots()?.names(&[])?;
    let count = rows.len();
    let rows: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| {
            let mut parts = row.splitn(3, '/');
            let (namespace, _, name) = (parts.next()?, parts.next()?, parts.next()?);
            Some((namespace.to_owned(), name.to_owned()))
        })
        .collect();
    ensure!(
        rows == expected && count == expected.len(),
        "{rows:?} are in the daemon, and {expected:?} in containerd"
    );
    Ok(())
}

#[test]
fn a_collection_removes_what_containerd_does_not_know() {
    test(|host| {
        let config = Config::new(host, "daemon");
        let daemon = Daemon::start(&config)?;
        // As after a crash between the daemon's transaction and containerd's. While containerd
        // runs, it may collect at any time.
        let snapshots = daemon.snapshots()?;
        snapshots.layer("unknown", "", &[])?;
        snapshots.prepare("on unknown", "unknown", &[])?;
        let containerd = Containerd::start(host, &config)?;
        let node = Node { containerd, daemon };
        for snapshotter in [NIX, OVERLAYFS] {
            let clients = in_two_namespaces(&node, snapshotter)?;
            for client in &clients {
                client.layer("kept", "", &[GC_ROOT])?;
                client.layer("one", "", &[GC_ROOT])?;
                client.layer("two", "one", &[GC_ROOT])?;
                client.view("view", "two", &[GC_ROOT])?;
                client.prepare("active", "two", &[GC_ROOT])?;
                // From the top down: what has children is referred to by them.
                for name in ["view", "active", "two", "one"] {
                    let info = Info {
                        name: name.to_owned(),
                        ..Info::default()
                    };
                    client.update(info, Some(&["labels"]))?;
                }
            }
            node.containerd.collect_garbage()?;
            for client in &clients {
                let names = client.names(&[])?;
                ensure!(names == ["kept"], "{snapshotter}: {names:?}");
            }
        }
        rows_are_those_of(&node, &in_two_namespaces(&node, NIX)?)?;
        // And Cleanup was called.
        let dirs = node.daemon.config().kept()?.snapshots;
        ensure!(dirs.len() == 2, "{dirs:?}");
        Ok(())
    });
}

#[test]
fn layers_of_one_name_are_apart_in_two_namespaces() {
    test(|host| {
        let node = Node::start(host)?;
        let chain_id = format!("sha256:{}", "c".repeat(64));
        let labels = [GC_ROOT, (SNAPSHOT_REF, &*chain_id)];
        for snapshotter in [NIX, OVERLAYFS] {
            let clients = in_two_namespaces(&node, snapshotter)?;
            for (client, name) in clients.iter().zip(["first", "second"]) {
                // Two pulls at once, of which one is the first to commit.
                client.layer(name, "", &[GC_ROOT])?;
                let mounts = client.prepare("extract-1", name, &labels)?;
                fs::write(upper(&mounts)?.join("file"), name)?;
                client.prepare("extract-2", name, &labels)?;
                client.commit(&chain_id, "extract-1", &labels)?;
                let late = client.commit(&chain_id, "extract-2", &labels);
                refused(late, Code::AlreadyExists, &[&chain_id])?;
                // The answer by which the unpacker skips a layer.
                let again = client.prepare("extract-3", name, &labels);
                refused(again, Code::AlreadyExists, &[&chain_id])?;
                refused(client.stat("extract-3"), Code::NotFound, &["extract-3"])?;
            }
            for (client, name) in clients.iter().zip(["first", "second"]) {
                ensure!(client.stat(&chain_id)?.parent == name);
                let mounts = client.view("view", &chain_id, &[GC_ROOT])?;
                let mounted = Mounted::new(&host.dir().join("view"), &mounts)?;
                let content = fs::read_to_string(mounted.dir().join("file"))?;
                ensure!(content == name, "{snapshotter}: {content}");
                mounted.unmount()?;
            }
        }
        rows_are_those_of(&node, &in_two_namespaces(&node, NIX)?)
    });
}

#[test]
fn an_image_is_pulled_in_two_namespaces() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let clients = in_two_namespaces(&node, NIX)?;
        let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
        let layer = || Layer::per_path(&[object.path()]);
        let (image, derived) = (reference("shared"), reference("derived"));
        let archive = busybox_image(host, &image, [layer()?])?;
        // The same two layers below another one, and the Nix layer on another parent as well.
        let ordinary = Layer::default().dir("etc")?;
        let layers = [layer()?, ordinary, layer()?];
        let derived_archive = busybox_image(host, &derived, layers)?;
        let import = |namespace: &str, archive: &Path| {
            transfer::import(&containerd.socket(), namespace, NIX, archive)
        };

        // containerd forgets the streams of a namespace that has nothing in it.
        clients[1].prepare("holder", "", &[GC_ROOT])?;
        let kept = |expected: [usize; 2]| -> Result<()> {
            rows_are_those_of(&node, &clients)?;
            for (client, expected) in clients.iter().zip(expected) {
                let names = client.names(&["kind==committed"])?;
                ensure!(names.len() == expected, "{names:?}, not {expected}");
            }
            Ok(())
        };
        containerd.load(NIX, &archive)?;
        kept([2, 0])?;
        import(OTHER, &archive)?;
        kept([2, 2])?;
        // All layers exist, then all but those on top.
        import(OTHER, &archive)?;
        containerd.load(NIX, &archive)?;
        kept([2, 2])?;
        import(containerd.namespace(), &derived_archive)?;
        import(OTHER, &derived_archive)?;
        kept([4, 4])?;

        let run = |namespace: &str, image: &str| -> Result<()> {
            let read = [BUSYBOX, "cat", object.path()];
            let printed = containerd.run_in(namespace, NIX, image, &read)?.success()?;
            ensure!(printed == "content\n", "{namespace}: {printed:?}");
            Ok(())
        };
        run(containerd.namespace(), &image)?;
        run(OTHER, &derived)?;
        for image in [&image, &derived] {
            containerd.remove_image(image)?;
        }
        containerd.collect_garbage()?;
        kept([0, 4])?;
        run(OTHER, &image)
    });
}

#[test]
fn containerd_is_given_one_writable_mount_to_unpack_into() {
    test(|host| {
        let node = Node::start(host)?;
        let snapshots = node.containerd.snapshots(NIX)?;
        let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
        let (label, chain_id) = (
            format!("{NIX_STORE_PATH}0"),
            format!("sha256:{}", "d".repeat(64)),
        );
        let nix = [GC_ROOT, (&*label, object.path())];
        let marked = [GC_ROOT, (SNAPSHOT_REF, &*chain_id)];
        snapshots.layer("nix", "", &nix)?;
        // The keys of the unpacker, with its labels and without.
        for (number, labels) in [(1, &marked[..]), (2, &nix), (3, &[GC_ROOT])] {
            let key = format!("extract-{number}-AbC_ {chain_id}");
            let mounts = snapshots.prepare(&key, "nix", labels)?;
            ensure!(mounts.len() == 1, "{key}: {mounts:?}");
            ensure!(
                mounts[0]
                    .options
                    .iter()
                    .any(|option| option.starts_with("upperdir="))
            );
            ensure!(snapshots.mounts(&key)? == mounts);
            let info = snapshots.stat(&key)?;
            ensure!(info.kind == Kind::Active as i32, "{info:?}");
        }
        ensure!(snapshots.prepare("container", "nix", &[GC_ROOT])?.len() == 2);
        Ok(())
    });
}

#[test]
fn labels_are_limited_by_containerd_alone() {
    test(|host| {
        let node = Node::start(host)?;
        let name = "containerd.io/snapshot/long";
        let value = "x".repeat(4097 - name.len());
        let (fits, long) = ([GC_ROOT, (name, &value[1..])], [GC_ROOT, (name, &*value)]);
        for snapshotter in [NIX, OVERLAYFS] {
            let snapshots = node.containerd.snapshots(snapshotter)?;
            snapshots.prepare("active", "", &fits)?;
            let info = |labels: &[(&str, &str)]| Info {
                name: "active".to_owned(),
                labels: labels
                    .iter()
                    .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
                ..Info::default()
            };
            let invalid = |answer| refused(answer, Code::InvalidArgument, &[&name[..10]]);
            invalid(snapshots.prepare("new", "", &long).map(drop))?;
            invalid(snapshots.view("new", "", &long).map(drop))?;
            invalid(snapshots.commit("new", "active", &long))?;
            invalid(snapshots.update(info(&long), Some(&["labels"])).map(drop))?;
            snapshots.update(info(&fits), Some(&["labels"]))?;
            snapshots.commit("new", "active", &fits)?;
        }
        // The daemon takes what it is given, and sees of it what it is meant to see.
        let daemon = node.daemon.snapshots()?;
        let rows = daemon.list(&[])?;
        let labels = [(name.to_owned(), value[1..].to_owned())];
        ensure!(
            rows.len() == 1 && rows[0].labels == labels.into(),
            "{rows:?}"
        );
        daemon.layer("long", "", &long)?;
        ensure!(daemon.stat("long")?.labels[name] == value);
        Ok(())
    });
}

#[test]
fn large_messages_pass_as_containerd_lets_them_pass() {
    test(|host| {
        let node = Node::start(host)?;
        // More than tonic's default of 4 MiB in one request.
        let long = "x".repeat(4000);
        let names: Vec<_> = (0..1500)
            .map(|n| format!("containerd.io/snapshot/{n}"))
            .collect();
        let mut labels: Vec<_> = names.iter().map(|name| (&**name, &*long)).collect();
        let daemon = node.daemon.snapshots()?;
        // Together more than the 16 MiB that containerd takes in one message.
        for n in 0..4 {
            daemon.layer(&format!("layer-{n}"), "", &labels)?;
        }
        ensure!(daemon.list(&[])?.len() == 4);
        ensure!(daemon.stat("layer-0")?.labels.len() == 1500);

        labels.push(GC_ROOT);
        let snapshots = node.containerd.snapshots(NIX)?;
        snapshots.layer("layer", "", &labels)?;
        let info = snapshots.stat("layer")?;
        ensure!(info.labels.len() == 1501);
        ensure!(snapshots.update(info, Some(&["labels"]))?.labels.len() == 1501);
        // Its collector lists all of them, once there is something to remove.
        snapshots.view("view", "layer", &[GC_ROOT])?;
        snapshots.remove("view")?;
        node.containerd.collect_garbage()?;
        let rows = daemon.list(&[])?;
        ensure!(rows.len() == 1 && rows[0].labels.len() == 1500);
        Ok(())
    });
}

#[test]
fn an_image_of_thousands_of_annotations() {
    test(|host| {
        let node = Node::start(host)?;
        let all = Store::new(host)?.many(5000)?;
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        for number in [1000, 5000] {
            let paths = &all[..number];
            let expected: String = [0, number - 1]
                .iter()
                .map(|index| fs::read_to_string(paths[*index]))
                .collect::<Result<_, _>>()?;
            let read = [BUSYBOX, "cat", paths[0], paths[number - 1]];
            let image = reference("annotations");
            let archive = busybox_image(host, &image, [Layer::per_path(paths)?])?;
            for load in [false, true] {
                match load {
                    false => node.containerd.import(NIX, &archive)?,
                    true => node.containerd.load(NIX, &archive)?,
                }
                let printed = node.containerd.run(NIX, &image, &read)?.success()?;
                ensure!(printed == expected, "{number}: {printed:?}");
                node.containerd.remove_image(&image)?;
            }
        }
        Ok(())
    });
}

#[test]
fn an_image_with_volumes_and_a_user_from_the_store() {
    test(|host| {
        let node = Node::start(host)?;
        let line = "somebody:x:1234:2345::/:/bin/sh";
        let passwd = Store::new(host)?.build("passwd", &format!("echo {line} > $out"), &[])?;
        let image = reference("volume");
        let archive = host.dir().join("archive");
        // An absolute link to a path that only the mounts of the snapshot have.
        let etc = Layer::default()
            .dir("etc")?
            .link("etc/passwd", passwd.path())?
            .dir("data")?
            .file("data/file", 0o644, b"content\n")?;
        Image::new(&image)
            .setting("User", json!("somebody"))
            .setting("Volumes", json!({ "/data": {} }))
            .layer(busybox_layer(host)?)
            .layer(etc)
            .layer(Layer::per_path(&[passwd.path()])?)
            .write(&archive)?;
        node.containerd.import(NIX, &archive)?;
        let script = format!("{BUSYBOX} id -u; {BUSYBOX} id -g; {BUSYBOX} cat /data/file");
        let ended = node
            .containerd
            .run(NIX, &image, &[BUSYBOX, "sh", "-c", &script])?;
        let printed = ended.success()?;
        ensure!(printed == "1234\n2345\ncontent\n", "{printed:?}");
        Ok(())
    });
}

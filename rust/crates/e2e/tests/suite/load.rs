//! `nix2container load`: what it puts into containerd, what keeps it there, and what it refuses.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::{Containerd, NIX, OVERLAYFS},
    daemon::Config,
    host::{Host, test, unique},
    image::{Layer, NIX_STORE_PATH, read_tar, write_tar},
    node::{BUSYBOX, Node, build, busybox_image, reference},
    process::{Process, SETTLE, poll, run, succeed},
    snapshots::says,
    store::Store,
};
use rustix::process::Signal;

/// A store path that nobody has and nobody can make.
const NOBODYS: &str = "/nix/store/00000000000000000000000000000000-nobody-has-this";

/// An image with an ordinary layer and one of Nix.
fn archive(host: &Host, image: &str) -> Result<PathBuf> {
    let layer = Layer::per_path(&[&host.fixture("hello")?])?;
    busybox_image(host, image, [layer])
}

/// A Nix layer that cannot be had.
fn impossible_archive(host: &Host, image: &str) -> Result<PathBuf> {
    let layer = Layer::default().dir("nix")?;
    busybox_image(
        host,
        image,
        [layer.annotation(&format!("{NIX_STORE_PATH}0"), NOBODYS)],
    )
}

/// Loads an archive, which must fail, and gives what is said.
fn refused(containerd: &Containerd, snapshotter: &str, archive: &Path) -> Result<String> {
    run(&mut containerd.load_command(snapshotter, archive))?.failure()
}

#[test]
fn a_second_load_transfers_nothing() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        for snapshotter in [NIX, OVERLAYFS] {
            let image = reference("twice");
            let archive = archive(host, &image)?;
            containerd.load(snapshotter, &archive)?;
            let blobs = containerd.blobs()?;
            let rows = containerd.snapshots(snapshotter)?.list(&[])?;
            let digest = containerd.image_digest(&image)?;
            ensure!(digest.is_some() && rows.len() == 2 && !blobs.is_empty());

            let again = run(&mut containerd.load_command(snapshotter, &archive))?;
            // A line for each of four blobs and two layers.
            let told = again.stderr.matches(": exists already\n").count();
            ensure!(told == 6, "{}", again.stderr);
            again.success()?;
            ensure!(containerd.blobs()? == blobs);
            ensure!(containerd.snapshots(snapshotter)?.list(&[])? == rows);
            ensure!(containerd.image_digest(&image)? == digest);
            containerd.remove_image(&image)?;
        }
        Ok(())
    });
}

#[test]
fn the_snapshotter_comes_from_the_flag_the_environment_or_is_ours() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        for (flag, variable, expected) in [
            (None, None, NIX),
            (None, Some(""), NIX),
            (None, Some(OVERLAYFS), OVERLAYFS),
            (Some(NIX), Some(OVERLAYFS), NIX),
        ] {
            let image = reference("snapshotter");
            let mut load = containerd.nix2container(&["load"]);
            load.env_remove("CONTAINERD_SNAPSHOTTER");
            if let Some(value) = variable {
                load.env("CONTAINERD_SNAPSHOTTER", value);
            }
            if let Some(name) = flag {
                load.args(["--snapshotter", name]);
            }
            succeed(load.arg(archive(host, &image)?))?;
            for snapshotter in [NIX, OVERLAYFS] {
                let rows = containerd.snapshots(snapshotter)?.list(&[])?;
                ensure!(
                    rows.is_empty() == (snapshotter != expected),
                    "{flag:?}, {variable:?}: {rows:?} of {snapshotter}"
                );
            }
            containerd.remove_image(&image)?;
        }
        Ok(())
    });
}

#[test]
fn what_containerd_has_is_not_even_read() {
    test(|host| {
        let node = Node::start(host)?;
        let image = reference("unread");
        let archive = archive(host, &image)?;
        node.containerd.load(NIX, &archive)?;

        // The layer of busybox, by far the largest blob, is damaged and none the wiser.
        let mut files = read_tar(&archive)?;
        let largest = files.values_mut().max_by_key(|content| content.len());
        largest.context("an empty archive")?.fill(0);
        write_tar(&archive, &files)?;
        node.containerd.load(NIX, &archive)?;

        // Were it read, it would be refused.
        node.containerd.remove_image(&image)?;
        says(
            &refused(&node.containerd, NIX, &archive)?,
            &["make or copy"],
        )
    });
}

#[test]
fn several_archives_and_standard_input_are_loaded_in_one_call() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let names = [reference("one"), reference("two"), reference("three")];
        let [one, two, three] = [
            archive(host, &names[0])?,
            archive(host, &names[1])?,
            archive(host, &names[2])?,
        ];
        let packed = host.dir().join("three.gz");
        succeed(
            Command::new("sh")
                .args(["-c", "gzip --stdout \"$1\" > \"$2\"", "sh"])
                .args([&three, &packed]),
        )?;
        for (input, name) in [(&three, "plain"), (&packed, "gzip")] {
            let load = containerd.nix2container(&["load"]);
            let mut shell = Command::new("sh");
            shell.args(["-c", "input=$1; shift; cat \"$input\" | \"$@\"", "sh"]);
            shell
                .arg(input)
                .arg(load.get_program())
                .args(load.get_args());
            let said = succeed(shell.arg(&one).arg("-").arg(&two)).context(name)?;
            let expected = [&*names[0], &names[2], &names[1]].join("\n");
            ensure!(said.trim_end() == expected, "{name}: {said}");
            for image in &names {
                containerd.run(NIX, image, &[BUSYBOX, "true"])?.success()?;
                containerd.remove_image(image)?;
            }
        }

        // One that cannot be read, and nothing of the others is loaded.
        let mut load = containerd.nix2container(&["load"]);
        let missing = host.dir().join("missing");
        let said = run(load.args([&one, &missing]))?.failure()?;
        says(&said, &[&missing.display().to_string()])?;
        node.keeps_nothing()
    });
}

#[test]
fn what_was_loaded_outlives_the_lease() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        for snapshotter in [NIX, OVERLAYFS] {
            let image = reference("stays");
            containerd.load(snapshotter, &archive(host, &image)?)?;
            ensure!(containerd.leases()?.is_empty(), "a lease is left");
            let blobs = containerd.blobs()?;
            let rows = containerd.snapshots(snapshotter)?.list(&[])?;
            for _ in 0..2 {
                containerd.collect_garbage()?;
            }
            ensure!(
                containerd.blobs()? == blobs,
                "{snapshotter}: blobs were collected"
            );
            let left = containerd.snapshots(snapshotter)?.list(&[])?;
            ensure!(
                left == rows,
                "{snapshotter}: snapshots were collected: {rows:?} {left:?}"
            );
            let ended = containerd.run(snapshotter, &image, &[BUSYBOX, "true"])?;
            ended.success()?;

            containerd.remove_image(&image)?;
            ensure!(
                containerd.blobs()?.is_empty(),
                "{snapshotter}: blobs outlive the image"
            );
            let left = containerd.snapshots(snapshotter)?.names(&[])?;
            ensure!(left.is_empty(), "{snapshotter}: {left:?} outlive the image");
        }
        Ok(())
    });
}

#[test]
fn loading_and_importing_come_to_the_same() {
    test(|host| {
        let node = Node::start(host)?;
        let containerd = &node.containerd;
        let program = format!("{}/bin/hello", host.fixture("hello")?);
        let image = reference("same");
        let archive = build(
            host,
            &image,
            &[&program],
            &host.fixture("hello-closure-info")?,
            &[],
        )?;
        let describe = || -> Result<_> {
            let digest = containerd.image_digest(&image)?;
            let labels: BTreeMap<_, _> = containerd
                .blobs()?
                .into_iter()
                .map(|(digest, _)| {
                    let labels = containerd.blob_labels(&digest)?.into_iter();
                    // Its values name the archive's file or the registry that a blob is from.
                    let lasting = labels.filter(|(name, _)| name.starts_with("containerd.io/gc."));
                    Ok((digest, lasting.collect::<Vec<_>>()))
                })
                .collect::<Result<_>>()?;
            let snapshots = containerd.snapshots(NIX)?.list(&[])?;
            let snapshots: Vec<_> = snapshots
                .into_iter()
                .map(|info| (info.name, info.parent, info.kind))
                .collect();
            Ok((digest, labels, snapshots))
        };
        containerd.load(NIX, &archive)?;
        let loaded = describe()?;
        containerd.remove_image(&image)?;
        containerd.import(NIX, &archive)?;
        let imported = describe()?;
        // The transfer service keeps the archive's index as well.
        ensure!(
            loaded.0 == imported.0 && loaded.2 == imported.2,
            "{loaded:#?} {imported:#?}"
        );
        for (digest, labels) in &loaded.1 {
            let other = imported
                .1
                .get(digest)
                .context("a blob that is not imported")?;
            ensure!(
                labels == other,
                "{digest}: {labels:?}, and {other:?} when imported"
            );
        }
        Ok(())
    });
}

#[test]
fn a_damaged_archive_is_named_and_leaves_nothing() {
    test(|host| {
        let node = Node::start(host)?;
        let whole = archive(host, &reference("damaged"))?;
        let bytes = fs::read(&whole)?;
        let files = read_tar(&whole)?;
        let damaged = host.dir().join(unique("damaged"));
        let name = damaged.display().to_string();
        let refuse = |what: &str, words: &[&str]| -> Result<()> {
            let said = refused(&node.containerd, NIX, &damaged).context(what.to_owned())?;
            says(&said, &[&name]).context(what.to_owned())?;
            says(&said, words).context(what.to_owned())?;
            node.keeps_nothing().context(what.to_owned())
        };

        for (what, length) in [
            ("an empty file", 0),
            ("cut in a header", 100),
            ("cut in a blob", bytes.len() / 2),
            ("cut at the end", bytes.len() - 2000),
        ] {
            fs::write(&damaged, &bytes[..length])?;
            refuse(what, &[])?;
        }

        fs::write(
            &damaged,
            "just a text, and nothing like an archive\n".repeat(100),
        )?;
        refuse("no tar", &["not a tar"])?;

        write_tar(
            &damaged,
            &[("a-file".to_owned(), b"content".to_vec())].into(),
        )?;
        refuse("a tar without an image", &["oci-layout"])?;

        let blobs = files.keys().filter(|name| name.starts_with("blobs/"));
        for blob in blobs {
            let digest = blob.rsplit('/').next().unwrap_or_default();
            let mut changed = files.clone();
            let content = changed.get_mut(blob).context("a blob")?;
            let last = content.last_mut().context("an empty blob")?;
            *last ^= 1;
            write_tar(&damaged, &changed)?;
            refuse("a blob with another digest", &[digest])?;

            let mut changed = files.clone();
            changed.remove(blob);
            write_tar(&damaged, &changed)?;
            refuse("a blob that is missing", &[digest])?;
        }

        let missing = host.dir().join("missing");
        says(
            &refused(&node.containerd, NIX, &missing)?,
            &[&missing.display().to_string()],
        )
    });
}

#[test]
fn a_layer_whose_content_is_not_what_the_config_says_is_refused() {
    test(|host| {
        let node = Node::start(host)?;
        // All digests of the archive are right, and the diff ID of the layer is another's.
        let first = archive(host, &reference("first"))?;
        let mut files = read_tar(&first)?;
        let json = |content: &[u8]| serde_json::from_slice::<serde_json::Value>(content);
        let index = json(&files["index.json"])?;
        let name = |descriptor: &serde_json::Value| -> Result<String> {
            let digest = descriptor["digest"].as_str().context("no digest")?;
            Ok(format!("blobs/{}", digest.replace(':', "/")))
        };
        let manifest_name = name(&index["manifests"][0])?;
        let mut manifest = json(&files[&manifest_name])?;
        let config_name = name(&manifest["config"])?;
        let mut config = json(&files[&config_name])?;
        let wrong = format!("sha256:{}", "0".repeat(64));
        config["rootfs"]["diff_ids"][1] = wrong.clone().into();

        let mut replace = |old: &str, new: String| {
            files.remove(old);
            let digest = e2e::image::sha256(new.as_bytes());
            let size = new.len();
            files.insert(format!("blobs/sha256/{digest}"), new.into_bytes());
            (format!("sha256:{digest}"), size)
        };
        let (digest, size) = replace(&config_name, config.to_string());
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
        let (digest, size) = replace(&manifest_name, manifest.to_string());
        let mut index = index;
        index["manifests"][0]["digest"] = digest.into();
        index["manifests"][0]["size"] = size.into();
        files.insert("index.json".to_owned(), index.to_string().into_bytes());

        let lying = host.dir().join("lying");
        write_tar(&lying, &files)?;
        says(&refused(&node.containerd, NIX, &lying)?, &[&wrong])?;
        node.keeps_nothing()
    });
}

#[test]
fn containerd_that_is_not_there_is_named_with_its_socket() {
    test(|host| {
        let archive = archive(host, &reference("nowhere"))?;
        let missing = host.dir().join("missing.sock");
        let dead = host.dir().join("dead.sock");
        drop(UnixListener::bind(&dead)?);
        for socket in [missing, dead] {
            let mut load = Command::new(host.nix2container());
            load.arg("--address").arg(&socket).arg("load").arg(&archive);
            let said = run(&mut load)?.failure()?;
            says(
                &said,
                &[
                    &socket.display().to_string(),
                    "start containerd",
                    "--address",
                ],
            )?;
        }
        Ok(())
    });
}

#[test]
fn a_snapshotter_that_containerd_does_not_have_is_named() {
    test(|host| {
        let node = Node::start(host)?;
        let archive = archive(host, &reference("unknown"))?;
        let said = refused(&node.containerd, "no-such-snapshotter", &archive)?;
        says(&said, &["no-such-snapshotter", "--snapshotter"])?;
        node.keeps_nothing()
    });
}

#[test]
fn a_layer_that_cannot_be_had_leaves_nothing_but_what_nix_says() {
    test(|host| {
        let node = Node::start(host)?;
        let archive = impossible_archive(host, &reference("impossible"))?;
        says(
            &refused(&node.containerd, NIX, &archive)?,
            &["nix-store", NOBODYS],
        )?;
        node.keeps_nothing()?;

        // The same through containerd's own unpacker.
        let import = node.containerd.import(NIX, &archive);
        let said = import.err().context("an impossible image was imported")?;
        says(&format!("{said:#}"), &["nix-store", NOBODYS])?;
        node.keeps_nothing()
    });
}

#[test]
fn a_load_without_the_daemon_can_be_repeated() {
    test(|host| {
        let mut node = Node::start(host)?;
        let image = reference("again");
        let archive = archive(host, &image)?;
        node.daemon.stop()?;
        says(&refused(&node.containerd, NIX, &archive)?, &["nix"])?;
        node.daemon.start_again()?;
        // containerd waits up to three seconds between its attempts to connect.
        poll("a load", SETTLE, || {
            Ok(node.containerd.load(NIX, &archive).ok())
        })?;
        let ended = node.containerd.run(NIX, &image, &[BUSYBOX, "true"])?;
        ended.success()?;
        Ok(())
    });
}

#[test]
fn an_interrupted_load_leaves_nothing() {
    test(|host| {
        let started = host.dir().join("started");
        let builder = format!("echo > {}; exec sleep 1000", started.display());
        let config = Config::new(host, "daemon").builder(&builder)?;
        let node = Node::start_with(host, &config)?;
        let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
        let layer = Layer::per_path(&[object.path()])?;
        let archive = busybox_image(host, &reference("interrupted"), [layer])?;
        for signal in [Signal::INT, Signal::TERM] {
            let mut load = node.containerd.load_command(NIX, &archive);
            let log = host.dir().join("load.log");
            let mut load = Process::spawn("nix2container", &mut load, &log)?;
            poll("the builder", SETTLE, || Ok(fs::remove_file(&started).ok()))?;
            load.signal(signal)?;
            let status = load.wait(SETTLE)?;
            ensure!(
                status.code().is_some_and(|code| code != 0),
                "{signal:?}: {status}"
            );
            node.keeps_nothing()?;
        }
        Ok(())
    });
}

//! Everything that the daemon offers of overlays: mapped ids, fuse-overlayfs, user namespaces,
//! depth, and the options that go with them.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use e2e::{
    containerd::{self, Containerd, NIX, OVERLAYFS},
    daemon::{Config, Daemon},
    host::{Host, test, unique},
    image::Layer,
    node::{BUSYBOX, Node, busybox_image, reference},
    process::succeed,
    snapshots::{Snapshots, refused, says, upper},
};
use tonic::Code;

const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// What the root of a container is on the host in these tests, as a user and as a group.
const ROOT: (u32, u32) = (100_000, 200_000);

const IN_USER_NAMESPACE: [&str; 2] = ["--uidmap=0:100000:65536", "--gidmap=0:200000:65536"];

fn owner(path: &Path) -> Result<(u32, u32)> {
    let found = fs::symlink_metadata(path).with_context(|| format!("{}", path.display()))?;
    Ok((found.uid(), found.gid()))
}

/// A node whose files users of the host other than root can reach, as those of a real one.
fn node(host: &Host, config: &Config, capabilities: &[&'static str]) -> Result<Node> {
    fs::set_permissions(host.dir(), fs::Permissions::from_mode(0o711))?;
    let daemon = Daemon::start(config)?;
    let capable = capabilities
        .iter()
        .fold(containerd::Config::default(), |config, name| {
            config.capability(name)
        });
    let containerd = Containerd::start_with(host, &capable, config)?;
    Ok(Node { containerd, daemon })
}

fn containerd_maps_ids() -> Result<bool> {
    let version = succeed(Command::new("containerd").arg("--version"))?;
    let number = version.split(' ').nth(2).unwrap_or_default();
    Ok(!number.trim_start_matches('v').starts_with("1."))
}

/// An image with ordinary files and a store path.
fn image_with_both(host: &Host, node: &Node) -> Result<(String, String)> {
    let image = reference("both");
    let hello = host.fixture("hello")?;
    let layers = [
        Layer::default().file("lower", 0o600, b"lower")?,
        Layer::per_path(
            &closure(&host.fixture("hello-closure-info")?)?
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>(),
        )?,
    ];
    node.containerd
        .import(NIX, &busybox_image(host, &image, layers)?)?;
    Ok((image, hello))
}

fn closure(info: &str) -> Result<Vec<String>> {
    let list = fs::read_to_string(format!("{info}/store-paths"))?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// Runs a container in a user namespace and looks at it from inside and outside. `on_disk` is who
/// owns on the disk what its root writes.
fn lives_in_a_user_namespace(
    host: &Host,
    node: &Node,
    flags: &[&str],
    on_disk: (u32, u32),
) -> Result<()> {
    let (image, hello) = image_with_both(host, node)?;
    let flags = [&IN_USER_NAMESPACE, flags].concat();
    let container =
        node.containerd
            .run_detached(NIX, &flags, &image, &[BUSYBOX, "sleep", "1000"])?;
    let map = container.exec(&[BUSYBOX, "cat", "/proc/self/uid_map"])?;
    says(&map, &["100000"])?;
    // Only its owner can read the file, and the container's root is that.
    let lower = container.exec(&[BUSYBOX, "sh", "-c", "stat -c %u:%g /lower; cat /lower"])?;
    ensure!(lower == "0:0\nlower", "{lower:?}");
    container.exec(&[
        BUSYBOX,
        "sh",
        "-c",
        "echo new > /new; echo more >> /lower; mkdir /dir",
    ])?;
    let upper = upper(&container.mounts(NIX)?)?;
    for name in ["", "new", "lower", "dir"] {
        let path = upper.join(name);
        ensure!(
            owner(&path)? == on_disk,
            "{}: {:?}",
            path.display(),
            owner(&path)?
        );
    }
    // Store objects are not mapped: they belong to nobody, and can be read and executed.
    let greeting = container.exec(&[&format!("{hello}/bin/hello")])?;
    says(&greeting, &["Hello, world!"])?;
    let owner = container.exec(&[BUSYBOX, "stat", "-c", "%u", &hello])?;
    ensure!(owner == "65534\n", "{owner:?}");
    container.remove()
}

#[test]
fn containerd_maps_the_ids_of_a_container() {
    test(|host| {
        let reason = "containerd maps the ids of mounts since 2.0";
        host.requires(containerd_maps_ids()?, reason)?;
        let config = Config::new(host, "daemon").line("remap_ids = true");
        let node = node(host, &config, &["remap-ids", "only-remap-ids"])?;
        lives_in_a_user_namespace(host, &node, &["--remap-labels"], ROOT)?;
        // Nobody has made a copy.
        let copies = node.daemon.snapshots()?.names(&["name~=remap"])?;
        ensure!(copies.is_empty(), "{copies:?}");
        Ok(())
    });
}

#[test]
fn without_the_capability_clients_make_a_copy() {
    test(|host| {
        // The labels are on the container's snapshot all the same. Each has a node of its own: a
        // client that finds the copy of another container takes it without a lease, and fails when
        // containerd's garbage collector, which that container's removal started, deletes it then
        // (`resolveSnapshotOptions` of containerd 1.7 to 2.3, with any snapshotter).
        for (daemon, flags) in [("plain", &[][..]), ("labelled", &["--remap-labels"])] {
            let node = node(host, &Config::new(host, daemon), &[])?;
            lives_in_a_user_namespace(host, &node, flags, ROOT)?;
        }
        Ok(())
    });
}

#[test]
fn fuse_overlayfs_maps_the_ids_of_a_container() {
    test(|host| {
        host.needs("fuse-overlayfs")?;
        let config = Config::new(host, "daemon").line("overlay = 'fuse-overlayfs'");
        let node = node(host, &config, &["remap-ids"])?;
        lives_in_a_user_namespace(host, &node, &["--remap-labels"], (0, 0))
    });
}

#[test]
fn mappings_are_kept_and_told_again() {
    test(|host| {
        let daemon = Daemon::start(&Config::new(host, "daemon"))?;
        let snapshots = daemon.snapshots()?;
        let text = "0:100000:1000,1000:1:1";
        let labels = [(UID_MAPPING, text), (GID_MAPPING, "0:200000:65536")];
        snapshots.layer("one", "", &[])?;
        snapshots.layer("two", "one", &[])?;
        for (key, mounts) in [
            ("active", snapshots.prepare("active", "two", &labels)?),
            ("view", snapshots.view("view", "two", &labels)?),
            (
                "view-of-one",
                snapshots.view("view-of-one", "one", &labels)?,
            ),
        ] {
            ensure!(mounts[0].r#type == "overlay", "{mounts:?}");
            let first = [&format!("uidmap={text}"), "gidmap=0:200000:65536"];
            ensure!(mounts[0].options[..2] == first, "{mounts:?}");
            ensure!(snapshots.mounts(key)? == mounts);
        }
        let upper = upper(&snapshots.mounts("active")?)?;
        ensure!(owner(&upper)? == ROOT);
        // A directory of its own needs no mapping, but an owner.
        let own = snapshots.prepare("alone", "", &labels)?;
        ensure!(own[0].options == ["rw", "rbind"], "{own:?}");
        ensure!(owner(Path::new(&own[0].source))? == ROOT);

        let before = daemon.config().kept()?;
        for (labels, words) in [
            (
                &[(UID_MAPPING, "0:1:1 x"), labels[1]][..],
                [UID_MAPPING, "0:1:1 x"],
            ),
            (&[labels[0], (GID_MAPPING, "1:1:1")], [GID_MAPPING, "root"]),
            (&labels[..1], [UID_MAPPING, "missing"]),
        ] {
            let answer = snapshots.prepare("bad", "two", labels);
            refused(answer, Code::InvalidArgument, &words)?;
        }
        ensure!(daemon.config().kept()? == before);
        Ok(())
    });
}

#[test]
fn a_container_on_fuse_overlayfs() {
    test(|host| {
        host.needs("fuse-overlayfs")?;
        let config = Config::new(host, "daemon")
            .line("overlay = 'fuse-overlayfs'")
            .line("mount_options = ['volatile']");
        let node = Node::start_with(host, &config)?;
        let (image, hello) = image_with_both(host, &node)?;
        let sleep = [BUSYBOX, "sleep", "1000"];
        let container = node.containerd.run_detached(NIX, &[], &image, &sleep)?;
        let mounts = container.mounts(NIX)?;
        ensure!(mounts[0].r#type == "fuse3.fuse-overlayfs", "{mounts:?}");
        ensure!(
            mounts[0]
                .options
                .last()
                .is_some_and(|last| last == "volatile")
        );
        let root = container.exec(&[BUSYBOX, "grep", " / ", "/proc/mounts"])?;
        says(&root, &["fuse"])?;
        let script = "cat /lower; rm /lower; ls /; echo new > /new";
        let printed = container.exec(&[BUSYBOX, "sh", "-c", script])?;
        ensure!(
            printed.starts_with("lower") && !printed.contains("\nlower"),
            "{printed:?}"
        );
        let upper = upper(&mounts)?;
        ensure!(fs::read_to_string(upper.join("new"))? == "new\n");
        says(
            &container.exec(&[&format!("{hello}/bin/hello")])?,
            &["Hello"],
        )?;
        container.remove()
    });
}

#[test]
fn what_the_machine_lacks_is_said_at_the_start() {
    test(|host| {
        // Each with a log of its own.
        let line = |line| Config::new(host, &unique("daemon")).line(line);
        let says_why = |config: Config, words: &[&str]| -> Result<()> {
            says(&config.refused()?, words)?;
            ensure!(!config.root().exists(), "a root is left behind");
            Ok(())
        };
        let fuse = line("overlay = 'fuse-overlayfs'").environment("PATH", "/nowhere");
        says_why(fuse, &["fuse-overlayfs", "PATH", "install"])?;
        let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
        let mapped = line("remap_ids = true").wrapped(&unshare);
        says_why(mapped, &["remap_ids", "5.19", "user namespace"])?;
        let options = line("mount_options = ['index=off', 'nfs_export=on']");
        says_why(options, &["nfs_export=on", "kernel refuses"])?;
        let options = line("mount_options = ['no-such-option']");
        says_why(options, &["no-such-option"])?;

        let daemon = Daemon::start(&line("mount_options = ['volatile', 'noatime']"))?;
        let log = daemon.log();
        ensure!(log.matches("id_mapped_layers").count() == 1, "{log}");
        Ok(())
    });
}

/// The daemon, and what mounts for it, in a user namespace of which they are root.
#[test]
fn a_daemon_in_a_user_namespace() {
    test(|host| {
        host.needs("nsenter")?;
        let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
        let daemon = Daemon::start(&Config::new(host, "daemon").wrapped(&unshare))?;
        let snapshots = daemon.snapshots()?;
        let lower = upper(&snapshots.prepare("lower", "", &[])?)?;
        fs::create_dir(lower.join("dir"))?;
        fs::write(lower.join("dir/file"), "lower")?;
        fs::write(lower.join("gone"), "lower")?;
        snapshots.commit("layer", "lower", &[])?;
        let mounts = snapshots.prepare("active", "layer", &[])?;
        let options = &mounts[0].options;
        ensure!(
            options.iter().any(|option| option == "userxattr"),
            "{options:?}"
        );

        let script = format!(
            "mount -t overlay overlay -o {} $1 && cd $1 && rm gone && rm -r dir && mkdir dir &&
             touch dir/new && cd / && umount $1 && mount -t overlay overlay -o {} $1 &&
             ls $1 $1/dir",
            options.join(","),
            options.join(","),
        );
        let target = host.dir().join("target");
        fs::create_dir(&target)?;
        let mut inside = Command::new("nsenter");
        inside.args(["--user", "--mount", "--preserve-credentials", "--target"]);
        inside.arg(daemon.pid().to_string());
        inside.args(["sh", "-ec", &script, "sh"]).arg(&target);
        let listed = succeed(&mut inside)?;
        ensure!(
            !listed.contains("gone") && !listed.contains("file"),
            "{listed}"
        );
        ensure!(listed.contains("new"), "{listed}");

        let mut value = [0; 8];
        let opaque = upper(&mounts)?.join("dir");
        let bytes = rustix::fs::getxattr(&opaque, c"user.overlay.opaque", &mut value)?;
        ensure!(value[..bytes] == *b"y");
        Ok(())
    });
}

/// As containerd's own snapshotter answers for the same files, to the byte.
#[test]
fn usage_is_that_of_the_overlay_snapshotter() {
    test(|host| {
        let node = Node::start(host)?;
        let usage = |snapshotter: &str| -> Result<_> {
            let snapshots = node.containerd.snapshots(snapshotter)?;
            let upper = upper(&snapshots.prepare("active", "", &[])?)?;
            fs::write(upper.join("file"), vec![1; 10_000])?;
            fs::hard_link(upper.join("file"), upper.join("link"))?;
            fs::create_dir_all(upper.join("some/directories"))?;
            fs::File::create(upper.join("sparse"))?.set_len(1 << 30)?;
            std::os::unix::fs::symlink("nowhere", upper.join("symlink"))?;
            let active = snapshots.usage("active")?;
            snapshots.commit("committed", "active", &[])?;
            let committed = snapshots.usage("committed")?;
            snapshots.view("view", "committed", &[])?;
            Ok([active, committed, snapshots.usage("view")?])
        };
        let (ours, theirs) = (usage(NIX)?, usage(OVERLAYFS)?);
        ensure!(ours == theirs, "{ours:?}, not {theirs:?}");
        ensure!(ours[0].inodes == 6 && ours[0] == ours[1], "{ours:?}");
        Ok(())
    });
}

/// As containerd's own snapshotter does it: a directory that cannot be deleted fails no call, and
/// what is in no row goes when it can.
#[test]
fn a_directory_that_cannot_be_deleted_fails_no_removal() {
    test(|host| {
        for line in ["sync_remove = true", "sync_remove = false"] {
            let daemon = Daemon::start(&Config::new(host, line).line(line))?;
            let snapshots = daemon.snapshots()?;
            let before = daemon.config().kept()?;
            let upper = upper(&snapshots.prepare("active", "", &[])?)?;
            let busy = upper.join("busy");
            fs::create_dir(&busy)?;
            succeed(
                Command::new("mount")
                    .args(["-t", "tmpfs", "tmpfs"])
                    .arg(&busy),
            )?;
            fs::write(busy.join("file"), "")?;
            snapshots.remove("active")?;
            snapshots.cleanup()?;
            refused(snapshots.stat("active"), Code::NotFound, &[])?;
            ensure!(busy.join("file").exists(), "what is mounted was deleted");
            says(&daemon.log(), &["stays behind", "busy"])?;

            succeed(Command::new("umount").arg(&busy))?;
            snapshots.cleanup()?;
            ensure!(daemon.config().kept()? == before);
        }
        Ok(())
    });
}

/// An image of `layers` layers, each with a file of its own.
fn tall_image(host: &Host, node: &Node, layers: usize) -> Result<String> {
    let image = reference("tall");
    let more = (1..layers).map(|n| Layer::default().file(&format!("file-{n}"), 0o644, b""));
    let archive = busybox_image(host, &image, more.collect::<Result<Vec<_>>>()?)?;
    node.containerd.load(NIX, &archive)?;
    Ok(image)
}

/// How many of the files a container sees.
fn files_seen(node: &Node, image: &str) -> Result<usize> {
    let listed = node.containerd.run(NIX, image, &[BUSYBOX, "ls", "/"])?;
    let listed = listed.success()?;
    Ok(listed
        .lines()
        .filter(|name| name.starts_with("file-"))
        .count())
}

#[test]
fn as_many_layers_as_overlayfs_takes() {
    test(|host| {
        let default = "/var/lib/containerd/io.containerd.snapshotter.v1.nix";
        let name = "r".repeat(default.len() - host.dir().as_os_str().len() - 1);
        let config = Config::new(host, "daemon").root_at(&host.dir().join(name));
        let node = Node::start_with(host, &config)?;
        // To look up users, clients of containerd mount the upper directory of a container as one
        // more lower one: the kernel's 500 are 499 for them.
        for layers in [128, 499] {
            let image = tall_image(host, &node, layers)?;
            ensure!(files_seen(&node, &image)? == layers - 1);
            node.containerd.remove_image(&image)?;
        }
        let image = tall_image(host, &node, 501)?;
        let said = node
            .containerd
            .run(NIX, &image, &[BUSYBOX, "true"])?
            .failure()?;
        says(&said, &["501 layers", "500"])
    });
}

#[test]
fn as_many_layers_as_fit_on_a_page() {
    test(|host| {
        // They say the same again and again, and leave some 400 bytes of the page.
        let options = vec!["index=off"; 345];
        let config = Config::new(host, "daemon").line(format!("mount_options = {options:?}"));
        let node = Node::start_with(host, &config)?;
        let image = tall_image(host, &node, 100)?;
        let snapshots = node.daemon.snapshots()?;
        let mut chain = vec![top(&snapshots)?];
        while let Some(parent) = Some(snapshots.stat(&chain[chain.len() - 1])?.parent)
            && !parent.is_empty()
        {
            chain.push(parent);
        }
        chain.reverse();
        // The deepest snapshot of this chain on which containerd may run a container, and what
        // happens on it and above it.
        let mut deepest = 0;
        for (index, parent) in chain.iter().enumerate().skip(1) {
            let key = format!("key-{index}");
            match snapshots.prepare(&key, parent, &[]) {
                Ok(_) => deepest = index + 1,
                Err(status) => {
                    let layers = format!("{} layers", index + 1);
                    let words = [&layers, "shorter path", "mount(2)"];
                    refused::<()>(Err(status), Code::FailedPrecondition, &words)?;
                    break;
                }
            }
        }
        ensure!((3..100).contains(&deepest), "{deepest}");
        let said = node
            .containerd
            .run(NIX, &image, &[BUSYBOX, "true"])?
            .failure()?;
        says(&said, &["100 layers", "shorter path"])?;
        // What is not refused, containerd can mount. The ids of this image are higher by those of
        // the one above, and so the same number of layers may take some bytes more.
        let fitting = tall_image(host, &node, deepest - deepest / 4)?;
        ensure!(files_seen(&node, &fitting)? == deepest - deepest / 4 - 1);
        Ok(())
    });
}

/// The snapshot of which no other is a child.
fn top(snapshots: &Snapshots) -> Result<String> {
    let all = snapshots.list(&[])?;
    let mut tops = all
        .iter()
        .filter(|info| !all.iter().any(|other| other.parent == info.name));
    let top = tops.next().context("no snapshots")?.name.clone();
    ensure!(tops.next().is_none(), "more than one chain");
    Ok(top)
}

/// As in the namespaces of k3s without root: `/proc` is that of a pid namespace which the daemon is
/// not in.
#[test]
fn a_daemon_that_does_not_see_itself_in_proc() {
    test(|host| {
        let enter = "unshare --pid --fork mount -t proc proc /proc && exec \"$@\"";
        let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
        let unshare = [&unshare[..], &["sh", "-c", enter, "sh"]].concat();
        let daemon = Daemon::start(&Config::new(host, "daemon").wrapped(&unshare))?;
        ensure!(!daemon.log().contains("WARN"), "{}", daemon.log());
        let snapshots = daemon.snapshots()?;
        snapshots.prepare("lower", "", &[])?;
        snapshots.commit("layer", "lower", &[])?;
        let options = snapshots.prepare("active", "layer", &[])?.remove(0).options;
        ensure!(
            options.iter().any(|option| option == "userxattr"),
            "{options:?}"
        );
        let mut status = Command::new(host.nix_snapshotter());
        status.arg("--address").arg(daemon.config().address());
        succeed(status.arg("status"))?;
        Ok(())
    });
}

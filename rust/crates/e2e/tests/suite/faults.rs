//! Disks that are full, read-only or damaged: each is told, and nothing acknowledged is lost.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    daemon::{Config, Daemon},
    host::{Host, test},
    image::NIX_STORE_PATH,
    invariants,
    process::succeed,
    snapshots::{Info, Snapshots, refused, says, upper},
    store::{Object, Store},
};
use fastrand::Rng;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use tonic::{Code, Status};

/// More calls than any disk of these tests has room for.
const MANY: u32 = 2000;

/// Snapshots that a daemon has acknowledged.
struct Acknowledged {
    /// With content in the layer.
    active: &'static str,
    infos: BTreeMap<String, Info>,
    /// Held by the test, too.
    object: Object,
}

impl Acknowledged {
    fn new(host: &Host, daemon: &Daemon) -> Result<Self> {
        let object = Store::new(host)?.build("object", "echo content > $out", &[])?;
        let snapshots = daemon.snapshots()?;
        let label = format!("{NIX_STORE_PATH}0");
        snapshots.layer("base", "", &[])?;
        snapshots.layer("nix", "base", &[(&*label, object.path())])?;
        snapshots.view("view", "nix", &[])?;
        let active = "active";
        let mounts = snapshots.prepare(active, "nix", &[])?;
        // A container's data is its own to sync.
        let layer = upper(&mounts)?;
        let mut content = File::create_new(layer.join("content"))?;
        content.write_all(b"content")?;
        content.sync_all()?;
        File::open(layer)?.sync_all()?;
        Ok(Self {
            active,
            infos: invariants::check(daemon)?,
            object,
        })
    }

    /// The labels of a further Nix snapshot.
    fn label(&self) -> (String, &str) {
        (format!("{NIX_STORE_PATH}0"), self.object.path())
    }

    /// Whatever can be read is there.
    fn can_be_read(&self, snapshots: &Snapshots) -> Result<()> {
        let found: BTreeMap<_, _> = snapshots
            .list(&[])?
            .into_iter()
            .map(|info| (info.name.clone(), info))
            .collect();
        for (name, info) in &self.infos {
            ensure!(found.get(name) == Some(info), "{name}: {found:?}");
            ensure!(snapshots.stat(name)? == *info);
            snapshots.usage(name)?;
        }
        let mounts = snapshots.mounts(self.active)?;
        ensure!(mounts.len() == 2, "{mounts:?}");
        ensure!(fs::read_to_string(upper(&mounts)?.join("content"))? == "content");
        Ok(())
    }
}

/// A small file system of the test's own, which goes with the test.
pub(crate) fn tmpfs(host: &Host, options: &str) -> Result<PathBuf> {
    let dir = host.dir().join("disk");
    fs::create_dir(&dir)?;
    let options = std::ffi::CString::new(options)?;
    mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), &*options)?;
    Ok(dir)
}

/// Takes what is left of a file system, in blocks or in inodes, until it is told that it is full.
fn fill(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    let full = |error: std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
    let mut number = 0;
    let failed = loop {
        let file = dir.join(number.to_string());
        let mut file = match File::create(file) {
            Ok(file) => file,
            Err(error) => break error,
        };
        // Many files where they are what is scarce, and one to take all blocks.
        if number == 1000 {
            break loop {
                if let Err(error) = file.write_all(&[0; 4096]) {
                    break error;
                }
            };
        }
        number += 1;
    };
    ensure!(full(failed), "not full");
    Ok(())
}

/// Calls until one is refused.
fn until_refused<T>(mut call: impl FnMut(u32) -> Result<T, Status>) -> Result<Status> {
    for number in 0..MANY {
        if let Err(status) = call(number) {
            return Ok(status);
        }
    }
    bail!("the disk is full, and {MANY} calls succeeded");
}

fn full_disk(host: &Host, options: &str) -> Result<()> {
    let disk = tmpfs(host, options)?;
    let config = Config::new(host, "daemon")
        .line(invariants::CONFIG)
        .root_at(&disk.join("root"));
    let mut daemon = Daemon::start(&config)?;
    let acknowledged = Acknowledged::new(host, &daemon)?;
    let snapshots = daemon.snapshots()?;
    snapshots.layer("superfluous", "", &[])?;
    fill(&disk.join("filler"))?;

    let full = |status: Status| {
        // The words of the kernel, or of SQLite.
        let told = ["No space", "disk is full"].map(|words| status.message().contains(words));
        ensure!(told.contains(&true), "{status:?}");
        refused::<()>(Err(status), Code::ResourceExhausted, &[])
    };
    let large = "x".repeat(4000);
    let large = [("containerd.io/snapshot/large", &*large)];
    full(until_refused(|n| {
        snapshots.prepare(&format!("plain {n}"), "", &large)
    })?)?;
    let (label, path) = acknowledged.label();
    let nix = [(&*label, path), large[0]];
    full(until_refused(|n| {
        snapshots.prepare(&format!("nix {n}"), "base", &nix)
    })?)?;
    acknowledged.can_be_read(&snapshots)?;

    // kubelet frees space by removing images, and the node may have been started again.
    for start in [false, true] {
        if start {
            daemon.kill()?;
            daemon.start_again()?;
        }
        let snapshots = daemon.snapshots()?;
        acknowledged.can_be_read(&snapshots)?;
        let name = if start { "nix 0" } else { "superfluous" };
        if snapshots.stat(name).is_ok() {
            snapshots.remove(name)?;
        }
        snapshots.cleanup()?;
    }

    fs::remove_dir_all(disk.join("filler"))?;
    let snapshots = daemon.snapshots()?;
    snapshots.prepare("after", "nix", &[])?;
    snapshots.commit("committed after", acknowledged.active, &[])?;
    snapshots.remove("committed after")?;
    snapshots.layer("nix after", "base", &nix)?;
    let infos = invariants::check(&daemon)?;
    for name in ["base", "nix", "view", "after", "nix after"] {
        ensure!(infos.contains_key(name), "{name} is lost");
    }
    ensure!(!infos.contains_key("superfluous"));
    Ok(())
}

#[test]
fn a_full_disk_is_told_and_passes() {
    test(|host| full_disk(host, "size=4m"));
}

#[test]
fn a_disk_without_inodes_is_told_and_passes() {
    test(|host| full_disk(host, "size=64m,nr_inodes=200"));
}

#[test]
fn a_full_disk_keeps_nobody_from_starting_after_a_crash() {
    test(|host| {
        let disk = tmpfs(host, "size=4m")?;
        let config = Config::new(host, "daemon")
            .line(invariants::CONFIG)
            .root_at(&disk.join("root"));
        let mut daemon = Daemon::start(&config)?;
        let acknowledged = Acknowledged::new(host, &daemon)?;
        daemon.kill()?;
        // As a crash between the directories and the row leaves it.
        for dir in ["snapshots/1000/fs", "gcroots/1000"] {
            fs::create_dir_all(config.root().join(dir))?;
        }
        fill(&disk.join("filler"))?;
        daemon.start_again()?;
        acknowledged.can_be_read(&daemon.snapshots()?)?;
        fs::remove_dir_all(disk.join("filler"))?;
        invariants::check(&daemon)?;
        Ok(())
    });
}

#[test]
fn a_disk_that_has_become_read_only_is_told() {
    test(|host| {
        host.needs("mke2fs")?;
        let (image, disk) = (host.dir().join("image"), host.dir().join("disk"));
        fs::create_dir(&disk)?;
        let mut make = Command::new("mke2fs");
        succeed(make.args(["-q", "-t", "ext4"]).arg(&image).arg("32M"))?;
        let attach = |options: &str| {
            let mut mount = Command::new("mount");
            succeed(mount.args(["-o", options]).arg(&image).arg(&disk))
        };
        attach("loop,errors=remount-ro")?;
        let config = Config::new(host, "daemon")
            .line(invariants::CONFIG)
            .root_at(&disk.join("root"));
        let mut daemon = Daemon::start(&config)?;
        let acknowledged = Acknowledged::new(host, &daemon)?;
        let snapshots = daemon.snapshots()?;

        // What ext4 does when the device fails it.
        fs::write(trigger(&disk)?, "test")?;
        let labels = [("containerd.io/snapshot/note", "x")];
        let words = ["Read-only file system"];
        refused(snapshots.prepare("new", "", &[]), Code::Internal, &words)?;
        let (label, path) = acknowledged.label();
        let nix = snapshots.prepare("new", "", &[(&*label, path)]);
        refused(nix, Code::Internal, &words)?;
        for answer in [
            snapshots.commit("committed", acknowledged.active, &labels),
            snapshots.remove("view"),
        ] {
            ensure!(answer.is_err_and(|status| status.code() == Code::Internal));
        }
        // A store may have to write before it can read again after a failure.
        if let Err(status) = snapshots.stat(acknowledged.active) {
            refused::<()>(Err(status), Code::Internal, &words)?;
        } else {
            acknowledged.can_be_read(&snapshots)?;
        }

        daemon.kill()?;
        says(&config.refused()?, &[&config.root().display().to_string()])?;
        unmount(&disk, UnmountFlags::empty())?;
        attach("loop")?;
        daemon.start_again()?;
        let snapshots = daemon.snapshots()?;
        acknowledged.can_be_read(&snapshots)?;
        snapshots.prepare("new", "nix", &[])?;
        invariants::check(&daemon)?;
        daemon.stop()
    });
}

/// The file that makes the ext4 on `disk` fail.
fn trigger(disk: &Path) -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts")?;
    let device = table.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.next()?.strip_prefix("/dev/")?;
        (Path::new(fields.next()?) == disk).then_some(device)
    });
    let device = device.context("not mounted")?;
    ensure!(device.starts_with("loop"), "{device} is not the test's");
    Ok(Path::new("/sys/fs/ext4")
        .join(device)
        .join("trigger_fs_error"))
}

#[test]
fn a_root_that_is_read_only_is_refused_and_stays_as_it_is() {
    test(|host| {
        let config = Config::new(host, "daemon").line(invariants::CONFIG);
        let mut daemon = Daemon::start(&config)?;
        let acknowledged = Acknowledged::new(host, &daemon)?;
        daemon.stop()?;
        let kept = config.kept()?;
        mount_bind(config.root(), config.root())?;
        mount_remount(config.root(), MountFlags::BIND | MountFlags::RDONLY, "")?;
        let words = [&*config.root().display().to_string(), "Read-only"];
        says(&config.refused()?, &words)?;
        ensure!(config.kept()? == kept);
        unmount(config.root(), UnmountFlags::empty())?;
        daemon.start_again()?;
        acknowledged.can_be_read(&daemon.snapshots()?)
    });
}

#[test]
fn a_store_that_is_gone_is_not_taken_for_an_empty_one() {
    test(|host| {
        let config = Config::new(host, "daemon").line(invariants::CONFIG);
        let mut daemon = Daemon::start(&config)?;
        let acknowledged = Acknowledged::new(host, &daemon)?;
        daemon.stop()?;
        let kept = config.kept()?;
        let saved = save(&config)?;
        for file in saved.keys() {
            fs::remove_file(file)?;
        }
        let main = main_file(&saved)?;
        says(
            &config.refused()?,
            &[&main.display().to_string(), "missing"],
        )?;
        ensure!(config.kept()?.snapshots == kept.snapshots);
        ensure!(config.kept()?.gc_roots == kept.gc_roots);
        restore(&config, &saved)?;
        daemon.start_again()?;
        acknowledged.can_be_read(&daemon.snapshots()?)?;
        invariants::check(&daemon)?;
        Ok(())
    });
}

/// The files of a metadata store, with their content.
type Saved = BTreeMap<PathBuf, Vec<u8>>;

fn save(config: &Config) -> Result<Saved> {
    config
        .metadata()?
        .into_iter()
        .map(|file| Ok((file.clone(), fs::read(file)?)))
        .collect()
}

/// The one that errors name, among SQLite's others and the count of its changes.
fn main_file(saved: &Saved) -> Result<&PathBuf> {
    let main = saved.keys().find(|file| file.ends_with("metadata.db"));
    main.context("there is no store")
}

fn restore(config: &Config, saved: &Saved) -> Result<()> {
    for file in config.metadata()? {
        fs::remove_file(file)?;
    }
    for (file, content) in saved {
        fs::write(file, content)?;
    }
    Ok(())
}

/// Damages one of the files, and tells how.
fn damage(saved: &Saved, random: &mut Rng) -> Result<String> {
    let files: Vec<_> = saved.iter().filter(|(_, c)| !c.is_empty()).collect();
    let (file, content) = files[random.usize(0..files.len())];
    let at = random.usize(0..content.len());
    let open = OpenOptions::new().write(true).open(file)?;
    let how = match random.u32(0..4) {
        0 => {
            open.write_all_at(&[content[at] ^ (1 << random.u32(0..8))], at as u64)?;
            "one bit flipped"
        }
        1 => {
            let noise: Vec<_> = std::iter::repeat_with(|| random.u8(..)).take(512).collect();
            open.write_all_at(&noise, at as u64 & !511)?;
            "a sector of noise"
        }
        2 => {
            open.write_all_at(&[0; 4096], at as u64 & !4095)?;
            "a page of zeros"
        }
        _ => {
            open.set_len(at as u64)?;
            "cut off"
        }
    };
    Ok(format!("{} at {at}: {how}", file.display()))
}

/// Its directories would be deleted, and containerd be told that there is no such snapshot.
#[test]
fn soak_a_damaged_store_never_passes_for_a_smaller_one() {
    test(|host| {
        let mut random = host.random()?;
        let config = Config::new(host, "daemon").line(invariants::CONFIG);
        let mut daemon = Daemon::start(&config)?;
        Acknowledged::new(host, &daemon)?;
        let snapshots = daemon.snapshots()?;
        for number in 0..20 {
            snapshots.layer(&format!("layer {number}"), "base", &[])?;
        }
        let infos = snapshots.list(&[])?;
        daemon.kill()?;
        let killed = save(&config)?;
        daemon.start_again()?;
        daemon.stop()?;
        let stopped = save(&config)?;
        let kept = config.kept()?;

        let (mut served, mut refused) = (0, 0);
        for number in 0..host.repetitions(20, 500) {
            let saved = if random.bool() { &killed } else { &stopped };
            restore(&config, saved)?;
            let how = damage(saved, &mut random)?;
            // A log of its own.
            let config = Config::new(host, &format!("daemon-{number}"))
                .line(invariants::CONFIG)
                .root_at(config.root());
            match Daemon::start(&config) {
                Ok(mut daemon) => {
                    ensure!(daemon.snapshots()?.list(&[])? == infos, "{how}");
                    invariants::check(&daemon).context(how)?;
                    daemon.stop()?;
                    served += 1;
                }
                Err(error) => {
                    let said = format!("{error:#}");
                    let file = main_file(saved)?.display().to_string();
                    says(&said, &["exit status: 1", &file]).context(how)?;
                    refused += 1;
                }
            }
            ensure!(config.kept()?.snapshots == kept.snapshots);
            ensure!(config.kept()?.gc_roots == kept.gc_roots);
        }
        ensure!(refused > 0, "{served} served, none refused");
        Ok(())
    });
}

//! Mounting what a snapshotter returns, as containerd does (`core/mount`, 1.7 to 2.4).

use std::{
    env,
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::{host::unmount_below, snapshots::Mount};

/// The kernel takes one page of options. This is the smallest there is, so that what passes here
/// passes everywhere.
const PAGE: usize = 4096;

/// What containerd leaves free of a page before it shortens options.
const RESERVE: usize = 512;

/// The options that are flags of mount(2), and whether they set or clear them. All others are data
/// for the file system.
const FLAGS: [(&str, bool, MountFlags); 9] = [
    ("bind", true, MountFlags::BIND),
    ("rbind", true, MountFlags::BIND.union(MountFlags::REC)),
    ("ro", true, MountFlags::RDONLY),
    ("rw", false, MountFlags::RDONLY),
    ("noatime", true, MountFlags::NOATIME),
    ("relatime", true, MountFlags::RELATIME),
    ("nodev", true, MountFlags::NODEV),
    ("noexec", true, MountFlags::NOEXEC),
    ("nosuid", true, MountFlags::NOSUID),
];

/// A directory with mounts on it, which are undone with this value.
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
    count: usize,
}

impl Mounted {
    /// Makes a directory and mounts on it, one mount over the other.
    ///
    /// # Errors
    /// There is nothing to mount, or the kernel refuses.
    pub fn new(dir: &Path, mounts: &[Mount]) -> Result<Self> {
        ensure!(!mounts.is_empty(), "there are no mounts");
        fs::create_dir_all(dir)?;
        let mut mounted = Self {
            dir: dir.to_owned(),
            count: 0,
        };
        for mount in mounts {
            perform(mount, dir).with_context(|| format!("cannot mount {mount:?}"))?;
            mounted.count += 1;
        }
        Ok(mounted)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Undoes the mounts, which nobody may use any more.
    ///
    /// # Errors
    /// One is in use.
    pub fn unmount(mut self) -> Result<()> {
        while self.count > 0 {
            unmount(&self.dir, UnmountFlags::empty())
                .with_context(|| format!("cannot unmount {}", self.dir.display()))?;
            self.count -= 1;
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Also after a mount whose second step, the one to read-only, has failed.
        if let Err(error) = unmount_below(&self.dir) {
            eprintln!("{} is left mounted: {error:#}", self.dir.display());
        }
    }
}

fn perform(what: &Mount, dir: &Path) -> Result<()> {
    ensure!(
        what.target.is_empty(),
        "only mounts on the root are supported"
    );
    let (base, options) = shortened(what);
    let (flags, data) = parted(&options);
    ensure!(data.len() <= PAGE, "the mount options are too long");
    let data = CString::new(data)?;
    let source = Path::new(&what.source);
    let mount = || mount(source, dir, &*what.r#type, flags, &*data);
    match base {
        None => mount()?,
        Some(base) => in_dir(&base, || Ok(mount()?))?,
    }
    // A bind takes no other flag at first.
    if flags.contains(MountFlags::BIND | MountFlags::RDONLY) {
        mount_remount(dir, flags, "")?;
    }
    Ok(())
}

/// Parts the flags of mount(2) from the data.
fn parted(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, ..)| name == option) {
            Some((_, value, flag)) => flags.set(*flag, *value),
            None => data.push(&**option),
        }
    }
    (flags, data.join(","))
}

/// Where the options of an overlay come near a page: its options with the lower directories
/// relative to the directory that all of them are in, and that directory.
fn shortened(mount: &Mount) -> (Option<PathBuf>, Vec<String>) {
    let options = &mount.options;
    let size: usize = options.iter().map(String::len).sum();
    let lower = options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="));
    let lower: Vec<_> = lower.map_or(Vec::new(), |dirs| dirs.split(':').map(Path::new).collect());
    if mount.r#type != "overlay" || size < PAGE - RESERVE || lower.len() < 2 {
        return (None, options.clone());
    }
    let is_common = |base: &Path| lower.iter().all(|dir| dir.starts_with(base));
    let base = lower[0].ancestors().skip(1).find(|base| is_common(base));
    let Some(base) = base.filter(|base| base.parent().is_some()) else {
        return (None, options.clone());
    };
    let relative: Vec<_> = lower
        .iter()
        .filter_map(|dir| dir.strip_prefix(base).ok()?.to_str())
        .collect();
    let options = options.iter().map(|option| {
        if option.starts_with("lowerdir=") {
            format!("lowerdir={}", relative.join(":"))
        } else {
            option.clone()
        }
    });
    (Some(base.to_owned()), options.collect())
}

/// Does something in another working directory, on a thread that shares its own with nobody.
fn in_dir(dir: &Path, what: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let work = || {
        unshare(CloneFlags::CLONE_FS)?;
        env::set_current_dir(dir)?;
        what()
    };
    thread::scope(|scope| scope.spawn(work).join())
        .ok()
        .context("a thread panicked")?
}

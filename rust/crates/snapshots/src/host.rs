//! What the kernel and the file system of the root can do. Asked once, when the root is opened.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, XattrFlags, openat2, setxattr,
};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::error::{Error, Result};
use crate::layout::make_private_dir;
use crate::tree;

/// What was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    /// overlayfs knows the option `index` (Linux 4.13).
    pub(crate) index: bool,
    /// overlayfs must keep its marks in `user.overlay.*` attributes, and can (Linux 5.11).
    pub(crate) userxattr: bool,
}

impl Host {
    /// Asks with files in `<root>/probe`, which is there only meanwhile. Refuses a root that cannot
    /// hold snapshots.
    pub(crate) fn probe(root: &Path) -> Result<Self> {
        require_openat2(root)?;
        let dir = Scratch::new(root.join("probe"))?;
        require_dir_types(root, &dir.0)?;
        require_overlay()?;
        let index = Path::new("/sys/module/overlay/parameters/index").exists();
        let userxattr = in_user_namespace() && can_userxattr(&dir.0);
        Ok(Self { index, userxattr })
    }

    /// The options of every overlay mount: what was configured, then what this host needs, unless
    /// it is configured.
    pub(crate) fn overlay_options(self, configured: &[String]) -> Vec<String> {
        let mut options = configured.to_vec();
        if self.userxattr && !configured.iter().any(|option| option == "userxattr") {
            options.push("userxattr".to_owned());
        }
        // An index would tie an upper directory to the lower ones it was first mounted with, by
        // file handles that do not survive a copy to another file system.
        if self.index && !configured.iter().any(|option| option.starts_with("index=")) {
            options.push("index=off".to_owned());
        }
        options
    }
}

/// A directory that is deleted when it goes out of scope.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self> {
        // One that a killed process left.
        tree::remove(&path)?;
        make_private_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = tree::remove(&self.0) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(path = %self.0.display(), error, "a probe directory stays behind");
        }
    }
}

fn require_openat2(dir: &Path) -> Result<()> {
    match openat2(
        CWD,
        dir,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    ) {
        Err(Errno::NOSYS | Errno::PERM) => Err(Error::Kernel {
            what: "open files within bounds (openat2)",
            remedy: "it needs Linux 5.6 or newer, and a seccomp filter that allows the call",
        }),
        Err(errno) => Err(Error::io("open", dir)(errno)),
        Ok(_) => Ok(()),
    }
}

/// overlayfs hides deleted files by their type in directory listings, and shows them again when it
/// is missing.
fn require_dir_types(root: &Path, dir: &Path) -> Result<()> {
    let file = dir.join("file");
    File::create(&file).map_err(Error::io("create", file))?;
    let listed = File::open(dir).map_err(Error::io("open", dir))?;
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(&listed, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(Error::io("list", dir))?;
        if entry.file_name() == c"file" && entry.file_type() != FileType::RegularFile {
            return Err(Error::Root {
                root: root.to_owned(),
                reason: "its file system does not tell file types in directory listings (d_type), \
                         which overlayfs needs; put it on another, or make this one anew with the \
                         feature (xfs: ftype=1, ext4: filetype)",
            });
        }
    }
    Ok(())
}

/// Asking for the file system also has the kernel load its module, and only then does /sys tell its
/// parameters. Who may not ask may not mount either, but containerd does that, not this process.
fn require_overlay() -> Result<()> {
    match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NODEV) => Err(Error::Kernel {
            what: "mount overlay file systems",
            remedy: "load its module: modprobe overlay",
        }),
        _ => Ok(()),
    }
}

/// The first user namespace of a machine maps every id to itself.
fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Whether an overlay with `userxattr` can be made here. Kernels of Debian 10 and Ubuntu before
/// 5.11 mount overlays in user namespaces without the option and do not know it; tmpfs has had user
/// attributes only since 6.6.
///
/// The file system is made but never attached anywhere, so that nothing has to be unmounted.
fn can_userxattr(dir: &Path) -> bool {
    let attempt = || -> io::Result<()> {
        setxattr(dir, c"user.overlay.probe", b"", XattrFlags::empty())?;
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (option, name) in [
            ("lowerdir", "lower"),
            ("upperdir", "upper"),
            ("workdir", "work"),
        ] {
            let path = dir.join(name);
            fs::create_dir(&path)?;
            fsconfig_set_string(&overlay, option, &path)?;
        }
        fsconfig_set_flag(&overlay, "userxattr")?;
        Ok(fsconfig_create(&overlay)?)
    };
    attempt()
        .inspect_err(|error| tracing::info!(%error, "overlay mounts will be without userxattr"))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NAMESPACE, isolated};

    #[test]
    fn a_probe_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("probe/lower/left by a killed process")).unwrap();
        Host::probe(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_user_namespace_needs_userxattr() {
        if !isolated(NAMESPACE, "host::tests::a_user_namespace_needs_userxattr") {
            return;
        }
        assert!(in_user_namespace());
        let root = tempfile::tempdir().unwrap();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map_while(|number| number.parse().ok());
        let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        let tmpfs = rustix::fs::statfs(root.path()).unwrap().f_type == 0x0102_1994;
        let wanted = version >= if tmpfs { (6, 6) } else { (5, 11) };
        assert_eq!(
            Host::probe(root.path()).unwrap().userxattr,
            wanted,
            "{version:?}"
        );
    }

    #[test]
    fn options_are_added_unless_configured() {
        let options = |host: Host, configured: &[&str]| {
            let configured: Vec<String> =
                configured.iter().map(|&option| option.to_owned()).collect();
            host.overlay_options(&configured).join(",")
        };
        let all = Host {
            index: true,
            userxattr: true,
        };
        let none = Host {
            index: false,
            userxattr: false,
        };
        assert_eq!(options(all, &[]), "userxattr,index=off");
        assert_eq!(options(all, &["volatile"]), "volatile,userxattr,index=off");
        assert_eq!(
            options(all, &["index=on", "userxattr"]),
            "index=on,userxattr"
        );
        assert_eq!(options(none, &[]), "");
        assert_eq!(options(none, &["metacopy=on"]), "metacopy=on");
    }
}

//! What the kernel and the file system of a root can do. Found out once, when the root is opened.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, XattrFlags, access, openat2,
    setxattr, statfs,
};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};
use rustix::system::uname;

use crate::error::{Error, Result};
use crate::layout::make_private_dir;
use crate::options::{FUSE_OVERLAYFS, Overlay};
use crate::tree;

/// The helper through which containerd mounts a type that begins with `fuse3.` (`core/mount`).
const MOUNT_HELPER: &str = "mount.fuse3";

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// The release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// This process is in a user namespace, where marks in `trusted.*` attributes are forbidden.
    pub user_namespace: bool,
    /// The kernel can open files within bounds (`openat2`, Linux 5.6).
    pub openat2: bool,
    /// The kernel has overlayfs, as far as this process is allowed to ask.
    pub overlay: bool,
    /// The file system tells file types in directory listings, without which overlayfs shows
    /// deleted files again.
    pub d_type: bool,
    /// overlayfs knows the option `index` (Linux 4.13).
    pub index: bool,
    /// overlayfs can keep its marks in `user.overlay.*` attributes here (Linux 5.11, on tmpfs 6.6).
    pub userxattr: bool,
    /// Mounts with mapped ids can be the lower layers of an overlay here (Linux 5.19, on tmpfs 6.3).
    pub id_mapped_layers: bool,
    /// fuse-overlayfs can be mounted, or what it lacks.
    pub fuse_overlayfs: Result<(), &'static str>,
}

impl Features {
    /// Asks with files in `<dir>/probe`, which is there only meanwhile. `dir` must exist. It need
    /// not be a root, and may be that of a snapshotter that is running, though not of one that is
    /// being opened at this moment.
    ///
    /// # Errors
    ///
    /// When files in `dir` cannot be made, listed or deleted. What is missing is no error.
    pub fn probe(dir: &Path) -> Result<Self> {
        let kernel = uname().release().to_string_lossy().into_owned();
        let user_namespace = in_user_namespace();
        let openat2 = has_openat2(dir)?;
        // Asked before `index`: the kernel loads the module for it.
        let overlay = has_overlay();
        // What is left of an earlier one is deleted within bounds.
        let scratch = openat2.then(|| Scratch::new(dir)).transpose()?;
        Ok(Self {
            id_mapped_layers: has_id_mapped_layers(&kernel, user_namespace, is_tmpfs(dir)?),
            kernel,
            user_namespace,
            openat2,
            overlay,
            d_type: match &scratch {
                Some(scratch) => has_file_types(&scratch.0)?,
                None => false,
            },
            index: Path::new("/sys/module/overlay/parameters/index").exists(),
            userxattr: scratch.is_some_and(|scratch| can_userxattr(&scratch.0)),
            fuse_overlayfs: has_fuse_overlayfs(),
        })
    }

    /// Refuses a machine on which no snapshot in `root` could be kept or mounted.
    ///
    /// # Errors
    ///
    /// What the kernel, the root or fuse-overlayfs lacks.
    pub fn suffice(&self, root: &Path, overlay: Overlay) -> Result<()> {
        let kernel = |what, remedy| Err(Error::Kernel { what, remedy });
        match overlay {
            _ if !self.openat2 => kernel(
                "open files within bounds (openat2)",
                "it needs Linux 5.6 or newer, and a seccomp filter that allows the call",
            ),
            Overlay::Kernel if !self.overlay => kernel(
                "mount overlay file systems",
                "load its module (modprobe overlay), or set overlay = \"fuse-overlayfs\"",
            ),
            Overlay::Kernel if !self.d_type => Err(Error::Root {
                root: root.to_owned(),
                reason: "its file system does not tell file types in directory listings (d_type), \
                         which overlayfs needs; put it on another, or make this one anew with the \
                         feature (xfs: ftype=1, ext4: filetype)",
            }),
            Overlay::Kernel => Ok(()),
            Overlay::Fuse => self.fuse_overlayfs.map_err(|reason| Error::Options {
                option: "overlay = \"fuse-overlayfs\"".to_owned(),
                reason: reason.to_owned(),
            }),
        }
    }
}

/// A directory that is deleted when it goes out of scope.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> Result<Self> {
        let path = dir.join("probe");
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

fn has_openat2(dir: &Path) -> Result<bool> {
    match openat2(
        CWD,
        dir,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    ) {
        Err(Errno::NOSYS | Errno::PERM) => Ok(false),
        Err(errno) => Err(Error::io("open", dir)(errno)),
        Ok(_) => Ok(true),
    }
}

/// Asking for the file system also has the kernel load its module, and only then does /sys tell its
/// parameters. Who may not ask may not mount either, but containerd does that, not this process.
fn has_overlay() -> bool {
    !matches!(new_overlay(), Err(Errno::NODEV))
}

fn new_overlay() -> Result<OwnedFd, Errno> {
    fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
}

/// overlayfs hides deleted files by their type in directory listings.
fn has_file_types(scratch: &Path) -> Result<bool> {
    let file = scratch.join("file");
    File::create(&file).map_err(Error::io("create", file))?;
    let listed = File::open(scratch).map_err(Error::io("open", scratch))?;
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut entries = RawDir::new(&listed, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(Error::io("list", scratch))?;
        if entry.file_name() == c"file" && entry.file_type() != FileType::RegularFile {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first user namespace of a machine maps every id to itself. Where `/proc` is that of another
/// pid namespace, whose processes it shows, there is a runtime around us that has made namespaces
/// (k3s without root).
fn in_user_namespace() -> bool {
    !fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

fn is_tmpfs(dir: &Path) -> Result<bool> {
    /// `TMPFS_MAGIC` of statfs(2).
    const TMPFS: i128 = 0x0102_1994;
    let found = statfs(dir).map_err(Error::io("look at the file system of", dir))?;
    Ok(i128::from(found.f_type) == TMPFS)
}

/// By the version, which is what containerd looks at first (`overlayutils`); a trial would need a
/// process in a user namespace of its own. In a user namespace, a mount of the host cannot be
/// mapped at all.
fn has_id_mapped_layers(kernel: &str, user_namespace: bool, tmpfs: bool) -> bool {
    let wanted = if tmpfs { (6, 3) } else { (5, 19) };
    !user_namespace && version(kernel).is_some_and(|version| version >= wanted)
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// Whether an overlay with `userxattr` can be made here. Kernels of Debian 10 and Ubuntu before
/// 5.11 mount overlays in user namespaces without the option and do not know it; tmpfs has had user
/// attributes only since 6.6.
fn can_userxattr(scratch: &Path) -> bool {
    setxattr(scratch, c"user.overlay.probe", b"", XattrFlags::empty()).is_ok()
        && try_overlay_in(scratch, &["userxattr".to_owned()]).is_ok()
}

/// Makes an overlay with these options in `<dir>/probe`, but attaches it nowhere, so that nothing
/// has to be unmounted. Options that the kernel does not see, because containerd turns them into
/// the flags of mount(2), are left out.
///
/// # Errors
///
/// What the kernel says. A process that may not mount learns nothing and gets no error.
pub(crate) fn try_overlay(dir: &Path, options: &[String]) -> Result<()> {
    let scratch = Scratch::new(dir)?;
    match try_overlay_in(&scratch.0, options) {
        Err(reason) => Err(Error::Options {
            option: format!("mount_options = {options:?}"),
            reason,
        }),
        Ok(()) => Ok(()),
    }
}

/// The options that containerd does not hand to the file system (`core/mount`,
/// `parseMountOptions`), as far as they make sense for an overlay.
const MOUNT_FLAGS: &[&str] = &[
    "async",
    "atime",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "relatime",
    "ro",
    "rw",
    "strictatime",
    "suid",
    "sync",
];

fn try_overlay_in(scratch: &Path, options: &[String]) -> Result<(), String> {
    let overlay = match new_overlay() {
        Err(Errno::PERM) => return Ok(()),
        opened => opened.map_err(|errno| errno.to_string())?,
    };
    let attempt = || -> io::Result<()> {
        let mut held = Vec::new();
        for (option, name) in [
            ("lowerdir", "lower"),
            ("upperdir", "upper"),
            ("workdir", "work"),
        ] {
            let path = scratch.join(name);
            make_private_dir(&path).map_err(io::Error::other)?;
            // By its descriptor: a value of fsconfig(2) has at most 255 bytes.
            let dir = File::open(&path)?;
            let by_descriptor = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
            match Path::new(&by_descriptor).exists() {
                true => fsconfig_set_string(&overlay, option, by_descriptor)?,
                // `/proc` is that of another pid namespace.
                false => fsconfig_set_string(&overlay, option, path)?,
            }
            held.push(dir);
        }
        for option in options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&overlay, key, value)?,
                None if MOUNT_FLAGS.contains(&&**option) => {}
                None => fsconfig_set_flag(&overlay, &**option)?,
            }
        }
        Ok(fsconfig_create(&overlay)?)
    };
    attempt().map_err(|error| {
        let said = messages(overlay);
        if said.is_empty() {
            format!("the kernel refuses an overlay with them ({error}); its log may say why")
        } else {
            format!("the kernel refuses an overlay with them ({error}): {said}")
        }
    })
}

/// What the kernel has to say of a file system that it did not make: each read of its descriptor
/// gives one message, which begins with its level (Linux `Documentation/filesystems/mount_api`).
fn messages(overlay: OwnedFd) -> String {
    let mut file = File::from(overlay);
    let mut buffer = [0; 1024];
    let mut said = Vec::new();
    while let Ok(bytes @ 1..) = file.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..bytes]);
        said.push(
            text.trim_start_matches(['e', 'w', 'i', ' '])
                .trim_end()
                .to_owned(),
        );
    }
    said.join("; ")
}

fn has_fuse_overlayfs() -> Result<(), &'static str> {
    if !is_on_path(FUSE_OVERLAYFS) {
        Err("fuse-overlayfs is not on the PATH: install it, here and where containerd finds it")
    } else if !is_on_path(MOUNT_HELPER) {
        Err("mount.fuse3 is not on the PATH: install fuse3, here and where containerd finds it")
    } else if File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_err()
    {
        Err(
            "/dev/fuse cannot be opened: load its module (modprobe fuse), or let the daemon have it",
        )
    } else {
        Ok(())
    }
}

fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| access(dir.join(program), Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NAMESPACE, isolated};

    #[test]
    fn a_probe_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("probe/lower/left by a killed process")).unwrap();
        Features::probe(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_probe_needs_no_short_path() {
        let root = tempfile::tempdir().unwrap();
        let short = Features::probe(root.path()).unwrap();
        let deep = root.path().join("d".repeat(200)).join("e".repeat(200));
        fs::create_dir_all(&deep).unwrap();
        assert_eq!(Features::probe(&deep).unwrap(), short);
    }

    #[test]
    fn a_user_namespace_has_userxattr_and_maps_no_layers() {
        const TEST: &str = "features::tests::a_user_namespace_has_userxattr_and_maps_no_layers";
        if !isolated(NAMESPACE, TEST) {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let features = Features::probe(root.path()).unwrap();
        assert!(features.user_namespace);
        assert!(!features.id_mapped_layers);
        let tmpfs = is_tmpfs(root.path()).unwrap();
        let wanted = version(&features.kernel).unwrap() >= if tmpfs { (6, 6) } else { (5, 11) };
        assert_eq!(features.userxattr, wanted, "{features:?}");
    }

    #[test]
    fn id_mapped_layers_by_version() {
        for (kernel, user_namespace, tmpfs, wanted) in [
            ("5.18.99", false, false, false),
            ("5.19.0-rc1", false, false, true),
            ("6.2.0", false, true, false),
            ("6.3", false, true, true),
            ("6.18.44-fc-v669", false, true, true),
            ("6.18.44", true, false, false),
            ("10.0", false, true, true),
            ("unknown", false, false, false),
        ] {
            let got = has_id_mapped_layers(kernel, user_namespace, tmpfs);
            assert_eq!(got, wanted, "{kernel} {user_namespace} {tmpfs}");
        }
    }

    #[test]
    fn the_kernel_is_asked_whether_options_go_together() {
        const TEST: &str = "features::tests::the_kernel_is_asked_whether_options_go_together";
        if !isolated(&["unshare", "--mount"], TEST) {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let attempt = |options: &[&str]| {
            let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
            try_overlay(root.path(), &options).map_err(|error| error.to_string())
        };
        attempt(&["volatile", "noatime", "index=off"]).unwrap();
        for refused in [
            &["no-such-option"][..],
            &["index=perhaps"],
            &["index=off", "nfs_export=on"],
            &["userxattr", "metacopy=on"],
        ] {
            let message = attempt(refused).unwrap_err();
            assert!(message.contains(refused[0]), "{message}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_missing_is_said() {
        let all = Features {
            kernel: "6.18".to_owned(),
            user_namespace: false,
            openat2: true,
            overlay: true,
            d_type: true,
            index: true,
            userxattr: true,
            id_mapped_layers: true,
            fuse_overlayfs: Ok(()),
        };
        let both = [Overlay::Kernel, Overlay::Fuse];
        let without = |change: fn(&mut Features)| {
            let mut features = all.clone();
            change(&mut features);
            both.map(|overlay| {
                let sufficed = features.suffice(Path::new("/r"), overlay);
                sufficed
                    .err()
                    .map(|error| error.to_string())
                    .unwrap_or_default()
            })
        };
        let says = |said: [String; 2], wanted: [&str; 2]| {
            for (said, wanted) in said.iter().zip(wanted) {
                assert!(
                    said.contains(wanted) && said.is_empty() == wanted.is_empty(),
                    "{said}"
                );
            }
        };
        says(without(|_| {}), ["", ""]);
        says(without(|f| f.openat2 = false), ["Linux 5.6", "Linux 5.6"]);
        says(without(|f| f.overlay = false), ["modprobe overlay", ""]);
        says(without(|f| f.d_type = false), ["ftype=1", ""]);
        says(
            without(|f| f.fuse_overlayfs = Err("no fuse")),
            ["", "no fuse"],
        );
        says(without(|f| f.id_mapped_layers = false), ["", ""]);
    }
}

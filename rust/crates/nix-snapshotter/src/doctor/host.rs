//! The kernel, and the file systems of the root and of the store.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{StatVfs, statfs, statvfs};

use snapshots::{Features, Overlay, RemapIds};

use super::finding::{Check, Finding};
use crate::error::chain;

const KERNEL: Check = Check("kernel");
const ROOT: Check = Check("file-system");
const SPACE: Check = Check("space");

/// `OVERLAYFS_SUPER_MAGIC` of statfs(2).
const OVERLAYFS: i128 = 0x794c_7630;

/// Percent that should be free. Below it the kubelet begins to evict pods, and Nix to fail.
const FREE_SPACE: u64 = 10;
const FREE_INODES: u64 = 5;

/// What the kernel can do with snapshots in `root`; the first part is whether mounts can map the
/// ids of containers, where that is known.
pub(super) fn kernel(root: &Path, options: &snapshots::Options) -> (Option<bool>, Vec<Finding>) {
    let existing = nearest_existing(root);
    // Not in the directory itself: a probe begins by deleting what an earlier one left there.
    let probed = tempfile::tempdir_in(&existing)
        .map_err(|error| error.to_string())
        .and_then(|scratch| Features::probe(scratch.path()).map_err(|error| chain(&error)));
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let erofs = check_erofs(&filesystems);
    match probed {
        Ok(features) => {
            let remaps = options.remap_ids != RemapIds::Never
                && (features.id_mapped_layers || options.overlay == Overlay::Fuse);
            let mut findings = check_features(root, options, &features);
            findings.push(erofs);
            (Some(remaps), findings)
        }
        Err(error) => {
            let message = format!("nothing can be tried in {}: {error}", existing.display());
            let remedy = "run this command as root, on the machine that has the root directory";
            (None, vec![KERNEL.error(message, remedy), erofs])
        }
    }
}

fn check_features(root: &Path, options: &snapshots::Options, features: &Features) -> Vec<Finding> {
    if let Err(error) = features.suffice(root, options.overlay) {
        let remedy = "the daemon does not start before; docs/daemon.md tells what `root` \
                      and `overlay` need";
        return vec![KERNEL.error(chain(&error), remedy)];
    }
    let kernel = &features.kernel;
    let mut findings = vec![match options.overlay {
        Overlay::Kernel => KERNEL.ok(format!("Linux {kernel} can mount overlays of snapshots")),
        Overlay::Fuse => KERNEL.ok("fuse-overlayfs can be started"),
    }];
    if options.overlay == Overlay::Fuse {
        return findings;
    }
    if features.user_namespace && !features.userxattr {
        findings.push(KERNEL.warning(
            "overlays in this user namespace lose deletions: they cannot have userxattr",
            "Linux 5.11 or newer, 6.6 with the root on tmpfs; or overlay = \"fuse-overlayfs\"",
        ));
    }
    findings.push(match features.id_mapped_layers {
        true => KERNEL.ok("mounts can map the ids of containers in user namespaces"),
        false => KERNEL.note(
            "mounts cannot map ids, so containers in user namespaces get copies of their layers \
             (Linux 5.19 can, 6.3 with the root on tmpfs, outside of user namespaces)",
        ),
    });
    findings
}

fn check_erofs(filesystems: &str) -> Finding {
    match filesystems.split_whitespace().any(|name| name == "erofs") {
        true => KERNEL.note("EROFS is there, which composefs needs"),
        false => KERNEL.note("EROFS, which composefs needs, is not loaded (modprobe erofs)"),
    }
}

/// Whether the root can carry overlays, and whether there is room in it and in the store.
pub(super) fn space(root: &Path, store_dir: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let existing = nearest_existing(root);
    match statfs(&existing).map(|found| i128::from(found.f_type)) {
        Ok(OVERLAYFS) => findings.push(ROOT.error(
            format!(
                "{} lies on an overlay, and an overlay cannot be mounted on top",
                root.display()
            ),
            "root = a directory on ext4, xfs, btrfs or tmpfs; in a container, a volume",
        )),
        Ok(_) => {}
        Err(errno) => findings.push(unreadable(root, &errno.into())),
    }
    for dir in [&*existing, Path::new(store_dir)] {
        findings.push(match statvfs(dir) {
            Ok(found) => check_space(dir, &found),
            Err(errno) => unreadable(dir, &errno.into()),
        });
    }
    findings
}

/// The root, or the directory that it is going to be made in.
fn nearest_existing(dir: &Path) -> PathBuf {
    let mut ancestors = dir.ancestors();
    let existing = ancestors.find(|ancestor| ancestor.exists());
    existing.unwrap_or(Path::new("/")).to_owned()
}

fn unreadable(dir: &Path, error: &io::Error) -> Finding {
    let message = format!("{} cannot be looked at: {error}", dir.display());
    SPACE.error(
        message,
        "run this command as root, where the directory exists",
    )
}

fn check_space(dir: &Path, found: &StatVfs) -> Finding {
    let percent = |free: u64, all: u64| match all {
        // btrfs and others have as many inodes as there is space.
        0 => 100,
        _ => u64::try_from(u128::from(free) * 100 / u128::from(all)).unwrap_or(100),
    };
    let space = percent(found.f_bavail, found.f_blocks);
    let inodes = percent(found.f_favail, found.f_files);
    let shown = dir.display();
    let message = format!("{shown} has {space} % of its space and {inodes} % of its inodes free");
    let remedy = "remove images (ctr images rm, crictl rmi --prune) and collect garbage \
                  (nix-collect-garbage), or enlarge the file system";
    if found.f_bavail == 0 || (found.f_files > 0 && found.f_favail == 0) {
        SPACE.error(message, remedy)
    } else if space < FREE_SPACE || inodes < FREE_INODES {
        SPACE.warning(message, remedy)
    } else {
        SPACE.ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    #[test]
    fn a_full_file_system_is_told() {
        let found = statvfs("/").unwrap();
        for (blocks, free, files, free_files, level) in [
            (1000, 500, 1000, 500, Level::Ok),
            (1000, 99, 1000, 500, Level::Warning),
            (1000, 500, 1000, 49, Level::Warning),
            (1000, 500, 0, 0, Level::Ok),
            (1000, 0, 1000, 500, Level::Error),
            (1000, 500, 1000, 0, Level::Error),
            (u64::MAX, u64::MAX, 1, 1, Level::Ok),
        ] {
            let found = StatVfs {
                f_blocks: blocks,
                f_bavail: free,
                f_files: files,
                f_favail: free_files,
                ..found
            };
            let finding = check_space(Path::new("/d"), &found);
            assert_eq!(finding.level, level, "{finding:?}");
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_told_with_its_weight() {
        let whole = Features {
            kernel: "6.18".to_owned(),
            user_namespace: false,
            openat2: true,
            overlay: true,
            d_type: true,
            index: true,
            userxattr: true,
            id_mapped_layers: true,
            fuse_overlayfs: Err("fuse-overlayfs is not on the PATH"),
        };
        let worst = |overlay, change: fn(&mut Features)| {
            let mut features = whole.clone();
            change(&mut features);
            let options = snapshots::Options {
                overlay,
                ..snapshots::Options::default()
            };
            let findings = check_features(Path::new("/r"), &options, &features);
            findings.into_iter().max_by_key(|finding| finding.level)
        };
        use Overlay::{Fuse, Kernel};
        for (overlay, change, level, words) in [
            (Kernel, (|_| {}) as fn(&mut Features), Level::Ok, ""),
            (
                Kernel,
                |f| f.overlay = false,
                Level::Error,
                "modprobe overlay",
            ),
            (Kernel, |f| f.openat2 = false, Level::Error, "openat2"),
            (Kernel, |f| f.d_type = false, Level::Error, "d_type"),
            (Kernel, |f| f.id_mapped_layers = false, Level::Note, "5.19"),
            (Fuse, |_| {}, Level::Error, "not on the PATH"),
            (Fuse, |f| f.fuse_overlayfs = Ok(()), Level::Ok, ""),
        ] {
            let finding = worst(overlay, change).unwrap();
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.message.contains(words), "{finding:?}");
        }
        let nested = worst(Kernel, |f| (f.user_namespace, f.userxattr) = (true, false));
        assert_eq!(nested.unwrap().level, Level::Warning);
    }

    #[test]
    fn a_root_that_is_not_made_yet_is_looked_for_above() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest_existing(&dir.path().join("a/b")), dir.path());
        assert_eq!(nearest_existing(dir.path()), dir.path());
    }
}

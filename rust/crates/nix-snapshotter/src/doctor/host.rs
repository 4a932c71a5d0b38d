//! The kernel, and the file systems of the root and of the store.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{StatVfs, statfs, statvfs};

use super::finding::{Check, Finding};

const KERNEL: Check = Check("kernel");
const ROOT: Check = Check("file-system");
const SPACE: Check = Check("space");

/// `OVERLAYFS_SUPER_MAGIC` of statfs(2).
const OVERLAYFS: i128 = 0x794c_7630;

/// Percent that should be free. Below it the kubelet begins to evict pods, and Nix to fail.
const FREE_SPACE: u64 = 10;
const FREE_INODES: u64 = 5;

/// What the kernel can do with snapshots in `root`; the first part is whether it can map the ids
/// of layers, where that is known.
pub(super) fn kernel(_root: &Path) -> (Option<bool>, Vec<Finding>) {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    (None, vec![check_erofs(&filesystems)])
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
    fn a_root_that_is_not_made_yet_is_looked_for_above() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest_existing(&dir.path().join("a/b")), dir.path());
        assert_eq!(nearest_existing(dir.path()), dir.path());
    }
}

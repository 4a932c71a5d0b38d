//! What containerd and the kernel can mount.
//!
//! containerd's own snapshotter hands out mounts of any length, and a container on too many layers
//! fails when it is started, with `invalid argument` or `mount options is too long`. The limits are
//! those of mount(2) and of overlayfs, through which every containerd from 1.7 to 2.4 mounts, so
//! that they are known before, and can be told with what helps. A layer that is only unpacked is
//! not held to them: containerd writes into its upper directory and mounts nothing.

use std::path::Path;

use crate::error::{Error, Result};
use crate::mounts::Mount;

/// `OVL_MAX_STACK` (Linux `fs/overlayfs`). To look up the users of a container, containerd's
/// clients mount its upper directory as one more lower one (`core/mount`, `readonlyMounts`), so
/// that 499 are left for containers; what needs no such look-up is not refused for it.
const MAX_LOWER_DIRS: usize = 500;

/// Below this distance from a page, containerd passes the options as they are (`core/mount`).
const SHORTENED_FROM: usize = 512;

/// Refuses an overlay of the kernel that cannot be mounted. The arguments of fuse-overlayfs may be
/// thirty times as long.
pub(crate) fn check(mount: &Mount, page: usize) -> Result<()> {
    if mount.fstype != "overlay" {
        return Ok(());
    }
    let lower: Vec<&str> =
        value(mount, "lowerdir").map_or(Vec::new(), |dirs| dirs.split(':').collect());
    let refuse = |reason| {
        let layers = lower.len();
        Err(Error::TooManyLayers { layers, reason })
    };
    if lower.len() > MAX_LOWER_DIRS {
        return refuse(format!(
            "overlayfs takes {MAX_LOWER_DIRS}; build the image with fewer"
        ));
    }
    // With mapped ids containerd mounts the layers elsewhere first, under names that are as short
    // as these or shorter, depending on its version. No mount that could succeed is refused.
    if value(mount, "uidmap").is_some() {
        return Ok(());
    }
    let bytes = shortened(mount, &lower, page);
    // The last byte of the page ends the string.
    if bytes >= page {
        return refuse(format!(
            "the mount options have {bytes} bytes with the shortest names that containerd gives \
             them, and mount(2) takes {}; use a root directory with a shorter path, fewer of the \
             mount_options, or an image with fewer layers",
            page - 1
        ));
    }
    Ok(())
}

/// How many bytes containerd hands to mount(2): when the options come near a page, it goes to the
/// directory that all layers share and names them from there.
fn shortened(mount: &Mount, lower: &[&str], page: usize) -> usize {
    let options: usize = mount.options.iter().map(String::len).sum();
    let commas = mount.options.len() - 1;
    let shared = match lower {
        [first, _, ..] if options + SHORTENED_FROM >= page => shared_dir(first),
        _ => 0,
    };
    options + commas - shared * lower.len()
}

/// The length of `<root>/snapshots/` in the path of a layer.
fn shared_dir(layer: &str) -> usize {
    let shared = Path::new(layer).parent().and_then(Path::parent);
    shared.map_or(0, |dir| dir.as_os_str().len() + 1)
}

fn value<'a>(mount: &'a Mount, key: &str) -> Option<&'a str> {
    let mut options = mount.options.iter();
    options.find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::*;
    use crate::testing::{NAMESPACE, isolated};

    fn overlay(root: &str, layers: usize, id: u64, more: &[&str]) -> Mount {
        let dir = |id: u64| format!("{root}/snapshots/{id}/fs");
        let lower: Vec<_> = (0..layers as u64).map(|n| dir(id - 1 - n)).collect();
        let mut options = vec![
            format!("workdir={root}/snapshots/{id}/work"),
            format!("upperdir={}", dir(id)),
            format!("lowerdir={}", lower.join(":")),
        ];
        options.extend(more.iter().map(|&option| option.to_owned()));
        Mount {
            fstype: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options,
        }
    }

    /// The largest number of layers that is not refused.
    fn depth(root: &str, id: u64) -> usize {
        let fits =
            |layers: &usize| check(&overlay(root, *layers, id, &["index=off"]), 4096).is_ok();
        (1..=600).rev().find(fits).unwrap_or(0)
    }

    #[test]
    fn depths() {
        let default = "/var/lib/containerd/io.containerd.snapshotter.v1.nix";
        assert_eq!(depth(default, 999), 500, "by overlayfs");
        assert_eq!(depth(default, 999_999), 391, "by the page");
        assert_eq!(depth(default, 9_999_999_999), 278);
        assert_eq!(depth(&"/r".repeat(900), 999), 60);
        assert_eq!(depth(&"/r".repeat(1030), 999), 0);
        // containerd shortens no single name.
        check(&overlay(&"/r".repeat(900), 1, 999, &[]), 4096).unwrap_err();
        check(&overlay(&"/r".repeat(900), 2, 999, &[]), 4096).unwrap();
    }

    #[test]
    fn refusals_name_the_depth_and_the_way_out() {
        let refusal = |mount| check(&mount, 4096).unwrap_err().to_string();
        let deep = refusal(overlay("/r", 501, 999, &[]));
        assert!(
            deep.contains(" 501 layers") && deep.contains("500"),
            "{deep}"
        );
        let long = refusal(overlay(&"/r".repeat(900), 61, 999, &["index=off"]));
        assert!(
            long.contains(" 61 layers") && long.contains("shorter"),
            "{long}"
        );
        let mapped = overlay(
            &"/r".repeat(900),
            67,
            999,
            &["uidmap=0:1:2", "gidmap=0:1:2"],
        );
        check(&mapped, 4096).unwrap();
        let fuse = Mount {
            fstype: "fuse3.fuse-overlayfs".to_owned(),
            ..overlay("/r", 501, 999, &[])
        };
        check(&fuse, 4096).unwrap();
        check(&overlay("/r", 300, 999_999_999_999, &[]), 65_536).unwrap();
    }

    /// What [`shortened`] counts is what the kernel takes to the byte, and 500 what overlayfs takes.
    #[test]
    fn the_limits_are_the_kernels() {
        const TEST: &str = "mount_limits::tests::the_limits_are_the_kernels";
        if !isolated(NAMESPACE, TEST) {
            return;
        }
        let page = rustix::param::page_size();
        let base = tempfile::tempdir().unwrap();
        std::env::set_current_dir(base.path()).unwrap();
        for dir in ["upper", "work", "merged"] {
            fs::create_dir(dir).unwrap();
        }
        let attempt = |lower: &[String]| {
            lower
                .iter()
                .for_each(|dir| fs::create_dir_all(dir).unwrap());
            let data = format!("upperdir=upper,workdir=work,lowerdir={}", lower.join(":"));
            let made = mount(
                "overlay",
                "merged",
                "overlay",
                MountFlags::empty(),
                Some(&*std::ffi::CString::new(data.clone()).unwrap()),
            );
            if made.is_ok() {
                unmount("merged", UnmountFlags::empty()).unwrap();
            }
            (data.len(), made.is_ok())
        };
        let layers = |count: usize| (0..count).map(|n| format!("{n}/fs")).collect::<Vec<_>>();
        assert!(attempt(&layers(MAX_LOWER_DIRS)).1);
        assert!(!attempt(&layers(MAX_LOWER_DIRS + 1)).1);

        for (bytes, fits, filler) in [(page - 1, true, "x"), (page, false, "y")] {
            // Long names, so that there are few; the last fills the page.
            let mut lower: Vec<String> = Vec::new();
            let mut left = bytes - "upperdir=upper,workdir=work,lowerdir=".len();
            while left > 250 {
                lower.push(format!("{:0200}", lower.len()));
                left -= 201;
            }
            lower.push(filler.repeat(left));
            assert_eq!(attempt(&lower), (bytes, fits));
        }
    }
}

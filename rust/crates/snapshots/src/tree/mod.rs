//! Walks, measures and deletes the content of layers, which strangers wrote and may be writing to
//! right now.
//!
//! Three dangers, and what is done about each:
//! - *A file system mounted inside.* A bind mount of a layer takes part in the propagation of the
//!   mount that it was made from, so what is mounted into a container can show up below the layer
//!   too, and a store path that is mounted there must never be deleted through it. No walk enters a
//!   mount: `openat2` with `RESOLVE_NO_XDEV`, Linux 5.6.
//! - *Links.* No path is resolved: every step opens one name below an open directory, and follows
//!   no link.
//! - *Depth.* A process can nest directories without bound. A walk holds the names on its way and
//!   one open directory.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxAttributes, StatxFlags,
    openat, openat2, statx, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::model::Usage;

/// What a walk does; `dir` is always the directory that holds `name`.
trait Visitor {
    /// The word for error messages.
    const OPERATION: &'static str;
    /// A directory was opened.
    fn enter(&mut self, _attributes: &Statx) {}
    /// Anything that is not a directory.
    fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno>;
    /// Something is mounted on this directory.
    fn mount_point(&mut self) -> Result<(), Errno>;
    /// Everything in this directory was visited.
    fn leave(&mut self, _dir: BorrowedFd<'_>, _name: &CStr) -> Result<(), Errno> {
        Ok(())
    }
}

/// Deletes a file or a directory with all that is in it. What is not there is deleted already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    struct Remove;

    impl Visitor for Remove {
        const OPERATION: &'static str = "delete";

        fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
            gone_is_fine(unlinkat(dir, name, AtFlags::empty()))
        }

        fn mount_point(&mut self) -> Result<(), Errno> {
            Err(Errno::BUSY)
        }

        fn leave(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
            gone_is_fine(unlinkat(dir, name, AtFlags::REMOVEDIR))
        }
    }

    walk(path, &mut Remove)
}

/// What a directory and all that is in it takes on the disk, as containerd counts (continuity
/// `fs/du_unix.go`); nothing when there is no such directory.
pub(crate) fn usage(path: &Path) -> Result<Option<Usage>> {
    #[derive(Default)]
    struct Measure {
        usage: Usage,
        /// The files with several names that were counted.
        linked: HashSet<(u32, u32, u64)>,
    }

    impl Measure {
        fn count(&mut self, file: &Statx) {
            self.usage.size += file.stx_blocks * 512;
            self.usage.inodes += 1;
        }
    }

    impl Visitor for Measure {
        const OPERATION: &'static str = "measure";

        fn enter(&mut self, attributes: &Statx) {
            self.count(attributes);
        }

        fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
            let file = match attributes(dir, name) {
                Ok(file) => file,
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno),
            };
            // Linux 5.8 tells where a file is mounted on another.
            let mounted = file.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
            if !mounted && (file.stx_nlink < 2 || self.linked.insert(identity(&file))) {
                self.count(&file);
            }
            Ok(())
        }

        fn mount_point(&mut self) -> Result<(), Errno> {
            Ok(())
        }
    }

    let mut measure = Measure::default();
    walk(path, &mut measure)?;
    Ok((measure.usage.inodes > 0).then_some(measure.usage))
}

fn gone_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    if result == Err(Errno::NOENT) {
        Ok(())
    } else {
        result
    }
}

/// A directory on the way from the top of a walk to where it is.
struct Level {
    name: CString,
    identity: (u32, u32, u64),
    /// The directories in it that are still to be visited.
    pending: Vec<CString>,
}

impl Level {
    fn new(name: &CStr, attributes: &Statx) -> Self {
        Self {
            name: name.to_owned(),
            identity: identity(attributes),
            pending: Vec::new(),
        }
    }
}

/// Walks `path` depth first. What is not there is not visited.
fn walk<V: Visitor>(path: &Path, visitor: &mut V) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::io(V::OPERATION, path)(Errno::INVAL));
    };
    let name = CString::new(name.as_bytes()).map_err(Error::io(V::OPERATION, path))?;
    let mut levels = Vec::new();
    descend(parent, name, &mut levels, visitor)
        .map_err(|errno| Error::io(V::OPERATION, shown(parent, &levels))(errno))
}

/// Does the walk; when it fails, `levels` is the way to where it did.
fn descend<V: Visitor>(
    parent: &Path,
    name: CString,
    levels: &mut Vec<Level>,
    visitor: &mut V,
) -> Result<(), Errno> {
    let mut here = open_top(parent)?;
    let mut top = Level::new(c"", &attributes(&here, c"")?);
    top.pending.push(name);
    levels.push(top);
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            match open_dir(&here, &name) {
                Ok(below) => {
                    here = below;
                    enter(&here, &name, levels, visitor)?;
                }
                Err(Errno::NOENT) => {}
                // It was another thing when it was listed, or is the top of the walk.
                Err(Errno::NOTDIR | Errno::LOOP) => visitor.file(here.as_fd(), &name)?,
                Err(Errno::XDEV) => visitor
                    .mount_point()
                    .inspect_err(|_| fail_at(levels, &name))?,
                Err(errno) => {
                    fail_at(levels, &name);
                    return Err(errno);
                }
            }
        } else {
            let Some(done) = levels.pop().filter(|_| !levels.is_empty()) else {
                break;
            };
            here = ascend(parent, &here, levels)?;
            visitor
                .leave(here.as_fd(), &done.name)
                .inspect_err(|_| fail_at(levels, &done.name))?;
        }
    }
    Ok(())
}

fn fail_at(levels: &mut Vec<Level>, name: &CStr) {
    levels.push(Level {
        name: name.to_owned(),
        identity: (0, 0, 0),
        pending: Vec::new(),
    });
}

fn open_top(parent: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        parent,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Opens a directory without following a link or entering a mount.
fn open_dir(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat2(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    )
}

/// Visits the files of a directory and adds the level with the directories that are in it.
fn enter<V: Visitor>(
    dir: &OwnedFd,
    name: &CStr,
    levels: &mut Vec<Level>,
    visitor: &mut V,
) -> Result<(), Errno> {
    let here = attributes(dir, c"")?;
    visitor.enter(&here);
    let mut level = Level::new(name, &here);
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // The directory was deleted after it was opened.
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(errno),
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match attributes(dir, name) {
                Ok(found) => FileType::from_raw_mode(found.stx_mode.into()),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            },
            kind => kind,
        };
        if kind == FileType::Directory {
            level.pending.push(name.to_owned());
        } else if let Err(errno) = visitor.file(dir.as_fd(), name) {
            levels.push(level);
            fail_at(levels, name);
            return Err(errno);
        }
    }
    levels.push(level);
    Ok(())
}

/// Goes from `here` to the directory above, which is the last of `levels`.
///
/// When `here` was moved or deleted meanwhile, `..` is another directory or none. Then the way is
/// found again from the top, and the levels that are no longer there are given up, like any file
/// that vanishes during a walk.
fn ascend(parent: &Path, here: &OwnedFd, levels: &mut Vec<Level>) -> Result<OwnedFd, Errno> {
    match openat(
        here,
        c"..",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(above) => {
            let found = identity(&attributes(&above, c"")?);
            if levels.last().is_some_and(|level| level.identity == found) {
                return Ok(above);
            }
        }
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let mut dir = open_top(parent)?;
    for depth in 1..levels.len() {
        match open_dir(&dir, &levels[depth].name) {
            Ok(below) if identity(&attributes(&below, c"")?) == levels[depth].identity => {
                dir = below;
            }
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                levels.truncate(depth);
                break;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(dir)
}

fn attributes(dir: impl AsFd, name: &CStr) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(dir, name, flags, StatxFlags::BASIC_STATS)
}

fn identity(file: &Statx) -> (u32, u32, u64) {
    (file.stx_dev_major, file.stx_dev_minor, file.stx_ino)
}

/// Where a walk is, for a message; the way to a very deep place is not told whole.
fn shown(parent: &Path, levels: &[Level]) -> PathBuf {
    let way = levels
        .iter()
        .skip(1)
        .take(32)
        .map(|level| OsStr::from_bytes(level.name.to_bytes()));
    parent.iter().chain(way).collect()
}

#[cfg(test)]
mod tests;

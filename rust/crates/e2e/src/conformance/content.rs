//! What mounted snapshots show, under the names of containerd's tests.

use std::{
    cell::Cell,
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use tonic::Code;

use super::{
    Subject,
    metadata::listed,
    tree::{dir, equal, file, give, remove},
};
use crate::snapshots::{Kind, refused};

/// As many layers as containerd tries.
const MANY: usize = 128;

/// The way of a layer and of one on top of it, from Prepare to Remove.
///
/// # Errors
/// A step of it is not as it should be.
pub fn basic(subject: &Subject) -> Result<()> {
    let first_edit = |root: &Path| {
        file(root, "foo", "foo\n", 0o777)?;
        dir(root, "a/b/c", 0o755)
    };
    let second_edit = |root: &Path| {
        file(root, "bar", "bar\n", 0o777)?;
        file(root, "foo", "bar\n", 0o777)?;
        remove(root, "a/b")
    };
    let flat = subject.work_dir()?.join("flat");
    fs::create_dir(&flat)?;

    let [preparing, first] = ["preparing", "first"].map(|name| subject.key(name));
    let mounted = subject.mount(&subject.prepare(&preparing, "")?)?;
    first_edit(mounted.dir())?;
    first_edit(&flat)?;
    mounted.unmount()?;
    subject.commit(&first, &preparing)?;
    let first_info = subject.is(&first, Kind::Committed, "")?;
    refused(subject.snapshots.stat(&preparing), Code::NotFound, &[])?;

    let [next, second] = ["next", "second"].map(|name| subject.key(name));
    let mounted = subject.mount(&subject.prepare(&next, &first)?)?;
    equal(&flat, mounted.dir())?;
    second_edit(mounted.dir())?;
    second_edit(&flat)?;
    mounted.unmount()?;
    subject.is(&next, Kind::Active, &first)?;
    subject.commit(&second, &next)?;
    let second_info = subject.is(&second, Kind::Committed, &first)?;
    refused(subject.snapshots.stat(&next), Code::NotFound, &[])?;

    let expected = [(first.clone(), first_info), (second.clone(), second_info)];
    ensure!(listed(subject)? == expected.into());

    subject.shows(&second, &flat)?;
    refused(
        subject.snapshots.remove(&first),
        Code::FailedPrecondition,
        &["remove"],
    )?;
    subject.snapshots.remove(&second)?;
    Ok(subject.snapshots.remove(&first)?)
}

/// A file whose content or mode alone changes in the layer above is the one of that layer, whatever
/// their times say. containerd repeats this over the boundaries of seconds, because a layer was
/// once told from the one below by the seconds of its files (docker issue 21555).
///
/// # Errors
/// It is the one of the layer below.
pub fn layer_file_update(subject: &Subject) -> Result<()> {
    let lower_time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for upper_time in [
        lower_time,
        lower_time + Duration::from_nanos(1),
        lower_time + Duration::from_millis(999),
        lower_time + Duration::from_secs(1),
        lower_time - Duration::from_secs(1),
    ] {
        let touch = |root: &Path, time| -> Result<()> {
            for name in ["etc/hosts", "etc/profile"] {
                File::options()
                    .write(true)
                    .open(root.join(name))?
                    .set_modified(time)?;
            }
            Ok(())
        };
        subject.chain(&[
            &|root| {
                dir(root, "etc", 0o700)?;
                file(root, "etc/hosts", "mydomain 10.0.0.1", 0o644)?;
                file(root, "etc/profile", "PATH=/usr/bin", 0o644)?;
                touch(root, lower_time)
            },
            &|root| {
                file(root, "etc/hosts", "mydomain 10.0.0.2", 0o644)?;
                file(root, "etc/profile", "PATH=/usr/bin", 0o666)?;
                dir(root, "root", 0o700)?;
                file(root, "root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644)?;
                touch(root, upper_time)
            },
        ])?;
    }
    Ok(())
}

/// A directory that is removed and made again shows nothing of the one below (docker issue 25244).
///
/// # Errors
/// It does.
pub fn remove_directory_in_lower_layer(subject: &Subject) -> Result<()> {
    subject.chain(&[
        &|root| {
            dir(root, "lib", 0o700)?;
            file(root, "lib/hidden", "", 0o644)
        },
        &|root| {
            remove(root, "lib")?;
            dir(root, "lib", 0o700)?;
            file(root, "lib/not-hidden", "", 0o644)
        },
        &|root| file(root, "lib/new", "", 0o644),
    ])
}

/// Owners that change in the layer above (docker issues 20240, 24913 and 28391).
///
/// # Errors
/// They do not.
pub fn chown(subject: &Subject) -> Result<()> {
    subject.chain(&[
        &|root| {
            for name in ["opt", "opt/a", "opt/a/b"] {
                dir(root, name, 0o700)?;
            }
            file(root, "opt/a/b/file.txt", "hello", 0o644)
        },
        &|root| {
            ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt"]
                .into_iter()
                .try_for_each(|name| give(root, name, 1))
        },
    ])
}

/// Owners and modes of directories over three layers, removed ones and new ones among them (docker
/// issue 27298).
///
/// # Errors
/// They are not kept.
pub fn directory_permission_on_commit(subject: &Subject) -> Result<()> {
    subject.chain(&[
        &|root| {
            for name in ["dir1", "dir2", "dir3", "dir4", "dir5"] {
                dir(root, name, 0o700)?;
            }
            for name in ["dir4/f1", "dir5/f1"] {
                file(root, name, "...", 0o644)?;
            }
            ["dir1", "dir2", "dir3", "dir5", "dir5/f1"]
                .into_iter()
                .try_for_each(|name| give(root, name, 1))
        },
        &|root| {
            give(root, "dir2", 0)?;
            remove(root, "dir3")?;
            give(root, "dir4", 1)?;
            give(root, "dir4/f1", 1)
        },
        &|root| {
            dir(root, "dir3", 0o700)?;
            give(root, "dir3", 1)?;
            remove(root, "dir5")?;
            dir(root, "dir5", 0o700)?;
            give(root, "dir5", 1)
        },
    ])
}

/// What is removed stays so, also through a layer without any change.
///
/// # Errors
/// It comes back.
pub fn deleted_files_in_child_snapshot(subject: &Subject) -> Result<()> {
    subject.chain(&[
        &|root| {
            file(root, "foo", "foo\n", 0o777)?;
            file(root, "foobar", "foobar\n", 0o777)
        },
        &|root| remove(root, "foobar"),
        &|_| Ok(()),
    ])
}

/// A file of the layer below that is linked to another place and removed from its own.
///
/// # Errors
/// It is lost, or in both.
pub fn move_file_from_lower_layer(subject: &Subject) -> Result<()> {
    subject.chain(&[
        &|root| {
            dir(root, "dir1", 0o700)?;
            file(root, "dir1/f1", "Hello", 0o644)?;
            dir(root, "dir2", 0o700)?;
            file(root, "dir2/f2", "...", 0o644)
        },
        &|root| {
            dir(root, "dir3", 0o700)?;
            file(root, "dir3/f1", "Hello", 0o644)?;
            remove(root, "dir1")?;
            fs::hard_link(root.join("dir2/f2"), root.join("dir3/f2"))?;
            remove(root, "dir2/f2")
        },
    ])
}

/// A mounted view cannot be written to, of one layer or of several.
///
/// # Errors
/// It can.
pub fn view_readonly(subject: &Subject) -> Result<()> {
    let [one, two, view] = ["one", "two", "view"].map(|name| subject.key(name));
    subject.empty_layer(&one, "")?;
    subject.empty_layer(&two, &one)?;
    for parent in ["", &one, &two] {
        let mounted = subject.mount(&subject.view(&view, parent)?)?;
        let written = fs::write(mounted.dir().join("file"), "content");
        let refused = written.is_err_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem);
        ensure!(refused, "a view of {parent:?} can be written to");
        mounted.unmount()?;
        subject.snapshots.remove(&view)?;
    }
    subject.snapshots.remove(&two)?;
    Ok(subject.snapshots.remove(&one)?)
}

/// The root of an empty snapshot has the mode 0755.
///
/// # Errors
/// It has another.
pub fn root_permission(subject: &Subject) -> Result<()> {
    let mounted = subject.mount(&subject.prepare(&subject.key("preparing"), "")?)?;
    let mode = fs::metadata(mounted.dir())?.permissions().mode() & 0o7777;
    ensure!(mode == 0o755, "{mode:o}");
    mounted.unmount()
}

/// Renaming onto and away from files of the layer below, and a directory of it (docker issue
/// 25409).
///
/// # Errors
/// Something is lost or in both places.
pub fn rename(subject: &Subject) -> Result<()> {
    // overlayfs refuses the directory unless its `redirect_dir` is on, and programs copy it then.
    let refused = Cell::new(false);
    let rename = |root: &Path, from: &str, to: &str| fs::rename(root.join(from), root.join(to));
    subject.chain(&[
        &|root| {
            dir(root, "dir1", 0o700)?;
            dir(root, "somefiles", 0o700)?;
            file(root, "somefiles/f1", "was here first!", 0o644)?;
            file(root, "somefiles/f2", "nothing interesting", 0o644)
        },
        &|root| {
            // The snapshot comes before the plain directory, where nothing is refused.
            if !refused.get() {
                match rename(root, "dir1", "dir2") {
                    Err(error) if error.kind() == ErrorKind::CrossesDevices => refused.set(true),
                    renamed => renamed.context("dir1")?,
                }
            }
            file(root, "somefiles/f1-overwrite", "new content 1", 0o644)?;
            rename(root, "somefiles/f1-overwrite", "somefiles/f1")?;
            Ok(rename(root, "somefiles/f2", "somefiles/f3")?)
        },
    ])
}

/// A chain so long that the options of its mounts take a page.
///
/// # Errors
/// A layer of it does not show what is below and in it.
pub fn mount_128_layers(subject: &Subject) -> Result<()> {
    let flat = subject.work_dir()?.join("flat");
    fs::create_dir(&flat)?;
    let mut parent = String::new();
    for number in 0..MANY {
        let edit = |root: &Path| -> Result<()> {
            if number == 0 {
                file(root, "bottom", "way at the bottom\n", 0o777)?;
                dir(root, "addhere", 0o755)?;
            }
            file(root, "overwriteme", &format!("{number} WAS HERE!\n"), 0o777)?;
            file(root, &format!("addhere/file-{number}"), "same\n", 0o755)?;
            remove(root, "onlyme")?;
            dir(root, "onlyme", 0o755)?;
            file(root, &format!("onlyme/file-{number}"), "only me!\n", 0o777)
        };
        let name = subject.key(&format!("layer-{number}"));
        subject.layer(&name, &parent, &|root| {
            equal(&flat, root).context("before its edits")?;
            edit(root)?;
            edit(&flat)?;
            equal(&flat, root).context("after its edits")
        })?;
        parent = name;
    }
    subject.shows(&parent, &flat)
}

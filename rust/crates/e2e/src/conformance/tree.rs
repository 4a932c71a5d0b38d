//! Edits of directory trees, and their comparison.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

/// Makes a directory of exactly this mode, with its parents.
pub(super) fn dir(root: &Path, name: &str, mode: u32) -> Result<()> {
    let path = root.join(name);
    fs::create_dir_all(&path)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Writes a file in place and gives it exactly this mode.
pub(super) fn file(root: &Path, name: &str, content: &str, mode: u32) -> Result<()> {
    let path = root.join(name);
    fs::write(&path, content)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Removes whatever has this name, if something has.
pub(super) fn remove(root: &Path, name: &str) -> Result<()> {
    let path = root.join(name);
    let removed = match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Gives something to a user and the group of the same number.
pub(super) fn give(root: &Path, name: &str, id: u32) -> Result<()> {
    Ok(chown(root.join(name), Some(id), Some(id))?)
}

/// Checks that two directories hold the same: names, kinds, modes, owners, contents and hard links.
/// The directories themselves are not compared, nor are times.
pub(super) fn equal(expected: &Path, actual: &Path) -> Result<()> {
    let (expected, actual) = (describe(expected)?, describe(actual)?);
    let differences: Vec<_> = expected
        .keys()
        .chain(actual.keys())
        .filter(|name| expected.get(*name) != actual.get(*name))
        .map(|name| {
            format!(
                "{}: {:?} instead of {:?}",
                name.display(),
                actual.get(name),
                expected.get(name)
            )
        })
        .collect();
    ensure!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

fn describe(root: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut links: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(dir) = rest.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let name = path.strip_prefix(root)?.to_owned();
            let kind = metadata.file_type();
            let what = if kind.is_dir() {
                rest.push(path);
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("link to {:?}", fs::read_link(path)?)
            } else if kind.is_file() {
                if metadata.nlink() > 1 {
                    let inode = (metadata.dev(), metadata.ino());
                    links.entry(inode).or_default().push(name.clone());
                }
                format!("file {:?}", String::from_utf8_lossy(&fs::read(path)?))
            } else {
                format!("{kind:?} {}", metadata.rdev())
            };
            let facts = format!(
                "{:o} {}:{} {what}",
                metadata.mode(),
                metadata.uid(),
                metadata.gid()
            );
            found.insert(name, facts);
        }
    }
    for mut names in links.into_values() {
        names.sort_unstable();
        for name in &names {
            if let Some(facts) = found.get_mut(name) {
                *facts += &format!(" which is all of {names:?}");
            }
        }
    }
    Ok(found)
}

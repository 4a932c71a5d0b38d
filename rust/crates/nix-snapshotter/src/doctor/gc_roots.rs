//! Whether Nix knows the GC roots of layers and archives, and has what they hold.
//!
//! `nix-store --gc --print-roots` would tell, and looks through every process of the machine for
//! it. What counts is in one directory: `gcroots/auto` of Nix's state has a link to each indirect
//! root.

use std::{
    collections::BTreeSet,
    env, fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use super::finding::{Check, Finding};
use crate::{image_service::IMAGES, inventory::entries, nix_snapshotter::GC_ROOTS};

const ROOTS: Check = Check("gc-roots");

/// How many are named of those that something is wrong with.
const NAMED: usize = 3;

pub(super) fn look(root: &Path, store_dir: &str) -> Vec<Finding> {
    let dir = root.join(GC_ROOTS);
    if !dir.exists() {
        return vec![ROOTS.note(format!("{} is made by the first start", dir.display()))];
    }
    let mut findings = Vec::new();
    if access(&dir, Access::WRITE_OK).is_err() {
        findings.push(ROOTS.error(
            format!("{} cannot be written", dir.display()),
            "run as root; otherwise mend its file system or its owner",
        ));
    }
    let state = env::var_os("NIX_STATE_DIR").unwrap_or_else(|| "/nix/var/nix".into());
    let auto = Path::new(&state).join("gcroots/auto");
    let ours = [dir, root.join(IMAGES)]
        .iter()
        .map(|dir| links(dir, true))
        .collect::<io::Result<Vec<_>>>();
    match (ours, links(&auto, false)) {
        (Ok(roots), Ok(indirect)) => {
            let roots = roots.concat();
            let known = indirect.into_iter().map(|(_, target)| target).collect();
            findings.push(check(&roots, &known, store_dir, |path| {
                path.symlink_metadata().is_ok()
            }));
        }
        (Err(error), _) | (_, Err(error)) => {
            findings.push(ROOTS.note(format!("the GC roots cannot be compared: {error}")));
        }
    }
    findings
}

/// The links in a directory, or in its directories, each with its target; none in one that does not
/// exist: its snapshot may have been removed at this moment.
fn links(dir: &Path, below: bool) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let fail =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", dir.display()));
    let mut found = Vec::new();
    for entry in entries(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if below {
            found.extend(links(&path, false)?);
        } else if let Ok(target) = fs::read_link(&path) {
            found.push((path, target));
        }
    }
    Ok(found)
}

fn check(
    roots: &[(PathBuf, PathBuf)],
    known: &BTreeSet<PathBuf>,
    store_dir: &str,
    exists: impl Fn(&Path) -> bool,
) -> Finding {
    let gone: Vec<_> = roots.iter().filter(|(_, target)| !exists(target)).collect();
    if let Some((_, first)) = gone.first() {
        return ROOTS.error(
            format!(
                "{} of {} paths that layers and images hold are gone from {store_dir}: {}",
                gone.len(),
                roots.len(),
                names(gone.iter().map(|(_, target)| target))
            ),
            format!(
                "nix-store --realise {}, or remove the image and pull it again",
                first.display()
            ),
        );
    }
    let unknown: Vec<_> = roots
        .iter()
        .filter(|(root, _)| !known.contains(root))
        .collect();
    if let Some((root, target)) = unknown.first() {
        return ROOTS.error(
            format!(
                "{} of {} GC roots are unknown to Nix, which may delete what they name: {}",
                unknown.len(),
                roots.len(),
                names(unknown.iter().map(|(root, _)| root))
            ),
            format!(
                "nix-store --realise {} --add-root {}",
                target.display(),
                root.display()
            ),
        );
    }
    ROOTS.ok(format!(
        "Nix knows all {} GC roots of layers and images",
        roots.len()
    ))
}

/// The first of several paths.
pub(super) fn names<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> String {
    let named: Vec<_> = paths
        .take(NAMED)
        .map(|path| path.display().to_string())
        .collect();
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    #[test]
    fn roots_are_known_and_hold_something() {
        let path = |text: &str| PathBuf::from(text);
        let roots = [
            (path("/r/1/path"), path("/nix/store/a")),
            (path("/r/2/path"), path("/nix/store/b")),
        ];
        let all: BTreeSet<_> = [path("/r/1/path"), path("/r/2/path"), path("/elsewhere")].into();
        let one: BTreeSet<_> = [path("/r/1/path")].into();
        let finding = check(&roots, &all, "/nix/store", |_| true);
        assert_eq!(finding.level, Level::Ok);
        assert_eq!(check(&[], &one, "/nix/store", |_| true).level, Level::Ok);

        let finding = check(&roots, &one, "/nix/store", |_| true);
        assert_eq!(finding.level, Level::Error);
        let remedy = "nix-store --realise /nix/store/b --add-root /r/2/path";
        assert_eq!(finding.remedy.as_deref(), Some(remedy));

        let finding = check(&roots, &all, "/nix/store", |path| path.ends_with("a"));
        assert_eq!(finding.level, Level::Error);
        assert!(finding.message.contains("1 of 2") && finding.message.contains("/nix/store/b"));
    }
}

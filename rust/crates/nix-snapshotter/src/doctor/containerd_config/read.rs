//! Reading the file and its imports in containerd's order (`cmd/containerd/server/config`).

use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use toml::Table;

use super::model::{Config, Merging};
use crate::doctor::finding::{Check, Finding};

/// Reads `file` and what it imports, and puts them together; the other part is what was found on
/// the way. There is no configuration where the file itself cannot be read.
pub(in crate::doctor) fn read(file: &Path, merging: Merging) -> (Option<Config>, Vec<Finding>) {
    let check = Check("containerd-config");
    let mut findings = Vec::new();
    let mut config: Option<Config> = None;
    let mut seen = BTreeSet::new();
    let mut pending = VecDeque::from([file.to_owned()]);
    while let Some(path) = pending.pop_front() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let table = match parse(&path) {
            Ok(table) => table,
            Err(finding) => {
                findings.push(finding);
                continue;
            }
        };
        match imports(&path, &table) {
            Ok(imported) => pending.extend(imported),
            Err(pattern) => findings.push(check.error(
                format!(
                    "{} imports {pattern:?}, which is no pattern",
                    path.display()
                ),
                "write an absolute path, with `*` for a part of a name",
            )),
        }
        let next = Config::extract(&table);
        config = Some(match config {
            Some(earlier) => earlier.merge(next, merging),
            None => next,
        });
    }
    (config, findings)
}

fn parse(path: &Path) -> Result<Table, Finding> {
    let check = Check("containerd-config");
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => check.error(
            format!("{shown} does not exist: containerd runs with its defaults, and without this snapshotter"),
            "name containerd's file with --containerd-config, or write one with\n\
             containerd config default",
        ),
        _ => check.warning(
            format!("{shown} cannot be read: {error}"),
            "run this command as root",
        ),
    })?;
    toml::from_str(&text).map_err(|error| {
        let reason = error.to_string();
        check.error(
            format!("{shown} is no TOML: {}", reason.trim_end()),
            "mend the line: containerd does not start with it",
        )
    })
}

/// What a file imports: relative to its directory, and `*` in a path stands for anything.
fn imports(file: &Path, table: &Table) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let listed = table.get("imports").and_then(toml::Value::as_array);
    for pattern in listed.into_iter().flatten().filter_map(toml::Value::as_str) {
        let path = file.parent().unwrap_or(Path::new("/")).join(pattern);
        let text = path.to_string_lossy();
        if !text.contains('*') {
            found.push(path);
            continue;
        }
        let matches = glob::glob(&text).map_err(|_| pattern.to_owned())?;
        // What cannot be listed matches nothing, for containerd too.
        found.extend(matches.filter_map(Result::ok));
    }
    Ok(found)
}

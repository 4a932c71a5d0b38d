//! The command lines of Nix that a realisation needs, and what they answer.
//!
//! `nix-store` is the interface that Nix keeps stable, for single-user stores and for
//! those behind `nix-daemon` alike.

use std::path::Path;

use tokio::process::Command;

use crate::{Closure, Error, StoreDir, StorePath};

/// Looked up on the PATH.
pub(crate) const NIX_STORE: &str = "nix-store";

/// Bytes of store paths in one call. Linux allows a quarter of the stack limit
/// for arguments and environment, 2 MiB by default (execve(2)); 10,000 paths and
/// more fit in one call.
const MAX_ARGUMENT_BYTES: usize = 1024 * 1024;

/// Has paths substituted or built. The root of the first is `link`, those of the
/// others `link` with `-2`, `-3`, … at its end.
pub(crate) fn realise(paths: &[StorePath], link: &Path) -> Command {
    let mut command = Command::new(NIX_STORE);
    command
        .arg("--realise")
        .args(as_paths(paths))
        .arg("--add-root")
        .arg(link);
    command
}

/// Asks for what is registered of a valid path, its references for one.
///
/// `--query --references` says the same, but sorts it, and reads the references of each
/// reference for that: 36 ms instead of 22 for 1,000 (Nix 2.26, 2.34).
pub(crate) fn registration(path: &StorePath) -> Command {
    let mut command = Command::new(NIX_STORE);
    command.arg("--dump-db").arg(path.as_path());
    command
}

/// What the answer to [`registration`] has as the references of `path`.
///
/// The lines are path, hash, NAR size, deriver, the number of references and the
/// references (`makeValidityRegistration`, `libstore/store-api.cc`); `None` for anything else.
///
/// # Errors
/// The errors of [`Closure::parse_list`].
pub(crate) fn references(
    store_dir: &StoreDir,
    path: &StorePath,
    answer: &str,
) -> Result<Option<Closure>, Error> {
    let mut lines = answer.splitn(6, '\n');
    let of_path = lines.next() == Some(path.as_str());
    let number = lines.nth(3).and_then(|number| number.parse::<usize>().ok());
    let list = lines.next().unwrap_or_default();
    if !of_path || number != Some(list.lines().count()) {
        return Ok(None);
    }
    Closure::parse_list(store_dir, list).map(Some)
}

/// Asks which paths are not valid: a line for each of them.
pub(crate) fn invalid(paths: &[StorePath]) -> Command {
    let mut command = Command::new(NIX_STORE);
    command
        .args(["--check-validity", "--print-invalid"])
        .args(as_paths(paths));
    command
}

/// Asks for the NAR sizes of valid paths.
pub(crate) fn sizes(paths: &[StorePath]) -> Command {
    let mut command = Command::new(NIX_STORE);
    command.args(["--query", "--size"]).args(as_paths(paths));
    command
}

/// What the answer to [`sizes`] has, a number a line; `None` for anything else.
pub(crate) fn parse_sizes(answer: &str) -> Option<Vec<u64>> {
    answer.lines().map(|line| line.parse().ok()).collect()
}

fn as_paths(paths: &[StorePath]) -> impl Iterator<Item = &Path> {
    paths.iter().map(StorePath::as_path)
}

/// Splits the paths into `number` calls of about as many paths each, or into more, for none to
/// have too many arguments.
pub(crate) fn calls(paths: &[StorePath], number: usize) -> Vec<&[StorePath]> {
    paths
        .chunks(paths.len().div_ceil(number).max(1))
        .flat_map(|chunk| within(chunk, MAX_ARGUMENT_BYTES))
        .collect()
}

/// Splits the paths into calls of at most `budget` bytes of arguments each.
fn within(paths: &[StorePath], budget: usize) -> Vec<&[StorePath]> {
    let mut calls = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, path) in paths.iter().enumerate() {
        // The kernel counts the closing zero and the pointer too.
        let cost = path.as_str().len() + 1 + size_of::<usize>();
        if bytes + cost > budget && at > start {
            calls.push(&paths[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += cost;
    }
    if start < paths.len() {
        calls.push(&paths[start..]);
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a";

    fn paths(count: usize) -> Vec<StorePath> {
        let store_dir = StoreDir::default();
        (0..count)
            .map(|n| store_dir.parse(&format!("/nix/store/{A}-{n}")).unwrap())
            .collect()
    }

    #[test]
    fn calls_keep_every_path_in_order_within_the_budget() {
        let paths = paths(100);
        for budget in [1, 500, 100_000] {
            let calls = within(&paths, budget);
            assert_eq!(calls.concat(), paths);
            assert!(calls.iter().all(|call| !call.is_empty()));
        }
        assert_eq!(within(&paths, 100_000).len(), 1);
        assert_eq!(within(&paths, 1).len(), 100);
        assert!(within(&[], 1).is_empty());
    }

    #[test]
    fn paths_are_shared_out_among_calls() {
        let paths = paths(100);
        for (number, expected) in [(1, 1), (2, 2), (3, 3), (100, 100), (1000, 100)] {
            let calls = calls(&paths, number);
            assert_eq!(calls.concat(), paths);
            assert_eq!(calls.len(), expected, "{number}");
        }
        assert!(calls(&[], 2).is_empty());
    }

    #[test]
    fn references_are_read_from_a_registration_and_from_nothing_else() {
        let store_dir = StoreDir::default();
        let [path, one, two] = paths(3).try_into().unwrap();
        let answer = |count, list: &str| format!("{path}\n0a1b\n4711\n\n{count}\n{list}");
        let of = |answer: &str| references(&store_dir, &path, answer).unwrap();

        let list = format!("{one}\n{two}\n");
        let expected: Closure = [one.clone(), two.clone()].into_iter().collect();
        assert_eq!(of(&answer(2, &list)), Some(expected));
        assert_eq!(of(&answer(0, "")), Some(Closure::default()));
        // Of another path, cut off, two at once, and no registration at all.
        assert_eq!(references(&store_dir, &one, &answer(0, "")).unwrap(), None);
        assert_eq!(of(&answer(3, &list)), None);
        assert_eq!(of(&answer(0, &answer(2, &list))), None);
        assert_eq!(of(""), None);
        assert_eq!(of(&list), None);
    }

    #[test]
    fn sizes_are_numbers_and_nothing_else() {
        assert_eq!(parse_sizes("1\n20\n"), Some(vec![1, 20]));
        assert_eq!(parse_sizes(""), Some(vec![]));
        assert_eq!(parse_sizes("1\nwarning\n"), None);
    }
}

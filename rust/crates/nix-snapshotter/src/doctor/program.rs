//! Programs: where they are, and what they say.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::fs::{Access, access};
use tokio::process::Command;

/// How long a question to Nix may take. Its daemon may have to be started for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The PATH of a running process, where it can be seen.
pub(super) fn path_of(pid: u32) -> Option<OsString> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    let path = variables.find_map(|variable| variable.strip_prefix(b"PATH="))?;
    Some(OsString::from_vec(path.to_vec()))
}

/// Looks a program up on a PATH, or on this process's own.
pub(super) fn find(program: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let own = env::var_os("PATH").unwrap_or_default();
    env::split_paths(path.unwrap_or(&own))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

pub(super) fn is_executable(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

/// What a program writes to standard output; an error is what it writes to standard error, or
/// why it says nothing.
pub(super) async fn output(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let running = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(PATIENCE, running).await {
        Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(output)) => output,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        // The reason stands at the end.
        false => Err(text(&output.stderr)
            .lines()
            .last()
            .unwrap_or("no reason given")
            .to_owned()),
    }
}

/// The first two numbers of the last word that begins with a digit, or with a `v` before it:
/// `nix-store (Nix) 2.34.8`, `v2.1.9+unknown`.
pub(super) fn version_in(text: &str) -> Option<(u32, u32)> {
    let numbers = |word: &str| {
        let mut parts = word
            .trim_start_matches('v')
            .split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    text.split_whitespace().rev().find_map(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, expected) in [
            ("nix-store (Nix) 2.34.8", Some((2, 34))),
            ("nix-store (Nix) 2.19pre20231004_bd0b1ba", Some((2, 19))),
            ("nix-store (Lix, like Nix) 2.91.1", Some((2, 91))),
            ("v2.1.9+unknown", Some((2, 1))),
            ("1.7.24~ds1", Some((1, 7))),
            ("nix-store", None),
            ("", None),
        ] {
            assert_eq!(version_in(text), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_program_that_fails_says_why() {
        let sh = find("sh", None).unwrap();
        assert_eq!(output(&sh, &["-c", "echo out"]).await, Ok("out".to_owned()));
        let failed = output(&sh, &["-c", "echo first >&2; echo reason >&2; exit 1"]).await;
        assert_eq!(failed, Err("reason".to_owned()));
        assert!(find("sh", Some(OsStr::new("/nowhere"))).is_none());
    }

    #[test]
    fn the_path_of_a_process_is_its_own() {
        assert_eq!(path_of(std::process::id()), env::var_os("PATH"));
    }
}

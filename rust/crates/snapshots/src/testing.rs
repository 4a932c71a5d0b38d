//! What several tests need.

use std::process::Command;

/// Makes a user namespace of which this process is root, and a mount namespace that ends with it.
pub(crate) const NAMESPACE: &[&str] = &["unshare", "--user", "--map-root-user", "--mount"];

/// For tests that mount, or change what threads share: true in a process of its own, which
/// `wrapper` started to run `test` alone, and false in the one that had it started.
///
/// `test` is the full name of the calling test. Where `wrapper` cannot run at all, such as in a
/// container without user namespaces, the test says so and passes.
pub(crate) fn isolated(wrapper: &[&str], test: &str) -> bool {
    const INSIDE: &str = "SNAPSHOTS_TEST_ISOLATED";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let wrapped = |inner: &str| {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(inner).env(INSIDE, "1");
        command
    };
    if !wrapped("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: {wrapper:?} is not permitted here");
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let output = wrapped(this.to_str().unwrap())
        .args(["--exact", test])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{test} did not run: {text}");
    false
}

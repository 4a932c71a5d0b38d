//! What several tests need.

use std::process::Command;

/// Makes a user namespace of which this process is root, and a mount namespace that ends with it.
pub(crate) const NAMESPACE: &[&str] = &["unshare", "--user", "--map-root-user", "--mount"];

/// Runs `body` in a process of its own, which `wrapper` starts: for tests that mount, or change what threads share.
///
/// `test` is the name of the calling test and `module` its `module_path!()`. Where `wrapper` cannot run at all, such as
/// in a container without user namespaces, the test says so and passes.
pub(crate) fn isolated(wrapper: &[&str], module: &str, test: &str, body: impl FnOnce()) {
    const INSIDE: &str = "SNAPSHOTS_TEST_ISOLATED";
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let [program, arguments @ ..] = wrapper else {
        panic!("no wrapper")
    };
    let wrapped = |inner: &str| {
        let mut command = Command::new(program);
        command.args(arguments).arg(inner).env(INSIDE, "1");
        command
    };
    if !wrapped("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: {wrapper:?} is not permitted here");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module.split_once("::").unwrap().1);
    let output = wrapped(this.to_str().unwrap())
        .args(["--exact", &name])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("1 passed"), "{name} did not run: {text}");
}

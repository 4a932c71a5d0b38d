//! Images that `nix2container build` makes, run by containerd.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use e2e::{
    containerd::{Containerd, NIX},
    host::{Host, test},
    image::Layer,
    node::{BUSYBOX, Node, busybox_image, reference},
    process::{run, succeed},
    snapshots::says,
    store::Store,
};
use serde_json::json;

use crate::faults::tmpfs;

/// Builds an image upon the one with busybox, with this config, and loads it.
fn loaded(
    host: &Host,
    containerd: &Containerd,
    config: &serde_json::Value,
    flags: &[&str],
) -> Result<String> {
    let image = reference("built");
    let base = busybox_image(host, &image, [])?;
    let file = host.dir().join("config.json");
    fs::write(&file, config.to_string())?;
    let out = host.dir().join("built.tar");
    let mut build = Command::new(host.nix2container());
    build.args(["build", "--ref", &image, "--config"]).arg(file);
    build.arg("--from-image").arg(base).args(flags).arg(&out);
    succeed(&mut build)?;
    containerd.load(NIX, &out)?;
    Ok(image)
}

fn output(containerd: &Containerd, image: &str, script: &str) -> Result<String> {
    let command = [BUSYBOX, "sh", "-c", script];
    containerd.run(NIX, image, &command)?.success()
}

#[test]
fn a_user_of_the_base_layout_has_a_place_for_temporary_files() {
    test(|host| {
        let node = Node::start(host)?;
        let config = json!({"User": "nobody", "WorkingDir": "/tmp"});
        for compression in ["none", "gzip", "zstd"] {
            let flags = ["--base-layout", "--compression", compression];
            let image = loaded(host, &node.containerd, &config, &flags)?;
            let script = format!(
                "{BUSYBOX} id -u; {BUSYBOX} touch file; {BUSYBOX} stat -c %a /tmp /root; {BUSYBOX} pwd"
            );
            let said = output(&node.containerd, &image, &script)?;
            ensure!(said == "65534\n1777\n700\n/tmp\n", "{compression}: {said}");
        }
        Ok(())
    });
}

#[test]
fn a_user_of_copy_to_root_is_found_before_anything_is_mounted() {
    test(|host| {
        let node = Node::start(host)?;
        let store = Store::new(host)?;
        let users = store.build(
            "users",
            "$busybox mkdir -p $out/etc; echo ann:x:1234:5678::/: > $out/etc/passwd; \
             echo staff:x:5678: > $out/etc/group; echo text > $out/etc/motd",
            &[],
        )?;
        let link = store.build("env", &format!("$busybox ln -s {users} $out"), &[&users])?;
        let list = |name: &str, paths: &[&str]| -> Result<String> {
            let file = host.dir().join(name);
            fs::write(&file, json!(paths).to_string())?;
            Ok(file.display().to_string())
        };
        let closure = host.dir().join("closure.list");
        fs::write(&closure, format!("{users}\n{link}\n"))?;
        let closure = closure.display().to_string();
        let roots = list("roots.json", &[link.path()])?;
        let config = json!({"User": "ann:staff"});
        let script = format!(
            "{BUSYBOX} id -u; {BUSYBOX} id -g; {BUSYBOX} cat /etc/motd; {BUSYBOX} readlink /etc/motd"
        );
        for mode in ["symlink", "copy"] {
            let flags = [
                "--closure",
                &closure,
                "--copy-to-root",
                &roots,
                "--copy-to-root-mode",
                mode,
            ];
            let image = loaded(host, &node.containerd, &config, &flags)?;
            let script = match mode {
                "copy" => script.replace("readlink", "test ! -L"),
                _ => script.clone(),
            };
            let said = output(&node.containerd, &image, &script)?;
            let target = match mode {
                "copy" => String::new(),
                _ => format!("{}\n", Path::new(users.path()).join("etc/motd").display()),
            };
            ensure!(
                said == format!("1234\n5678\ntext\n{target}"),
                "{mode}: {said}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_full_disk_is_told_in_one_line_and_nothing_is_left_on_it() {
    test(|host| {
        let disk = tmpfs(host, "size=1m")?;
        let mut content = vec![0; 4 << 20];
        fastrand::Rng::with_seed(1).fill(&mut content);
        let layer = Layer::default().file("content", 0o644, &content)?;
        let base = busybox_image(host, &reference("large"), [layer])?;
        let build = |out: &Path| {
            let mut build = Command::new(host.nix2container());
            build.args(["build", "--ref", "a", "--from-image"]);
            build.arg(&base).arg(out);
            build
        };
        let out = disk.join("out.tar");
        let said = run(&mut build(&out))?.failure()?;
        says(&said, &["out.tar", "No space left"])?;
        ensure!(said.lines().count() == 1, "{said}");
        ensure!(fs::read_dir(&disk)?.next().is_none(), "something is left");

        // An archive that was there is not lost.
        fs::write(&out, "the old one")?;
        run(&mut build(&out))?.failure()?;
        ensure!(fs::read(&out)? == b"the old one");
        ensure!(fs::read_dir(&disk)?.count() == 1, "something is left");
        fs::remove_file(&out)?;

        let layout = disk.join("layout");
        let said = run(build(&layout).args(["--format", "directory"]))?.failure()?;
        says(&said, &["layout", "No space left"])?;
        ensure!(fs::read_dir(&disk)?.next().is_none(), "something is left");

        let mut to_stdout = Command::new("sh");
        to_stdout.args(["-c", "exec \"$@\" > /dev/full", "sh"]);
        to_stdout.arg(host.nix2container());
        to_stdout.args(["build", "--ref", "a", "--from-image"]);
        let said = run(to_stdout.arg(&base).arg("-"))?.failure()?;
        says(&said, &["cannot write the archive", "No space left"])?;

        // What comes from a pipe is kept in a temporary file meanwhile.
        let mut load = Command::new("sh");
        load.args(["-c", "exec \"$1\" load - < \"$2\"", "sh"]);
        load.arg(host.nix2container()).arg(&base);
        let said = run(load.env("TMPDIR", &disk))?.failure()?;
        says(
            &said,
            &[
                "standard input",
                "No space left",
                &disk.display().to_string(),
            ],
        )?;
        ensure!(said.lines().count() == 1, "{said}");
        Ok(())
    });
}

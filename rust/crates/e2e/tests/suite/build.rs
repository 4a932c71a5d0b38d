//! Images that `nix2container build` makes, run by containerd.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use e2e::{
    containerd::{Containerd, NIX},
    host::{Host, test},
    node::{BUSYBOX, Node, busybox_image, reference},
    process::succeed,
    store::Store,
};
use serde_json::json;

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

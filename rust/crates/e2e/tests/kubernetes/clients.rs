//! Other clients of a node: crictl and nerdctl.

use std::{path::Path, process::Command};

use anyhow::ensure;
use e2e::{
    archive::image,
    containerd::NIX,
    host::test,
    node::{build, reference},
    process::{run, succeed},
    snapshots::says,
};

use crate::cluster::{Cluster, hello_archive, tool};

#[test]
fn crictl_pulls_inspects_and_removes_an_image() {
    test(|host| {
        let cluster = Cluster::start(host)?;
        let archive = hello_archive(host)?;
        let image = image(&archive);
        let pulled = succeed(&mut cluster.crictl(&["pull", &image]))?;
        ensure!(pulled.contains("sha256:"), "{pulled}");
        let inspected = cluster.crictl_json("inspecti", &[&image])?;
        let status = &inspected["status"];
        let tag = format!("{image}:latest");
        ensure!(status["repoTags"][0] == *tag, "{inspected}");
        ensure!(cluster.held().len() == 1, "{:?}", cluster.held());
        let listed = succeed(&mut cluster.crictl(&["images"]))?;
        ensure!(listed.contains(&image), "{listed}");
        succeed(&mut cluster.crictl(&["rmi", &image]))?;
        ensure!(
            run(&mut cluster.crictl(&["inspecti", &image]))?
                .failure()
                .is_ok()
        );
        cluster.keeps_nothing()?;
        let said = run(&mut cluster.crictl(&["pull", "nix:0/etc/passwd"]))?.failure()?;
        says(&said, &["/nix/store"])
    });
}

#[test]
fn nerdctl_runs_an_image() {
    test(|host| {
        let nerdctl = tool(host, "NERDCTL_BIN")?;
        let cluster = Cluster::start(host)?;
        // Not where the CRI is, which gives every image a second name.
        let client = |program: &Path| {
            let mut command = Command::new(program);
            command.arg("--address").arg(cluster.containerd.socket());
            command.args(["--namespace", "nerdctl"]);
            command
        };
        let hello = format!("{}/bin/hello", host.fixture("hello")?);
        let image = reference("hello");
        let info = host.fixture("hello-closure-info")?;
        let archive = build(host, &image, &[&hello], &info, &[])?;
        let mut load = client(host.nix2container());
        succeed(load.args(["load", "--snapshotter", NIX]).arg(archive))?;
        let nerdctl = |arguments: &[&str]| {
            let mut command = client(&nerdctl);
            command
                .args(["--snapshotter", NIX, "--cgroup-manager", "cgroupfs"])
                .arg("--data-root")
                .arg(host.dir().join("nerdctl"))
                .args(arguments);
            command
        };
        let printed = succeed(&mut nerdctl(&["run", "--rm", "--net", "none", &image]))?;
        ensure!(printed == "Hello, world!\n", "{printed:?}");
        succeed(&mut nerdctl(&["rmi", &image]))?;
        // Versions before 2.2 leave a mount of the image behind, and with it the directory of a layer.
        cluster.keeps_nothing()
    });
}

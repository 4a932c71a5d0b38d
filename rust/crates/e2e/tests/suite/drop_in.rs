//! The file that the modules drop in for k3s, beside a configuration such as k3s writes.

use std::{fs, path::Path, process::Command};

use anyhow::ensure;
use e2e::{containerd::Config, host::test, process::succeed};

#[test]
fn k3s_containerd_takes_the_snapshotter_from_a_file_beside_its_own() {
    test(|host| {
        let reason = "containerd merges imported files key by key since 2.0";
        host.requires(Config::formats()?.contains(&3), reason)?;
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../../tests/golden/k3s/files/k3s-nix-snapshotter.toml");
        let file = host.dir().join("config.toml");
        // What k3s 1.35 writes for `--snapshotter=nix-snapshotter`, as far as it matters.
        let written = format!(
            r#"version = 3
imports = [{golden:?}]
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "nix-snapshotter"
  disable_snapshot_annotations = true
  use_local_image_pull = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "rancher/mirrored-pause:3.6"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"#
        );
        fs::write(&file, written)?;
        let merged = succeed(
            Command::new("containerd")
                .arg("--config")
                .arg(&file)
                .args(["config", "dump"]),
        )?;
        for line in [
            "snapshotter = 'nix-snapshotter'",
            "disable_snapshot_annotations = false",
            // What only k3s has stays.
            "sandbox = 'rancher/mirrored-pause:3.6'",
            "[proxy_plugins.nix-snapshotter]",
            "address = '/run/nix-snapshotter/nix-snapshotter.sock'",
        ] {
            ensure!(merged.contains(line), "no {line} in:\n{merged}");
        }
        Ok(())
    });
}

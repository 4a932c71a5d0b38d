//! What a containerd is configured with.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{NIX, OVERLAYFS};
use crate::{image::architecture, process::succeed};

/// The namespace in which the CRI has everything.
const KUBERNETES: &str = "k8s.io";

/// The directory of networks, in that of containerd.
pub(super) const NETWORKS: &str = "cni";

/// Where Debian has the plugins for networks.
const PLUGINS: &str = "/usr/lib/cni";

/// How a containerd is set up.
#[derive(Clone, Debug)]
pub struct Config {
    pub(super) namespace: String,
    version: u32,
    capabilities: Vec<&'static str>,
    exported_root: Option<PathBuf>,
    cri: Option<Cri>,
}

#[derive(Clone, Debug)]
struct Cri {
    pause_image: String,
    ignore_image_volumes: bool,
    snapshotter: &'static str,
    has_network: bool,
}

impl Default for Config {
    /// Without the CRI, whose plugins take long to start, in the format that 1.7 to 2.x read.
    fn default() -> Self {
        Self {
            namespace: "e2e".to_owned(),
            version: 2,
            capabilities: Vec::new(),
            exported_root: None,
            cri: None,
        }
    }
}

impl Config {
    /// With the CRI on top of the snapshotter `nix`. Pods are held by a container of the image
    /// `pause_image`. Everything is in the namespace that the CRI has for itself.
    #[must_use]
    pub fn with_cri(pause_image: &str) -> Self {
        Self {
            namespace: KUBERNETES.to_owned(),
            cri: Some(Cri {
                pause_image: pause_image.to_owned(),
                ignore_image_volumes: false,
                snapshotter: NIX,
                has_network: false,
            }),
            ..Self::default()
        }
    }

    /// Sets `ignore_image_defined_volumes` of the CRI.
    #[must_use]
    pub fn ignoring_image_volumes(mut self) -> Self {
        if let Some(cri) = &mut self.cri {
            cri.ignore_image_volumes = true;
        }
        self
    }

    /// Gives pods a network: a bridge of this machine, which ports of the host lead to.
    #[must_use]
    pub fn with_network(mut self) -> Self {
        if let Some(cri) = &mut self.cri {
            cri.has_network = true;
        }
        self
    }

    /// What the CRI's network plugins are configured with, if there are any.
    pub(super) fn network(&self, dir: &Path) -> Option<String> {
        self.cri.as_ref().filter(|cri| cri.has_network)?;
        let network = json!({
            "cniVersion": "1.0.0",
            "name": "e2e",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "e2e0",
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": dir.join("addresses"),
                        "ranges": [[{ "subnet": "10.88.0.0/16" }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            ],
        });
        Some(network.to_string())
    }

    /// Has the CRI use containerd's own snapshotter.
    #[must_use]
    pub fn other_default_snapshotter(mut self) -> Self {
        if let Some(cri) = &mut self.cri {
            cri.snapshotter = OVERLAYFS;
        }
        self
    }

    /// Tells containerd the root of the snapshotter `nix`, whose file system kubelet looks at.
    #[must_use]
    pub fn exporting_root(mut self, root: &Path) -> Self {
        self.exported_root = Some(root.to_owned());
        self
    }

    /// Tells containerd that the snapshotter `nix` has a capability.
    #[must_use]
    pub fn capability(mut self, name: &'static str) -> Self {
        self.capabilities.push(name);
        self
    }

    /// Another version of the format of the file.
    #[must_use]
    pub fn format(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// The versions of the format that the containerd on the PATH reads.
    ///
    /// # Errors
    /// It does not say which version it is.
    pub fn formats() -> Result<Vec<u32>> {
        let printed = succeed(Command::new("containerd").arg("--version"))?;
        let mut words = printed.split_whitespace();
        let major = words.find_map(|word| {
            let (major, _) = word.trim_start_matches('v').split_once('.')?;
            major.parse::<u32>().ok()
        });
        Ok(match major.with_context(|| printed.clone())? {
            0..2 => vec![2],
            _ => vec![2, 3],
        })
    }

    pub(super) fn file(&self, dir: &Path, socket: &Path, snapshotter: &Path) -> String {
        let shown = dir.display();
        let platform = format!("linux/{}", architecture());
        let unpack = |snapshotter| {
            format!(
                "{{ platform = {platform:?}, snapshotter = {snapshotter:?}, differ = \"walking\" }}"
            )
        };
        let mut disabled = vec![
            "io.containerd.snapshotter.v1.blockfile",
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.devmapper",
            "io.containerd.snapshotter.v1.zfs",
            "io.containerd.snapshotter.v1.erofs",
            "io.containerd.nri.v1.nri",
        ];
        if self.cri.is_none() {
            disabled.extend([
                "io.containerd.grpc.v1.cri",
                "io.containerd.cri.v1.images",
                "io.containerd.cri.v1.runtime",
                "io.containerd.podsandbox.controller.v1.podsandbox",
            ]);
        }
        let mut file = format!(
            r#"version = {}
root = "{shown}/root"
state = "{shown}/state"
disabled_plugins = {disabled:?}

[grpc]
  address = {socket:?}

[ttrpc]
  address = "{shown}/ttrpc"

[proxy_plugins.nix]
  type = "snapshot"
  address = {snapshotter:?}
  capabilities = {:?}

[plugins."io.containerd.transfer.v1.local"]
  unpack_config = [{}, {}]
"#,
            self.version,
            self.capabilities,
            unpack(OVERLAYFS),
            unpack(NIX),
        );
        if let Some(root) = &self.exported_root {
            file += &format!("[proxy_plugins.nix.exports]\n  root = {root:?}\n");
        }
        if let Some(cri) = &self.cri {
            file += &cri.section(self.version, dir);
        }
        file
    }
}

impl Cri {
    /// As `docs/daemon.md` says, without a network but the host's by default, and without the capability
    /// (CAP_SYS_RESOURCE) that the scores of pods want.
    fn section(&self, version: u32, dir: &Path) -> String {
        let Self {
            pause_image,
            ignore_image_volumes,
            snapshotter,
            ..
        } = self;
        let cni = dir.join(NETWORKS);
        if version < 3 {
            return format!(
                r#"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {pause_image:?}
  ignore_image_defined_volumes = {ignore_image_volumes}
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = {cni:?}
    bin_dir = {PLUGINS:?}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = {snapshotter:?}
    disable_snapshot_annotations = false
    # Without a table of runtimes containerd 2.x overlooks the snapshotter (`plugins/cri/images`).
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#
            );
        }
        format!(
            r#"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = {snapshotter:?}
  disable_snapshot_annotations = false
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = {pause_image:?}
[plugins."io.containerd.cri.v1.runtime"]
  ignore_image_defined_volumes = {ignore_image_volumes}
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    conf_dir = {cni:?}
    bin_dir = {PLUGINS:?}
"#
        )
    }
}

//! Whether containerd can take an image: asked before anything is fetched for it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use containerd_client::services::v1::{
    Plugin, PluginsRequest, introspection_client::IntrospectionClient,
};
use cri_api::v1::{
    ImageFsInfoRequest, StatusRequest, runtime_service_client::RuntimeServiceClient,
};
use image_loader::Client;
use serde::Deserialize;
use tonic::transport::Channel;

use super::forward::{Containerd, MAX_MESSAGE};
use crate::error::Error;

/// The type of containerd's plugins that are snapshotters.
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// What containerd has to know of this daemon.
#[derive(Clone)]
pub(super) struct Ours {
    /// The name that it has among containerd's proxy plugins.
    pub(super) plugin: String,
    /// Its socket.
    pub(super) address: PathBuf,
    /// Where it keeps snapshots.
    pub(super) root: PathBuf,
}

/// The part of the CRI's configuration that says which snapshotter pods get, as `crictl info` shows
/// it (`internal/cri/config`).
#[derive(Default, Deserialize)]
struct CriConfig {
    #[serde(default)]
    containerd: ContainerdConfig,
}

#[derive(Default, Deserialize)]
struct ContainerdConfig {
    /// Up to 1.7. Later it belongs to the images, and is not shown.
    #[serde(default)]
    snapshotter: String,
    #[serde(default)]
    runtimes: HashMap<String, Runtime>,
}

#[derive(Deserialize)]
struct Runtime {
    #[serde(default)]
    snapshotter: String,
}

impl Containerd {
    /// Refuses a containerd that does not know this daemon, or whose pods get their images from
    /// another snapshotter, as far as it tells. `runtime` is that of the pod; empty, the default.
    pub(super) async fn check_snapshotter(&self, ours: &Ours, runtime: &str) -> Result<(), Error> {
        let request = PluginsRequest {
            filters: vec![format!("type=={SNAPSHOTTER:?}")],
        };
        let answer = IntrospectionClient::<Channel>::over(self.channel())
            .plugins(request)
            .await;
        let answer = answer.map_err(self.refused("list its plugins"))?;
        let plugins = answer.into_inner().plugins;
        if !plugins.iter().any(|plugin| plugin.id == ours.plugin) {
            let address = ours.address.to_str();
            let known_as = plugins
                .into_iter()
                .find(|plugin| plugin.exports.get("address").map(String::as_str) == address);
            return Err(Error::NoPlugin {
                ours: ours.plugin.clone(),
                socket: self.socket().to_owned(),
                known_as: known_as.map(|plugin| plugin.id),
            });
        }
        let watched = self.cri().image_fs_info(ImageFsInfoRequest {}).await;
        let watched = watched.map_err(self.refused("tell of its file system"))?;
        let watched = watched.into_inner().image_filesystems.into_iter().next();
        let watched = watched.and_then(|usage| usage.fs_id).unwrap_or_default();
        let default = snapshotter_at(Path::new(&watched.mountpoint), &plugins, ours);
        if runtime.is_empty() && default.is_none_or(|default| default == ours.plugin) {
            return Ok(());
        }
        let config = self.cri_config().await?;
        let theirs = config.snapshotter(runtime, default);
        match theirs.filter(|(theirs, _)| *theirs != ours.plugin) {
            None => Ok(()),
            Some((theirs, whose)) => Err(Error::OtherSnapshotter {
                whose,
                theirs: theirs.to_owned(),
                ours: ours.plugin.clone(),
            }),
        }
    }

    async fn cri_config(&self) -> Result<CriConfig, Error> {
        let mut cri = RuntimeServiceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let answer = cri.status(StatusRequest { verbose: true }).await;
        let answer = answer.map_err(self.refused("tell of its configuration"))?;
        let shown = answer.into_inner().info.remove("config");
        // Nothing depends on it but a message.
        Ok(shown
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default())
    }
}

impl CriConfig {
    /// The snapshotter of the pods of a runtime, and whose it is in words; `None` where that does
    /// not show. `default` is the one whose directory containerd has kubelet watch.
    fn snapshotter<'a>(
        &'a self,
        runtime: &str,
        default: Option<&'a str>,
    ) -> Option<(&'a str, String)> {
        let Self { containerd } = self;
        if let Some(found) = containerd.runtimes.get(runtime)
            && !found.snapshotter.is_empty()
        {
            let whose = format!("the runtime {runtime} of containerd's CRI has");
            return Some((&found.snapshotter, whose));
        }
        let has = || "containerd's CRI has by default".to_owned();
        if !containerd.snapshotter.is_empty() {
            return Some((&containerd.snapshotter, has()));
        }
        // containerd 2.0 to 2.3 have kubelet watch the directory of any runtime's snapshotter in the
        // place of the default's (`plugins/cri/images/plugin.go`).
        let is_of_a_runtime = |name: &str| {
            let mut runtimes = containerd.runtimes.values();
            runtimes.any(|runtime| runtime.snapshotter == name)
        };
        let default = default.filter(|name| !is_of_a_runtime(name))?;
        Some((default, has()))
    }
}

/// The snapshotter that a directory belongs to which containerd has kubelet watch: its root, or
/// else the one that is called after it (`plugins/cri/images`).
fn snapshotter_at<'a>(watched: &Path, plugins: &'a [Plugin], ours: &'a Ours) -> Option<&'a str> {
    let root = |plugin: &Plugin| plugin.exports.get("root").cloned();
    let named = |plugin: &Plugin| {
        let name = format!("{SNAPSHOTTER}.{}", plugin.id);
        root(plugin).is_none() && watched.file_name().is_some_and(|file| *file == *name)
    };
    let is_at = |plugin: &&Plugin| {
        root(plugin).is_some_and(|root| watched == Path::new(&root)) || named(plugin)
    };
    let is_ours = |plugin: &&Plugin| plugin.id == ours.plugin;
    if watched == ours.root || plugins.iter().filter(is_at).any(|plugin| is_ours(&plugin)) {
        return Some(&ours.plugin);
    }
    plugins.iter().find(is_at).map(|plugin| &*plugin.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(id: &str, root: Option<&str>) -> Plugin {
        let root = root.map(|root| ("root".to_owned(), root.to_owned()));
        Plugin {
            r#type: SNAPSHOTTER.to_owned(),
            id: id.to_owned(),
            exports: root.into_iter().collect(),
            ..Plugin::default()
        }
    }

    fn ours(plugin: &str) -> Ours {
        Ours {
            plugin: plugin.to_owned(),
            address: "/run/n.sock".into(),
            root: "/var/lib/containerd/io.containerd.snapshotter.v1.nix".into(),
        }
    }

    #[test]
    fn a_directory_is_that_of_the_snapshotter_whose_root_it_is_or_whose_name_it_has() {
        let own = "/var/lib/containerd/io.containerd.snapshotter.v1.nix";
        let overlayfs = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";
        let exported = [
            plugin("overlayfs", Some(overlayfs)),
            plugin("nix", Some("/srv/nix")),
        ];
        let silent = [plugin("overlayfs", Some(overlayfs)), plugin("nix", None)];
        // k3s has one of its own that is called nix.
        let k3s = [plugin("nix", None), plugin("nix-snapshotter", Some(own))];
        for (watched, plugins, name, expected) in [
            ("/srv/nix", &exported, "nix", Some("nix")),
            ("/srv/nix/", &exported, "nix", Some("nix")),
            (overlayfs, &exported, "nix", Some("overlayfs")),
            ("/srv/other", &exported, "nix", None),
            (own, &silent, "nix", Some("nix")),
            (
                "/data/io.containerd.snapshotter.v1.nix",
                &silent,
                "nix",
                Some("nix"),
            ),
            (overlayfs, &silent, "nix", Some("overlayfs")),
            (own, &k3s, "nix-snapshotter", Some("nix-snapshotter")),
            ("", &k3s, "nix-snapshotter", None),
        ] {
            let found = snapshotter_at(Path::new(watched), plugins, &ours(name)).map(str::to_owned);
            assert_eq!(found.as_deref(), expected, "{watched} {name}");
        }
    }

    #[test]
    fn the_snapshotter_of_a_runtime_comes_before_the_default() {
        let old = r#"{"containerd":{"snapshotter":"overlayfs","runtimes":{"runc":{"snapshotter":""},"kata":{"snapshotter":"nix"}}}}"#;
        let new = r#"{"containerd":{"runtimes":{"runc":{"snapshotter":""},"kata":{"snapshotter":"blockfile"}}}}"#;
        for (config, runtime, default, expected) in [
            (old, "", Some("overlayfs"), Some("overlayfs")),
            (old, "runc", Some("overlayfs"), Some("overlayfs")),
            (old, "kata", Some("overlayfs"), Some("nix")),
            (old, "unheard-of", Some("overlayfs"), Some("overlayfs")),
            (new, "", Some("overlayfs"), Some("overlayfs")),
            (new, "kata", Some("nix"), Some("blockfile")),
            (new, "runc", Some("nix"), Some("nix")),
            // Whose directory it is says nothing then.
            (new, "", Some("blockfile"), None),
            ("{}", "", Some("overlayfs"), Some("overlayfs")),
            ("{}", "", None, None),
        ] {
            let config: CriConfig = serde_json::from_str(config).unwrap();
            let found = config.snapshotter(runtime, default).map(|(name, _)| name);
            assert_eq!(found, expected, "{runtime} {default:?}");
        }
    }
}

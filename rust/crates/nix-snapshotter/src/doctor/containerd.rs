//! Whether containerd runs, and what it has made of its configuration.

use std::path::Path;

use containerd_client::services::v1::{
    Plugin, PluginsRequest, introspection_client::IntrospectionClient,
    version_client::VersionClient,
};
use image_loader::Client;

use super::{
    finding::{Check, Finding},
    program::version_in,
};
use crate::{
    client::{Error, Server},
    error::chain,
};

const CONTAINERD: Check = Check("containerd");

/// Plugins without which images are not pulled or unpacked, with what they are to a user.
const NEEDED: [(&str, &str, &str); 4] = [
    ("io.containerd.transfer.v1", "local", "the transfer service"),
    ("io.containerd.grpc.v1", "cri", "the CRI plugin"),
    ("io.containerd.cri.v1", "images", "the CRI image plugin"),
    ("io.containerd.cri.v1", "runtime", "the CRI runtime plugin"),
];

/// Asks for its version and its plugins; the first part is the version.
pub(super) async fn ask(
    containerd: &Path,
    snapshotter: &Path,
) -> (Option<(u32, u32)>, Vec<Finding>) {
    match plugins(containerd).await {
        Ok((text, plugins)) => {
            let version = version_in(&text);
            let mut findings = vec![check_version(&text, version)];
            findings.extend(check_plugins(&plugins, snapshotter));
            (version, findings)
        }
        Err(error) => (None, vec![absence(&error)]),
    }
}

async fn plugins(containerd: &Path) -> Result<(String, Vec<Plugin>), Error> {
    let server = Server::connect(containerd).await?;
    let mut client = VersionClient::over(server.channel());
    let version = server.answer(client.version(())).await?;
    let mut client = IntrospectionClient::over(server.channel());
    let plugins = server
        .answer(client.plugins(PluginsRequest::default()))
        .await?;
    Ok((version.version, plugins.plugins))
}

fn absence(error: &Error) -> Finding {
    let message = chain(error);
    match error {
        Error::NoSocket { .. } | Error::NobodyListens { .. } => CONTAINERD.warning(
            format!("{message}: containerd does not run there"),
            "systemctl start containerd, or name its socket with --containerd-address \
             (k3s: /run/k3s/containerd/containerd.sock)",
        ),
        Error::Permission { .. } => CONTAINERD.warning(message, "run this command as root"),
        _ => CONTAINERD.error(message, "see what it says: journalctl -u containerd"),
    }
}

fn check_version(text: &str, version: Option<(u32, u32)>) -> Finding {
    match version {
        Some((0..1, _) | (1, ..7)) => CONTAINERD.error(
            format!(
                "containerd has version {text}, which mounts nothing below the root of a container"
            ),
            "use containerd 1.7 or newer",
        ),
        Some(_) => CONTAINERD.ok(format!("containerd has version {text}")),
        None => CONTAINERD.note(format!("containerd has the unknown version {text:?}")),
    }
}

fn check_plugins(plugins: &[Plugin], snapshotter: &Path) -> Vec<Finding> {
    let is_ours = |plugin: &&Plugin| {
        let address = plugin.exports.get("address");
        plugin.r#type == "io.containerd.snapshotter.v1"
            && address.is_some_and(|address| Path::new(address) == snapshotter)
    };
    let mut findings = match plugins.iter().find(is_ours) {
        None => vec![CONTAINERD.error(
            format!("containerd has no snapshotter at {}", snapshotter.display()),
            "see containerd-config below; after a change: systemctl restart containerd",
        )],
        Some(plugin) => vec![match init_error(plugin) {
            None => CONTAINERD.ok(format!(
                "containerd has loaded the snapshotter {}",
                plugin.id
            )),
            Some(reason) => CONTAINERD.error(
                format!(
                    "containerd has not loaded the snapshotter {}: {reason}",
                    plugin.id
                ),
                "systemctl restart containerd, after that is mended",
            ),
        }],
    };
    for (kind, id, name) in NEEDED {
        let plugin = plugins
            .iter()
            .find(|plugin| plugin.r#type == kind && plugin.id == id);
        if let Some(reason) = plugin.and_then(init_error) {
            findings.push(CONTAINERD.error(
                format!("containerd has not loaded {name}: {reason}"),
                "see containerd-config below; after a change: systemctl restart containerd",
            ));
        }
    }
    findings
}

fn init_error(plugin: &Plugin) -> Option<&str> {
    let error = plugin.init_err.as_ref()?;
    Some(&error.message)
        .filter(|message| !message.is_empty())
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use containerd_client::google::rpc::Status;

    use super::*;
    use crate::doctor::finding::Level;

    fn plugin(kind: &str, id: &str, address: &str, error: Option<&str>) -> Plugin {
        Plugin {
            r#type: kind.to_owned(),
            id: id.to_owned(),
            exports: [("address".to_owned(), address.to_owned())].into(),
            init_err: error.map(|message| Status {
                message: message.to_owned(),
                ..Status::default()
            }),
            ..Plugin::default()
        }
    }

    #[test]
    fn the_snapshotter_is_the_one_at_our_socket() {
        let snapshotter = "io.containerd.snapshotter.v1";
        let transfer = "io.containerd.transfer.v1";
        let ours = plugin(snapshotter, "nix", "/run/n.sock", None);
        for (plugins, levels) in [
            (vec![ours.clone()], &[Level::Ok][..]),
            (
                vec![plugin(snapshotter, "nix", "/run/other.sock", None)],
                &[Level::Error],
            ),
            (
                vec![plugin(
                    "io.containerd.content.v1",
                    "nix",
                    "/run/n.sock",
                    None,
                )],
                &[Level::Error],
            ),
            (
                vec![plugin(snapshotter, "nix", "/run/n.sock", Some("bad"))],
                &[Level::Error],
            ),
            (
                vec![ours.clone(), plugin(transfer, "local", "", None)],
                &[Level::Ok],
            ),
            (
                vec![ours, plugin(transfer, "local", "", Some("no snapshotter"))],
                &[Level::Ok, Level::Error],
            ),
        ] {
            let findings = check_plugins(&plugins, Path::new("/run/n.sock"));
            let found: Vec<_> = findings.iter().map(|finding| finding.level).collect();
            assert_eq!(found, levels, "{findings:?}");
        }
    }

    #[test]
    fn versions_that_cannot_mount_below_the_root_are_refused() {
        for (text, level) in [
            ("v1.6.33", Level::Error),
            ("1.7.24~ds1", Level::Ok),
            ("v2.1.9+unknown", Level::Ok),
            ("development", Level::Note),
        ] {
            assert_eq!(check_version(text, version_in(text)).level, level, "{text}");
        }
    }
}

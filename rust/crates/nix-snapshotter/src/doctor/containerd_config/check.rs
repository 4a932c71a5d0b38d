//! Whether containerd is told to use this daemon, and told right.

use std::path::{Path, PathBuf};

use super::model::{Config, Cri, Proxy};
use crate::doctor::finding::{Check, Finding, Level};

const CONFIG: Check = Check("containerd-config");
const CRI: Check = Check("cri");

/// Snapshotters that containerd brings along (1.7 to 2.4, on Linux).
const BUILT_IN: [&str; 7] = [
    "overlayfs",
    "native",
    "btrfs",
    "zfs",
    "devmapper",
    "blockfile",
    "erofs",
];

/// What containerd unpacks images for when nothing is said.
const OVERLAYFS: &str = "overlayfs";

/// What the configuration has to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::doctor) struct Facts {
    /// The daemon's socket.
    pub(in crate::doctor) address: PathBuf,
    /// The daemon's root directory.
    pub(in crate::doctor) root: PathBuf,
    /// Whether the daemon's mounts can map ids; `None` where nobody knows.
    pub(in crate::doctor) remap_ids: Option<bool>,
    /// containerd's version, where it runs.
    pub(in crate::doctor) containerd: Option<(u32, u32)>,
}

impl Facts {
    fn is_before_2(&self) -> bool {
        self.containerd.is_some_and(|(major, _)| major < 2)
    }

    /// The CRI plugin pulls by the transfer service from 2.1 on.
    fn may_pull_by_transfer(&self) -> bool {
        self.containerd.is_none_or(|version| version >= (2, 1))
    }
}

/// All that can be said of a configuration.
pub(in crate::doctor) fn check(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = check_version(config, facts);
    let (name, proxy_findings) = check_proxies(config, facts);
    findings.extend(proxy_findings);
    let Some(name) = name else {
        // What else could be said depends on the name.
        return findings;
    };
    let by_cri = check_cri(config, facts, name);
    findings.extend(check_unpack(config, facts, name));
    findings.extend(by_cri);
    findings
}

fn check_version(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match config.version {
        ..=1 => findings.push(CONFIG.warning(
            "the file has version 1 of the format, as nothing else is written at its top",
            "version = 2, and the full names of plugins (containerd config migrate writes them)",
        )),
        3.. if facts.is_before_2() => findings.push(CONFIG.error(
            format!(
                "this containerd cannot read version {} of the format",
                config.version
            ),
            "version = 2, which all versions from 1.7 on read",
        )),
        version => {
            findings.push(CONFIG.ok(format!("the file has version {version} of the format")));
        }
    }
    findings.extend(config.unread_sections.iter().map(|section| {
        CONFIG.warning(
            format!(
                "the section {section:?} is one of version 2, and of this file of version {} \
                 nobody reads it",
                config.version
            ),
            "move its settings to 'io.containerd.cri.v1.images' and 'io.containerd.cri.v1.runtime' \
             (containerd config migrate does so)",
        )
    }));
    findings
}

/// Finds the proxy that leads to the daemon, by its name.
fn check_proxies<'a>(config: &'a Config, facts: &Facts) -> (Option<&'a str>, Vec<Finding>) {
    let socket = facts.address.display();
    let leads_here = |proxy: &Proxy| {
        let address = &proxy.address;
        let path = address.strip_prefix("unix://").unwrap_or(address);
        facts.address == Path::new(path)
    };
    let ours: Vec<_> = config
        .proxies
        .iter()
        .filter(|(_, proxy)| leads_here(proxy))
        .collect();
    let (name, proxy) = match ours[..] {
        [(name, proxy)] => (name, proxy),
        [] => {
            let elsewhere = config.proxies.get("nix").map(|proxy| {
                CONFIG.error(
                    format!(
                        "proxy_plugins.nix leads to {:?}, and the daemon serves on {socket}",
                        proxy.address
                    ),
                    format!("[proxy_plugins.nix]\n  address = \"{socket}\""),
                )
            });
            let missing = || {
                CONFIG.error(
                    format!("no proxy plugin leads to {socket}"),
                    format!("[proxy_plugins.nix]\n  type = \"snapshot\"\n  address = \"{socket}\""),
                )
            };
            return (None, vec![elsewhere.unwrap_or_else(missing)]);
        }
        _ => {
            let names: Vec<_> = ours.iter().map(|(name, _)| name.as_str()).collect();
            let finding = CONFIG.error(
                format!(
                    "{} proxy plugins lead to {socket} ({}): containerd's collector removes by one \
                     name what was made by the other",
                    names.len(),
                    names.join(", ")
                ),
                "keep one of them",
            );
            return (None, vec![finding]);
        }
    };
    (Some(name), check_proxy(name, proxy, facts))
}

fn check_proxy(name: &str, proxy: &Proxy, facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let section = format!("[proxy_plugins.{name}]");
    if proxy.kind != "snapshot" {
        findings.push(CONFIG.error(
            format!("proxy_plugins.{name} has the type {:?}", proxy.kind),
            format!("{section}\n  type = \"snapshot\""),
        ));
    }
    if proxy.address.starts_with("unix://") {
        findings.push(CONFIG.error(
            format!(
                "proxy_plugins.{name} has unix:// in its address, and containerd adds it once more"
            ),
            format!("{section}\n  address = \"{}\"", facts.address.display()),
        ));
    }

    let capability = |wanted: &str| proxy.capabilities.iter().any(|found| found == wanted);
    if capability("rebase") {
        findings.push(CONFIG.error(
            format!(
                "proxy_plugins.{name} has the capability rebase: containerd 2.2 and later prepare \
                 all layers without their parents then, which this snapshotter does not announce"
            ),
            "remove \"rebase\" from its capabilities",
        ));
    }
    match (capability("remap-ids"), facts.remap_ids) {
        (true, Some(false)) => findings.push(CONFIG.error(
            format!(
                "proxy_plugins.{name} has the capability remap-ids, and the kernel, the file system \
                 of the root or `remap_ids` do not let mounts map ids"
            ),
            "remove \"remap-ids\" from its capabilities, or use Linux 5.19 or newer and \
             remap_ids = \"auto\"",
        )),
        (false, Some(true)) => findings.push(CONFIG.warning(
            format!(
                "proxy_plugins.{name} lacks the capability remap-ids: containers in user \
                 namespaces get a copy of each layer"
            ),
            format!("{section}\n  capabilities = [\"remap-ids\"]"),
        )),
        _ => {}
    }

    let exports = format!("[proxy_plugins.{name}.exports]");
    let root = facts.root.display().to_string();
    if proxy.exports.get("root") != Some(&root) {
        findings.push(CONFIG.warning(
            format!(
                "proxy_plugins.{name} does not export the root directory {root}: the kubelet looks \
                 for the space of images elsewhere, and may find a capacity of 0"
            ),
            format!("{exports}\n  root = \"{root}\""),
        ));
    }
    let annotations = "enable_remote_snapshot_annotations";
    if proxy.exports.get(annotations).map(String::as_str) != Some("true") && !facts.is_before_2() {
        findings.push(CONFIG.warning(
            format!(
                "proxy_plugins.{name} does not export {annotations}: the transfer service of \
                 containerd 2.1 and later does not tell which image a layer is of"
            ),
            format!("{exports}\n  {annotations} = \"true\""),
        ));
    }
    if findings.iter().all(|finding| finding.level == Level::Ok) {
        findings.push(CONFIG.ok(format!("proxy_plugins.{name} leads to the daemon")));
    }
    findings
}

/// The list of what the transfer service unpacks for replaces its default, and an entry that
/// leads nowhere keeps the service, and since 2.1 the CRI plugin with it, from loading.
fn check_unpack(config: &Config, facts: &Facts, name: &str) -> Vec<Finding> {
    let remedy = unpack_remedy(name);
    let listed = match &config.unpack {
        Some(listed) => listed.clone(),
        None => vec![OVERLAYFS.to_owned()],
    };
    let has = |snapshotter: &str| listed.iter().any(|entry| entry == snapshotter);
    let mut findings = Vec::new();
    for unknown in listed
        .iter()
        .filter(|entry| !BUILT_IN.contains(&entry.as_str()) && !config.proxies.contains_key(*entry))
    {
        findings.push(CONFIG.error(
            format!(
                "unpack_config of the transfer service names the snapshotter {unknown:?}, which \
                 does not exist: the service does not load, nor does the CRI plugin that needs it"
            ),
            remedy.clone(),
        ));
    }
    if !has(name) {
        let message = format!(
            "unpack_config of the transfer service has no entry for {name}: pulls and imports for \
             it by that service end with \"no unpack platforms defined\""
        );
        findings.push(match pulls_by_transfer(config, facts, name) {
            true => CONFIG.error(message, remedy.clone()),
            false => CONFIG.warning(message, remedy.clone()),
        });
    }
    if !has(OVERLAYFS) {
        findings.push(CONFIG.error(
            "unpack_config of the transfer service has no entry for overlayfs: the list replaces \
             the default, and ordinary images are not unpacked any more",
            remedy,
        ));
    }
    if findings.is_empty() {
        findings.push(CONFIG.ok(format!(
            "the transfer service unpacks for {name} and overlayfs"
        )));
    }
    findings
}

fn unpack_remedy(name: &str) -> String {
    let platform = format!("linux/{}", architecture());
    let entry = |snapshotter: &str| {
        format!(
            "{{ platform = \"{platform}\", snapshotter = \"{snapshotter}\", differ = \"walking\" }}"
        )
    };
    format!(
        "[plugins.\"io.containerd.transfer.v1.local\"]\n  unpack_config = [ {}, {} ]",
        entry(OVERLAYFS),
        entry(name)
    )
}

/// The architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether the CRI plugin pulls for `name` by the transfer service.
fn pulls_by_transfer(config: &Config, facts: &Facts, name: &str) -> bool {
    let cri = config.cri.clone().unwrap_or_default();
    // Each of them has the plugin pull by itself (2.1 and later, `internal/cri/config`).
    let locally = cri.use_local_image_pull == Some(true)
        || cri.disable_snapshot_annotations == Some(false)
        || cri.discard_unpacked_layers == Some(true);
    let pulled_for = cri.snapshotter.as_deref() == Some(name)
        || cri
            .runtime_platforms
            .values()
            .any(|snapshotter| snapshotter == name);
    pulled_for && !locally && facts.may_pull_by_transfer() && !config.cri_is_disabled()
}

fn check_cri(config: &Config, facts: &Facts, name: &str) -> Vec<Finding> {
    if config.cri_is_disabled() {
        return vec![CRI.note("the CRI plugin is disabled: no Kubernetes runs on this containerd")];
    }
    let cri = config.cri.clone().unwrap_or_default();
    let images = match config.version {
        ..=2 => "[plugins.\"io.containerd.grpc.v1.cri\".containerd]",
        _ => "[plugins.\"io.containerd.cri.v1.images\"]",
    };
    let mut findings = check_runtimes(config, &cri, facts, name);
    let default = cri.snapshotter.as_deref().unwrap_or(OVERLAYFS);
    let of_some_runtime = || {
        let mut snapshotters = cri.runtimes.values().chain(cri.runtime_platforms.values());
        snapshotters.any(|snapshotter| snapshotter == name)
    };
    if default == name {
        findings.push(CRI.ok(format!("pods use the snapshotter {name}")));
    } else if of_some_runtime() {
        findings.push(CRI.note(format!("pods use {default}, but for some runtimes {name}")));
    } else {
        findings.push(CRI.warning(
            format!(
                "pods use the snapshotter {default}, and layers of store paths stay empty there"
            ),
            format!("{images}\n  snapshotter = \"{name}\""),
        ));
        return findings;
    }
    if cri.disable_snapshot_annotations != Some(false) {
        findings.push(CRI.warning(
            "disable_snapshot_annotations is not false: snapshots do not tell their image, and \
             containerd 2.1 and later pull by the transfer service",
            format!("{images}\n  disable_snapshot_annotations = false"),
        ));
    }
    if cri.discard_unpacked_layers == Some(true) {
        findings.push(CRI.warning(
            "discard_unpacked_layers is true: an image whose snapshots are lost cannot be \
             unpacked again without a pull",
            format!("{images}\n  discard_unpacked_layers = false"),
        ));
    }
    if cri.ignore_image_defined_volumes != Some(true) {
        let section = match config.version {
            ..=2 => "[plugins.\"io.containerd.grpc.v1.cri\"]",
            _ => "[plugins.\"io.containerd.cri.v1.runtime\"]",
        };
        findings.push(CRI.warning(
            "ignore_image_defined_volumes is not true: a pod whose image has VOLUME does not \
             start, because containerd cannot unmount a root of several mounts there",
            format!("{section}\n  ignore_image_defined_volumes = true"),
        ));
    }
    findings
}

/// A runtime's own snapshotter is asked for twice: when an image is pulled for it, and when a
/// container of it is made.
fn check_runtimes(config: &Config, cri: &Cri, facts: &Facts, name: &str) -> Vec<Finding> {
    let default = cri.snapshotter.as_deref().unwrap_or(OVERLAYFS);
    let platforms = "[plugins.\"io.containerd.cri.v1.images\".runtime_platforms";
    let mut findings = Vec::new();
    if config.version <= 2 {
        if facts.is_before_2() {
            return findings;
        }
        // The migration looks for the key `snapshot` and writes `runtime_platform`, in all
        // releases of 2.x (`plugins/cri/images/plugin.go`).
        for (runtime, snapshotter) in &cri.runtimes {
            if snapshotter != default && (snapshotter == name || default == name) {
                findings.push(CRI.error(
                    format!(
                        "runtime {runtime} has the snapshotter {snapshotter}, and containerd 2.x \
                         does not take that over from a file of version 2 when it pulls: images \
                         are unpacked for {default}"
                    ),
                    format!(
                        "version = 3 (containerd config migrate), and there\n\
                         {platforms}.{runtime}]\n  snapshotter = \"{snapshotter}\""
                    ),
                ));
            }
        }
        return findings;
    }
    let mut runtimes: Vec<_> = cri
        .runtimes
        .keys()
        .chain(cri.runtime_platforms.keys())
        .collect();
    runtimes.sort_unstable();
    runtimes.dedup();
    for runtime in runtimes {
        let of = |map: &std::collections::BTreeMap<String, String>| {
            map.get(runtime).map_or(default, String::as_str).to_owned()
        };
        let (pulled, run) = (of(&cri.runtime_platforms), of(&cri.runtimes));
        if pulled != run && (pulled == name || run == name) {
            findings.push(CRI.error(
                format!(
                    "images for the runtime {runtime} are unpacked for {pulled}, and its \
                     containers are made with {run}"
                ),
                format!(
                    "{platforms}.{runtime}]\n  snapshotter = \"{name}\"\n\
                     [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{runtime}]\n  \
                     snapshotter = \"{name}\""
                ),
            ));
        }
    }
    findings
}

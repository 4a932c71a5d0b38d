//! Where each version of containerd's format has the settings that concern a snapshotter.
//!
//! Version 2 is read by 1.7 and 2.x, version 3 by 2.x, version 4 by 2.4. The CRI plugin of
//! version 2 is two plugins from version 3 on: images and runtime.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// The CRI plugin of version 2.
const CRI_V2: &str = "io.containerd.grpc.v1.cri";
/// The two that version 3 makes of it.
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";
/// The transfer service.
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// How containerd lets a file that is imported change what was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::doctor) enum Merging {
    /// A plugin's section replaces the earlier one (1.7).
    Sections,
    /// Each setting replaces the earlier one (2.x).
    Settings,
}

/// One file, or several that were put together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::doctor) struct Config {
    /// Of the format; 1 where none is written.
    pub(super) version: i64,
    pub(super) disabled_plugins: Vec<String>,
    pub(super) proxies: BTreeMap<String, Proxy>,
    pub(super) cri: Option<Cri>,
    pub(super) unpack: Option<Vec<String>>,
    /// Sections of version 2 in a file of a later version, which nobody reads.
    pub(super) unread_sections: Vec<&'static str>,
}

/// An entry of `proxy_plugins`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Proxy {
    pub(super) kind: String,
    pub(super) address: String,
    pub(super) exports: BTreeMap<String, String>,
    pub(super) capabilities: Vec<String>,
}

/// What the CRI plugins are told. `None` is containerd's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Cri {
    pub(super) snapshotter: Option<String>,
    pub(super) disable_snapshot_annotations: Option<bool>,
    pub(super) discard_unpacked_layers: Option<bool>,
    pub(super) ignore_image_defined_volumes: Option<bool>,
    pub(super) use_local_image_pull: Option<bool>,
    /// The snapshotter of a runtime, when a container is made.
    pub(super) runtimes: BTreeMap<String, String>,
    /// The same when an image is pulled; only from version 3 on.
    pub(super) runtime_platforms: BTreeMap<String, String>,
}

impl Config {
    /// What a file says.
    pub(super) fn extract(table: &Table) -> Self {
        let version = table.get("version").and_then(Value::as_integer);
        let version = version.unwrap_or(1);
        let plugins = section(table, "plugins");
        let plugin = |name: &str| plugins.and_then(|plugins| section(plugins, name));
        let cri_v2 = plugin(CRI_V2).or_else(|| plugin("cri").filter(|_| version < 2));
        let (cri, unread_sections) = match version {
            ..=2 => (cri_v2.map(Cri::of_version_2), Vec::new()),
            _ => {
                let (images, runtime) = (plugin(CRI_IMAGES), plugin(CRI_RUNTIME));
                let later = images
                    .or(runtime)
                    .map(|_| Cri::of_version_3(images, runtime));
                // Settings of the stream server are still there.
                let unread = cri_v2.and_then(|cri| section(cri, "containerd"));
                (later, unread.map(|_| CRI_V2).into_iter().collect())
            }
        };
        Self {
            version,
            disabled_plugins: strings(table.get("disabled_plugins")),
            proxies: tables(section(table, "proxy_plugins"))
                .map(|(name, proxy)| (name.clone(), Proxy::extract(proxy)))
                .collect(),
            cri,
            unpack: plugin(TRANSFER)
                .and_then(|transfer| transfer.get("unpack_config")?.as_array())
                .map(|entries| {
                    let tables = entries.iter().filter_map(Value::as_table);
                    tables
                        .filter_map(|entry| string(entry, "snapshotter"))
                        .collect()
                }),
            unread_sections,
        }
    }

    /// What is in force when `next` is imported.
    pub(super) fn merge(mut self, next: Self, merging: Merging) -> Self {
        self.disabled_plugins.extend(next.disabled_plugins);
        self.unread_sections.extend(next.unread_sections);
        // Of both versions of containerd, each proxy replaces its namesake.
        self.proxies.extend(next.proxies);
        self.unpack = next.unpack.or(self.unpack);
        self.cri = match (self.cri, next.cri, merging) {
            (Some(earlier), Some(next), Merging::Settings) => Some(earlier.overridden_by(next)),
            (earlier, next, _) => next.or(earlier),
        };
        self
    }

    /// Whether the CRI plugins are turned off, by their names in any version.
    pub(super) fn cri_is_disabled(&self) -> bool {
        self.disabled_plugins
            .iter()
            .any(|plugin| [CRI_V2, CRI_IMAGES, "cri"].contains(&plugin.as_str()))
    }
}

impl Proxy {
    fn extract(table: &Table) -> Self {
        let exports = section(table, "exports").into_iter().flatten();
        Self {
            kind: string(table, "type").unwrap_or_default(),
            address: string(table, "address").unwrap_or_default(),
            exports: exports
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect(),
            capabilities: strings(table.get("capabilities")),
        }
    }
}

impl Cri {
    fn of_version_2(cri: &Table) -> Self {
        let empty = Table::new();
        let containerd = section(cri, "containerd").unwrap_or(&empty);
        Self {
            ignore_image_defined_volumes: boolean(cri, "ignore_image_defined_volumes"),
            runtimes: snapshotters(section(containerd, "runtimes")),
            ..Self::of_images(containerd)
        }
    }

    fn of_version_3(images: Option<&Table>, runtime: Option<&Table>) -> Self {
        let empty = Table::new();
        let (images, runtime) = (images.unwrap_or(&empty), runtime.unwrap_or(&empty));
        let containerd = section(runtime, "containerd").unwrap_or(&empty);
        Self {
            use_local_image_pull: boolean(images, "use_local_image_pull"),
            ignore_image_defined_volumes: boolean(runtime, "ignore_image_defined_volumes"),
            runtimes: snapshotters(section(containerd, "runtimes")),
            runtime_platforms: snapshotters(section(images, "runtime_platforms")),
            ..Self::of_images(images)
        }
    }

    /// The settings that both versions name alike.
    fn of_images(table: &Table) -> Self {
        Self {
            snapshotter: string(table, "snapshotter"),
            disable_snapshot_annotations: boolean(table, "disable_snapshot_annotations"),
            discard_unpacked_layers: boolean(table, "discard_unpacked_layers"),
            ..Self::default()
        }
    }

    fn overridden_by(mut self, next: Self) -> Self {
        self.runtimes.extend(next.runtimes);
        self.runtime_platforms.extend(next.runtime_platforms);
        Self {
            snapshotter: next.snapshotter.or(self.snapshotter),
            disable_snapshot_annotations: next
                .disable_snapshot_annotations
                .or(self.disable_snapshot_annotations),
            discard_unpacked_layers: next
                .discard_unpacked_layers
                .or(self.discard_unpacked_layers),
            ignore_image_defined_volumes: next
                .ignore_image_defined_volumes
                .or(self.ignore_image_defined_volumes),
            use_local_image_pull: next.use_local_image_pull.or(self.use_local_image_pull),
            runtimes: self.runtimes,
            runtime_platforms: self.runtime_platforms,
        }
    }
}

/// The snapshotter of each entry that has one.
fn snapshotters(entries: Option<&Table>) -> BTreeMap<String, String> {
    tables(entries)
        .filter_map(|(name, entry)| Some((name.clone(), string(entry, "snapshotter")?)))
        .filter(|(_, snapshotter)| !snapshotter.is_empty())
        .collect()
}

fn section<'a>(table: &'a Table, name: &str) -> Option<&'a Table> {
    table.get(name)?.as_table()
}

fn tables(table: Option<&Table>) -> impl Iterator<Item = (&String, &Table)> {
    let entries = table.into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name, value.as_table()?)))
}

fn string(table: &Table, name: &str) -> Option<String> {
    table.get(name)?.as_str().map(str::to_owned)
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let values = value.and_then(Value::as_array).into_iter().flatten();
    values
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}

fn boolean(table: &Table, name: &str) -> Option<bool> {
    table.get(name)?.as_bool()
}

//! The image config, and what an image inherits from its base.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};
use serde_json::Value;

use crate::{
    Digest, Error, Platform,
    error::{shorten, shorten_json},
    manifest::null_is_default,
};

/// The image config: what a manifest's `config` refers to.
///
/// Keys are declared in the order of the alphabet, in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Processor architecture in Go's names.
    pub architecture: String,
    /// Who made the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// How a container of the image is started.
    #[serde(deserialize_with = "null_is_default")]
    pub config: RuntimeConfig,
    /// When the image was made, in the format of RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// How the image was made, the oldest step first.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<History>,
    /// Operating system in Go's names.
    pub os: String,
    /// What the layers decompress to.
    pub rootfs: RootFs,
    /// Variant of the architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl ImageConfig {
    /// What the image runs on.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone().filter(|variant| !variant.is_empty()),
        }
    }
}

/// The layers of an image by what they decompress to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// The digests of the uncompressed layers, the lowest first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<Digest>,
    /// `layers`, the only value there is.
    #[serde(rename = "type")]
    pub kind: String,
}

impl Default for RootFs {
    fn default() -> Self {
        Self {
            diff_ids: Vec::new(),
            kind: "layers".to_owned(),
        }
    }
}

impl RootFs {
    /// The chain ID of each layer: the name of its snapshot with all below it
    /// (image-spec, `config.md`, "Layer ChainID").
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain_ids: Vec<Digest> = Vec::new();
        for diff_id in &self.diff_ids {
            chain_ids.push(match chain_ids.last() {
                None => *diff_id,
                Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
            });
        }
        chain_ids
    }
}

/// One step of the making of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Who took the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// When, in the format of RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Whether the step made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// How a container is started: the object `config` of an image config.
///
/// The keys are OCI's, and those of Docker's that nerdctl and podman act upon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RuntimeConfig {
    /// Windows only: the command is one string, escaped already.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub args_escaped: bool,
    /// The default arguments of the entrypoint, or the command where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The environment, each entry as `NAME=value`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<String>,
    /// Ports that the program listens on, as in `80/tcp`.
    #[serde(skip_serializing_if = "KeySet::is_empty")]
    pub exposed_ports: KeySet,
    /// How to tell that the container works (Docker).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Value>,
    /// Arbitrary metadata.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// The shell of commands that are one string (Docker).
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub shell: Vec<String>,
    /// The signal that asks the program to end.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    /// Seconds between that signal and SIGKILL (Docker).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// User and group, by name or number.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// Directories that the program writes to.
    #[serde(skip_serializing_if = "KeySet::is_empty")]
    pub volumes: KeySet,
    /// The directory that the program starts in.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
}

/// The keys of [`RuntimeConfig`].
const KEYS: [&str; 13] = [
    "ArgsEscaped",
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "Shell",
    "StopSignal",
    "StopTimeout",
    "User",
    "Volumes",
    "WorkingDir",
];

impl RuntimeConfig {
    /// Parses the config that a user gives, a JSON object.
    ///
    /// The case of keys does not count, as it does not for programs in Go, and
    /// `entrypoint` is the common spelling in Nix.
    ///
    /// # Errors
    /// [`Error::ConfigKey`] for a key that is unknown or given twice,
    /// [`Error::Config`] for what is not such an object.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let config = |source| Error::Config {
            source: shorten_json(source),
        };
        let given: serde_json::Map<String, Value> = serde_json::from_slice(json).map_err(config)?;
        let mut known = serde_json::Map::new();
        for (key, value) in given {
            let name = KEYS.iter().find(|name| name.eq_ignore_ascii_case(&key));
            let refuse = |reason| Error::ConfigKey {
                key: shorten(&key),
                reason,
            };
            let name = name.ok_or_else(|| refuse("is unknown"))?;
            if known.insert((*name).to_owned(), value).is_some() {
                return Err(refuse("is given twice"));
            }
        }
        serde_json::from_value(Value::Object(known)).map_err(config)
    }

    /// The names of all keys, for messages.
    pub(crate) fn known_keys() -> String {
        KEYS.join(", ")
    }

    /// This config on top of `base`, as a Dockerfile's instructions on top of its `FROM`.
    #[must_use]
    pub fn on_top_of(self, base: Self) -> Self {
        let (entrypoint, cmd) = match (self.entrypoint, self.cmd) {
            // A new entrypoint does not want the arguments of the old one.
            (Some(entrypoint), cmd) => (Some(entrypoint), cmd),
            (None, Some(cmd)) => (base.entrypoint, Some(cmd)),
            (None, None) => (base.entrypoint, base.cmd),
        };
        let mut env = base.env;
        for entry in self.env {
            let name = name_of(&entry);
            match env.iter().position(|old| name_of(old) == name) {
                Some(at) => {
                    // An environment with two values of one name means either to a program.
                    let mut below = env.split_off(at);
                    below.retain(|old| name_of(old) != name);
                    env.push(entry);
                    env.append(&mut below);
                }
                None => env.push(entry),
            }
        }
        let unless_empty = |new: String, old| if new.is_empty() { old } else { new };
        Self {
            args_escaped: self.args_escaped || base.args_escaped,
            cmd,
            entrypoint,
            env,
            exposed_ports: base.exposed_ports.with(self.exposed_ports),
            healthcheck: self.healthcheck.or(base.healthcheck),
            labels: {
                let mut labels = base.labels;
                labels.extend(self.labels);
                labels
            },
            shell: if self.shell.is_empty() {
                base.shell
            } else {
                self.shell
            },
            stop_signal: unless_empty(self.stop_signal, base.stop_signal),
            stop_timeout: self.stop_timeout.or(base.stop_timeout),
            user: unless_empty(self.user, base.user),
            volumes: base.volumes.with(self.volumes),
            working_dir: unless_empty(self.working_dir, base.working_dir),
        }
    }
}

fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// A set that JSON has as an object of empty objects: `{ "80/tcp": {} }`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet(std::collections::BTreeSet<String>);

impl KeySet {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn with(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

impl FromIterator<String> for KeySet {
    fn from_iter<I: IntoIterator<Item = String>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl Serialize for KeySet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Empty {}

        serializer.collect_map(self.0.iter().map(|key| (key, Empty {})))
    }
}

impl<'de> Deserialize<'de> for KeySet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map: BTreeMap<String, IgnoredAny> = null_is_default(deserializer)?;
        Ok(map.into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(json: &Value) -> RuntimeConfig {
        RuntimeConfig::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_config_inherits_as_from_a_dockerfile() {
        for (name, base, own, merged) in [
            ("nothing", json!({}), json!({}), json!({})),
            (
                "env by name, in the place of the old",
                json!({"Env": ["PATH=/bin", "A=1", "B"]}),
                json!({"Env": ["C=3", "A=2", "B=x=y"]}),
                json!({"Env": ["PATH=/bin", "A=2", "B=x=y", "C=3"]}),
            ),
            (
                "an entrypoint resets the command of the base",
                json!({"Entrypoint": ["a"], "Cmd": ["b"]}),
                json!({"Entrypoint": ["c"]}),
                json!({"Entrypoint": ["c"]}),
            ),
            (
                "an entrypoint with a command",
                json!({"Entrypoint": ["a"], "Cmd": ["b"]}),
                json!({"Entrypoint": ["c"], "Cmd": ["d"]}),
                json!({"Entrypoint": ["c"], "Cmd": ["d"]}),
            ),
            (
                "an empty entrypoint resets both",
                json!({"Entrypoint": ["a"], "Cmd": ["b"]}),
                json!({"Entrypoint": []}),
                json!({"Entrypoint": []}),
            ),
            (
                "a command keeps the entrypoint of the base",
                json!({"Entrypoint": ["a"], "Cmd": ["b"]}),
                json!({"Cmd": ["d"]}),
                json!({"Entrypoint": ["a"], "Cmd": ["d"]}),
            ),
            (
                "neither keeps both",
                json!({"Entrypoint": ["a"], "Cmd": ["b"]}),
                json!({"Entrypoint": null, "Cmd": null}),
                json!({"Entrypoint": ["a"], "Cmd": ["b"]}),
            ),
            (
                "labels, ports and volumes are joined",
                json!({"Labels": {"a": "1", "b": "1"}, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/a": {}}}),
                json!({"Labels": {"b": "2", "c": "2"}, "ExposedPorts": {"81/tcp": {}}, "Volumes": {"/b": null}}),
                json!({
                    "Labels": {"a": "1", "b": "2", "c": "2"},
                    "ExposedPorts": {"80/tcp": {}, "81/tcp": {}},
                    "Volumes": {"/a": {}, "/b": {}},
                }),
            ),
            (
                "single values are kept",
                json!({"User": "u", "WorkingDir": "/w", "StopSignal": "TERM", "Shell": ["s"], "StopTimeout": 1, "Healthcheck": {"Test": ["x"]}}),
                json!({"User": "", "WorkingDir": null}),
                json!({"User": "u", "WorkingDir": "/w", "StopSignal": "TERM", "Shell": ["s"], "StopTimeout": 1, "Healthcheck": {"Test": ["x"]}}),
            ),
            (
                "single values are replaced",
                json!({"User": "u", "WorkingDir": "/w", "StopSignal": "TERM"}),
                json!({"User": "v", "WorkingDir": "/x", "StopSignal": "INT"}),
                json!({"User": "v", "WorkingDir": "/x", "StopSignal": "INT"}),
            ),
        ] {
            let result = config(&own).on_top_of(config(&base));
            assert_eq!(serde_json::to_value(result).unwrap(), merged, "{name}");
        }
    }

    #[test]
    fn a_chain_id_is_of_the_layer_and_all_below_it() {
        let rootfs = RootFs {
            diff_ids: [b"a", b"b", b"c"].map(|layer| Digest::of(layer)).to_vec(),
            ..RootFs::default()
        };
        // By `printf '%s %s' | sha256sum`.
        let expected = [
            "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
            "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676",
            "sha256:2fce7f8ce91bcf0a1428b36e1024639fdbd9469eea762dba98aa749631885106",
        ];
        let chain_ids = rootfs
            .chain_ids()
            .iter()
            .map(Digest::to_string)
            .collect::<Vec<_>>();
        assert_eq!(chain_ids, expected);
        assert!(RootFs::default().chain_ids().is_empty());
    }

    #[test]
    fn the_case_of_keys_does_not_count() {
        let parsed = config(&json!({"entrypoint": ["a"], "exposedPorts": {"80/tcp": {}}}));
        assert_eq!(parsed.entrypoint, Some(vec!["a".to_owned()]));
        assert_eq!(
            parsed.exposed_ports,
            KeySet::from_iter(["80/tcp".to_owned()])
        );
    }

    #[test]
    fn what_is_no_config_is_refused_by_name() {
        for (json, words) in [
            (
                r#"{"Entrypiont": ["a"]}"#,
                &["Entrypiont", "unknown", "Entrypoint, Env"][..],
            ),
            (r#"{"Cmd": ["a"], "cmd": ["b"]}"#, &["cmd", "twice"]),
            (r#"{"Cmd": "a"}"#, &["expected a sequence"]),
            ("[]", &["expected a map"]),
            ("{", &["EOF"]),
        ] {
            let error = RuntimeConfig::parse(json.as_bytes()).unwrap_err();
            let message = format!("{error}: {:?}", std::error::Error::source(&error));
            for word in words {
                assert!(message.contains(word), "{json} gave {message}");
            }
        }
    }

    #[test]
    fn every_key_is_known_and_written_in_the_order_of_the_alphabet() {
        let full = json!({
            "ArgsEscaped": true, "Cmd": ["a"], "Entrypoint": ["a"], "Env": ["A=b"],
            "ExposedPorts": {"80/tcp": {}, "1/udp": {}}, "Healthcheck": {"Test": ["NONE"]},
            "Labels": {"b": "x", "a": "y"}, "Shell": ["sh"], "StopSignal": "TERM",
            "StopTimeout": 3, "User": "u", "Volumes": {"/v": {}}, "WorkingDir": "/w",
        });
        let image = ImageConfig {
            architecture: "arm64".into(),
            author: Some("ann".into()),
            config: config(&full),
            created: Some("1970-01-01T00:00:00Z".into()),
            history: vec![History {
                author: Some("ann".into()),
                comment: Some("c".into()),
                created: Some("1970-01-01T00:00:00Z".into()),
                created_by: Some("x".into()),
                empty_layer: true,
            }],
            os: "linux".into(),
            rootfs: RootFs {
                diff_ids: vec![Digest::of(b"")],
                ..RootFs::default()
            },
            variant: Some("v8".into()),
        };
        let written = serde_json::to_string(&image).unwrap();
        let sorted: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written, sorted.to_string());
        assert_eq!(sorted["config"], full);
        assert_eq!(
            full.as_object().unwrap().keys().collect::<Vec<_>>(),
            KEYS.iter().collect::<Vec<_>>()
        );
        assert_eq!(
            serde_json::from_str::<ImageConfig>(&written).unwrap(),
            image
        );
    }
}

//! An image as a table for people.

use indicatif::HumanBytes;
use serde_json::Value;

use crate::{
    image_facts::{ImageFacts, LayerFacts, LayerKind, StorePathFacts},
    output::{Table, count_store_paths, printable},
};

/// All images, an empty line between two.
pub(super) fn of_images(images: &[ImageFacts]) -> String {
    let tables: Vec<_> = images.iter().map(of_image).collect();
    tables.join("\n")
}

fn of_image(image: &ImageFacts) -> String {
    let mut facts = Table::default();
    for name in &image.names {
        facts.row(["name", &printable(name)]);
    }
    facts.row(["digest", &image.digest.to_string()]);
    if let Some(index) = &image.index {
        facts.row(["index", &index.to_string()]);
    }
    facts.row(["platform", &printable(&image.platform)]);
    if image.platforms.len() > 1 {
        facts.row(["platforms", &printable(&image.platforms.join(", "))]);
    }
    if let Some(created) = &image.created {
        facts.row(["created", &printable(created)]);
    }
    if let Ok(Value::Object(config)) = serde_json::to_value(&image.config) {
        for (key, value) in config {
            let key = words(&key);
            for line in lines(&value, &key) {
                facts.row([&*key, &printable(&line)]);
            }
        }
    }

    let mut layers = Table::default();
    layers.row(["LAYER", "SIZE", "KIND"]);
    for layer in &image.layers {
        layers.row([
            &layer.digest.to_string(),
            &HumanBytes(layer.size).to_string(),
            &kind(layer),
        ]);
    }
    let mut text = format!("{facts}\n{layers}");
    let closure = &image.closure;
    if !closure.store_paths.is_empty() {
        let mut paths = Table::default();
        paths.row(["STORE PATH", "NAR SIZE"]);
        for path in &closure.store_paths {
            paths.row([&*path.path, &size(path)]);
        }
        let total = match closure.nar_size {
            Some(bytes) => format!(", {} in all", HumanBytes(bytes)),
            None => String::new(),
        };
        text += &format!(
            "\n{paths}\n{}{total}, {} missing on this machine\n",
            count_store_paths(closure.store_paths.len()),
            closure.missing.len()
        );
    }
    if !closure.is_complete {
        text += "There are more: a closure-info is missing here that lists them.\n";
    }
    text
}

/// What is known of the size of a store path.
fn size(path: &StorePathFacts) -> String {
    match (path.nar_size, path.present) {
        (Some(bytes), _) => HumanBytes(bytes).to_string(),
        (None, true) => "unknown".to_owned(),
        (None, false) => "missing".to_owned(),
    }
}

fn kind(layer: &LayerFacts) -> String {
    match (layer.kind, &layer.closure_info) {
        (LayerKind::NixClosure, Some(closure_info)) => format!("Nix, closure {closure_info}"),
        (LayerKind::Ordinary, _) => format!("ordinary, {}", printable(&layer.media_type)),
        _ => format!("Nix, {} by name", count_store_paths(layer.store_paths)),
    }
}

/// The key of a config in words: `WorkingDir` is `working dir`.
fn words(key: &str) -> String {
    let mut words = String::new();
    for character in key.chars() {
        if character.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(character.to_lowercase());
    }
    words
}

/// The value of a key of a config, a line for each variable, label, volume and port. A command is
/// one line of JSON, which shows where its words end.
fn lines(value: &Value, key: &str) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(variables) if key == "env" => {
            let texts = variables.iter().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        }
        Value::Object(entries) => entries
            .iter()
            .map(|(name, value)| match value {
                Value::Object(nothing) if nothing.is_empty() => name.clone(),
                Value::String(text) => format!("{name}={text}"),
                other => format!("{name}={other}"),
            })
            .collect(),
        other => vec![other.to_string()],
    }
}

#[cfg(test)]
mod tests {
    use nix_image::{Digest, RuntimeConfig};

    use super::*;
    use crate::image_facts::ClosureFacts;

    const INFO: &str = "/nix/store/akvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-closure-info";

    fn path(name: &str, nar_size: Option<u64>, present: bool) -> StorePathFacts {
        StorePathFacts {
            path: format!("/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-{name}"),
            name: name.to_owned(),
            nar_size,
            present,
        }
    }

    fn image() -> ImageFacts {
        let config = r#"{"Entrypoint":["/bin/a","b c"],"Env":["A=1","B=2"],"Labels":{"x":"y\u001b[2J"},
            "Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}},"WorkingDir":"/w","User":"me"}"#;
        let layer = |kind, closure_info: Option<&str>| LayerFacts {
            digest: Digest::of(b"layer"),
            media_type: "tar".to_owned(),
            size: 2048,
            kind,
            closure_info: closure_info.map(str::to_owned),
            store_paths: 3,
        };
        let missing = path("c", None, false);
        ImageFacts {
            names: vec!["a\u{9b}31m".to_owned(), "b".to_owned()],
            digest: Digest::of(b"manifest"),
            index: Some(Digest::of(b"index")),
            platform: "linux/amd64".to_owned(),
            platforms: vec!["linux/amd64".to_owned(), "linux/arm64".to_owned()],
            created: Some("2020-01-01T00:00:00Z".to_owned()),
            config: RuntimeConfig::parse(config.as_bytes()).unwrap(),
            layers: vec![
                layer(LayerKind::Ordinary, None),
                layer(LayerKind::NixClosure, Some(INFO)),
                layer(LayerKind::NixPerPath, None),
            ],
            closure: ClosureFacts {
                is_complete: false,
                nar_size: Some(1024),
                missing: vec![missing.path.clone()],
                store_paths: vec![path("a", Some(1024), true), path("b", None, true), missing],
            },
        }
    }

    #[test]
    fn a_table_has_everything_and_is_harmless() {
        let text = of_images(&[image()]);
        for row in [
            "name           a\\u{9b}31m",
            "name           b",
            "platforms      linux/amd64, linux/arm64",
            "created        2020-01-01T00:00:00Z",
            "entrypoint     [\"/bin/a\",\"b c\"]",
            "env            A=1",
            "env            B=2",
            "labels         x=y\\u{1b}[2J",
            "volumes        /data",
            "exposed ports  80/tcp",
            "working dir    /w",
            "user           me",
            "-a  1.00 KiB",
            "-b  unknown",
            "-c  missing",
            "3 store paths, 1.00 KiB in all, 1 missing on this machine",
            "There are more",
        ] {
            assert!(
                text.contains(&format!("{row}\n")) || text.contains(row),
                "{row}: {text}"
            );
        }
        assert!(
            text.contains(&format!("2.00 KiB  Nix, closure {INFO}\n")),
            "{text}"
        );
        assert!(
            text.contains("2.00 KiB  Nix, 3 store paths by name\n"),
            "{text}"
        );
        assert!(text.contains("2.00 KiB  ordinary, tar\n"), "{text}");
        assert!(text.contains(&image().index.unwrap().to_string()));
        let controls = text.chars().filter(|c| c.is_control() && *c != '\n');
        assert_eq!(controls.count(), 0, "{text:?}");
    }

    #[test]
    fn the_keys_of_json_are_those_that_are_documented() {
        let text = super::super::to_json("x", &[image()]);
        let value: Value = serde_json::from_str(&text).unwrap();
        let keys =
            |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(keys(&value), ["images", "source"]);
        let image = &value["images"][0];
        assert_eq!(
            keys(image),
            [
                "closure",
                "config",
                "created",
                "digest",
                "index",
                "layers",
                "names",
                "platform",
                "platforms",
            ]
        );
        assert_eq!(
            keys(&image["closure"]),
            ["is_complete", "missing", "nar_size", "store_paths"]
        );
        assert_eq!(
            keys(&image["closure"]["store_paths"][0]),
            ["name", "nar_size", "path", "present"]
        );
        assert_eq!(
            keys(&image["layers"][0]),
            [
                "closure_info",
                "digest",
                "kind",
                "media_type",
                "size",
                "store_paths"
            ]
        );
        let kinds = [0, 1, 2].map(|at| image["layers"][at]["kind"].as_str().unwrap());
        assert_eq!(kinds, ["ordinary", "nix-closure", "nix-per-path"]);
        assert_eq!(image["names"][0], "a\u{9b}31m");
        assert_eq!(image["config"]["Entrypoint"][1], "b c");
        assert!(!text.contains('\u{9b}'));
    }
}

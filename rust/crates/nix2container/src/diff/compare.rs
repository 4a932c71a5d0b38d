//! What differs between two images. Nothing is read here.

use std::collections::{BTreeMap, BTreeSet};

use nix_image::Digest;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::image_facts::{ImageFacts, StorePathFacts};

/// All that differs. The keys are those of `diff --json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Difference {
    pub(super) store_paths: StorePathsDifference,
    pub(super) config: Vec<ConfigDifference>,
    pub(super) layers: LayersDifference,
}

/// Store paths of one image and not of the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct StorePathsDifference {
    /// False if one of the images has a closure-info that is not on this machine.
    pub(super) is_complete: bool,
    /// The number of those that both have.
    pub(super) shared: usize,
    pub(super) added: Vec<StorePathFacts>,
    pub(super) removed: Vec<StorePathFacts>,
    pub(super) changed: Vec<Changed>,
}

/// A package that both have, in different versions or builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Changed {
    /// The name without version.
    pub(super) name: String,
    pub(super) a: StorePathFacts,
    pub(super) b: StorePathFacts,
}

/// A field that differs; it is null where it is not set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ConfigDifference {
    pub(super) field: String,
    pub(super) a: Value,
    pub(super) b: Value,
}

/// Layers by their digests, in the order of the images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LayersDifference {
    pub(super) shared: Vec<Digest>,
    pub(super) added: Vec<Digest>,
    pub(super) removed: Vec<Digest>,
}

/// What has to happen to `a` for it to become `b`.
pub(super) fn compare(a: &ImageFacts, b: &ImageFacts) -> Difference {
    let is_complete = a.closure.is_complete && b.closure.is_complete;
    Difference {
        store_paths: StorePathsDifference {
            is_complete,
            ..store_paths(&a.closure.store_paths, &b.closure.store_paths)
        },
        config: config(&fields(a), &fields(b)),
        layers: layers(a, b),
    }
}

fn store_paths(a: &[StorePathFacts], b: &[StorePathFacts]) -> StorePathsDifference {
    let only_of = |these: &[StorePathFacts], others: &[StorePathFacts]| -> Vec<StorePathFacts> {
        let others: BTreeSet<_> = others.iter().map(|path| &path.path).collect();
        let only = these.iter().filter(|path| !others.contains(&path.path));
        only.cloned().collect()
    };
    let (mut removed, mut added) = (only_of(a, b), only_of(b, a));
    let shared = a.len() - removed.len();
    // Of several paths of a package, those of one version belong together first.
    let mut changed = pairs(&mut removed, &mut added, |path| path.name.clone());
    changed.extend(pairs(&mut removed, &mut added, |path| {
        let package = Package::of(&path.name);
        format!("{} {}", package.name, package.output)
    }));
    changed.sort_by(|one, other| (&one.name, &one.a.path).cmp(&(&other.name, &other.a.path)));
    StorePathsDifference {
        is_complete: true,
        shared,
        added,
        removed,
        changed,
    }
}

/// Takes what belongs together out of both lists.
fn pairs(
    removed: &mut Vec<StorePathFacts>,
    added: &mut Vec<StorePathFacts>,
    key: impl Fn(&StorePathFacts) -> String,
) -> Vec<Changed> {
    let mut waiting: BTreeMap<String, Vec<StorePathFacts>> = BTreeMap::new();
    // In reverse, so that the first is the last of its list and taken first.
    for path in added.drain(..).rev() {
        waiting.entry(key(&path)).or_default().push(path);
    }
    let mut changed = Vec::new();
    removed.retain(|a| {
        let Some(b) = waiting.get_mut(&key(a)).and_then(Vec::pop) else {
            return true;
        };
        changed.push(Changed {
            name: Package::of(&a.name).name.to_owned(),
            a: a.clone(),
            b,
        });
        false
    });
    added.extend(waiting.into_values().flatten());
    added.sort_by(|one, other| one.path.cmp(&other.path));
    changed
}

/// The name of a store path in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Package<'a> {
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    pub(super) output: &'a str,
}

impl<'a> Package<'a> {
    /// Splits as Nix does: a version begins behind the first dash that no letter follows
    /// (`DrvName`). What follows the last dash of it and has letters only is an output, as in
    /// `glibc-2.40-bin`.
    pub(super) fn of(name: &'a str) -> Self {
        let begins_version = |(at, _): &(usize, &str)| {
            let next = name[at + 1..].chars().next();
            next.is_some_and(|next| !next.is_ascii_alphabetic())
        };
        let Some((at, _)) = name.match_indices('-').find(begins_version) else {
            return Self {
                name,
                version: "",
                output: "",
            };
        };
        let (name, version) = (&name[..at], &name[at + 1..]);
        let output = version.rsplit_once('-').filter(|(_, output)| {
            !output.is_empty() && output.bytes().all(|byte| byte.is_ascii_alphabetic())
        });
        let (version, output) = output.unwrap_or((version, ""));
        Self {
            name,
            version,
            output,
        }
    }
}

/// What an image says about itself besides its layers.
fn fields(image: &ImageFacts) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(&image.config) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.insert("Platform".to_owned(), image.platform.clone().into());
    fields.insert("Created".to_owned(), image.created.clone().into());
    fields
}

fn config(a: &Map<String, Value>, b: &Map<String, Value>) -> Vec<ConfigDifference> {
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let value = |fields: &Map<String, Value>, key| fields.get(key).cloned().unwrap_or_default();
    keys.into_iter()
        .map(|key| ConfigDifference {
            field: key.clone(),
            a: value(a, key),
            b: value(b, key),
        })
        .filter(|difference| difference.a != difference.b)
        .collect()
}

fn layers(a: &ImageFacts, b: &ImageFacts) -> LayersDifference {
    let digests = |image: &ImageFacts| -> Vec<Digest> {
        image.layers.iter().map(|layer| layer.digest).collect()
    };
    let (a, b) = (digests(a), digests(b));
    let (shared, removed) = a.iter().partition(|digest| b.contains(digest));
    LayersDifference {
        shared,
        removed,
        added: b.into_iter().filter(|digest| !a.contains(digest)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(hash: char, name: &str) -> StorePathFacts {
        StorePathFacts {
            path: format!("/nix/store/{}-{name}", hash.to_string().repeat(32)),
            name: name.to_owned(),
            nar_size: Some(1),
            present: true,
        }
    }

    #[test]
    fn names_are_split_as_nix_does() {
        for (name, expected) in [
            ("hello-2.12", ("hello", "2.12", "")),
            ("glibc-2.40-66-bin", ("glibc", "2.40-66", "bin")),
            ("busybox-static-1.36", ("busybox-static", "1.36", "")),
            ("closure-info", ("closure-info", "", "")),
            ("python3.12-foo-1.0-dev", ("python3.12-foo", "1.0", "dev")),
            ("a-", ("a-", "", "")),
            ("-", ("-", "", "")),
            ("x-1-", ("x", "1-", "")),
        ] {
            let Package {
                name: package,
                version,
                output,
            } = Package::of(name);
            assert_eq!((package, version, output), expected, "{name}");
        }
    }

    #[test]
    fn paths_are_added_removed_changed_or_shared() {
        let a = [
            path('1', "gone-1"),
            path('2', "hello-2.12"),
            path('3', "same-1"),
            path('4', "rebuilt-1"),
            path('5', "glibc-2.40-bin"),
        ];
        let b = [
            path('3', "same-1"),
            path('6', "hello-2.13"),
            path('7', "new"),
            path('8', "rebuilt-1"),
            // An output of its own is no other version of `bin`.
            path('9', "glibc-2.40"),
        ];
        let difference = store_paths(&a, &b);
        assert_eq!(difference.shared, 1);
        assert_eq!(difference.removed, [a[0].clone(), a[4].clone()]);
        assert_eq!(difference.added, [b[2].clone(), b[4].clone()]);
        let changed: Vec<_> = difference.changed.iter().map(|it| (&it.a, &it.b)).collect();
        assert_eq!(changed, [(&a[1], &b[1]), (&a[3], &b[3])]);

        let nothing = store_paths(&a, &a);
        assert_eq!(nothing.shared, a.len());
        assert!(
            nothing.added.is_empty() && nothing.removed.is_empty() && nothing.changed.is_empty()
        );
    }

    #[test]
    fn two_versions_of_a_package_are_told_apart() {
        let a = [path('1', "gcc-13"), path('2', "gcc-14")];
        let b = [
            path('3', "gcc-14"),
            path('4', "gcc-15"),
            path('5', "gcc-16"),
        ];
        let difference = store_paths(&a, &b);
        let changed: Vec<_> = difference
            .changed
            .iter()
            .map(|it| (&*it.a.name, &*it.b.name))
            .collect();
        assert_eq!(changed, [("gcc-13", "gcc-15"), ("gcc-14", "gcc-14")]);
        assert_eq!(difference.added, [b[2].clone()]);
        assert_eq!(difference.removed, []);
    }

    #[test]
    fn fields_that_differ_are_listed_and_no_others() {
        let fields = |json: &str| serde_json::from_str::<Map<String, Value>>(json).unwrap();
        let a = fields(r#"{"Env":["A=1"],"User":"me","Cmd":null}"#);
        let b = fields(r#"{"Env":["A=2"],"User":"me","WorkingDir":"/"}"#);
        let differences = config(&a, &b);
        let names: Vec<_> = differences.iter().map(|it| &*it.field).collect();
        assert_eq!(names, ["Env", "WorkingDir"]);
        assert_eq!(differences[1].a, Value::Null);
        assert!(config(&a, &a).is_empty());
    }
}

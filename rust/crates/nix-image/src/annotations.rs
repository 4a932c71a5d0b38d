//! The annotations of a Nix layer, and the names of labels that containerd gives a meaning.
//!
//! A layer descriptor of a manifest carries annotations. containerd hands those
//! below `containerd.io/snapshot/` to the snapshotter as labels of the layer's
//! snapshot, whatever its configuration (`core/unpack/unpacker.go`, 1.7 to 2.4).
//! Two formats are in use, and one layer may carry both:
//!
//! | format | annotation | value |
//! |---|---|---|
//! | per path | `containerd.io/snapshot/nix-store-path.<n>` | one store path |
//! | closure | `containerd.io/snapshot/nix-closure` | the store path of a closure-info, whose file `store-paths` lists the closure |
//!
//! `containerd.io/snapshot/nix-layer` accompanies either: readers of the per-path
//! format know a Nix layer by it.

use std::collections::BTreeMap;

use nix_store::{Closure, LayerClosure, StoreDir};

use crate::{Error, error::shorten};

/// Marks a Nix layer; the value has no meaning and is written as `true`.
pub const NIX_LAYER: &str = "containerd.io/snapshot/nix-layer";

/// Prefix of the annotations that name one store path each; a number follows.
pub const NIX_STORE_PATH_PREFIX: &str = "containerd.io/snapshot/nix-store-path.";

/// Names the closure-info whose file `store-paths` lists the closure of the layer.
pub const NIX_CLOSURE: &str = "containerd.io/snapshot/nix-closure";

/// What containerd's snapshot labels that are inherited from annotations begin with
/// (`core/snapshots/snapshotter.go`, `FilterInheritedLabels`).
pub const SNAPSHOT_PREFIX: &str = "containerd.io/snapshot/";

/// The label that holds the chain ID under which a snapshot that is being
/// extracted will be committed.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// Most bytes that name and value of a containerd label may have together
/// (`pkg/labels/validate.go`).
pub const MAX_LABEL_BYTES: usize = 4096;

/// Whether a label of this name makes a layer a Nix layer.
#[must_use]
pub fn names_store_paths(label: &str) -> bool {
    label == NIX_CLOSURE || label.starts_with(NIX_STORE_PATH_PREFIX)
}

/// What the labels of a snapshot, or the annotations of a layer, ask for; `None`
/// for a plain layer.
///
/// # Errors
/// [`Error::Label`] names the first label whose value is not a store path of
/// `store_dir`; [`Error::LabelPaths`] says that the labels name too many.
pub fn layer_closure<'a>(
    store_dir: &StoreDir,
    labels: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Option<LayerClosure>, Error> {
    let mut closure_info = None;
    let mut paths = Vec::new();
    for (label, value) in labels {
        if !names_store_paths(label) {
            continue;
        }
        let path = store_dir.parse(value).map_err(|source| Error::Label {
            label: shorten(label),
            source,
        })?;
        if label == NIX_CLOSURE {
            closure_info = Some(path);
        } else {
            paths.push(path);
        }
    }
    if closure_info.is_none() && paths.is_empty() {
        return Ok(None);
    }
    let paths = Closure::from_iter(paths)
        .check_size()
        .map_err(|source| Error::LabelPaths { source })?;
    Ok(Some(LayerClosure {
        closure_info,
        paths,
    }))
}

/// The annotations that ask for `closure`: the reverse of [`layer_closure`].
///
/// Paths are numbered in ascending order, so that equal closures give equal annotations.
#[must_use]
pub fn for_layer(closure: &LayerClosure) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([(NIX_LAYER.to_owned(), "true".to_owned())]);
    if let Some(closure_info) = &closure.closure_info {
        annotations.insert(NIX_CLOSURE.to_owned(), closure_info.to_string());
    }
    for (index, path) in closure.paths.paths().iter().enumerate() {
        annotations.insert(format!("{NIX_STORE_PATH_PREFIX}{index}"), path.to_string());
    }
    annotations
}

/// Refuses annotations that containerd would not take as labels, and so fail the pull.
///
/// # Errors
/// [`Error::LabelTooLong`].
pub fn check_lengths(annotations: &BTreeMap<String, String>) -> Result<(), Error> {
    for (label, value) in annotations {
        let bytes = label.len() + value.len();
        if label.starts_with(SNAPSHOT_PREFIX) && bytes > MAX_LABEL_BYTES {
            return Err(Error::LabelTooLong {
                label: shorten(label),
                bytes,
            });
        }
    }
    Ok(())
}

/// The labels that containerd gives the snapshot of a layer with these annotations.
pub fn snapshot_labels(
    annotations: &BTreeMap<String, String>,
) -> impl Iterator<Item = (&str, &str)> {
    annotations
        .iter()
        .map(|(label, value)| (&**label, &**value))
        .filter(|(label, _)| label.starts_with(SNAPSHOT_PREFIX))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const A: &str = "/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a";
    const B: &str = "/nix/store/9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-b";
    const INFO: &str = "/nix/store/akvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-closure-info";

    fn parse(labels: &[(&str, &str)]) -> Result<Option<LayerClosure>, Error> {
        layer_closure(&StoreDir::default(), labels.iter().copied())
    }

    fn closure(paths: &[&str]) -> Closure {
        paths
            .iter()
            .map(|path| StoreDir::default().parse(path).unwrap())
            .collect()
    }

    #[test]
    fn a_layer_without_store_paths_is_plain() {
        for labels in [
            &[][..],
            &[(SNAPSHOT_REF, "sha256:00")],
            &[(NIX_LAYER, "true")],
            &[("containerd.io/snapshot/nix-store-paths", "/etc")],
            &[("nix-closure", INFO)],
        ] {
            assert_eq!(parse(labels).unwrap(), None, "{labels:?}");
        }
    }

    #[test]
    fn the_formats_are_read_alone_and_together() {
        let (path_9, path_10) = (
            format!("{NIX_STORE_PATH_PREFIX}9"),
            format!("{NIX_STORE_PATH_PREFIX}10"),
        );
        let info = StoreDir::default().parse(INFO).unwrap();
        let per_path = [
            (&*path_10, B),
            (NIX_LAYER, "true"),
            (&*path_9, A),
            (SNAPSHOT_REF, "x"),
        ];
        assert_eq!(
            parse(&per_path).unwrap().unwrap(),
            LayerClosure {
                closure_info: None,
                paths: closure(&[A, B]),
            }
        );
        assert_eq!(
            parse(&[(NIX_CLOSURE, INFO)]).unwrap().unwrap(),
            LayerClosure {
                closure_info: Some(info.clone()),
                paths: Closure::default(),
            }
        );
        assert_eq!(
            parse(&[(&*path_9, B), (NIX_CLOSURE, INFO)])
                .unwrap()
                .unwrap(),
            LayerClosure {
                closure_info: Some(info),
                paths: closure(&[B]),
            }
        );
    }

    #[test]
    fn the_label_that_is_wrong_is_named() {
        let label = format!("{NIX_STORE_PATH_PREFIX}3");
        for bad in ["", "/nix/store/..", "/etc/passwd", &format!("{A}/bin")] {
            for name in [&*label, NIX_CLOSURE] {
                let error = parse(&[(NIX_LAYER, "true"), (name, bad)]).unwrap_err();
                assert!(error.to_string().contains(name), "{error}");
                let reason = std::error::Error::source(&error).unwrap().to_string();
                assert!(reason.contains(&format!("{bad:?}")), "{reason}");
            }
        }
    }

    #[test]
    fn more_paths_than_a_layer_may_have_are_refused() {
        let labels: Vec<_> = (0..=nix_store::MAX_CLOSURE_PATHS)
            .map(|n| (format!("{NIX_STORE_PATH_PREFIX}{n}"), format!("{A}-{n}")))
            .collect();
        let labels = labels.iter().map(|(label, value)| (&**label, &**value));
        let error = layer_closure(&StoreDir::default(), labels).unwrap_err();
        assert!(matches!(error, Error::LabelPaths { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            info in proptest::option::of("[0-9a-d]{32}-closure-info"),
            names in vec("[0-9a-d]{32}-[a-z0-9.]{1,9}x", 0..20),
        ) {
            let store_dir = StoreDir::default();
            let parse = |base: String| store_dir.parse(&format!("{store_dir}/{base}")).unwrap();
            let closure = LayerClosure {
                closure_info: info.map(parse),
                paths: names.into_iter().map(parse).collect(),
            };
            let annotations = for_layer(&closure);
            let labels = annotations.iter().map(|(label, value)| (&**label, &**value));
            let read = layer_closure(&store_dir, labels).unwrap();
            prop_assert_eq!(read, (closure != LayerClosure::default()).then_some(closure));
        }

        #[test]
        fn hostile_labels_never_panic(labels in vec((".{0,60}", ".{0,80}"), 0..8), n in ".{0,9}") {
            let path_label = format!("{NIX_STORE_PATH_PREFIX}{n}");
            let labels: Vec<_> = labels
                .iter()
                .flat_map(|(label, value)| [(&**label, &**value), (&*path_label, &**value)])
                .collect();
            let _ = layer_closure(&StoreDir::default(), labels);
        }
    }
}

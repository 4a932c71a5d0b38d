//! The labels of snapshots, which are the annotations of layers.

use std::collections::{BTreeMap, BTreeSet};

use fuzzing::{Corpus, message, peak_bytes};
use nix_image::annotations::{
    NIX_CLOSURE, NIX_LAYER, NIX_STORE_PATH_PREFIX, SNAPSHOT_REF, check_lengths, for_layer,
    layer_closure, snapshot_labels,
};
use nix_store::{StoreDir, StorePath};
use proptest::{collection::vec, prelude::*, sample::select};

type Labels = BTreeMap<String, String>;

fn corpus() -> Corpus {
    let words = [
        NIX_CLOSURE,
        NIX_STORE_PATH_PREFIX,
        NIX_LAYER,
        "/nix/store/",
        "\t",
        "\n",
        "..",
        "\0",
    ];
    crate::corpus("labels", &words)
}

/// A label a line, a tab between name and value.
fn parse(file: &str) -> Labels {
    let line = |line: &str| {
        let (label, value) = line.split_once('\t').unwrap_or((line, ""));
        (label.to_owned(), value.to_owned())
    };
    file.split('\n').map(line).collect()
}

fn check(labels: &Labels) {
    let store_dir = StoreDir::default();
    let given = || labels.iter().map(|(label, value)| (&**label, &**value));
    let (read, peak) = peak_bytes(|| layer_closure(&store_dir, given()));
    let nix: Vec<_> = given()
        .filter(|(label, _)| *label == NIX_CLOSURE || label.starts_with(NIX_STORE_PATH_PREFIX))
        .collect();
    match read {
        Ok(None) => assert!(nix.is_empty(), "{nix:?} ask for nothing"),
        Ok(Some(closure)) => {
            let info = closure.closure_info.as_ref().map(StorePath::as_str);
            assert_eq!(info, labels.get(NIX_CLOSURE).map(String::as_str));
            let named = nix.iter().filter(|(label, _)| *label != NIX_CLOSURE);
            let expected: BTreeSet<_> = named.map(|&(_, value)| value).collect();
            let paths = closure.paths.paths().iter().map(StorePath::as_str);
            assert!(paths.eq(expected), "{closure:?} of {nix:?}");

            let written = for_layer(&closure);
            check_lengths(&written).unwrap();
            assert!(snapshot_labels(&written).count() == written.len());
            let again = layer_closure(&store_dir, snapshot_labels(&written)).unwrap();
            assert_eq!(again, Some(closure));
        }
        Err(error) => {
            let told = message(&error);
            let wrong = nix
                .iter()
                .find(|(_, value)| store_dir.parse(value).is_err());
            let (label, value) = wrong.unwrap_or_else(|| panic!("{told}, of {nix:?}"));
            assert!(
                told.contains(&crate::shown(label, 200)),
                "{told}: {label:?}"
            );
            assert!(
                told.contains(&crate::shown(value, 200)),
                "{told}: {value:?}"
            );
        }
    }
    let bytes: usize = given()
        .map(|(label, value)| label.len() + value.len())
        .sum();
    assert!(peak < 32_000 + 4 * bytes as u64, "{peak} bytes for {bytes}");
    if let Err(error) = check_lengths(labels) {
        message(&error);
        assert!(given().any(|(label, value)| label.len() + value.len() > 4096));
    }
}

#[test]
fn the_corpus_is_read_as_the_format_says() {
    for input in corpus().inputs() {
        check(&parse(&String::from_utf8_lossy(input)));
    }
}

proptest! {
    #![proptest_config(fuzzing::config())]

    #[test]
    fn mutated_labels(file in corpus().mutated_text()) {
        check(&parse(&file));
    }

    #[test]
    fn labels_of_every_kind(
        labels in vec(
            (
                prop_oneof![
                    4 => "[0-9]{1,3}".prop_map(|n| format!("{NIX_STORE_PATH_PREFIX}{n}")),
                    1 => "\\PC{0,4}".prop_map(|n| format!("{NIX_STORE_PATH_PREFIX}{n}")),
                    1 => select(vec![NIX_CLOSURE, NIX_LAYER, SNAPSHOT_REF]).prop_map(str::to_owned),
                    1 => "\\PC{0,40}",
                ],
                prop_oneof![
                    30 => "/nix/store/[0-3a-d]{32}-[a-z.]{1,5}x",
                    1 => "/nix/store/[0-3a-d]{31,32}-?[a-z/.]{1,5}",
                    1 => "\\PC{0,40}",
                ],
            ),
            0..30,
        ),
    ) {
        check(&labels.into_iter().collect());
    }
}

//! Labels that map the ids of a container, beside a second reading of the rules of
//! user_namespaces(7).

use std::path::Path;

use fuzzing::Corpus;
use proptest::prelude::*;
use snapshots::{Code, Error, GID_MAPPING_LABEL, IdMapping, Labels, UID_MAPPING_LABEL};

const GOOD: &str = "0:100000:65536";

fn corpus() -> Corpus {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/id-mapping");
    let words = [
        ":",
        ",",
        "0",
        "1",
        "0:0:1",
        "65536",
        "4294967294",
        "4294967295",
        "4294967296",
        "+",
        "-",
        " ",
        "0x",
    ];
    Corpus::read(&dir, &words)
}

/// Container, host and length of each range, where the kernel takes them and they map root.
fn ranges(text: &str) -> Option<Vec<[u64; 3]>> {
    let number = |text: &str| {
        let significant = text.trim_start_matches('0');
        let decimal = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        (decimal && significant.len() <= 10).then(|| format!("0{significant}").parse().ok())?
    };
    let mut ranges = Vec::new();
    for item in text.split(',') {
        let fields: Vec<u64> = item.split(':').map(number).collect::<Option<_>>()?;
        let range: [u64; 3] = fields.try_into().ok()?;
        let [container, host, length] = range;
        let ends = [container + length, host + length];
        if length == 0 || ends.iter().any(|end| *end > u64::from(u32::MAX)) {
            return None;
        }
        ranges.push(range);
    }
    let is_one_to_one = [0, 1].iter().all(|side| {
        let mut sorted: Vec<_> = ranges
            .iter()
            .map(|range| (range[*side], range[2]))
            .collect();
        sorted.sort_unstable();
        sorted
            .windows(2)
            .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
    });
    let maps_root = ranges.iter().any(|range| range[0] == 0);
    (ranges.len() <= 340 && is_one_to_one && maps_root).then_some(ranges)
}

fn of(uids: &str, gids: &str) -> Result<Option<IdMapping>, Error> {
    let labels = [(UID_MAPPING_LABEL, uids), (GID_MAPPING_LABEL, gids)];
    let labels: Labels = labels
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into();
    IdMapping::of(&labels)
}

/// Tells whether the text is taken, and checks that this is as the rules say.
fn check(text: &str) -> bool {
    let Some(ranges) = ranges(text) else {
        for (uids, gids) in [(text, GOOD), (GOOD, text)] {
            let error = of(uids, gids).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{text:?}");
        }
        return false;
    };
    // The same ranges in their shortest form.
    let plain: Vec<_> = ranges
        .iter()
        .map(|[container, host, length]| format!("{container}:{host}:{length}"))
        .collect();
    let plain = plain.join(",");
    for (uids, gids) in [(text, GOOD), (GOOD, text), (text, text)] {
        let mapping = of(uids, gids).unwrap();
        let plainly = |ids: &str| {
            if ids == text {
                plain.clone()
            } else {
                ids.to_owned()
            }
        };
        assert!(mapping.is_some());
        assert_eq!(
            mapping,
            of(&plainly(uids), &plainly(gids)).unwrap(),
            "{text:?}"
        );
    }
    true
}

#[test]
fn the_corpus_is_read_as_the_kernel_does() {
    let taken = corpus()
        .inputs()
        .filter(|input| check(std::str::from_utf8(input).unwrap()))
        .count();
    assert_eq!(taken, 8);
}

proptest! {
    #![proptest_config(fuzzing::config())]

    #[test]
    fn mutated_mappings_are_read_as_the_kernel_does(text in corpus().mutated_text()) {
        check(&text);
    }

    #[test]
    fn made_mappings_are_read_as_the_kernel_does(
        ranges in prop::collection::vec(
            (0..8_u32, prop_oneof![0..8_u32, u32::MAX - 8..=u32::MAX], 0..5_u32),
            1..5,
        ),
    ) {
        let items: Vec<_> = ranges
            .iter()
            .map(|(container, host, length)| format!("{container}:{host}:{length}"))
            .collect();
        check(&items.join(","));
    }
}

//! A difference as a table for people.

use indicatif::HumanBytes;

use super::{
    Side,
    compare::{Difference, Package, StorePathsDifference},
};
use crate::{
    image_facts::{StorePathFacts, total},
    output::{Table, count_store_paths, printable},
};

pub(super) fn of_difference(a: &Side, b: &Side, difference: &Difference) -> String {
    let mut sides = Table::default();
    for (letter, side) in [("a", a), ("b", b)] {
        let digest = side.image.digest.to_string();
        sides.row([letter, &printable(&side.source), &digest]);
    }
    let mut text = sides.to_string();
    if a.image.digest == b.image.digest {
        return text + "They are the same image.\n";
    }
    text += &of_store_paths(&difference.store_paths);
    if let (Some(before), Some(after)) = (a.image.closure.nar_size, b.image.closure.nar_size) {
        let change = change(before, after);
        text += &format!(
            "closure: {} → {}, {change}\n",
            HumanBytes(before),
            HumanBytes(after)
        );
    }

    if !difference.config.is_empty() {
        let mut fields = Table::default();
        fields.row(["CONFIG", "A", "B"]);
        for field in &difference.config {
            fields.row([
                &printable(&field.field),
                &printable(&field.a.to_string()),
                &printable(&field.b.to_string()),
            ]);
        }
        text += &format!("\n{fields}");
    }

    let layers = &difference.layers;
    let mut table = Table::default();
    table.row(["LAYER", "WHERE"]);
    let groups = [
        ("both", &layers.shared),
        ("only a", &layers.removed),
        ("only b", &layers.added),
    ];
    for (what, digests) in groups {
        for digest in digests {
            table.row([&digest.to_string(), what]);
        }
    }
    text + &format!("\n{table}")
}

fn of_store_paths(paths: &StorePathsDifference) -> String {
    let mut text = String::new();
    let mut list = |title: &str, paths: &[StorePathFacts]| {
        if paths.is_empty() {
            return;
        }
        let mut table = Table::default();
        table.row([title, "NAR SIZE"]);
        for path in paths {
            table.row([&*path.path, &size(path.nar_size)]);
        }
        text += &format!("\n{table}");
    };
    list("ADDED", &paths.added);
    list("REMOVED", &paths.removed);
    if !paths.changed.is_empty() {
        let mut table = Table::default();
        table.row(["CHANGED", "A", "B", "NAR SIZE"]);
        for changed in &paths.changed {
            let [a, b] = [&changed.a, &changed.b].map(|path| Package::of(&path.name));
            // Without versions, or where they are equal, the hashes tell them apart.
            let (before, after) = match a.version == b.version {
                true => (hash(&changed.a), hash(&changed.b)),
                false => (a.version, b.version),
            };
            let output = match a.output {
                "" => String::new(),
                output => format!(" ({output})"),
            };
            let sizes = match (changed.a.nar_size, changed.b.nar_size) {
                (Some(a), Some(b)) => format!("{}, {}", HumanBytes(b), change(a, b)),
                (_, b) => size(b),
            };
            table.row([&format!("{}{output}", changed.name), before, after, &sizes]);
        }
        text += &format!("\n{table}");
    }
    text += &format!(
        "\n{} added{}, {} removed{}, {} changed, {} shared\n",
        count_store_paths(paths.added.len()),
        sum(&paths.added),
        paths.removed.len(),
        sum(&paths.removed),
        paths.changed.len(),
        paths.shared
    );
    if !paths.is_complete {
        text += "There may be more: a closure-info is missing here that lists store paths.\n";
    }
    text
}

/// The beginning of the hash.
fn hash(path: &StorePathFacts) -> &str {
    const SHOWN: usize = 8;
    let base = path.path.rsplit('/').next().unwrap_or_default();
    base.get(..SHOWN).unwrap_or(base)
}

fn size(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) => HumanBytes(bytes).to_string(),
        None => "unknown".to_owned(),
    }
}

fn sum(paths: &[StorePathFacts]) -> String {
    match total(paths) {
        Some(bytes) => format!(" ({})", HumanBytes(bytes)),
        None => String::new(),
    }
}

fn change(before: u64, after: u64) -> String {
    match after.checked_sub(before) {
        Some(more) => format!("+{}", HumanBytes(more)),
        None => format!("-{}", HumanBytes(before - after)),
    }
}

//! What strangers write about images: labels, references, configs and whole archives.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod archives;
mod bombs;
mod configs;
mod labels;
mod references;

use std::path::Path;

use fuzzing::Corpus;

fn corpus(target: &str, words: &[&str]) -> Corpus {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    Corpus::read(&dir.join(target), words)
}

/// Characters of an input, as a message shows them.
fn shown(text: &str, characters: usize) -> String {
    let beginning: String = text.chars().take(characters).collect();
    format!("{beginning:?}").trim_matches('"').to_owned()
}

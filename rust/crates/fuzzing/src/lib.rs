//! Hostile inputs for the tests of parsers, and the bounds that hold for any input.
//!
//! A parser of what strangers write has a test program `fuzz` beside it, `tests/fuzz.rs` or
//! `tests/fuzz/main.rs`. It draws its inputs from two sources: generators that know the format, and
//! a [`Corpus`], files in `tests/corpus/<target>/` that are changed at random. An input that was once
//! handled wrongly becomes a file there.
//!
//! `make test` runs as many cases as take a second or two, `make fuzz` as many as fit into the time
//! that it is given. proptest keeps the seed of a failure beside the test, in `*.regressions`, and
//! tries it first from then on.
//!
//! The crate depends on no other of the workspace, and nothing but tests depends on it.

mod corpus;

use std::error::Error;

pub use corpus::{Corpus, Edit, mutate};
use proptest::test_runner::{Config, FileFailurePersistence};

/// Most bytes of an error with all its causes, whatever the input: what a person reads, and what
/// fits into the HTTP/2 header that a gRPC status travels in.
pub const MAX_MESSAGE_BYTES: usize = 8 << 10;

/// The configuration of all properties. The environment variable `PROPTEST_CASES` says how many
/// cases each is tried with.
#[must_use]
pub fn config() -> Config {
    Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..Config::default()
    }
}

/// The message of an error, followed by those of its causes.
///
/// # Panics
/// If they are longer than [`MAX_MESSAGE_BYTES`].
pub fn message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    assert!(
        text.len() <= MAX_MESSAGE_BYTES,
        "a message of {} bytes that begins with {:?}",
        text.len(),
        &text[..text.floor_char_boundary(300)]
    );
    text
}

/// What `run` gives, and the most bytes that it had allocated at one time on this thread. Libraries
/// in C are not counted.
pub fn peak_bytes<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let mut result = None;
    let info = allocation_counter::measure(|| result = Some(run()));
    #[expect(clippy::expect_used, reason = "`measure` calls its argument once")]
    let result = result.expect("a result");
    (result, info.bytes_max)
}

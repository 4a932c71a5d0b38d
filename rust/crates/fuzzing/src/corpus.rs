//! Files of real and hostile inputs, and what chance makes of them.

use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*, sample::Index};

/// Most changes that are made to one input.
const MAX_EDITS: usize = 6;

/// The inputs of one target.
#[derive(Clone, Debug)]
pub struct Corpus {
    files: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Corpus {
    /// Reads all files of a directory. `words` are pieces that have a meaning in the format; they
    /// are put in where chance alone would hardly find them.
    ///
    /// # Panics
    /// If there is no such directory, or nothing in it.
    #[must_use]
    pub fn read(dir: &Path, words: &[&str]) -> Self {
        let list = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut paths: Vec<_> = list.flatten().map(|entry| entry.path()).collect();
        // A seed must mean the same input on every machine.
        paths.sort();
        let read = |path| fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let files: Vec<_> = paths.into_iter().map(read).collect();
        assert!(!files.is_empty(), "{} is empty", dir.display());
        Self {
            files,
            words: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
        }
    }

    /// The inputs as they are.
    pub fn inputs(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(Vec::as_slice)
    }

    /// Changes of one kind or another, for what [`mutate`] does.
    pub fn edits(&self) -> impl Strategy<Value = Vec<Edit>> + use<> {
        vec(edit(self), 0..=MAX_EDITS)
    }

    /// An input, changed at random, or as it is.
    pub fn mutated(&self) -> impl Strategy<Value = Vec<u8>> + use<> {
        let files = prop::sample::select(self.files.clone());
        (files, self.edits()).prop_map(|(file, edits)| mutate(file, &edits))
    }

    /// As [`mutated`](Self::mutated), for a format that is text.
    pub fn mutated_text(&self) -> impl Strategy<Value = String> + use<> {
        self.mutated()
            .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// One change of an input. Places are relative to its length.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Replaces one byte.
    Replace(Index, u8),
    /// Turns one bit over.
    Flip(Index, u8),
    /// Takes bytes out.
    Delete(Index, usize),
    /// Puts bytes in.
    Insert(Index, Vec<u8>),
    /// Writes bytes over others.
    Overwrite(Index, Vec<u8>),
    /// Repeats a piece where it stands.
    Repeat(Index, usize, usize),
    /// Copies a piece to another place.
    Copy(Index, Index, usize),
    /// Cuts the end off.
    Truncate(Index),
}

/// Lengths that matter: single bytes, words, blocks of tar.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1..4_usize, 3 => 4..80_usize, 1 => Just(512), 1 => 80..2000_usize]
}

fn edit(corpus: &Corpus) -> impl Strategy<Value = Edit> + use<> {
    let at = any::<Index>;
    let word = || {
        let words = corpus.words.clone();
        prop_oneof![
            words.len() as u32 => prop::sample::select(if words.is_empty() { vec![vec![0]] } else { words }),
            2 => vec(any::<u8>(), 1..5),
            1 => (any::<u8>(), length()).prop_map(|(byte, length)| vec![byte; length]),
        ]
    };
    prop_oneof![
        3 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        3 => (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        2 => (at(), length()).prop_map(|(at, length)| Edit::Delete(at, length)),
        4 => (at(), word()).prop_map(|(at, word)| Edit::Insert(at, word)),
        2 => (at(), word()).prop_map(|(at, word)| Edit::Overwrite(at, word)),
        2 => (at(), length(), 1..40_usize).prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
        2 => (at(), at(), length()).prop_map(|(from, to, length)| Edit::Copy(from, to, length)),
        1 => at().prop_map(Edit::Truncate),
    ]
}

/// Makes the changes one after the other.
#[must_use]
pub fn mutate(mut input: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let len = input.len();
        // One place more than there are bytes: the end.
        let place = |at: &Index| at.index(len + 1);
        let piece = |at: &Index, length: usize| {
            let at = place(at);
            at..len.min(at + length)
        };
        match edit {
            Edit::Replace(at, byte) => input.splice(piece(at, 1), [*byte]).for_each(drop),
            Edit::Flip(at, bit) => {
                let range = piece(at, 1);
                input[range].iter_mut().for_each(|byte| *byte ^= 1 << bit);
            }
            Edit::Delete(at, length) => drop(input.drain(piece(at, *length))),
            Edit::Insert(at, bytes) => {
                let at = place(at);
                input.splice(at..at, bytes.iter().copied()).for_each(drop);
            }
            Edit::Overwrite(at, bytes) => {
                let range = piece(at, bytes.len());
                input.splice(range, bytes.iter().copied()).for_each(drop);
            }
            Edit::Repeat(at, length, times) => {
                let range = piece(at, *length);
                let copies = input[range.clone()].repeat(*times);
                input.splice(range.end..range.end, copies).for_each(drop);
            }
            Edit::Copy(from, to, length) => {
                let copy = input[piece(from, *length)].to_vec();
                let to = place(to);
                input.splice(to..to, copy).for_each(drop);
            }
            Edit::Truncate(at) => input.truncate(place(at)),
        }
    }
    input
}

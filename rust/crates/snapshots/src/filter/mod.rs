//! containerd's filters (`pkg/filters`): which snapshots a list shows.
//!
//! One filter is a list of selectors that must all hold; of several filters one must hold; no
//! filter, or an empty one, holds for every snapshot. A selector tests one field:
//!
//! | selector | holds when |
//! |---|---|
//! | `field` | the field is there |
//! | `field==value` | it is there and has this value |
//! | `field!=value` | it has another value, where an absent field has the empty one |
//! | `field~=value` | the regular expression matches somewhere in its value, as above |
//!
//! The fields are `kind` (`active`, `view` or `committed`), `name`, `parent` (empty, not absent,
//! when there is none) and `labels.<name>`; any other is absent.

mod parse;
#[cfg(test)]
mod tests;

use regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};
use crate::model::Info;

/// All filters of a call together. containerd itself sends one of about 300 bytes.
const MAX_BYTES: usize = 64 << 10;
/// How many regular expressions a call may have, and what each may take in memory once compiled.
const MAX_REGEXES: usize = 16;
const MAX_REGEX_BYTES: usize = 256 << 10;

/// What was parsed from the filters of one call.
#[derive(Debug)]
pub(crate) struct Filter {
    /// One of them must hold; empty when there is no filter.
    any: Vec<Vec<Selector>>,
}

#[derive(Debug)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Kind,
    Name,
    Parent,
    Label(String),
    Unknown,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// None when it is not a regular expression: it then matches nothing.
    Matches(Option<Regex>),
}

impl Filter {
    pub(crate) fn parse<F: AsRef<str>>(filters: &[F]) -> Result<Self> {
        let bytes: usize = filters.iter().map(|filter| filter.as_ref().len()).sum();
        if bytes > MAX_BYTES {
            return Err(Error::FilterTooLarge {
                reason: format!("{bytes} bytes, and at most {MAX_BYTES} are allowed"),
            });
        }
        let any: Vec<_> = filters
            .iter()
            .map(|filter| parse::filter(filter.as_ref()))
            .collect::<Result<_>>()?;
        let regexes = any
            .iter()
            .flatten()
            .filter(|selector| matches!(selector.test, Test::Matches(_)))
            .count();
        if regexes > MAX_REGEXES {
            let reason =
                format!("{regexes} regular expressions, and at most {MAX_REGEXES} are allowed");
            return Err(Error::FilterTooLarge { reason });
        }
        Ok(Self { any })
    }

    pub(crate) fn matches(&self, info: &Info) -> bool {
        self.any.is_empty()
            || self
                .any
                .iter()
                .any(|all| all.iter().all(|selector| selector.matches(info)))
    }
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let value = match &self.field {
            Field::Kind => Some(info.kind.as_str()),
            Field::Name => Some(info.name.as_str()),
            Field::Parent => Some(info.parent.as_str()),
            Field::Label(name) => info.labels.get(name).map(String::as_str),
            Field::Unknown => None,
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(wanted) => value.unwrap_or_default() != wanted,
            Test::Matches(regex) => regex
                .as_ref()
                .is_some_and(|regex| regex.is_match(value.unwrap_or_default())),
        }
    }
}

impl Field {
    /// Labels have dots in their names, so the rest of the path is one name.
    fn from_path(path: &[String]) -> Self {
        match path.split_first() {
            Some((first, rest)) => match first.as_str() {
                "kind" => Self::Kind,
                "name" => Self::Name,
                "parent" => Self::Parent,
                "labels" => Self::Label(rest.join(".")),
                _ => Self::Unknown,
            },
            None => Self::Unknown,
        }
    }
}

/// A regular expression that is not valid matches nothing, as in containerd; one that is too large
/// is an error.
///
/// The dialects of Go and of this crate differ at the edges: Go has `\101` for a character, this
/// one has `\u0041`.
fn regex(pattern: &str) -> Result<Option<Regex>> {
    match RegexBuilder::new(pattern)
        .size_limit(MAX_REGEX_BYTES)
        .dfa_size_limit(MAX_REGEX_BYTES)
        .build()
    {
        Ok(regex) => Ok(Some(regex)),
        Err(regex::Error::CompiledTooBig(limit)) => Err(Error::FilterTooLarge {
            reason: format!(
                "the regular expression {:?} takes more than {limit} bytes of memory",
                beginning(pattern)
            ),
        }),
        Err(_) => Ok(None),
    }
}

/// A filter, or a piece of one, for a message: that travels in an HTTP/2 header, where much more
/// than this would not arrive.
fn beginning(text: &str) -> String {
    const LONGEST: usize = 512;
    let mut beginning = text.to_owned();
    if beginning.len() > LONGEST {
        beginning.truncate(beginning.floor_char_boundary(LONGEST));
        beginning.push('…');
    }
    beginning
}

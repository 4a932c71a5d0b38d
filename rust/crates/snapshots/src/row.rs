//! How one snapshot is written in the store.
//!
//! ```text
//! version 1   u8          kind        u8 (1 view, 2 active, 3 committed)
//! id          u64         created     i64, nanoseconds since 1970
//! updated     i64         has usage   u8 (0 or 1)
//! size        u64         inodes      u64
//! parent      string      labels      (string, string)*, to the end
//! ```
//!
//! Integers are little-endian, a string is its length as u32 and its bytes. The labels stand last
//! and are only decoded when they are asked for: a Nix layer can carry thousands of them, and most
//! calls need none.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use crate::model::{Id, Info, Kind, Labels, Usage};

const VERSION: u8 = 1;

/// What is wrong with a row that cannot be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// One row; borrowed when it is read, so that a large one is not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) id: Id,
    pub(crate) kind: Kind,
    pub(crate) created: Nanos,
    pub(crate) updated: Nanos,
    pub(crate) usage: Option<Usage>,
    pub(crate) parent: Cow<'a, str>,
    labels: Cow<'a, [u8]>,
}

/// Nanoseconds since 1970, which i64 holds until the year 2262.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(i64);

impl Nanos {
    fn now() -> Self {
        let signed = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()),
            Err(error) => i64::try_from(error.duration().as_nanos()).map(|before| -before),
        };
        Self(signed.unwrap_or(i64::MAX))
    }

    fn to_time(self) -> SystemTime {
        let distance = Duration::from_nanos(self.0.unsigned_abs());
        if self.0 < 0 {
            SystemTime::UNIX_EPOCH - distance
        } else {
            SystemTime::UNIX_EPOCH + distance
        }
    }
}

impl<'a> Row<'a> {
    pub(crate) fn new(id: Id, kind: Kind, parent: &'a str, labels: &Labels) -> Self {
        let now = Nanos::now();
        Self {
            id,
            kind,
            created: now,
            updated: now,
            usage: None,
            parent: Cow::Borrowed(parent),
            labels: Cow::Owned(encode_labels(labels)),
        }
    }

    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut rest = Reader(bytes);
        if rest.u8()? != VERSION {
            return Err(Malformed("unknown version"));
        }
        let kind = match rest.u8()? {
            1 => Kind::View,
            2 => Kind::Active,
            3 => Kind::Committed,
            _ => return Err(Malformed("unknown kind")),
        };
        let id = Id(rest.u64()?);
        let created = Nanos(rest.u64()?.cast_signed());
        let updated = Nanos(rest.u64()?.cast_signed());
        let has_usage = rest.u8()? != 0;
        let usage = Usage {
            size: rest.u64()?,
            inodes: rest.u64()?,
        };
        let parent = Cow::Borrowed(rest.string()?);
        let usage = has_usage.then_some(usage);
        Ok(Self {
            id,
            kind,
            created,
            updated,
            usage,
            parent,
            labels: Cow::Borrowed(rest.0),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let usage = self.usage.unwrap_or_default();
        let mut bytes = Vec::with_capacity(64 + self.parent.len() + self.labels.len());
        bytes.push(VERSION);
        bytes.push(match self.kind {
            Kind::View => 1,
            Kind::Active => 2,
            Kind::Committed => 3,
        });
        bytes.extend_from_slice(&self.id.0.to_le_bytes());
        bytes.extend_from_slice(&self.created.0.to_le_bytes());
        bytes.extend_from_slice(&self.updated.0.to_le_bytes());
        bytes.push(self.usage.is_some().into());
        bytes.extend_from_slice(&usage.size.to_le_bytes());
        bytes.extend_from_slice(&usage.inodes.to_le_bytes());
        push_string(&mut bytes, &self.parent);
        bytes.extend_from_slice(&self.labels);
        bytes
    }

    pub(crate) fn labels(&self) -> Result<Labels, Malformed> {
        let mut rest = Reader(&self.labels);
        let mut labels = Labels::new();
        while !rest.0.is_empty() {
            labels.insert(rest.string()?.to_owned(), rest.string()?.to_owned());
        }
        Ok(labels)
    }

    pub(crate) fn set_labels(&mut self, labels: &Labels) {
        self.labels = Cow::Owned(encode_labels(labels));
    }

    /// Notes a change of now, or of the creation where the clock was set back since.
    pub(crate) fn touch(&mut self) {
        self.updated = Nanos::now().max(self.created);
    }

    pub(crate) fn info(&self, name: &str) -> Result<Info, Malformed> {
        Ok(Info {
            name: name.to_owned(),
            parent: self.parent.clone().into_owned(),
            kind: self.kind,
            created: self.created.to_time(),
            updated: self.updated.to_time(),
            labels: self.labels()?,
        })
    }
}

fn encode_labels(labels: &Labels) -> Vec<u8> {
    let size = labels
        .iter()
        .map(|(name, value)| 8 + name.len() + value.len())
        .sum();
    let mut bytes = Vec::with_capacity(size);
    for (name, value) in labels {
        push_string(&mut bytes, name);
        push_string(&mut bytes, value);
    }
    bytes
}

fn push_string(bytes: &mut Vec<u8>, text: &str) {
    // redb refuses a value of 3 GiB and more, so a length that u32 cannot hold never reaches the
    // disk.
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed("it ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self
            .0
            .split_first_chunk()
            .ok_or(Malformed("it ends too early"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed("a string is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_row() -> impl Strategy<Value = Row<'static>> {
        let kind = prop_oneof![Just(Kind::View), Just(Kind::Active), Just(Kind::Committed)];
        let usage = proptest::option::of((any::<u64>(), any::<u64>()));
        let labels = proptest::collection::btree_map(".*", ".*", 0..8);
        (
            any::<u64>(),
            kind,
            any::<i64>(),
            any::<i64>(),
            usage,
            ".*",
            labels,
        )
            .prop_map(|(id, kind, created, updated, usage, parent, labels)| Row {
                id: Id(id),
                kind,
                created: Nanos(created),
                updated: Nanos(updated),
                usage: usage.map(|(size, inodes)| Usage { size, inodes }),
                parent: Cow::Owned(parent),
                labels: Cow::Owned(encode_labels(&labels)),
            })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(row in any_row()) {
            let bytes = row.encode();
            prop_assert_eq!(&Row::decode(&bytes).unwrap(), &row);
            row.labels().unwrap();
        }

        #[test]
        fn a_cut_row_is_refused_or_lacks_labels(row in any_row(), cut in 0.0..1.0f64) {
            let bytes = row.encode();
            let bytes = &bytes[..(bytes.len() as f64 * cut) as usize];
            if let Ok(short) = Row::decode(bytes) {
                prop_assert_eq!(&short.parent, &row.parent);
                if let Ok(labels) = short.labels() {
                    prop_assert!(labels.len() <= row.labels().unwrap().len());
                }
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Row::decode(&bytes).map(|row| row.labels());
        }
    }

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        for nanos in [0, 1, -1, 1_760_000_000_123_456_789, i64::MAX, i64::MIN] {
            let time = Nanos(nanos).to_time();
            let back = match time.duration_since(SystemTime::UNIX_EPOCH) {
                Ok(after) => after.as_nanos().cast_signed(),
                Err(error) => -error.duration().as_nanos().cast_signed(),
            };
            assert_eq!(back, i128::from(nanos));
        }
    }

    #[test]
    fn a_change_is_not_earlier_than_the_snapshot() {
        let mut row = Row::new(Id(1), Kind::Active, "", &Labels::new());
        for (created, future) in [(Nanos(i64::MAX), true), (Nanos(0), false)] {
            row.created = created;
            row.touch();
            assert_eq!(row.updated == created, future);
            assert!(row.updated >= created);
        }
    }
}

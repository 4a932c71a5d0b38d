//! How one snapshot is written in the store.
//!
//! A row has a column for each field. The labels are one value, (string, string)*, where a string
//! is its length as little-endian u32 and its bytes: they are only decoded when they are asked for,
//! since a Nix layer can carry thousands of them and most calls need none. The checksum is the
//! CRC-32 of everything else.

use std::time::{Duration, SystemTime};

use rusqlite::types::ToSqlOutput;
use rusqlite::{CachedStatement, ToSql, params};

use crate::model::{Id, Info, Kind, Labels, Usage};

/// What is wrong with a row that cannot be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// One row, without the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: Id,
    pub(crate) kind: Kind,
    pub(crate) parent: Option<Id>,
    pub(crate) created: Nanos,
    pub(crate) updated: Nanos,
    pub(crate) usage: Option<Usage>,
    labels: Vec<u8>,
}

/// Nanoseconds since 1970, which i64 holds until the year 2262.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(pub(crate) i64);

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

impl ToSql for Id {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        // They are counted from 1, so SQLite's signed integers hold them.
        Ok(self.0.cast_signed().into())
    }
}

pub(crate) fn id_from_sql(id: i64) -> Id {
    Id(id.cast_unsigned())
}

pub(crate) fn kind_from_sql(kind: i64) -> Result<Kind, Malformed> {
    match kind {
        1 => Ok(Kind::View),
        2 => Ok(Kind::Active),
        3 => Ok(Kind::Committed),
        _ => Err(Malformed("unknown kind")),
    }
}

fn kind_to_sql(kind: Kind) -> i64 {
    match kind {
        Kind::View => 1,
        Kind::Active => 2,
        Kind::Committed => 3,
    }
}

impl Row {
    /// The columns that [`Row::read`] expects. The large one is last: SQLite walks over what is
    /// before a column to reach it.
    pub(crate) const COLUMNS: &'static str =
        "name, id, kind, parent, created, updated, size, inodes, checksum, labels";

    pub(crate) fn new(id: Id, kind: Kind, parent: Option<Id>, labels: &Labels) -> Self {
        let now = Nanos::now();
        Self {
            id,
            kind,
            parent,
            created: now,
            updated: now,
            usage: None,
            labels: encode_labels(labels),
        }
    }

    pub(crate) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Result<Self, Malformed>> {
        let kind = match kind_from_sql(row.get(2)?) {
            Ok(kind) => kind,
            Err(malformed) => return Ok(Err(malformed)),
        };
        let usage = match (row.get(6)?, row.get(7)?) {
            (Some(size), Some(inodes)) => Some(Usage {
                size: i64::cast_unsigned(size),
                inodes: i64::cast_unsigned(inodes),
            }),
            _ => None,
        };
        Ok(Ok(Self {
            id: id_from_sql(row.get(1)?),
            kind,
            parent: row.get::<_, Option<i64>>(3)?.map(id_from_sql),
            created: Nanos(row.get(4)?),
            updated: Nanos(row.get(5)?),
            usage,
            labels: row.get(9)?,
        }))
    }

    /// Runs a statement whose parameters are [`Row::COLUMNS`], numbered in this order.
    pub(crate) fn write(
        &self,
        name: &str,
        statement: &mut CachedStatement<'_>,
    ) -> rusqlite::Result<usize> {
        let usage = self.usage.map(|usage| {
            let Usage { size, inodes } = usage;
            (size.cast_signed(), inodes.cast_signed())
        });
        statement.execute(params![
            name,
            self.id,
            kind_to_sql(self.kind),
            self.parent,
            self.created.0,
            self.updated.0,
            usage.map(|(size, _)| size),
            usage.map(|(_, inodes)| inodes),
            self.checksum(name),
            self.labels,
        ])
    }

    pub(crate) fn checksum(&self, name: &str) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let usage = self.usage.unwrap_or_default();
        for number in [
            name.len() as u64,
            self.id.0,
            kind_to_sql(self.kind).cast_unsigned(),
            self.parent.map_or(0, |parent| parent.0),
            self.created.0.cast_unsigned(),
            self.updated.0.cast_unsigned(),
            self.usage.is_some().into(),
            usage.size,
            usage.inodes,
        ] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(name.as_bytes());
        hasher.update(&self.labels);
        hasher.finalize()
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
        self.labels = encode_labels(labels);
    }

    /// Notes a change of now, or of the creation where the clock was set back since.
    pub(crate) fn touch(&mut self) {
        self.updated = Nanos::now().max(self.created);
    }

    /// What is told of the snapshot; `parent` is the name of its parent.
    pub(crate) fn info(&self, name: &str, parent: String) -> Result<Info, Malformed> {
        Ok(Info {
            name: name.to_owned(),
            parent,
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
    // SQLite refuses a value of 1 GB and more, so a length that u32 cannot hold never reaches the
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

    fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed("a string is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(labels: Vec<u8>) -> Row {
        Row {
            labels,
            ..Row::new(Id(1), Kind::Active, None, &Labels::new())
        }
    }

    proptest! {
        #[test]
        fn labels_that_are_encoded_decode_to_the_same(
            labels in proptest::collection::btree_map(".*", ".*", 0..8)
        ) {
            prop_assert_eq!(row(encode_labels(&labels)).labels(), Ok(labels));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = row(bytes).labels();
        }
    }

    #[test]
    fn every_field_is_in_the_checksum() {
        let base = Row {
            usage: Some(Usage { size: 1, inodes: 1 }),
            ..Row::new(Id(1), Kind::Active, Some(Id(2)), &Labels::new())
        };
        let mut rows = vec![base.clone(); 9];
        rows[1].id = Id(3);
        rows[2].kind = Kind::View;
        rows[3].parent = None;
        rows[4].created.0 += 1;
        rows[5].updated.0 += 1;
        rows[6].usage = None;
        rows[7].usage = Some(Usage { size: 2, inodes: 1 });
        rows[8].labels = vec![0];
        let mut sums: Vec<_> = rows.iter().map(|row| row.checksum("name")).collect();
        sums.push(base.checksum("nama"));
        sums.sort_unstable();
        sums.dedup();
        assert_eq!(sums.len(), 10);
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
        let mut row = Row::new(Id(1), Kind::Active, None, &Labels::new());
        for (created, future) in [(Nanos(i64::MAX), true), (Nanos(0), false)] {
            row.created = created;
            row.touch();
            assert_eq!(row.updated == created, future);
            assert!(row.updated >= created);
        }
    }
}

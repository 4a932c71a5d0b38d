//! What the store is asked and told: one transaction each.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use redb::{AccessGuard, ReadableTable};

use super::{SEQUENCE, Stop, Store};
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::model::{Counts, Id, Info, Kind, Labels, Snapshot, Usage, masked_labels};
use crate::row::{Malformed, Row};

/// A snapshot that another has as its parent.
struct Parent {
    id: Id,
    kind: Kind,
    /// The name of its own parent.
    parent: String,
}

/// The snapshots inside a transaction of either sort.
trait Snapshots: ReadableTable<&'static str, &'static [u8]> {
    fn find(&self, key: &str) -> Result<AccessGuard<'_, &'static [u8]>, Stop> {
        self.get(key)?.ok_or_else(|| {
            Error::NotFound {
                key: key.to_owned(),
            }
            .into()
        })
    }

    /// The snapshot `parent`, which is to be or is the parent of `key`.
    fn parent(&self, key: &str, parent: &str) -> Result<Parent, Stop> {
        let Some(bytes) = self.get(parent)? else {
            let (key, parent) = (key.to_owned(), parent.to_owned());
            return Err(Error::ParentNotFound { key, parent }.into());
        };
        let row = decode(parent, bytes.value())?;
        Ok(Parent {
            id: row.id,
            kind: row.kind,
            parent: row.parent.into_owned(),
        })
    }

    fn vacant(&self, key: &str) -> Result<(), Stop> {
        match self.get(key)? {
            Some(_) => Err(Error::AlreadyExists {
                key: key.to_owned(),
            }
            .into()),
            None => Ok(()),
        }
    }

    /// Whether a snapshot could be made, in the order in which containerd's own store asks; gives
    /// the ids of its ancestors.
    fn admit(&self, kind: Kind, key: &str, parent: Option<&str>) -> Result<Vec<Id>, Stop> {
        if kind == Kind::Committed {
            return Err(Error::CreateCommitted {
                key: key.to_owned(),
            }
            .into());
        }
        if let Some(parent) = parent {
            let Parent { kind, .. } = self.parent(key, parent)?;
            if kind != Kind::Committed {
                let (key, parent) = (key.to_owned(), parent.to_owned());
                return Err(Error::CreateOnUncommitted { key, parent, kind }.into());
            }
        }
        self.vacant(key)?;
        self.lineage(key, parent.unwrap_or_default())
    }

    /// The ids of the ancestors of `key`, whose parent is `parent`, or which has none if that is
    /// empty.
    fn lineage(&self, key: &str, parent: &str) -> Result<Vec<Id>, Stop> {
        let mut ids = Vec::new();
        let mut name = parent.to_owned();
        while !name.is_empty() {
            let ancestor = self.parent(key, &name)?;
            ids.push(ancestor.id);
            name = ancestor.parent;
        }
        Ok(ids)
    }
}

impl<T: ReadableTable<&'static str, &'static [u8]>> Snapshots for T {}

fn decode<'a>(key: &str, bytes: &'a [u8]) -> Result<Row<'a>> {
    Row::decode(bytes).map_err(damaged(key))
}

fn damaged(key: &str) -> impl FnOnce(Malformed) -> Error {
    move |Malformed(reason)| Error::Damaged {
        key: key.to_owned(),
        reason,
    }
}

impl Store {
    /// Notes that `id` was given, and tells the highest id that was noted or published ever.
    pub(crate) fn note_given(&self, id: Id) -> Result<Id> {
        let sequence = self.meta(SEQUENCE).map(Id)?;
        if id <= sequence {
            return Ok(sequence);
        }
        self.write("note an id", |tables| {
            tables.meta.insert(SEQUENCE, id.0)?;
            Ok(id)
        })
    }

    /// The ids of all snapshots.
    pub(crate) fn ids(&self) -> Result<BTreeSet<Id>> {
        self.read("list the snapshots", |snapshots| {
            let mut ids = BTreeSet::new();
            for entry in snapshots.iter()? {
                let (key, bytes) = entry?;
                ids.insert(decode(key.value(), bytes.value())?.id);
            }
            Ok(ids)
        })
    }

    pub(crate) fn counts(&self) -> Result<Counts> {
        self.read("count the snapshots", |snapshots| {
            let mut counts = Counts::default();
            for entry in snapshots.iter()? {
                let (key, bytes) = entry?;
                match decode(key.value(), bytes.value())?.kind {
                    Kind::View => counts.views += 1,
                    Kind::Active => counts.active += 1,
                    Kind::Committed => counts.committed += 1,
                }
            }
            Ok(counts)
        })
    }

    /// Whether a snapshot could be made; gives the ids of its ancestors.
    pub(crate) fn admit(&self, kind: Kind, key: &str, parent: Option<&str>) -> Result<Vec<Id>> {
        self.read("look up a snapshot", |snapshots| {
            snapshots.admit(kind, key, parent)
        })
    }

    /// Publishes `snapshot`, whose directories were made on the ancestors that it names.
    pub(crate) fn insert(
        &self,
        snapshot: &Snapshot,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<()> {
        let Snapshot { id, kind, parents } = snapshot;
        self.write("add a snapshot", |tables| {
            let found = tables.snapshots.admit(*kind, key, parent)?;
            let parent = parent.unwrap_or_default();
            if found != *parents {
                // Its name was given to another snapshot since the directories were made.
                let (key, parent) = (key.to_owned(), parent.to_owned());
                return Err(Error::ParentNotFound { key, parent }.into());
            }
            let row = Row::new(*id, *kind, parent, labels);
            tables.snapshots.insert(key, row.encode().as_slice())?;
            if let Some(parent) = parents.first() {
                tables.children.insert((parent.0, id.0), key)?;
            }
            let sequence = tables.meta.get(SEQUENCE)?.map_or(0, |value| value.value());
            tables.meta.insert(SEQUENCE, sequence.max(id.0))?;
            Ok(())
        })
    }

    pub(crate) fn snapshot(&self, key: &str) -> Result<Snapshot> {
        self.read("read a snapshot", |snapshots| {
            let bytes = snapshots.find(key)?;
            let row = decode(key, bytes.value())?;
            if row.kind == Kind::Committed {
                return Err(Error::MountsOfCommitted {
                    key: key.to_owned(),
                }
                .into());
            }
            let parents = snapshots.lineage(key, &row.parent)?;
            Ok(Snapshot {
                id: row.id,
                kind: row.kind,
                parents,
            })
        })
    }

    pub(crate) fn info(&self, key: &str) -> Result<(Id, Info)> {
        self.read("read a snapshot", |snapshots| {
            let bytes = snapshots.find(key)?;
            let row = decode(key, bytes.value())?;
            Ok((row.id, row.info(key).map_err(damaged(key))?))
        })
    }

    /// Calls `each` with every snapshot that `filter` lets through, in the order of the names, as
    /// of one moment.
    pub(crate) fn list(
        &self,
        filter: &Filter,
        mut each: impl FnMut(Id, Info) -> ControlFlow<()>,
    ) -> Result<()> {
        self.read("list the snapshots", |snapshots| {
            for entry in snapshots.iter()? {
                let (key, bytes) = entry?;
                let row = decode(key.value(), bytes.value())?;
                let info = row.info(key.value()).map_err(damaged(key.value()))?;
                if filter.matches(&info) && each(row.id, info).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    pub(crate) fn update<P: AsRef<str>>(
        &self,
        key: &str,
        labels: &Labels,
        paths: &[P],
    ) -> Result<(Id, Info)> {
        self.write("update a snapshot", |tables| {
            let (id, info, bytes) = {
                let bytes = tables.snapshots.find(key)?;
                let mut row = decode(key, bytes.value())?;
                let old = row.labels().map_err(damaged(key))?;
                row.set_labels(&masked_labels(key, old, labels, paths)?);
                row.touch();
                (row.id, row.info(key).map_err(damaged(key))?, row.encode())
            };
            tables.snapshots.insert(key, bytes.as_slice())?;
            Ok((id, info))
        })
    }

    /// Turns the active snapshot `key` into the committed one `name`. `asked` may give a parent to
    /// one without.
    pub(crate) fn commit(
        &self,
        name: &str,
        key: &str,
        asked: Option<&str>,
        labels: &Labels,
    ) -> Result<()> {
        self.write("commit a snapshot", |tables| {
            let (id, kind, parent) = {
                let bytes = tables.snapshots.find(key)?;
                let row = decode(key, bytes.value())?;
                (row.id, row.kind, row.parent.into_owned())
            };
            tables.snapshots.vacant(name)?;
            if kind != Kind::Active {
                return Err(Error::CommitInactive {
                    key: key.to_owned(),
                    kind,
                }
                .into());
            }
            let parent = match asked {
                None => parent.as_str(),
                Some(asked) if parent.is_empty() || asked == parent => asked,
                Some(asked) => {
                    let (key, asked) = (key.to_owned(), asked.to_owned());
                    return Err(Error::ParentMismatch { key, parent, asked }.into());
                }
            };
            if !parent.is_empty() {
                let Parent {
                    id: parent_id,
                    kind,
                    ..
                } = tables.snapshots.parent(key, parent)?;
                if kind != Kind::Committed {
                    let (key, parent) = (key.to_owned(), parent.to_owned());
                    return Err(Error::CommitOnUncommitted { key, parent, kind }.into());
                }
                tables.children.insert((parent_id.0, id.0), name)?;
            }
            tables.snapshots.remove(key)?;
            let row = Row::new(id, Kind::Committed, parent, labels);
            tables.snapshots.insert(name, row.encode().as_slice())?;
            Ok(())
        })
    }

    pub(crate) fn remove(&self, key: &str) -> Result<Id> {
        self.write("remove a snapshot", |tables| {
            let (id, parent) = {
                let bytes = tables.snapshots.find(key)?;
                let row = decode(key, bytes.value())?;
                (row.id, row.parent.into_owned())
            };
            if let Some(child) = tables.children.range((id.0, 0)..=(id.0, u64::MAX))?.next() {
                let child = child?.1.value().to_owned();
                return Err(Error::HasChildren {
                    key: key.to_owned(),
                    child,
                }
                .into());
            }
            if !parent.is_empty() {
                let parent = tables.snapshots.parent(key, &parent)?;
                tables.children.remove((parent.id.0, id.0))?;
            }
            tables.snapshots.remove(key)?;
            Ok(id)
        })
    }

    pub(crate) fn usage(&self, key: &str) -> Result<(Id, Kind, Option<Usage>)> {
        self.read("read a snapshot", |snapshots| {
            let bytes = snapshots.find(key)?;
            let row = decode(key, bytes.value())?;
            Ok((row.id, row.kind, row.usage))
        })
    }

    /// Notes what committed snapshot `id` takes, if it is still there under this name.
    pub(crate) fn set_usage(&self, key: &str, id: Id, usage: Usage) -> Result<()> {
        self.write("note the usage of a snapshot", |tables| {
            let bytes = {
                let bytes = tables.snapshots.find(key)?;
                let mut row = decode(key, bytes.value())?;
                if row.id != id {
                    return Err(Error::NotFound {
                        key: key.to_owned(),
                    }
                    .into());
                }
                row.usage = Some(usage);
                row.encode()
            };
            tables.snapshots.insert(key, bytes.as_slice())?;
            Ok(())
        })
    }
}

//! What the store is asked and told: one transaction each.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::{Stop, Store};
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::model::{Counts, Id, Ids, Info, Kind, Labels, Snapshot, Usage, masked_labels};
use crate::row::{Malformed, Row, id_from_sql, kind_from_sql};

/// What most calls need to know of a snapshot: all but its labels.
struct Head {
    id: Id,
    kind: Kind,
    parent: Option<Id>,
}

/// The snapshots inside a transaction of either sort.
pub(super) struct Snapshots<'a>(pub(super) &'a Connection);

impl Snapshots<'_> {
    fn look_up(&self, name: &str) -> Result<Option<Head>, Stop> {
        let mut select = self
            .0
            .prepare_cached("SELECT id, kind, parent FROM snapshots WHERE name = ?")?;
        let found = select.query_row([name], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get::<_, Option<i64>>(2)?))
        });
        let Some((id, kind, parent)) = found.optional()? else {
            return Ok(None);
        };
        Ok(Some(Head {
            id: id_from_sql(id),
            kind: kind_from_sql(kind).map_err(damaged(name))?,
            parent: parent.map(id_from_sql),
        }))
    }

    fn head(&self, key: &str) -> Result<Head, Stop> {
        self.look_up(key)?.ok_or_else(|| not_found(key))
    }

    fn row(&self, key: &str) -> Result<Row, Stop> {
        let select = format!("SELECT {} FROM snapshots WHERE name = ?", Row::COLUMNS);
        let mut select = self.0.prepare_cached(&select)?;
        let found = select.query_row([key], Row::read).optional()?;
        let row = found.ok_or_else(|| not_found(key))?;
        Ok(row.map_err(damaged(key))?)
    }

    /// The committed snapshot `parent`, which is to be or is the parent of `key`.
    fn parent(&self, key: &str, parent: &str) -> Result<Head, Stop> {
        self.look_up(parent)?.ok_or_else(|| {
            let (key, parent) = (key.to_owned(), parent.to_owned());
            Error::ParentNotFound { key, parent }.into()
        })
    }

    fn vacant(&self, key: &str) -> Result<(), Stop> {
        match self.look_up(key)? {
            Some(_) => Err(Error::AlreadyExists {
                key: key.to_owned(),
            }
            .into()),
            None => Ok(()),
        }
    }

    /// Whether a snapshot could be made, in the order in which containerd's own store asks; gives
    /// its parent.
    fn admit(&self, kind: Kind, key: &str, parent: Option<&str>) -> Result<Option<Head>, Stop> {
        if kind == Kind::Committed {
            return Err(Error::CreateCommitted {
                key: key.to_owned(),
            }
            .into());
        }
        let parent = match parent {
            None => None,
            Some(name) => {
                let parent = self.parent(key, name)?;
                let kind = parent.kind;
                if kind != Kind::Committed {
                    let (key, parent) = (key.to_owned(), name.to_owned());
                    return Err(Error::CreateOnUncommitted { key, parent, kind }.into());
                }
                Some(parent)
            }
        };
        self.vacant(key)?;
        Ok(parent)
    }

    /// The ids of a snapshot's ancestors; `parent` is the first of them.
    fn lineage(&self, parent: Option<Id>) -> Result<Vec<Id>, Stop> {
        let mut select = self
            .0
            .prepare_cached("SELECT parent FROM snapshots WHERE id = ?")?;
        let mut ids = Vec::new();
        let mut next = parent;
        while let Some(id) = next {
            ids.push(id);
            let above: Option<i64> = select.query_row([id], |row| row.get(0))?;
            next = above.map(id_from_sql);
        }
        Ok(ids)
    }

    fn name(&self, id: Option<Id>) -> Result<String, Stop> {
        let Some(id) = id else {
            return Ok(String::new());
        };
        let mut select = self
            .0
            .prepare_cached("SELECT name FROM snapshots WHERE id = ?")?;
        Ok(select.query_row([id], |row| row.get(0))?)
    }

    fn info(&self, name: &str, row: &Row) -> Result<Info, Stop> {
        let parent = self.name(row.parent)?;
        Ok(row.info(name, parent).map_err(damaged(name))?)
    }

    pub(super) fn insert(&self, name: &str, row: &Row) -> Result<(), Stop> {
        let insert = format!(
            "INSERT INTO snapshots ({}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            Row::COLUMNS
        );
        row.write(name, &mut self.0.prepare_cached(&insert)?)?;
        Ok(())
    }

    /// Writes the row of a snapshot anew, perhaps under another name.
    fn replace(&self, name: &str, row: &Row) -> Result<(), Stop> {
        const UPDATE: &str = concat!(
            "UPDATE snapshots SET name = ?1, kind = ?3, parent = ?4, created = ?5, updated = ?6, ",
            "size = ?7, inodes = ?8, checksum = ?9, labels = ?10 WHERE id = ?2"
        );
        row.write(name, &mut self.0.prepare_cached(UPDATE)?)?;
        Ok(())
    }
}

fn not_found(key: &str) -> Stop {
    Error::NotFound {
        key: key.to_owned(),
    }
    .into()
}

fn damaged(key: &str) -> impl FnOnce(Malformed) -> Error {
    move |Malformed(reason)| Error::Damaged {
        key: key.to_owned(),
        reason,
    }
}

/// Has the highest id be `id` at least.
fn raise_sequence(txn: &Transaction<'_>, id: Id) -> Result<(), Stop> {
    txn.prepare_cached("UPDATE state SET sequence = max(sequence, ?)")?
        .execute([id])?;
    Ok(())
}

impl Store {
    /// Notes that `id` was given, and tells the highest id that was noted or published ever.
    pub(crate) fn note_given(&self, id: Id) -> Result<Id> {
        let sequence = self.sequence()?;
        if id <= sequence {
            return Ok(sequence);
        }
        self.write("note an id", |txn| {
            raise_sequence(txn, id)?;
            Ok(id)
        })
    }

    /// The highest id that was noted or published ever.
    fn sequence(&self) -> Result<Id> {
        self.read("read the state", |txn| {
            let mut select = txn.prepare_cached("SELECT sequence FROM state")?;
            Ok(id_from_sql(select.query_row((), |row| row.get(0))?))
        })
    }

    /// The ids of all snapshots. That an id is not among them is on the disk, too: no power cut
    /// brings a removed snapshot back.
    pub(crate) fn ids(&self) -> Result<BTreeSet<Id>> {
        let ids = self.read("list the snapshots", |txn| {
            let mut select = txn.prepare_cached("SELECT id FROM snapshots ORDER BY id")?;
            let ids = select.query_map((), |row| row.get(0).map(id_from_sql))?;
            Ok(ids.collect::<rusqlite::Result<_>>()?)
        })?;
        self.settle("list the snapshots")?;
        Ok(ids)
    }

    pub(crate) fn counts(&self) -> Result<Counts> {
        self.read("count the snapshots", |txn| {
            let mut select =
                txn.prepare_cached("SELECT kind, count(*) FROM snapshots GROUP BY kind")?;
            let mut counts = Counts::default();
            let mut rows = select.query(())?;
            while let Some(row) = rows.next()? {
                let count = i64::cast_unsigned(row.get(1)?);
                match kind_from_sql(row.get(0)?) {
                    Ok(Kind::View) => counts.views = count,
                    Ok(Kind::Active) => counts.active = count,
                    Ok(Kind::Committed) => counts.committed = count,
                    // Whoever reads this snapshot is told.
                    Err(_) => {}
                }
            }
            Ok(counts)
        })
    }

    /// Whether a snapshot could be made; gives the ids of its ancestors.
    pub(crate) fn admit(&self, kind: Kind, key: &str, parent: Option<&str>) -> Result<Vec<Id>> {
        self.read("look up a snapshot", |txn| {
            let snapshots = Snapshots(txn);
            let parent = snapshots.admit(kind, key, parent)?;
            snapshots.lineage(parent.map(|parent| parent.id))
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
        let Snapshot {
            id, kind, parents, ..
        } = snapshot;
        let row = Row::new(*id, *kind, parents.first().copied(), labels);
        self.write("add a snapshot", |txn| {
            let snapshots = Snapshots(txn);
            let found = snapshots.admit(*kind, key, parent)?;
            // The parent's own parents cannot change.
            if found.map(|parent| parent.id) != row.parent {
                // Its name was given to another snapshot since the directories were made.
                let (key, parent) = (key.to_owned(), parent.unwrap_or_default().to_owned());
                return Err(Error::ParentNotFound { key, parent }.into());
            }
            snapshots.insert(key, &row)?;
            raise_sequence(txn, *id)
        })
    }

    /// An active snapshot or view with its labels, whose ids are yet to be found out.
    pub(crate) fn snapshot(&self, key: &str) -> Result<(Snapshot, Labels)> {
        self.read("read a snapshot", |txn| {
            let snapshots = Snapshots(txn);
            let row = snapshots.row(key)?;
            if row.kind == Kind::Committed {
                return Err(Error::MountsOfCommitted {
                    key: key.to_owned(),
                }
                .into());
            }
            let snapshot = Snapshot {
                id: row.id,
                kind: row.kind,
                parents: snapshots.lineage(row.parent)?,
                ids: Ids::AsSeen,
            };
            Ok((snapshot, row.labels().map_err(damaged(key))?))
        })
    }

    /// The labels of each of these snapshots; none of one that is not there any more.
    pub(crate) fn labels(&self, ids: &[Id]) -> Result<Vec<Labels>> {
        self.read("read the labels of snapshots", |txn| {
            let select = format!("SELECT {} FROM snapshots WHERE id = ?", Row::COLUMNS);
            let mut select = txn.prepare_cached(&select)?;
            let mut labels = |id: &Id| {
                let mut rows = select.query([id])?;
                let Some(found) = rows.next()? else {
                    return Ok(Labels::new());
                };
                let name: String = found.get(0)?;
                let row = Row::read(found)?.map_err(damaged(&name))?;
                Ok(row.labels().map_err(damaged(&name))?)
            };
            ids.iter().map(&mut labels).collect()
        })
    }

    pub(crate) fn info(&self, key: &str) -> Result<(Id, Info)> {
        self.read("read a snapshot", |txn| {
            let snapshots = Snapshots(txn);
            let row = snapshots.row(key)?;
            Ok((row.id, snapshots.info(key, &row)?))
        })
    }

    /// Calls `each` with every snapshot that `filter` lets through, in the order of the ids, as of
    /// one moment.
    pub(crate) fn list(
        &self,
        filter: &Filter,
        mut each: impl FnMut(Id, Info) -> ControlFlow<()>,
    ) -> Result<()> {
        self.read("list the snapshots", |txn| {
            let snapshots = Snapshots(txn);
            let select = format!("SELECT {} FROM snapshots ORDER BY id", Row::COLUMNS);
            let mut select = txn.prepare_cached(&select)?;
            let mut rows = select.query(())?;
            while let Some(found) = rows.next()? {
                let name: String = found.get(0)?;
                let row = Row::read(found)?.map_err(damaged(&name))?;
                let info = snapshots.info(&name, &row)?;
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
        self.write("update a snapshot", |txn| {
            let snapshots = Snapshots(txn);
            let mut row = snapshots.row(key)?;
            let old = row.labels().map_err(damaged(key))?;
            row.set_labels(&masked_labels(key, old, labels, paths)?);
            row.touch();
            snapshots.replace(key, &row)?;
            Ok((row.id, snapshots.info(key, &row)?))
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
        self.write("commit a snapshot", |txn| {
            let snapshots = Snapshots(txn);
            let Head { id, kind, parent } = snapshots.head(key)?;
            snapshots.vacant(name)?;
            if kind != Kind::Active {
                return Err(Error::CommitInactive {
                    key: key.to_owned(),
                    kind,
                }
                .into());
            }
            let parent = match asked {
                None => parent,
                Some(asked) if parent.is_none() => {
                    let Head { id, kind, .. } = snapshots.parent(key, asked)?;
                    if kind != Kind::Committed {
                        let (key, parent) = (key.to_owned(), asked.to_owned());
                        return Err(Error::CommitOnUncommitted { key, parent, kind }.into());
                    }
                    Some(id)
                }
                Some(asked) => {
                    let own = snapshots.name(parent)?;
                    if own != asked {
                        return Err(Error::ParentMismatch {
                            key: key.to_owned(),
                            parent: own,
                            asked: asked.to_owned(),
                        }
                        .into());
                    }
                    parent
                }
            };
            snapshots.replace(name, &Row::new(id, Kind::Committed, parent, labels))
        })
    }

    pub(crate) fn remove(&self, key: &str) -> Result<Id> {
        self.write_to_full_disk("remove a snapshot", |txn| {
            let Head { id, .. } = Snapshots(txn).head(key)?;
            let child: Option<String> = txn
                .prepare_cached("SELECT name FROM snapshots WHERE parent = ? LIMIT 1")?
                .query_row([id], |row| row.get(0))
                .optional()?;
            if let Some(child) = child {
                return Err(Error::HasChildren {
                    key: key.to_owned(),
                    child,
                }
                .into());
            }
            txn.prepare_cached("DELETE FROM snapshots WHERE id = ?")?
                .execute([id])?;
            Ok(id)
        })
    }

    pub(crate) fn usage(&self, key: &str) -> Result<(Id, Kind, Option<Usage>)> {
        self.read("read a snapshot", |txn| {
            let row = Snapshots(txn).row(key)?;
            Ok((row.id, row.kind, row.usage))
        })
    }

    /// Notes what committed snapshot `id` takes, if it is still there under this name.
    pub(crate) fn set_usage(&self, key: &str, id: Id, usage: Usage) -> Result<()> {
        self.write("note the usage of a snapshot", |txn| {
            let snapshots = Snapshots(txn);
            let mut row = snapshots.row(key)?;
            if row.id != id {
                return Err(not_found(key));
            }
            row.usage = Some(usage);
            snapshots.replace(key, &row)
        })
    }
}

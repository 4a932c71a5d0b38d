//! The metadata store: which snapshots there are, in one redb file.
//!
//! redb is copy-on-write like the bolt that containerd uses: one writer, readers that see the state
//! at their start, and nothing to replay after a crash. Commits are in two phases, that is with two
//! `fdatasync`, as bolt's are: the one that redb can save relies on a checksum that is not
//! cryptographic, over pages with labels that strangers wrote.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{AccessGuard, Database, ReadableDatabase, ReadableTable, Table, TableDefinition};

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::model::{Id, Info, Kind, Labels, Snapshot, Usage, masked_labels};
use crate::row::{Malformed, Nanos, Row};

/// Name or key → [`Row`].
const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
/// (id of the parent, id of the child) → name or key of the child.
const CHILDREN: TableDefinition<(u64, u64), &str> = TableDefinition::new("children");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// In `META`: the version of the tables and of what they hold.
const SCHEMA: &str = "schema";
const SCHEMA_VERSION: u64 = 1;
/// In `META`: the highest id that was ever published.
const SEQUENCE: &str = "sequence";

/// redb's own default is 1 GiB. A row of an ordinary layer has less than 1 KiB, so this holds a
/// busy node's store, while all of the daemon is to stay below 12 MB.
const CACHE_BYTES: usize = 1 << 20;

/// The first bytes of a redb file.
const REDB_MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// bolt has its magic number after the 16 bytes of its first page's header.
const BOLT_MAGIC: [u8; 4] = 0xED0C_DAED_u32.to_le_bytes();

pub(crate) struct Store {
    db: Database,
    path: PathBuf,
}

/// Why a transaction stops: the store failed, or the request is refused.
enum Stop {
    Store(Box<redb::Error>),
    Refuse(Error),
}

macro_rules! stop_from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Stop {
            fn from(error: $error) -> Self {
                Self::Store(Box::new(error.into()))
            }
        }
    )*};
}
stop_from_redb!(redb::StorageError, redb::TableError, redb::TransactionError);

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refuse(error)
    }
}

/// The tables inside one write transaction.
struct Tables<'txn> {
    snapshots: Table<'txn, &'static str, &'static [u8]>,
    children: Table<'txn, (u64, u64), &'static str>,
    meta: Table<'txn, &'static str, u64>,
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

    /// Whether a snapshot could be made, in the order in which containerd's own store asks; gives
    /// the parent's id.
    fn admit(&self, kind: Kind, key: &str, parent: Option<&str>) -> Result<Option<Id>, Stop> {
        if kind == Kind::Committed {
            return Err(Error::CreateCommitted {
                key: key.to_owned(),
            }
            .into());
        }
        let mut parent_id = None;
        if let Some(parent) = parent {
            let Some(bytes) = self.get(parent)? else {
                return Err(Error::ParentNotFound {
                    key: key.to_owned(),
                    parent: parent.to_owned(),
                }
                .into());
            };
            let row = decode(parent, bytes.value())?;
            if row.kind != Kind::Committed {
                let (key, parent) = (key.to_owned(), parent.to_owned());
                return Err(Error::CreateOnUncommitted {
                    key,
                    parent,
                    kind: row.kind,
                }
                .into());
            }
            parent_id = Some(row.id);
        }
        if self.get(key)?.is_some() {
            return Err(Error::AlreadyExists {
                key: key.to_owned(),
            }
            .into());
        }
        Ok(parent_id)
    }

    /// The ids of snapshot `name` and of all its ancestors, nothing for the empty name.
    fn lineage(&self, key: &str, name: &str) -> Result<Vec<Id>, Stop> {
        let mut ids = Vec::new();
        let mut name = name.to_owned();
        while !name.is_empty() {
            let Some(bytes) = self.get(name.as_str())? else {
                return Err(Error::ParentNotFound {
                    key: key.to_owned(),
                    parent: name,
                }
                .into());
            };
            let row = decode(&name, bytes.value())?;
            ids.push(row.id);
            name = row.parent.into_owned();
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
    /// Whether there is a store in `root`; one that belongs to another program is an error.
    pub(crate) fn exists(root: &Path) -> Result<bool> {
        let path = Self::path(root);
        let mut head = Vec::new();
        match File::open(&path).and_then(|file| file.take(20).read_to_end(&mut head)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("read", path)(error)),
            Ok(_) if head.starts_with(REDB_MAGIC) => Ok(true),
            Ok(_) if head.ends_with(&BOLT_MAGIC) => Err(Error::ForeignStore {
                path,
                found: "a bolt database, such as snapshotters written in Go keep",
            }),
            Ok(_) => Err(Error::ForeignStore {
                path,
                found: "a file of an unknown kind",
            }),
        }
    }

    /// Makes the store of `root`, which has none. It gets its name last, so that a crash leaves
    /// none or a whole one.
    pub(crate) fn create(root: &Path) -> Result<()> {
        let path = Self::path(root);
        let unfinished = path.with_extension("db.new");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished);
        let file = file.map_err(Error::io("create", &unfinished))?;
        let store = Self {
            db: Self::database(file, &unfinished)?,
            path: unfinished,
        };
        store.write("create the tables", |tables| {
            tables.meta.insert(SCHEMA, SCHEMA_VERSION)?;
            Ok(())
        })?;
        let unfinished = store.path;
        drop(store.db);
        fs::rename(&unfinished, &path).map_err(Error::io("rename", &unfinished))?;
        File::open(root)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::io("sync", root))
    }

    /// Opens the store of `root`.
    ///
    /// All of it is verified: what is in no row is deleted afterwards, so a damaged store must not
    /// pass for an empty one.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let path = Self::path(root);
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let store = Self {
            db: Self::database(file, &path)?,
            path,
        };
        let found = store.meta(SCHEMA)?;
        if found > SCHEMA_VERSION {
            return Err(Error::NewerSchema {
                path: store.path,
                found,
                known: SCHEMA_VERSION,
            });
        }
        Ok(store)
    }

    fn path(root: &Path) -> PathBuf {
        root.join("metadata.db")
    }

    fn database(file: File, path: &Path) -> Result<Database> {
        let warn_path = path.to_owned();
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).set_repair_callback(move |_| {
            tracing::info!(path = %warn_path.display(), "repairing the store after an unclean stop");
        });
        FileBackend::new(file)
            .and_then(|backend| builder.create_with_backend(backend))
            .map_err(|error| Error::Store {
                operation: "open the database",
                path: path.to_owned(),
                source: Box::new(error.into()),
            })
    }

    fn meta(&self, name: &'static str) -> Result<u64> {
        self.guard("read the state", || {
            let table = self.db.begin_read()?.open_table(META)?;
            Ok(table.get(name)?.map_or(0, |value| value.value()))
        })
    }

    fn guard<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce() -> Result<T, Stop>,
    ) -> Result<T> {
        body().map_err(|stop| match stop {
            Stop::Refuse(error) => error,
            Stop::Store(source) => Error::Store {
                operation,
                path: self.path.clone(),
                source,
            },
        })
    }

    fn read<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&redb::ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T, Stop>,
    ) -> Result<T> {
        self.guard(operation, || {
            body(&self.db.begin_read()?.open_table(SNAPSHOTS)?)
        })
    }

    /// One write transaction, durable when this returns; an error of `body` leaves the store as it
    /// was.
    fn write<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&mut Tables<'_>) -> Result<T, Stop>,
    ) -> Result<T> {
        let (txn, value) = self.guard(operation, || {
            let mut txn = self.db.begin_write()?;
            txn.set_two_phase_commit(true);
            let value = {
                let mut tables = Tables {
                    snapshots: txn.open_table(SNAPSHOTS)?,
                    children: txn.open_table(CHILDREN)?,
                    meta: txn.open_table(META)?,
                };
                body(&mut tables)?
            };
            Ok((txn, value))
        })?;
        txn.commit().map_err(|error| Error::Unconfirmed {
            operation,
            path: self.path.clone(),
            source: Box::new(error.into()),
        })?;
        Ok(value)
    }

    /// The highest id that was ever published.
    pub(crate) fn sequence(&self) -> Result<Id> {
        self.meta(SEQUENCE).map(Id)
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

    /// Whether a snapshot could be made; gives the parent's id.
    pub(crate) fn admit(&self, kind: Kind, key: &str, parent: Option<&str>) -> Result<Option<Id>> {
        self.read("look up a snapshot", |snapshots| {
            snapshots.admit(kind, key, parent)
        })
    }

    /// Publishes snapshot `id`, whose directories were made with the owner of the parent numbered
    /// `parent_id`.
    pub(crate) fn insert(
        &self,
        id: Id,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        parent_id: Option<Id>,
        labels: &Labels,
    ) -> Result<Snapshot> {
        self.write("add a snapshot", |tables| {
            let found = tables.snapshots.admit(kind, key, parent)?;
            let parent = parent.unwrap_or_default();
            if found != parent_id {
                // Its name was given to another snapshot since the directories were made.
                return Err(Error::ParentNotFound {
                    key: key.to_owned(),
                    parent: parent.to_owned(),
                }
                .into());
            }
            tables
                .snapshots
                .insert(key, Row::new(id, kind, parent, labels).encode().as_slice())?;
            if let Some(parent_id) = parent_id {
                tables.children.insert((parent_id.0, id.0), key)?;
            }
            let sequence = tables.meta.get(SEQUENCE)?.map_or(0, |value| value.value());
            tables.meta.insert(SEQUENCE, sequence.max(id.0))?;
            let parents = tables.snapshots.lineage(key, parent)?;
            Ok(Snapshot { id, kind, parents })
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
                row.updated = Nanos::now();
                (row.id, row.info(key).map_err(damaged(key))?, row.encode())
            };
            tables.snapshots.insert(key, bytes.as_slice())?;
            Ok((id, info))
        })
    }

    /// Turns the active snapshot `key` into the committed one `name`. `parent` may give a parent to
    /// one without.
    pub(crate) fn commit(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<()> {
        self.write("commit a snapshot", |tables| {
            let (id, old_parent) = {
                let bytes = tables.snapshots.find(key)?;
                let row = decode(key, bytes.value())?;
                if tables.snapshots.get(name)?.is_some() {
                    return Err(Error::AlreadyExists {
                        key: name.to_owned(),
                    }
                    .into());
                }
                if row.kind != Kind::Active {
                    return Err(Error::CommitInactive {
                        key: key.to_owned(),
                        kind: row.kind,
                    }
                    .into());
                }
                (row.id, row.parent.into_owned())
            };
            let parent = match parent {
                None => old_parent.as_str(),
                Some(asked) if old_parent.is_empty() || asked == old_parent => asked,
                Some(asked) => {
                    let (key, asked) = (key.to_owned(), asked.to_owned());
                    return Err(Error::ParentMismatch {
                        key,
                        parent: old_parent,
                        asked,
                    }
                    .into());
                }
            };
            if !parent.is_empty() {
                let parent_id = {
                    let Some(bytes) = tables.snapshots.get(parent)? else {
                        return Err(Error::ParentNotFound {
                            key: key.to_owned(),
                            parent: parent.to_owned(),
                        }
                        .into());
                    };
                    let row = decode(parent, bytes.value())?;
                    if row.kind != Kind::Committed {
                        let (key, parent) = (key.to_owned(), parent.to_owned());
                        return Err(Error::CommitOnUncommitted {
                            key,
                            parent,
                            kind: row.kind,
                        }
                        .into());
                    }
                    row.id
                };
                tables.children.insert((parent_id.0, id.0), name)?;
            }
            tables.snapshots.remove(key)?;
            tables.snapshots.insert(
                name,
                Row::new(id, Kind::Committed, parent, labels)
                    .encode()
                    .as_slice(),
            )?;
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
            if let Some(parent_id) = tables.snapshots.lineage(key, &parent)?.first() {
                tables.children.remove((parent_id.0, id.0))?;
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

//! The metadata store: which snapshots there are, in one redb file.
//!
//! redb is copy-on-write like the bolt that containerd uses: one writer, readers that see the state
//! at their start, and nothing to replay after a crash. Commits are in two phases, that is with two
//! `fdatasync`, as bolt's are. redb could save one of them, but then tells by a checksum, one that
//! is not cryptographic and covers labels that strangers wrote, whether the last commit is whole;
//! and it would silently go back to the one before when a page was damaged.

mod calls;
mod handle;
mod write_lock;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadOnlyTable, ReadableDatabase, Table, TableDefinition};

use self::handle::Handle;
pub use self::write_lock::StoreWaits;
use self::write_lock::WriteLock;
use crate::error::{Error, Result};

/// Name or key → [`Row`](crate::row::Row).
const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
/// (id of the parent, id of the child) → name or key of the child.
const CHILDREN: TableDefinition<(u64, u64), &str> = TableDefinition::new("children");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// In `META`: the version of the tables and of what they hold.
const SCHEMA: &str = "schema";
const SCHEMA_VERSION: u64 = 1;
/// In `META`: the highest id that was published, or found on the disk after a crash.
const SEQUENCE: &str = "sequence";

/// The first bytes of a redb file.
const REDB_MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// bolt has its magic number after the 16 bytes of its first page's header.
const BOLT_MAGIC: [u8; 4] = 0xED0C_DAED_u32.to_le_bytes();

pub(crate) struct Store {
    handle: Handle,
    lock: WriteLock,
}

/// The tables inside one write transaction.
struct Tables<'txn> {
    snapshots: Table<'txn, &'static str, &'static [u8]>,
    children: Table<'txn, (u64, u64), &'static str>,
    meta: Table<'txn, &'static str, u64>,
}

/// Why a transaction stops: the store failed, it failed while it made the change durable, or the
/// request is refused.
enum Stop {
    Store(Box<redb::Error>),
    Commit(Box<redb::Error>),
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

impl Store {
    /// Where the store of `root` is.
    pub(crate) fn path(root: &Path) -> PathBuf {
        root.join("metadata.db")
    }

    /// Whether there is a store in `root`; one that belongs to another program is an error.
    pub(crate) fn exists(root: &Path) -> Result<bool> {
        let path = Self::path(root);
        let mut head = Vec::new();
        match File::open(&path).and_then(|file| file.take(20).read_to_end(&mut head)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("read", path)(error)),
            Ok(_) if head.starts_with(REDB_MAGIC) => Ok(true),
            Ok(_) if head.ends_with(&BOLT_MAGIC) => {
                let found = "a bolt database, such as snapshotters written in Go keep";
                Err(Error::ForeignStore { path, found })
            }
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
        let mut options = File::options();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600);
        let file = options.open(&unfinished);
        let file = file.map_err(Error::io("create", &unfinished))?;
        let store = Self {
            handle: Handle::new(file, unfinished.clone())?,
            lock: WriteLock::default(),
        };
        store.write("create the tables", |tables| {
            tables.meta.insert(SCHEMA, SCHEMA_VERSION)?;
            Ok(())
        })?;
        drop(store);
        fs::rename(&unfinished, &path).map_err(Error::io("rename", &unfinished))?;
        let synced = File::open(root).and_then(|dir| dir.sync_all());
        synced.map_err(Error::io("sync", root))
    }

    /// Opens the store of `root`.
    ///
    /// All of it is verified: what is in no row is deleted afterwards, so a damaged store must not
    /// pass for a smaller one.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let path = Self::path(root);
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        let store = Self {
            handle: Handle::new(file, path.clone())?,
            lock: WriteLock::default(),
        };
        let found = store.meta(SCHEMA)?;
        if found > SCHEMA_VERSION {
            return Err(Error::NewerSchema {
                path,
                found,
                known: SCHEMA_VERSION,
            });
        }
        Ok(store)
    }

    pub(crate) fn waits(&self) -> StoreWaits {
        self.lock.waits()
    }

    fn meta(&self, name: &'static str) -> Result<u64> {
        self.with("read the state", |db| {
            let table = db.begin_read()?.open_table(META)?;
            Ok(table.get(name)?.map_or(0, |value| value.value()))
        })
    }

    fn read<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T, Stop>,
    ) -> Result<T> {
        self.with(operation, |db| {
            body(&db.begin_read()?.open_table(SNAPSHOTS)?)
        })
    }

    /// One write transaction, durable when this returns; an error of `body` leaves the store as it
    /// was.
    fn write<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&mut Tables<'_>) -> Result<T, Stop>,
    ) -> Result<T> {
        let _writing = self.lock.lock();
        self.with(operation, |db| {
            let mut txn = db.begin_write()?;
            txn.set_two_phase_commit(true);
            let value = {
                let mut tables = Tables {
                    snapshots: txn.open_table(SNAPSHOTS)?,
                    children: txn.open_table(CHILDREN)?,
                    meta: txn.open_table(META)?,
                };
                body(&mut tables)?
            };
            txn.commit()
                .map_err(|error| Stop::Commit(Box::new(error.into())))?;
            Ok(value)
        })
    }

    fn with<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&Arc<Database>) -> Result<T, Stop>,
    ) -> Result<T> {
        let db = self.handle.database()?;
        let path = self.handle.path();
        body(&db).map_err(|stop| match stop {
            Stop::Refuse(error) => error,
            Stop::Store(source) => {
                self.handle.fail(&db);
                failed(operation, path)(*source)
            }
            Stop::Commit(source) => {
                self.handle.fail(&db);
                Error::Unconfirmed {
                    operation,
                    path: path.to_owned(),
                    source,
                }
            }
        })
    }
}

fn failed<E: Into<redb::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    let path = path.to_owned();
    move |error| {
        let source = Box::new(error.into());
        match *source {
            redb::Error::Corrupted(_) => Error::StoreDamaged { path, source },
            _ => Error::Store {
                operation,
                path,
                source,
            },
        }
    }
}

//! The metadata store: which snapshots there are, in one SQLite database.
//!
//! A write transaction appends to the write-ahead log, and what it did is on the disk when the call
//! returns; [`durability`] says how. Readers see the state at their start and wait for nobody.
//!
//! What has no row is deleted, so a damaged store must never pass for a smaller one. SQLite itself
//! would take a log that was damaged in the middle for one that ends there, and notices no change
//! inside of a value. [`Store::open`] therefore verifies all of it: the structure
//! (`integrity_check`), the checksum of each row, and that the last transaction which was known to
//! be on the disk is still there.

mod calls;
mod connection;
mod durability;
mod reserve;
mod write_lock;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use self::durability::Durability;
use self::reserve::Reserve;
pub use self::write_lock::StoreWaits;
use self::write_lock::WriteLock;
use crate::error::{Code, Error, Result};
use crate::row::{Malformed, Row};

/// In the header of the file, where `file` and `sqlite3` show it: "nixs".
const APPLICATION_ID: u32 = 0x6e69_7873;
/// The version of the tables and of what they hold; SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 1;

/// `state` has one row: the highest id that was published, or found on the disk after a crash, and
/// the number of transactions so far.
const SCHEMA: &str = "
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        kind INTEGER NOT NULL,
        parent INTEGER,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        size INTEGER,
        inodes INTEGER,
        checksum INTEGER NOT NULL,
        labels BLOB NOT NULL
    ) STRICT;
    CREATE INDEX children ON snapshots (parent) WHERE parent IS NOT NULL;
    CREATE TABLE state (sequence INTEGER NOT NULL, changes INTEGER NOT NULL) STRICT;
    INSERT INTO state VALUES (0, 0);
";

/// The first bytes of an SQLite database, and where its application id is.
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
const APPLICATION_ID_AT: usize = 68;
/// The first bytes of a redb database.
const REDB_MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// bolt has its magic number after the 16 bytes of its first page's header.
const BOLT_MAGIC: &[u8] = &0xED0C_DAED_u32.to_le_bytes();

/// Readers that are kept for the next call. One costs some 100 kB.
const IDLE_READERS: usize = 2;

pub(crate) struct Store {
    path: PathBuf,
    writer: WriteLock<Writer>,
    readers: Mutex<Vec<Connection>>,
    durability: Durability,
    reserve: Reserve,
}

struct Writer {
    connection: Connection,
    /// The number of transactions that the store has seen.
    changes: u64,
}

/// Why a transaction stops: the store failed, or the request is refused.
enum Stop {
    Store(rusqlite::Error),
    Refuse(Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error)
    }
}

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
        match File::open(&path).and_then(|file| file.take(100).read_to_end(&mut head)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io("read", path)(error)),
            Ok(_) => {}
        }
        let at = |offset: usize, bytes: &[u8]| {
            head.get(offset..)
                .is_some_and(|rest| rest.starts_with(bytes))
        };
        let found = if at(0, SQLITE_MAGIC) {
            if at(APPLICATION_ID_AT, &APPLICATION_ID.to_be_bytes()) {
                return Ok(true);
            }
            "an SQLite database of another program"
        } else if at(0, REDB_MAGIC) {
            "a redb database, such as versions of this snapshotter before its first release kept"
        } else if at(16, BOLT_MAGIC) {
            "a bolt database, such as snapshotters written in Go keep"
        } else {
            "a file of an unknown kind"
        };
        Err(Error::ForeignStore { path, found })
    }

    /// Makes the store of `root`, which has none. It gets its name last, so that a crash leaves
    /// none or a whole one.
    pub(crate) fn create(root: &Path) -> Result<()> {
        let path = Self::path(root);
        let unfinished = path.with_extension("db.new");
        // SQLite would take a log of an earlier database for one of this.
        for database in [&path, &unfinished] {
            for suffix in ["", "-wal", "-shm", "-journal"] {
                remove_if_there(&beside(database, suffix))?;
            }
        }
        remove_if_there(&durability::witness(&path))?;
        let mut options = File::options();
        let made = options.write(true).create_new(true).mode(0o600);
        made.open(&unfinished)
            .map_err(Error::io("create", &unfinished))?;
        let made = connection::open(&unfinished).and_then(|connection| {
            // A property of the file, from now on.
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.execute_batch(&format!(
                "BEGIN; PRAGMA application_id = {APPLICATION_ID}; \
                 PRAGMA user_version = {SCHEMA_VERSION}; {SCHEMA} COMMIT"
            ))?;
            // Moves all of it from the log to the file.
            connection.close().map_err(|(_, error)| error)
        });
        made.map_err(failed("create the tables", &unfinished))?;
        let synced = File::open(&unfinished).and_then(|file| file.sync_all());
        synced.map_err(Error::io("sync", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(Error::io("rename", &unfinished))?;
        let synced = File::open(root).and_then(|dir| dir.sync_all());
        synced.map_err(Error::io("sync", root))
    }

    /// Opens the store of `root` and verifies all of it.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let path = Self::path(root);
        let failed = failed("open the database", &path);
        let connection = connection::open(&path).map_err(&failed)?;
        let found = connection.pragma_query_value(None, "user_version", |row| row.get(0));
        let found: i64 = found.map_err(&failed)?;
        if found > SCHEMA_VERSION {
            let known = SCHEMA_VERSION;
            return Err(Error::NewerSchema { path, found, known });
        }
        let changes = verify(&connection).map_err(|stop| stop.into_error("verify", &path))?;
        let durability = Durability::open(&path, changes)?;
        let reserve = Reserve::open(&path)?;
        Ok(Self {
            writer: WriteLock::new(Writer {
                connection,
                changes,
            }),
            readers: Mutex::default(),
            durability,
            reserve,
            path,
        })
    }

    /// Takes back the space that removing on a full disk has used, if there is some again.
    pub(crate) fn keep_space(&self) {
        self.reserve.fill();
    }

    pub(crate) fn waits(&self) -> StoreWaits {
        self.writer.waits()
    }

    /// One look at the store, as of one moment.
    fn read<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Stop>,
    ) -> Result<T> {
        let idle = self.idle_readers().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connection::open(&self.path).map_err(failed(operation, &self.path))?,
        };
        let txn = connection.unchecked_transaction().map_err(Stop::from);
        let answer = txn.and_then(|txn| body(&txn));
        let mut idle = self.idle_readers();
        if idle.len() < IDLE_READERS {
            idle.push(connection);
        }
        answer.map_err(|stop| stop.into_error(operation, &self.path))
    }

    /// One write transaction, durable when this returns; an error of `body` leaves the store as it
    /// was.
    fn write<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Stop>,
    ) -> Result<T> {
        let (value, change) = {
            let mut writer = self.writer.lock();
            self.transact(&mut writer, body)
                .map_err(|stop| stop.into_error(operation, &self.path))?
        };
        // Others write meanwhile, and are made durable together.
        let confirmed = self.durability.confirm(change);
        confirmed.map_err(|source| self.unconfirmed(operation, source))?;
        Ok(value)
    }

    /// As [`Store::write`], for what frees space: a disk that is full does not keep it from succeeding.
    fn write_to_full_disk<T>(
        &self,
        operation: &'static str,
        body: impl Fn(&Transaction<'_>) -> Result<T, Stop>,
    ) -> Result<T> {
        loop {
            match self.write(operation, &body) {
                Err(error) if error.code() == Code::ResourceExhausted && self.reserve.give() => {}
                result => return result,
            }
        }
    }

    /// Waits until all that a reader can have seen is on the disk.
    fn settle(&self, operation: &'static str) -> Result<()> {
        let confirmed = self.durability.confirm_all();
        confirmed.map_err(|source| self.unconfirmed(operation, source))
    }

    fn unconfirmed(&self, operation: &'static str, source: io::Error) -> Error {
        let path = self.path.clone();
        Error::Unconfirmed {
            operation,
            path,
            source,
        }
    }

    fn transact<T>(
        &self,
        writer: &mut Writer,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, Stop>,
    ) -> Result<(T, u64), Stop> {
        self.durability.recover(&writer.connection)?;
        let change = writer.changes + 1;
        let behavior = TransactionBehavior::Immediate;
        let txn = writer.connection.transaction_with_behavior(behavior)?;
        let value = body(&txn)?;
        txn.prepare_cached("UPDATE state SET changes = ?")?
            .execute([change.cast_signed()])?;
        txn.commit()?;
        writer.changes = change;
        self.durability.written(change);
        Ok((value, change))
    }

    fn idle_readers(&self) -> MutexGuard<'_, Vec<Connection>> {
        // A panic cannot leave the list half changed.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Verifies the structure and each row; gives the number of transactions so far.
fn verify(connection: &Connection) -> Result<u64, Stop> {
    let txn = connection.unchecked_transaction()?;
    let mut check = txn.prepare("PRAGMA integrity_check(1)")?;
    let found: String = check.query_row((), |row| row.get(0))?;
    if found != "ok" {
        return Err(damaged(&txn, found).into());
    }
    let mut statement = txn.prepare(&format!("SELECT {} FROM snapshots", Row::COLUMNS))?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        let key: String = row.get(0)?;
        let checksum: i64 = row.get(8)?;
        let reason = match Row::read(row)? {
            Ok(row) if i64::from(row.checksum(&key)) == checksum => continue,
            Ok(_) => "its checksum is another",
            Err(Malformed(reason)) => reason,
        };
        return Err(damaged(&txn, format!("the record of snapshot {key:?}: {reason}")).into());
    }
    let changes = txn.query_row("SELECT changes FROM state", (), |row| row.get::<_, i64>(0))?;
    Ok(changes.cast_unsigned())
}

fn damaged(connection: &Connection, reason: String) -> Error {
    let path = connection.path().unwrap_or_default().into();
    Error::StoreDamaged { path, reason }
}

impl Stop {
    fn into_error(self, operation: &'static str, path: &Path) -> Error {
        match self {
            Self::Refuse(error) => error,
            Self::Store(error) => failed(operation, path)(error),
        }
    }
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(rusqlite::Error) -> Error + use<> {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let path = path.to_owned();
    move |source| {
        let path = path.clone();
        match source.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Error::StoreDamaged {
                path,
                reason: source.to_string(),
            },
            _ => Error::Store {
                operation,
                path,
                source: Box::new(source),
            },
        }
    }
}

/// The file whose name is that of `path` and a suffix.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("delete", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

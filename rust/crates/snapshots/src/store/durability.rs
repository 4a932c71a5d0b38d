//! When a transaction is on the disk.
//!
//! A commit writes to SQLite's log. What makes it durable is an `fdatasync` of the log, which
//! covers all that was committed before it began. So one call syncs for all that have committed by
//! then, the calls that come meanwhile wait, and one of them syncs for all of these: however many
//! clients there are, the disk sees one sync after the other.
//!
//! Beside the database is the file `metadata.changes`, with the number of the last transaction that
//! is known to be on the disk. It is not synced, so after a power cut it may be some transactions
//! behind; it is never ahead. A store that has fewer transactions than it says has lost some.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use rusqlite::ffi;

use super::{Stop, beside, connection};
use crate::error::{Error, Result};

/// The length that the log is given at the start: twice what it has when it is checkpointed, each
/// page with a header of 24 bytes. Overwriting is what makes a sync cheap, since the length of a
/// file that grows has to be in the file system's journal too. The second half is for a disk that
/// is full, on which nothing can be checkpointed and snapshots must be removed nevertheless.
const LOG_BYTES: u64 = 2 * connection::CHECKPOINT_PAGES as u64 * (4096 + 24);

pub(super) struct Durability {
    log: File,
    witness: File,
    state: Mutex<State>,
    synced: Condvar,
}

struct State {
    /// The last transaction that is in the log.
    written: u64,
    /// The last that is known to be on the disk.
    durable: u64,
    /// Whether a call is syncing.
    syncing: bool,
    /// The last that a sync failed for. The kernel takes such pages for written from then on, so
    /// the next sync says nothing about them, nor about what follows them in the log.
    lost: u64,
}

/// Where the number is kept of the last transaction that is known to be on the disk.
pub(super) fn witness(database: &Path) -> PathBuf {
    database.with_extension("changes")
}

impl Durability {
    /// For a database that is open and has seen `changes` transactions.
    pub(super) fn open(database: &Path, changes: u64) -> Result<Self> {
        let path = witness(database);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        let damaged = |reason| Error::StoreDamaged {
            path: database.to_owned(),
            reason,
        };
        match read(&file).map_err(Error::io("read", &path))? {
            Witness::Nothing => {}
            Witness::Damaged => return Err(damaged(format!("{path:?} cannot be read"))),
            Witness::Durable(durable) if durable > changes => {
                return Err(damaged(format!(
                    "it has {changes} transactions, and had {durable}"
                )));
            }
            Witness::Durable(_) => {}
        }
        let written = write(&file, changes).and_then(|()| file.sync_all());
        written.map_err(Error::io("write", &path))?;

        let path = beside(database, "-wal");
        let log = File::options().write(true).open(&path);
        let log = log.map_err(Error::io("open", &path))?;
        if let Err(error) = lengthen(&log) {
            // It serves with a shorter one, too.
            tracing::warn!(%error, path = %path.display(), "cannot give the log its full length");
        }
        log.sync_all().map_err(Error::io("sync", &path))?;
        Ok(Self {
            log,
            witness: file,
            state: Mutex::new(State {
                written: changes,
                durable: changes,
                syncing: false,
                lost: 0,
            }),
            synced: Condvar::new(),
        })
    }

    /// Notes that a transaction was committed to the log.
    pub(super) fn written(&self, change: u64) {
        self.state().written = change;
    }

    /// Waits until all transactions so far are on the disk.
    pub(super) fn confirm_all(&self) -> io::Result<()> {
        let written = self.state().written;
        self.confirm(written)
    }

    /// Waits until a transaction is on the disk.
    pub(super) fn confirm(&self, change: u64) -> io::Result<()> {
        let mut state = self.state();
        loop {
            if state.durable >= change {
                return Ok(());
            }
            if state.lost > 0 {
                return Err(io::Error::other("an earlier sync of the log failed"));
            }
            if !state.syncing {
                break;
            }
            let woken = self.synced.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.syncing = true;
        let target = state.written;
        drop(state);

        let synced = self.log.sync_data();
        let mut state = self.state();
        state.syncing = false;
        match &synced {
            Ok(()) => {
                state.durable = target;
                if let Err(error) = write(&self.witness, target) {
                    tracing::warn!(%error, "cannot note which transaction is on the disk");
                }
            }
            Err(_) => state.lost = state.written,
        }
        drop(state);
        self.synced.notify_all();
        synced
    }

    /// After a sync that failed: moves all of the log into the database, which SQLite syncs, and
    /// begins a new log. Called before a transaction, without one.
    pub(super) fn recover(&self, writer: &Connection) -> Result<(), Stop> {
        if self.state().lost == 0 {
            return Ok(());
        }
        let busy = writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| {
            row.get::<_, bool>(0)
        })?;
        if busy {
            let busy = ffi::Error::new(ffi::SQLITE_BUSY);
            let text = "the log could not be synced, and a List is reading it".to_owned();
            return Err(rusqlite::Error::SqliteFailure(busy, Some(text)).into());
        }
        let mut state = self.state();
        state.durable = state.written;
        state.lost = 0;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn replace_log(&mut self, log: File) -> File {
        std::mem::replace(&mut self.log, log)
    }

    #[cfg(test)]
    pub(super) fn durable(&self) -> u64 {
        self.state().durable
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends zeros, which SQLite does not take for a part of the log.
fn lengthen(log: &File) -> io::Result<()> {
    let length = log.metadata()?.len();
    let missing = LOG_BYTES.saturating_sub(length);
    log.write_all_at(&vec![0; usize::try_from(missing).unwrap_or(0)], length)
}

enum Witness {
    /// The file is new, or was never written to the disk.
    Nothing,
    Damaged,
    Durable(u64),
}

/// The number is followed by its complement.
fn read(file: &File) -> io::Result<Witness> {
    let mut bytes = [0; 16];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        _ => {}
    }
    let [number, complement] = [&bytes[..8], &bytes[8..]].map(|half| {
        half.iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    });
    Ok(match (number, complement) {
        (0, 0) => Witness::Nothing,
        _ if number == !complement => Witness::Durable(number),
        _ => Witness::Damaged,
    })
}

fn write(file: &File, number: u64) -> io::Result<()> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&(!number).to_le_bytes());
    file.write_all_at(&bytes, 0)
}

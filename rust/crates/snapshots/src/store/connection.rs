//! How the database is opened.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// Pages of the log after which it is moved into the database, so some 1 MB. Each transaction
/// writes about five.
pub(super) const CHECKPOINT_PAGES: u32 = 250;

/// How long a connection waits for a lock. The process has the database for itself, and in this
/// mode of the log locks are held for moments only.
const BUSY: Duration = Duration::from_secs(10);

/// Opens the database, which is there.
///
/// `synchronous` is NORMAL: SQLite syncs where a checkpoint needs it, and not at each commit, since
/// [`Durability`](super::durability::Durability) does that for several commits at once.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    // A negative size is in KiB. The pages of a full node's store are in the kernel's cache.
    connection.pragma_update(None, "cache_size", -256)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    Ok(connection)
}

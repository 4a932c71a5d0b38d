//! The open database file, and how it is opened anew after a failure.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::Database;
use redb::backends::FileBackend;

use super::failed;
use crate::error::{Error, Result};

/// redb's own default is 1 GiB. A row of an ordinary layer has less than 1 KiB, so this holds a
/// busy node's store, while all of the daemon is to stay below 12 MB.
const CACHE_BYTES: usize = 1 << 20;

/// After any failure of the disk, such as a full one, redb refuses every call until the file is
/// opened anew. The next call does that, so that a node which ran out of space goes on when it has
/// some again.
pub(super) struct Handle {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// None when it could not be opened anew.
    db: Option<Arc<Database>>,
    failed: bool,
}

impl Handle {
    pub(super) fn new(file: File, path: PathBuf) -> Result<Self> {
        let db = Some(Arc::new(open(file, &path)?));
        Ok(Self {
            path,
            state: Mutex::new(State { db, failed: false }),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The database, for one transaction.
    pub(super) fn database(&self) -> Result<Arc<Database>> {
        let mut state = self.state();
        if state.failed
            && let Some(db) = state.db.take()
            && let Err(db) = Arc::try_unwrap(db)
        {
            // Calls that were under way use it still; they end with an error soon.
            state.db = Some(db);
            return Err(failed("open the database", &self.path)(
                redb::Error::PreviousIo,
            ));
        }
        let db = match state.db.take() {
            Some(db) => db,
            None => {
                let file = File::options().read(true).write(true).open(&self.path);
                Arc::new(open(
                    file.map_err(Error::io("open", &self.path))?,
                    &self.path,
                )?)
            }
        };
        *state = State {
            db: Some(Arc::clone(&db)),
            failed: false,
        };
        Ok(db)
    }

    /// Notes that a call on this database failed.
    pub(super) fn fail(&self, db: &Arc<Database>) {
        let mut state = self.state();
        state.failed |= state
            .db
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, db));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever a panic leaves in it is valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(file: File, path: &Path) -> Result<Database> {
    let shown = path.to_owned();
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_check_integrity_on_open(true);
    builder.set_repair_callback(move |_| {
        tracing::debug!(path = %shown.display(), "verifying the store");
    });
    let db = FileBackend::new(file).and_then(|backend| builder.create_with_backend(backend));
    db.map_err(failed("open the database", path))
}

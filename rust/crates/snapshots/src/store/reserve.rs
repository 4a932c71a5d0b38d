//! Space for removing snapshots from a disk that is full.
//!
//! Removing is how a node frees space, and a transaction that removes needs some itself. The file
//! `metadata.reserve` is as long as several of them need, and gets shorter where one would fail.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// The length of the whole reserve.
const WHOLE: u64 = 16 * STEP;

/// What one transaction gets. It writes about five pages of 4 KiB to the log; the rest is for what
/// others take meanwhile.
const STEP: u64 = 64 * 1024;

pub(super) struct Reserve {
    file: File,
    /// Whether some of it was given away.
    short: AtomicBool,
}

impl Reserve {
    /// The reserve of a database, as long as the disk allows.
    pub(super) fn open(database: &Path) -> Result<Self> {
        let path = database.with_extension("reserve");
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let reserve = Self {
            file: options.open(&path).map_err(Error::io("open", path))?,
            short: AtomicBool::new(true),
        };
        reserve.fill();
        Ok(reserve)
    }

    /// Frees a part of it; false when there is none left.
    pub(super) fn give(&self) -> bool {
        self.short.store(true, Ordering::Relaxed);
        let shorter = || -> io::Result<bool> {
            let length = self.file.metadata()?.len();
            self.file.set_len(length.saturating_sub(STEP))?;
            Ok(length > 0)
        };
        shorter().unwrap_or(false)
    }

    /// Makes it whole again, if the disk has the space.
    pub(super) fn fill(&self) {
        if !self.short.load(Ordering::Relaxed) {
            return;
        }
        let filled = || -> io::Result<()> {
            let mut length = self.file.metadata()?.len();
            // Step by step: what a full disk still takes is kept. Written, since a hole has no space.
            while length < WHOLE {
                let zeros = [0; STEP as usize];
                let missing = usize::try_from(STEP.min(WHOLE - length)).unwrap_or(zeros.len());
                self.file.write_all_at(&zeros[..missing], length)?;
                length += missing as u64;
            }
            Ok(())
        };
        match filled() {
            Ok(()) => self.short.store(false, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "no space is kept for removing snapshots"),
        }
    }
}

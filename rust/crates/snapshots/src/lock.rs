//! The lock that keeps a root directory to one process.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

const FILE: &str = "lock";

/// Holds `<root>/lock` until it is dropped. The kernel lets go of it when the process dies, so it
/// is never stale; the file stays, since deleting it would let two processes lock two files of one
/// name.
pub(crate) struct RootLock {
    file: File,
}

impl RootLock {
    pub(crate) fn acquire(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path);
        let mut file = file.map_err(Error::io("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let read = file.take(32).read_to_string(&mut holder);
                let holder = read.ok().and_then(|_| holder.trim().parse().ok());
                return Err(Error::RootLocked {
                    root: root.to_owned(),
                    holder,
                });
            }
            Err(errno) => return Err(Error::io("lock", path)(errno)),
        }
        let note = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        note.map_err(Error::io("write", path))?;
        Ok(Self { file })
    }

    /// Deletes the file from a root that has never been used.
    pub(crate) fn delete(root: &Path) -> io::Result<()> {
        fs::remove_file(root.join(FILE))
    }
}

impl Drop for RootLock {
    /// Closing would not be enough: a child process that has not come to its exec yet has the file
    /// open, too.
    fn drop(&mut self) {
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

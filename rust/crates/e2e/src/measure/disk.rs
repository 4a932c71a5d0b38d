//! What a disk is like.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::Result;

use super::{Table, timed};

/// A page, as databases write it.
const PAGE: [u8; 4096] = [1; 4096];

/// How often it is written and synced.
const SYNCS: u64 = 100;

/// Overwriting a page of a file in `dir` and syncing it, which is what makes a transaction durable.
///
/// # Errors
/// The file cannot be written.
pub fn syncing(dir: &Path, table: &mut Table) -> Result<()> {
    let file = File::create_new(dir.join("synced"))?;
    for page in 0..SYNCS {
        file.write_all_at(&PAGE, page * PAGE.len() as u64)?;
    }
    file.sync_all()?;
    let times = (0..SYNCS)
        .map(|page| {
            timed(|| {
                file.write_all_at(&PAGE, page * PAGE.len() as u64)?;
                Ok(file.sync_data()?)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    table.times("sync of a page, on disk", "fdatasync", times);
    Ok(())
}

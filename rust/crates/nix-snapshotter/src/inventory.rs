//! How much there is of everything, at one moment: for the metrics and for `status`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::param::{clock_ticks_per_second, page_size};
use snapshots::{Counts, StoreWaits};

use crate::{
    error::Error,
    image_service::IMAGES,
    nix_snapshotter::{GC_ROOTS, NixSnapshotter},
    realisations::{RealisationStats, UnderWay},
};

/// What was counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    /// Snapshots by kind.
    pub(crate) snapshots: Counts,
    /// Snapshots that hold store paths, those in the making among them.
    pub(crate) nix_layers: u64,
    /// GC roots of all snapshots.
    pub(crate) gc_roots: u64,
    /// Archives of images that are held by GC roots of their own.
    pub(crate) image_archives: u64,
    /// What the realisations have come to.
    pub(crate) realisations: RealisationStats,
    /// Closures that are being fetched or built, or wait for their turn.
    pub(crate) under_way: Vec<UnderWay>,
    /// How calls have waited for the metadata store.
    pub(crate) store_waits: StoreWaits,
    /// The daemon as the kernel sees it.
    pub(crate) process: ProcessFigures,
}

/// The daemon as the kernel sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProcessFigures {
    /// Processor time, in user mode and in the kernel, without that of child processes.
    pub(crate) cpu: Duration,
    /// Resident memory.
    pub(crate) resident_bytes: u64,
    /// Open file descriptors.
    pub(crate) open_fds: u64,
    /// When the process started, since 1970.
    pub(crate) started: Duration,
}

/// Takes inventories of one daemon.
#[derive(Clone)]
pub(crate) struct Inventories {
    snapshotter: NixSnapshotter,
    root: Arc<PathBuf>,
    started: Duration,
}

impl Inventories {
    /// Of a daemon that started now.
    pub(crate) fn new(snapshotter: NixSnapshotter, root: &Path) -> Self {
        Self {
            snapshotter,
            root: Arc::new(root.to_owned()),
            started: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        }
    }

    /// Counts. Blocks for one read transaction and for listing the directories of GC roots; no
    /// layer is walked.
    ///
    /// # Errors
    /// The store or a directory cannot be read.
    pub(crate) fn take(&self) -> Result<Inventory, Error> {
        let (nix_layers, gc_roots) = self.count_links(GC_ROOTS)?;
        // They stay where the image service is off, and hold what they hold.
        let (image_archives, _) = self.count_links(IMAGES)?;
        Ok(Inventory {
            snapshots: self.snapshotter.counts()?,
            nix_layers,
            gc_roots,
            image_archives,
            realisations: self.snapshotter.realisation_stats(),
            under_way: self.snapshotter.realisations_under_way(),
            store_waits: self.snapshotter.store_waits(),
            process: ProcessFigures {
                started: self.started,
                // /proc may not be mounted, and what it says is an extra.
                ..ProcessFigures::read().unwrap_or_default()
            },
        })
    }

    fn count_links(&self, dir: &str) -> Result<(u64, u64), Error> {
        let path = self.root.join(dir);
        count_links(&path).map_err(|source| Error::Inventory { path, source })
    }
}

/// How many directories with something in them there are, and how much is in them.
fn count_links(dir: &Path) -> io::Result<(u64, u64)> {
    let (mut dirs, mut links) = (0, 0);
    for entry in entries(dir)? {
        let found = entries(&entry?.path())?.count() as u64;
        dirs += u64::from(found > 0);
        links += found;
    }
    Ok((dirs, links))
}

/// The entries of a directory; none for one that does not exist, or has just been deleted.
pub(crate) fn entries(dir: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(error),
    }
}

impl ProcessFigures {
    fn read() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let (ticks, pages) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64),
            resident_bytes: pages * page_size() as u64,
            open_fds: fs::read_dir("/proc/self/fd")?.count() as u64,
            started: Duration::ZERO,
        })
    }
}

/// Processor time in clock ticks and resident memory in pages (proc_pid_stat(5)).
fn parse_stat(stat: &str) -> Option<(u64, u64)> {
    // The second field, the name, may have spaces and parentheses in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let field = |number: usize| -> Option<u64> {
        rest.split_ascii_whitespace().nth(number - 3)?.parse().ok()
    };
    Some((field(14)? + field(15)?, field(24)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_counted_by_layer() {
        let dir = tempfile::tempdir().unwrap();
        let roots = dir.path().join("gcroots");
        assert_eq!(count_links(&roots).unwrap(), (0, 0));
        for (layer, links) in [("1", 0), ("2", 1), ("3", 3)] {
            fs::create_dir_all(roots.join(layer)).unwrap();
            for link in 0..links {
                symlink("/nowhere", roots.join(layer).join(format!("path-{link}"))).unwrap();
            }
        }
        assert_eq!(count_links(&roots).unwrap(), (2, 4));
    }

    #[test]
    fn a_process_with_any_name_is_read() {
        let fields = (3..=52)
            .map(|number| number.to_string())
            .collect::<Vec<_>>();
        let stat = format!("7 (a) b (c) {}", fields.join(" "));
        assert_eq!(parse_stat(&stat), Some((14 + 15, 24)));
        assert_eq!(parse_stat("7 (short) S 1"), None);
        let own = ProcessFigures::read().unwrap();
        assert!(own.resident_bytes > 100_000 && own.open_fds > 2, "{own:?}");
    }
}

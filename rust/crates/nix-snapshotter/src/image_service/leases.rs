//! Leases under which images are imported, and those of a daemon that was killed meanwhile.
//!
//! containerd keeps what a lease holds until that expires, a day later. Nobody else can tell that
//! a daemon's lease has lost its maker, so it is the next daemon of the same root that looks.

use std::{
    collections::HashMap,
    path::Path,
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::info;

use super::{KUBERNETES, forward::Containerd};
use crate::error::Error;

/// What a lease says of its maker. Other programs set neither, and a root belongs to one daemon at
/// a time.
const ROOT: &str = "nix-snapshotter/root";
const PROCESS: &str = "nix-snapshotter/process";

/// The leases of one daemon.
pub(super) struct Leases {
    labels: HashMap<String, String>,
    /// The name by which containerd knows this daemon.
    plugin: String,
}

impl Leases {
    /// Of this process.
    pub(super) fn new(root: &Path, plugin: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        // The number of a process comes back, after a restart of the machine at the latest.
        let process = format!("{}-{}", process::id(), now.unwrap_or_default().as_nanos());
        let root = root.display().to_string();
        Self {
            labels: [(ROOT.to_owned(), root), (PROCESS.to_owned(), process)].into(),
            plugin: plugin.to_owned(),
        }
    }

    /// What a lease of this process has on it.
    pub(super) fn labels(&self) -> &HashMap<String, String> {
        &self.labels
    }

    /// Deletes those that a process of this daemon has left which does not run any more, with all
    /// that they hold.
    ///
    /// # Errors
    /// containerd cannot be reached, or cannot reach this daemon yet.
    pub(super) async fn delete_abandoned(&self, containerd: &Containerd) -> Result<(), Error> {
        let containerd = image_loader::Containerd::over(containerd.channel(), KUBERNETES)?;
        for lease in containerd.leases().await? {
            if self.is_abandoned(&lease.labels) {
                containerd
                    .delete_abandoned_lease(&lease, &self.plugin)
                    .await?;
                info!(
                    lease = lease.id,
                    "deleted what an import has left that was cut off"
                );
            }
        }
        Ok(())
    }

    fn is_abandoned(&self, labels: &HashMap<String, String>) -> bool {
        let is_ours = |label| labels.get(label) == self.labels.get(label);
        is_ours(ROOT) && !is_ours(PROCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leases_of_an_earlier_process_of_the_same_daemon_are_abandoned() {
        let root = Path::new("/var/lib/a");
        let leases = Leases::new(root, "nix");
        let labels = |root: &str, process: &str| {
            [(ROOT, root), (PROCESS, process)]
                .map(|(label, value)| (label.to_owned(), value.to_owned()))
                .into()
        };
        assert!(!leases.is_abandoned(leases.labels()));
        assert!(leases.is_abandoned(Leases::new(root, "nix").labels()));
        assert!(leases.is_abandoned(&labels("/var/lib/a", "1-2")));
        assert!(!leases.is_abandoned(&labels("/var/lib/b", "1-2")));
        assert!(!leases.is_abandoned(&HashMap::new()));
    }
}

//! Whether the archives that GC roots hold are those that containerd's images come from.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use image_loader::Containerd;
use nix_store::StoreDir;
use tokio::time::timeout;

use super::{
    finding::{Check, Finding},
    gc_roots::names,
};
use crate::{
    config::Config,
    error::chain,
    image_service::{IMAGES, KUBERNETES, archive_of},
    inventory::entries,
};

const ARCHIVES: Check = Check("image-archives");

/// How long containerd may take to list its images.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at them, where there are any. `daemon_runs` makes another remedy.
pub(super) async fn look(config: &Config, containerd: &Path, daemon_runs: bool) -> Vec<Finding> {
    let dir = config.root.join(IMAGES);
    let held = match held(&dir) {
        Ok(held) if held.is_empty() => return Vec::new(),
        Ok(held) => held,
        Err(error) => {
            let dir = dir.display();
            return vec![ARCHIVES.note(format!("{dir} cannot be listed: {error}"))];
        }
    };
    if !config.image_service.enable {
        return vec![without_service(&dir, &held)];
    }
    let finding = match named(containerd, &config.store_dir).await {
        Ok(named) => compare(&held, &named, daemon_runs),
        Err(reason) => ARCHIVES.note(format!(
            "{} archives are held, and containerd does not say which images there are: {reason}",
            held.len()
        )),
    };
    vec![finding]
}

/// The names of the archives that have roots.
fn held(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut held = BTreeSet::new();
    for entry in entries(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entries(&entry.path())?.next().is_some() {
            held.insert(PathBuf::from(entry.file_name()));
        }
    }
    Ok(held)
}

/// The names of the archives that images come from.
async fn named(containerd: &Path, store_dir: &str) -> Result<BTreeSet<PathBuf>, String> {
    let store_dir = StoreDir::new(store_dir).map_err(|error| error.to_string())?;
    let list = async {
        let containerd = Containerd::connect(containerd, KUBERNETES).await?;
        containerd.list_images().await
    };
    let images = match timeout(PATIENCE, list).await {
        Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => return Err(chain(&error)),
        Ok(Ok(images)) => images,
    };
    let archives = images
        .iter()
        .filter_map(|image| archive_of(&image.name, &store_dir));
    Ok(archives.map(|path| path.base_name().into()).collect())
}

fn without_service(dir: &Path, held: &BTreeSet<PathBuf>) -> Finding {
    ARCHIVES.warning(
        format!(
            "{} archives are held for images, and nobody releases them, because image_service.enable is false: {}",
            held.len(),
            names(held.iter())
        ),
        format!(
            "rm -r {}: images that were imported from them do not need them; or set image_service.enable = true",
            dir.display()
        ),
    )
}

fn compare(held: &BTreeSet<PathBuf>, named: &BTreeSet<PathBuf>, daemon_runs: bool) -> Finding {
    let unneeded: Vec<_> = held.difference(named).collect();
    if unneeded.is_empty() {
        return ARCHIVES.ok(format!(
            "images of containerd come from all {} archives that are held",
            held.len()
        ));
    }
    ARCHIVES.warning(
        format!(
            "{} of {} archives are held, and no image of containerd comes from them: {}",
            unneeded.len(),
            held.len(),
            names(unneeded.iter().copied())
        ),
        match daemon_runs {
            true => {
                "unless they are being pulled, the daemon releases them within a minute, or says why it \
                 does not: journalctl -u nix-snapshotter"
            }
            false => "systemctl start nix-snapshotter: the daemon releases them when it starts",
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    fn set(names: &[&str]) -> BTreeSet<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn archives_that_no_image_comes_from_are_named() {
        let held = set(&["a", "b", "c"]);
        let finding = compare(&held, &set(&["a", "b", "c", "d"]), true);
        assert_eq!(finding.level, Level::Ok);
        for (runs, words) in [(true, "journalctl"), (false, "systemctl start")] {
            let finding = compare(&held, &set(&["b"]), runs);
            assert_eq!(finding.level, Level::Warning);
            assert!(finding.message.starts_with("2 of 3") && finding.message.ends_with(": a, c"));
            assert!(finding.remedy.unwrap().contains(words));
        }
    }
}

//! Bringing a planned image into containerd.

use std::{
    collections::HashMap,
    io::{Read, Seek},
};

use nix_image::archive::Archive;
use tracing::{debug, info};

use crate::{Containerd, Error, PlannedImage, Progress};

/// Loads an image out of its archive: its blobs, the snapshots of its layers, and then its names,
/// which get these labels. What there is already is not transferred again. Without a lease
/// ([`Containerd::under_lease`]) containerd may collect what has no name yet.
///
/// # Errors
/// What containerd refuses, and an archive that is damaged.
pub async fn load<R: Read + Seek>(
    containerd: &Containerd,
    archive: &mut Archive<R>,
    snapshotter: &str,
    image: &PlannedImage,
    labels: &HashMap<String, String>,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let digest = image.target.digest;
    let mut written = 0;
    for (blob, labels) in &image.blobs {
        let labels = labels.clone();
        let is_new = containerd
            .write_blob(archive, blob, labels, progress)
            .await?;
        written += u32::from(is_new);
    }
    let unpacked = match &image.unpacked {
        Some(stored) => containerd.unpack(snapshotter, stored, progress).await?,
        None => {
            info!(%digest, "no platform of it runs here: nothing is unpacked");
            0
        }
    };
    debug!(
        blobs = written,
        layers = unpacked,
        "transferred and unpacked {digest}"
    );
    for name in &image.names {
        containerd
            .tag(&name.to_string(), &image.target, labels)
            .await?;
        info!(%digest, %snapshotter, "loaded {name}");
    }
    Ok(())
}

//! What containerd's own image service knows.
//!
//! It hears of images that others load by events, and keeps them in memory: what containerd has,
//! the CRI has a moment later.

use std::{path::Path, time::Duration};

use cri_api::v1::{
    ImageFsInfoRequest, ImageSpec, ImageStatusRequest, image_service_client::ImageServiceClient,
};
use tokio::time::{Instant, sleep};
use tonic::{Status, transport::Channel};

use super::forward::{Containerd, MAX_MESSAGE};
use crate::error::Error;

/// How long the CRI may take to hear of an image.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked meanwhile.
const INTERVAL: Duration = Duration::from_millis(5);

/// What the directory of a snapshotter is called that belongs to containerd, before its name.
const PLUGIN: &str = "io.containerd.snapshotter.v1.";

impl Containerd {
    fn cri(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    fn refused(&self, operation: &'static str) -> impl FnOnce(Status) -> Error {
        let socket = self.socket().to_owned();
        move |status| Error::Cri {
            operation,
            socket,
            status: Box::new(status),
        }
    }

    /// The identifier of the image of this name or identifier.
    async fn image_id(&self, image: &str) -> Result<Option<String>, Error> {
        let image = ImageSpec {
            image: image.to_owned(),
            ..ImageSpec::default()
        };
        let request = ImageStatusRequest { image: Some(image) };
        let answer = self.cri().image_status(request).await;
        let answer = answer.map_err(self.refused("tell of an image"))?;
        Ok(answer.into_inner().image.map(|image| image.id))
    }

    /// Whether the CRI knows an image by its name and by its identifier.
    pub(super) async fn has_image(&self, name: &str, id: &str) -> Result<bool, Error> {
        let is_known = |found: Option<String>| found.is_some_and(|found| found == id);
        Ok(is_known(self.image_id(name).await?) && is_known(self.image_id(id).await?))
    }

    /// Waits until it does.
    pub(super) async fn wait_for_image(&self, name: &str, id: &str) -> Result<(), Error> {
        let begun = Instant::now();
        while !self.has_image(name, id).await? {
            if begun.elapsed() > PATIENCE {
                return Err(Error::NotShown {
                    image: name.to_owned(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            sleep(INTERVAL).await;
        }
        Ok(())
    }

    /// Refuses a containerd whose pods get their images from another snapshotter, as far as it
    /// tells: by the directory that it has kubelet watch.
    pub(super) async fn check_snapshotter(&self, ours: &str) -> Result<(), Error> {
        let answer = self.cri().image_fs_info(ImageFsInfoRequest {}).await;
        let answer = answer.map_err(self.refused("tell of its file system"))?;
        let file_systems = answer.into_inner().image_filesystems;
        let mountpoint = file_systems.into_iter().next().and_then(|fs| fs.fs_id);
        match mountpoint
            .as_ref()
            .and_then(|fs| snapshotter_of(&fs.mountpoint))
        {
            Some(theirs) if theirs != ours => Err(Error::OtherSnapshotter {
                theirs: theirs.to_owned(),
                ours: ours.to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

fn snapshotter_of(mountpoint: &str) -> Option<&str> {
    let directory = Path::new(mountpoint).file_name()?.to_str()?;
    directory.strip_prefix(PLUGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshotter_is_known_by_its_directory() {
        for (mountpoint, expected) in [
            (
                "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs",
                Some("overlayfs"),
            ),
            (
                "/var/lib/containerd/io.containerd.snapshotter.v1.nix/",
                Some("nix"),
            ),
            ("/var/lib/nix-snapshotter", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(snapshotter_of(mountpoint), expected, "{mountpoint}");
        }
    }
}

//! What containerd's own image service knows.
//!
//! It hears of images that others load by events, and keeps them in memory: what containerd has,
//! the CRI has a moment later.

use std::time::Duration;

use cri_api::v1::{ImageSpec, ImageStatusRequest, image_service_client::ImageServiceClient};
use tokio::time::{Instant, sleep};
use tonic::{ConnectError, Status, transport::Channel};

use super::forward::{Containerd, MAX_MESSAGE, cause};
use crate::error::{Error, chain};

/// How long the CRI may take to hear of an image.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked meanwhile.
const INTERVAL: Duration = Duration::from_millis(5);

impl Containerd {
    pub(super) fn cri(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// What a call fails with: the answer of containerd, or that there is none.
    pub(super) fn refused(&self, operation: &'static str) -> impl FnOnce(Status) -> Error {
        let socket = self.socket().to_owned();
        move |status| match cause::<ConnectError>(&status) {
            Some(reason) => Error::Unreachable {
                reason: chain(reason),
                socket,
            },
            None => Error::Cri {
                operation,
                socket,
                status: Box::new(status),
            },
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
}

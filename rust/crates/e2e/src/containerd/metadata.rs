//! What containerd has in its metadata: images, contents, leases.

use anyhow::{Context, Result};
use containerd_client::services::v1::{
    CreateImageRequest, CreateRequest, DeleteRequest, GetImageRequest, Image, InfoRequest,
    ListContentRequest, content_client::ContentClient, images_client::ImagesClient,
    leases_client::LeasesClient,
};
use tonic::Code;

use super::Containerd;
use crate::{host::unique, runtime, transfer};

impl Containerd {
    /// Runs containerd's garbage collector to its end.
    ///
    /// # Errors
    /// What containerd says.
    pub fn collect_garbage(&self) -> Result<()> {
        let channel = runtime::connect(&self.socket())?;
        let id = unique("gc");
        runtime::wait(async {
            let mut leases = LeasesClient::new(channel);
            let create = CreateRequest {
                id: id.clone(),
                ..CreateRequest::default()
            };
            leases
                .create(transfer::in_namespace(&self.namespace, create)?)
                .await?;
            let delete = DeleteRequest { id, sync: true };
            leases
                .delete(transfer::in_namespace(&self.namespace, delete)?)
                .await?;
            Ok(())
        })
    }

    /// The digest that an image name stands for, if there is such an image.
    ///
    /// # Errors
    /// What containerd says.
    pub fn image_digest(&self, image: &str) -> Result<Option<String>> {
        let digest = |image: Image| Some(image.target?.digest);
        self.image(image)?
            .map(|image| digest(image).context("an image without target"))
            .transpose()
    }

    /// Gives an image another name, of whatever kind: `ctr` takes references only.
    ///
    /// # Errors
    /// What containerd says.
    pub fn name_image(&self, image: &str, name: &str) -> Result<()> {
        let mut image = self.image(image)?.context("no image")?;
        name.clone_into(&mut image.name);
        self.create_images([image])
    }

    /// Gives an image so many more names, each with a label that has as many bytes as containerd
    /// takes.
    ///
    /// # Errors
    /// What containerd says.
    pub fn name_image_often(&self, image: &str, number: u32) -> Result<()> {
        let mut image = self.image(image)?.context("no image")?;
        image.labels = [("long".to_owned(), "x".repeat(4000))].into();
        self.create_images((0..number).map(|number| Image {
            name: unique(&format!("docker.io/library/often-{number}")),
            ..image.clone()
        }))
    }

    fn image(&self, name: &str) -> Result<Option<Image>> {
        let channel = runtime::connect(&self.socket())?;
        let request = GetImageRequest {
            name: name.to_owned(),
        };
        runtime::wait(async {
            let request = transfer::in_namespace(&self.namespace, request)?;
            match ImagesClient::new(channel).get(request).await {
                Ok(answer) => Ok(answer.into_inner().image),
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(status.into()),
            }
        })
    }

    fn create_images(&self, created: impl IntoIterator<Item = Image>) -> Result<()> {
        let channel = runtime::connect(&self.socket())?;
        runtime::wait(async {
            let mut images = ImagesClient::new(channel);
            for image in created {
                let create = CreateImageRequest {
                    image: Some(image),
                    ..CreateImageRequest::default()
                };
                let create = transfer::in_namespace(&self.namespace, create)?;
                images.create(create).await?;
            }
            Ok(())
        })
    }

    /// The digests of all blobs in the content store, each with the time at which it
    /// was written in nanoseconds, sorted.
    ///
    /// # Errors
    /// What containerd says.
    pub fn blobs(&self) -> Result<Vec<(String, i128)>> {
        let channel = runtime::connect(&self.socket())?;
        runtime::wait(async {
            let mut content = ContentClient::new(channel);
            let request = transfer::in_namespace(&self.namespace, ListContentRequest::default())?;
            let mut messages = content.list(request).await?.into_inner();
            let mut blobs = Vec::new();
            while let Some(message) = messages.message().await? {
                blobs.extend(message.info.into_iter().map(|info| {
                    let created = info.created_at.unwrap_or_default();
                    let nanos = i128::from(created.seconds) * 1_000_000_000;
                    (info.digest, nanos + i128::from(created.nanos))
                }));
            }
            blobs.sort_unstable();
            Ok(blobs)
        })
    }

    /// The labels of a blob, `name=value`, sorted.
    ///
    /// # Errors
    /// There is no such blob.
    pub fn blob_labels(&self, digest: &str) -> Result<Vec<(String, String)>> {
        let channel = runtime::connect(&self.socket())?;
        let request = InfoRequest {
            digest: digest.to_owned(),
        };
        let info = runtime::wait(async {
            let mut content = ContentClient::new(channel);
            let request = transfer::in_namespace(&self.namespace, request)?;
            anyhow::Ok(content.info(request).await?.into_inner().info)
        })?;
        let mut labels: Vec<_> = info
            .context("a blob without info")?
            .labels
            .into_iter()
            .collect();
        labels.sort_unstable();
        Ok(labels)
    }
}

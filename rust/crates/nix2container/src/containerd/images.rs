//! Images by name.

use containerd_client::services::v1::{
    CreateImageRequest, Image, UpdateImageRequest, images_client::ImagesClient,
};
use nix_image::{Descriptor, Reference};
use prost_types::FieldMask;

use super::{Containerd, descriptor, refused, unless_exists};

impl Containerd {
    /// Has `reference` name the image of this manifest. Labels of an image that it
    /// named before are kept.
    pub(crate) async fn tag(
        &self,
        reference: &Reference,
        manifest: &Descriptor,
    ) -> anyhow::Result<()> {
        let failed = |status| refused(format_args!("name an image {reference}"), &status);
        let image = Image {
            name: reference.to_string(),
            target: Some(descriptor(manifest)),
            ..Image::default()
        };
        let mut images = ImagesClient::new(self.channel.clone());
        let create = CreateImageRequest {
            image: Some(image.clone()),
            ..CreateImageRequest::default()
        };
        let created = unless_exists(images.create(self.request(create)).await).map_err(failed)?;
        if created.is_none() {
            let update = UpdateImageRequest {
                image: Some(image),
                update_mask: Some(FieldMask {
                    paths: vec!["target".to_owned()],
                }),
                ..UpdateImageRequest::default()
            };
            images.update(self.request(update)).await.map_err(failed)?;
        }
        Ok(())
    }
}

//! Images by name.

use std::collections::HashMap;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
    UpdateImageRequest, images_client::ImagesClient,
};
use nix_image::{Descriptor, Reference};
use prost_types::FieldMask;
use tonic::{Code, transport::Channel};

use super::{Containerd, descriptor, from_descriptor, unless_exists};
use crate::Error;

/// Most names that a message lists.
const LISTED: usize = 20;

/// An image that containerd has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// Its name, mostly a normalised reference.
    pub name: String,
    /// The manifest or index that it stands for.
    pub target: Descriptor,
}

impl Containerd {
    /// Has `name`, mostly a normalised reference, name the image of this manifest, and gives it
    /// these labels. Other labels of an image that it named before are kept.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn tag(
        &self,
        name: &str,
        manifest: &Descriptor,
        labels: &HashMap<String, String>,
    ) -> Result<(), Error> {
        let failed = |status| Error::refused(format_args!("name an image {name}"), status);
        let image = Image {
            name: name.to_owned(),
            target: Some(descriptor(manifest)),
            labels: labels.clone(),
            ..Image::default()
        };
        let mut images = self.images();
        let create = CreateImageRequest {
            image: Some(image.clone()),
            ..CreateImageRequest::default()
        };
        let created = unless_exists(images.create(self.request(create)).await).map_err(failed)?;
        if created.is_none() {
            let labels = labels.keys().map(|label| format!("labels.{label}"));
            let paths = labels.chain(["target".to_owned()]).collect();
            let update = UpdateImageRequest {
                image: Some(image),
                update_mask: Some(FieldMask { paths }),
                ..UpdateImageRequest::default()
            };
            images.update(self.request(update)).await.map_err(failed)?;
        }
        Ok(())
    }

    /// The image that a user means: by the normalised name, as `load` gives it, or by the very
    /// words, as other clients may have named it.
    ///
    /// # Errors
    /// [`Error::Unfit`] for an unknown name, with the names that there are; [`Error::Refused`].
    pub async fn find_image(&self, words: &str) -> Result<NamedImage, Error> {
        let normalised = Reference::parse(words).map(|reference| reference.to_string());
        let names = normalised.iter().map(String::as_str).chain([words]);
        for name in names {
            if let Some(image) = self.image(name).await? {
                return Ok(image);
            }
        }
        let known: Vec<_> = self
            .list_images()
            .await?
            .into_iter()
            .map(|image| image.name)
            .collect();
        let namespace = self.namespace.to_str().unwrap_or_default();
        let name = normalised.as_deref().unwrap_or(words);
        Err(Error::Unfit(unknown(name, namespace, &known)))
    }

    /// The image of exactly this name.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn image(&self, name: &str) -> Result<Option<NamedImage>, Error> {
        let request = GetImageRequest {
            name: name.to_owned(),
        };
        let found = match self.images().get(self.request(request)).await {
            Ok(found) => found.into_inner().image.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => {
                return Err(Error::refused(
                    format_args!("find the image {}", name.escape_debug()),
                    status,
                ));
            }
        };
        named(found).map(Some).ok_or_else(|| {
            let name = name.escape_debug();
            Error::Unfit(format!("the image {name} of containerd is damaged"))
        })
    }

    /// All images of the namespace. One that is damaged is left out.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn list_images(&self) -> Result<Vec<NamedImage>, Error> {
        let request = self.request(ListImagesRequest::default());
        let listed = self.images().list(request).await;
        let images = listed
            .map_err(|status| Error::refused("list its images", status))?
            .into_inner()
            .images;
        Ok(images.into_iter().filter_map(named).collect())
    }

    /// Takes the name from an image, and returns when what nothing else refers to is collected.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn untag(&self, image: &NamedImage) -> Result<(), Error> {
        let request = DeleteImageRequest {
            name: image.name.clone(),
            sync: true,
            ..DeleteImageRequest::default()
        };
        let deleted = self.images().delete(self.request(request)).await;
        deleted.map_err(|status| {
            Error::refused(
                format_args!("remove the image {}", image.name.escape_debug()),
                status,
            )
        })?;
        Ok(())
    }

    fn images(&self) -> ImagesClient<Channel> {
        self.client()
    }
}

fn named(image: Image) -> Option<NamedImage> {
    Some(NamedImage {
        target: from_descriptor(image.target?)?,
        name: image.name,
    })
}

/// What is said of a name that no image has.
fn unknown(name: &str, namespace: &str, known: &[String]) -> String {
    let name = name.escape_debug();
    if known.is_empty() {
        return format!(
            "containerd has no image {name}, and none at all in its namespace {namespace}: choose another with \
             --namespace, or load one"
        );
    }
    let mut known: Vec<_> = known
        .iter()
        .map(|name| name.escape_debug().to_string())
        .collect();
    known.sort_unstable();
    let more = match known.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    known.truncate(LISTED);
    format!(
        "containerd has no image {name} in its namespace {namespace}: it has {}{more}",
        known.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_those_that_there_are() {
        let names = |count: usize| (0..count).map(|n| format!("image-{n:02}")).collect();
        let message = unknown("nobody", "default", &Vec::new());
        assert!(message.contains("--namespace"), "{message}");
        let known: Vec<String> = names(2);
        let message = unknown("nobody", "default", &known);
        assert!(message.ends_with("it has image-00, image-01"), "{message}");
        let message = unknown("nobody", "default", &names(22));
        assert!(message.ends_with("image-19, and 2 more"), "{message}");
        let message = unknown("\u{1b}[2J", "default", &["a\u{7}".to_owned()]);
        assert!(!message.contains(char::is_control), "{message}");
    }
}

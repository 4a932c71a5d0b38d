//! Where an image is looked at.
//!
//! An image is a tree of documents that refer to each other by descriptors. A source lists its
//! roots and reads a document by its descriptor; whatever else there is to know, its reader finds
//! out of the documents alone. So another kind of source is another variant here, and nothing else.

use std::path::Path;

use anyhow::{Context, bail};
use image_loader::{Containerd, ImageArchive, NamedImage, STDIN};
use nix_image::{Descriptor, Error, Reference};

use crate::{
    cli::ContainerdArgs,
    output::printable,
    registry::{Access, Registry, RegistryArgs},
};

/// What a reference begins with that is to be looked up in its registry, as skopeo has it.
const REGISTRY: &str = "docker://";

/// What has images.
pub(crate) enum ImageSource {
    /// An archive in a file or from standard input, or a directory with an image layout.
    Archive(Box<ImageArchive>),
    /// One image of containerd, by its name.
    Containerd {
        containerd: Box<Containerd>,
        image: NamedImage,
    },
    /// One image of a registry.
    Registry(Box<RegistryImage>),
}

/// An image of a registry.
pub(crate) struct RegistryImage {
    registry: Registry,
    reference: String,
    root: Descriptor,
    /// The text of `root`.
    document: Vec<u8>,
}

impl RegistryImage {
    async fn find(words: &str, args: &RegistryArgs) -> anyhow::Result<Self> {
        let reference = Reference::parse(words)?;
        if reference.is_resolved_by_nix() {
            bail!(
                "{reference} is a name that Nix resolves, and in no registry: inspect the archive /{} itself",
                reference.repository()
            );
        }
        let registry = Registry::connect(&reference, Access::Pull, args).await?;
        let (root, document) = registry.resolve(&reference).await?.with_context(|| {
            format!("the registry has no image {reference}: correct its name, or push it")
        })?;
        Ok(Self {
            registry,
            reference: reference.to_string(),
            root,
            document,
        })
    }

    async fn read(&self, descriptor: &Descriptor) -> anyhow::Result<Option<Vec<u8>>> {
        match descriptor.digest == self.root.digest {
            true => Ok(Some(self.document.clone())),
            false => self.registry.read_document(descriptor).await,
        }
    }
}

/// An image that a source lists.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    /// Its name as the source has it.
    pub(crate) name: Option<String>,
    /// Its manifest, or an index of several.
    pub(crate) root: Descriptor,
}

impl ImageSource {
    /// Finds what a user means: standard input by `-`, an image of a registry by `docker://`, else
    /// the file or the image layout of that name, and where there is none the image of that name
    /// in containerd.
    pub(crate) async fn open(
        what: &Path,
        containerd: &ContainerdArgs,
        registry: &RegistryArgs,
    ) -> anyhow::Result<Self> {
        if let Some(reference) = what.to_str().and_then(|what| what.strip_prefix(REGISTRY)) {
            let image = RegistryImage::find(reference, registry).await?;
            return Ok(Self::Registry(Box::new(image)));
        }
        if what.as_os_str() == STDIN || has_images(what) {
            let archive = image_loader::open_or_stdin(what)?;
            return Ok(Self::Archive(Box::new(archive)));
        }
        let no_file = || format!("there is no file {}", printable(&what.to_string_lossy()));
        let Some(name) = what.to_str() else {
            bail!("{}, and no image can have that name", no_file());
        };
        // No name of an image begins so: it can only have been a file.
        if name.starts_with(['/', '.']) {
            bail!("{}: name an archive, or an image in containerd", no_file());
        }
        let containerd = containerd.connect().await.with_context(no_file)?;
        let image = containerd.find_image(name).await.with_context(no_file)?;
        Ok(Self::Containerd {
            containerd: Box::new(containerd),
            image,
        })
    }

    /// The file, or the name in containerd or in a registry.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Archive(archive) => archive.name(),
            Self::Containerd { image, .. } => &image.name,
            Self::Registry(image) => &image.reference,
        }
    }

    /// The images that it has.
    pub(crate) fn images(&self) -> Vec<Listed> {
        match self {
            Self::Archive(archive) => {
                let images = archive.images().iter();
                images
                    .flat_map(|image| {
                        image.roots.iter().map(|root| Listed {
                            name: image.name.clone(),
                            root: root.clone(),
                        })
                    })
                    .collect()
            }
            Self::Containerd { image, .. } => vec![Listed {
                name: Some(image.name.clone()),
                root: image.target.clone(),
            }],
            Self::Registry(image) => vec![Listed {
                name: Some(image.reference.clone()),
                root: image.root.clone(),
            }],
        }
    }

    /// Reads a document whole, and checks that it is what its descriptor says; `None` if the
    /// source has not got it, as of a platform that was not copied.
    pub(crate) async fn read(
        &mut self,
        descriptor: &Descriptor,
    ) -> anyhow::Result<Option<Vec<u8>>> {
        match self {
            Self::Archive(archive) => match archive.read_blob(descriptor) {
                Ok(document) => Ok(Some(document)),
                Err(Error::MissingBlob { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Self::Containerd { containerd, .. } => Ok(containerd.read_document(descriptor).await?),
            Self::Registry(image) => image.read(descriptor).await,
        }
    }
}

/// Other directories aside: a checkout of a project has often the name of its image.
fn has_images(path: &Path) -> bool {
    let has = |file: &str| path.join(file).is_file();
    path.metadata()
        .is_ok_and(|found| !found.is_dir() || has("oci-layout") || has("manifest.json"))
}

//! Archives of images: OCI image layouts and `docker save`, each in a tar file or a directory.
//!
//! An archive is read by position, so that no blob is ever held in memory: the tar
//! file must be plain and seekable. Whoever opens a compressed one decompresses it
//! first ([`Compression::decoder`](crate::Compression::decoder)).
//!
//! Nothing in an archive is believed: digests and sizes of all that is read are
//! checked, names must stay inside, and documents have a limit of size.

mod contents;
mod docker;
mod files;
mod images;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use images::ArchiveImage;
pub use read::{Archive, BlobReader, StoredImage};
pub use write::{LayoutFiles, TarLayout, write_layout};

/// File that says that the archive is an OCI image layout.
const OCI_LAYOUT: &str = "oci-layout";

/// The version of OCI image layouts, the only one there is.
const LAYOUT_VERSION: &str = "1.0.0";

/// File of an OCI image layout that lists its images.
const INDEX: &str = "index.json";

/// File of an archive of `docker save` that lists its images.
const DOCKER_MANIFEST: &str = "manifest.json";

/// Directory of the blobs of an OCI image layout; a file name is a digest's digits.
const BLOBS: &str = "blobs/sha256/";

/// Most manifests and indexes that are looked into, however they are nested.
pub const MAX_MANIFESTS: usize = 1000;

/// Most indexes that are nested in each other; images of several platforms have two.
pub const MAX_NESTING: usize = 16;

/// Most layers that the images of an archive of `docker save` name together. Its list
/// names a layer in a few bytes, of which a descriptor makes some hundred.
const MAX_DOCKER_LAYERS: usize = 50_000;

/// Most bytes of a JSON document that is read into memory: manifests of 50,000
/// store paths have 6 MiB, and registries refuse more than 4 to 8 MiB.
pub const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

//! Loads the images of archives into containerd, 1.7 and later.
//!
//! `archive_file` opens an archive or a directory with an image layout, `plan` decides what of it
//! goes into containerd, and `load` brings it there by the parts of `containerd`: blobs, snapshots,
//! names, all of it under a lease. `progress` is how a caller hears how far it is. The crate knows
//! nothing of the Nix store, of command lines and of Kubernetes.

mod archive_file;
mod containerd;
mod directory;
mod error;
mod load;
mod plan;
mod progress;

pub use archive_file::{ImageArchive, ImageFile, STDIN, open, open_or_stdin};
pub use containerd::{Client, Containerd, Lease, NamedImage, connect_lazily};
pub use error::Error;
pub use load::load;
pub use plan::{LabelledBlob, PlannedImage, Platforms, images, name};
pub use progress::{Progress, Silent, Task};

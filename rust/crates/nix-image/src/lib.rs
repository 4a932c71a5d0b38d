//! The image format that the daemon and the CLI share.
//!
//! * [`annotations`]: how a layer names its store paths.
//! * [`Reference`]: names of images, [`Platform`]: what they run on.
//! * [`Layer`]: the places and links of a closure as a layer.
//! * [`RuntimeConfig`], [`ImageConfig`], [`Manifest`], [`Index`], [`Descriptor`]:
//!   the documents of an image, and what an image inherits from its base.
//! * [`NewImage`]: an image put together of these.
//! * [`archive`]: archives of images, written and read.
//!
//! The crate depends on `nix-store` for store paths and closures, and on no other of
//! the workspace. It opens no file and no socket: what it reads or writes, it is
//! given as `Read`, `Write` or `Seek`, and what it must know of the Nix store, it is
//! told. Equal input gives equal bytes, on every machine.

pub mod annotations;
pub mod archive;
mod base_layout;
mod compression;
mod config;
mod digest;
mod error;
mod image;
mod layer;
mod layer_tree;
mod manifest;
mod platform;
mod reference;

pub use base_layout::base_layout_paths;
pub use compression::Compression;
pub use config::{History, ImageConfig, KeySet, RootFs, RuntimeConfig};
pub use digest::Digest;
pub use error::Error;
pub use image::{Base, ImageOptions, NewImage};
pub use layer::Layer;
pub use layer_tree::{LayerTree, NodeKind, RootEntry, RootNode};
pub use manifest::{
    Descriptor, IMAGE_NAME, Index, Manifest, REF_NAME, layer_media_type, media_type,
};
pub use platform::Platform;
pub use reference::{NIX_PREFIX, Reference};

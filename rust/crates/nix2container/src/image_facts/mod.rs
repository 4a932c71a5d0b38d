//! What there is to know of an image, out of its documents and of the store of this machine.

mod read;
mod store;

use nix_image::{Digest, RuntimeConfig};
use serde::Serialize;

pub(crate) use read::{one, read};
pub(crate) use store::{measure, total};

/// An image for one platform. The keys are those of `inspect --json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ImageFacts {
    /// As the source has them; an image without a name has none.
    pub(crate) names: Vec<String>,
    /// Of the manifest.
    pub(crate) digest: Digest,
    /// Of the index that the manifest is listed in, if the image is one of several.
    pub(crate) index: Option<Digest>,
    pub(crate) platform: String,
    /// Those of the whole image, whether its source has them or not.
    pub(crate) platforms: Vec<String>,
    pub(crate) created: Option<String>,
    /// In OCI's own keys.
    pub(crate) config: RuntimeConfig,
    /// The lowest first.
    pub(crate) layers: Vec<LayerFacts>,
    pub(crate) closure: ClosureFacts,
}

/// A layer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LayerFacts {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    /// In bytes, as it is transferred.
    pub(crate) size: u64,
    pub(crate) kind: LayerKind,
    /// Of a layer in the closure format.
    pub(crate) closure_info: Option<String>,
    /// The number of store paths, as far as it is known.
    pub(crate) store_paths: usize,
}

/// How a layer names store paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LayerKind {
    /// Not at all.
    Ordinary,
    /// By a closure-info.
    NixClosure,
    /// Each by itself.
    NixPerPath,
}

/// The store paths that all layers together ask for.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ClosureFacts {
    /// False if a closure-info is not on this machine: only it says what it lists.
    pub(crate) is_complete: bool,
    /// Of all paths whose size is known, in bytes; nothing if none is.
    pub(crate) nar_size: Option<u64>,
    /// In ascending order, with the closure-infos.
    pub(crate) store_paths: Vec<StorePathFacts>,
    /// Those that are not on this machine.
    pub(crate) missing: Vec<String>,
}

/// A store path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StorePathFacts {
    pub(crate) path: String,
    /// The name behind the hash.
    pub(crate) name: String,
    /// In bytes; nothing if it is missing, or if Nix does not tell.
    pub(crate) nar_size: Option<u64>,
    pub(crate) present: bool,
}

//! What can go wrong with an image.

/// An error of this crate. The reason is in its [`source`](std::error::Error::source)
/// where it has one: print the whole chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The value of a label that must be a store path is none.
    #[error("label {label:?} does not name a store path")]
    Label {
        /// The label's name.
        label: String,
        /// Says what the value is and which rule it breaks.
        source: nix_store::Error,
    },

    /// The labels of one layer name more store paths than a layer may have.
    #[error(
        "the labels {}<n> of one layer name too many store paths",
        crate::annotations::NIX_STORE_PATH_PREFIX
    )]
    LabelPaths {
        /// Says how many are allowed.
        source: nix_store::Error,
    },
}

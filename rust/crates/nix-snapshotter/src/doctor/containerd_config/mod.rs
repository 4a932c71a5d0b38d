//! containerd's configuration file, as far as it concerns a snapshotter.
//!
//! [`mod@read`] reads a file and what it imports, [`model`] knows where each version of the format
//! has what, and [`mod@check`] decides.

mod check;
mod model;
mod read;
#[cfg(test)]
mod tests;

pub(super) use self::{
    check::{Facts, check},
    model::Merging,
    read::read,
};

//! What clients of containerd write: filters of a List, labels that map ids.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod filters;
mod id_mappings;

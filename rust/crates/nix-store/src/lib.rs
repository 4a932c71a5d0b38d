//! Nix's side of the project: store paths, closures, realisation and GC roots.
//!
//! * [`StoreDir`] and [`StorePath`]: a store path is parsed once, where it enters
//!   the program, and never again treated as a string of unknown content.
//! * [`LayerClosure`] and [`Closure`]: what an image layer asks for, and the set
//!   of store paths which that comes to.
//! * [`Realiser`]: has Nix substitute or build the paths of a layer.
//! * [`GcRoots`]: the directory of links that keeps them from being collected.
//!
//! The crate depends on no other crate of the workspace, and it never speaks gRPC
//! or OCI. Nix is reached through its command line only, which is the interface
//! that Nix keeps stable for single-user and daemon stores alike.

mod closure;
mod collector;
mod error;
mod gc_roots;
mod nix_cli;
mod process;
mod realiser;
mod store_path;

pub use closure::{Closure, LayerClosure, MAX_CLOSURE_PATHS};
pub use error::Error;
pub use gc_roots::GcRoots;
pub use realiser::{Realised, Realiser, RealiserOptions};
pub use store_path::{StoreDir, StorePath};

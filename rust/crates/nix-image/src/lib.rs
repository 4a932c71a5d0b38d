//! The image format that the daemon and the CLI share.
//!
//! * [`annotations`]: how a layer names its store paths.
//!
//! The crate depends on `nix-store` for store paths and closures. It opens no
//! file and no socket: whatever it reads or writes, it is given as `Read`, `Write`
//! or `Seek`, and what it must know of the Nix store, it is told.

pub mod annotations;
mod error;

pub use error::Error;

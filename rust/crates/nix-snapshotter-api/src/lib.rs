//! Bindings, server and client, of the gRPC services that the daemon offers to people and tools.
//!
//! Everything here is generated from the files in `proto/`, which say what the fields mean. A
//! version of a package only ever gains fields and methods. The crate depends on the gRPC
//! libraries alone, and nothing in it is written by hand.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

pub mod v1 {
    tonic::include_proto!("nix_snapshotter.v1");
}

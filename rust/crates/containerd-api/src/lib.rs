//! Server bindings of the gRPC services that containerd calls on us.
//!
//! Everything here is generated from the files in `proto/`, which are written from
//! containerd's wire contract. The crate depends on the gRPC libraries alone, and
//! nothing in it is written by hand.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

pub mod containerd {
    pub mod types {
        tonic::include_proto!("containerd.types");
    }
    pub mod services {
        pub mod snapshots {
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}

//! Generated client of Kubernetes' Container Runtime Interface, out of our own `.proto` file.
//!
//! It has the calls and fields that this workspace uses. Whoever forwards messages must forward
//! their bytes: what the file does not declare is lost when a message is decoded.

/// `runtime.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

//! containerd as its clients see it, from 1.7 on: what the commands need of its services.
//!
//! What is loaded is loaded under a lease: containerd's garbage collector spares what a
//! lease holds, and collects what is left when the lease goes and nothing that
//! lasts, an image, refers to it.

mod content;
mod images;
mod leases;
mod unpack;

use std::{io, path::Path};

use anyhow::{Context, anyhow};
use containerd_client::types;
pub(crate) use content::{index_gc_labels, manifest_gc_labels};
pub(crate) use images::NamedImage;
use nix_image::Descriptor;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

/// Largest message that containerd sends or takes (`defaults.DefaultMaxRecvMsgSize`).
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A connection to containerd, in one namespace. containerd makes a namespace when
/// something is put into it.
pub(crate) struct Containerd {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Containerd {
    pub(crate) async fn connect(address: &Path, namespace: &str) -> anyhow::Result<Self> {
        let namespace = namespace
            .parse()
            .with_context(|| format!("{namespace:?} cannot be a namespace of containerd"))?;
        // crictl and nerdctl take `unix://` before the path.
        let text = address
            .to_str()
            .and_then(|text| text.strip_prefix("unix://"));
        let socket = text.map_or(address, Path::new);
        let channel = containerd_client::connect(socket)
            .await
            .map_err(|error| unreachable(socket, error.into()))?;
        Ok(Self {
            channel,
            namespace,
            lease: None,
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        request
    }
}

/// Why there is no connection, and what to do about it.
fn unreachable(socket: &Path, error: anyhow::Error) -> anyhow::Error {
    let kind = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    let way_out = match kind {
        Some(io::ErrorKind::NotFound) => {
            "there is no such socket: start containerd, or name its socket with --address"
        }
        Some(io::ErrorKind::ConnectionRefused) => {
            "nobody listens there: start containerd, or name its socket with --address"
        }
        Some(io::ErrorKind::PermissionDenied) => {
            "permission denied: run as root, or name the socket of a rootless containerd with --address"
        }
        _ => {
            return error.context(format!(
                "cannot connect to containerd at {}",
                socket.display()
            ));
        }
    };
    anyhow!(
        "cannot connect to containerd at {}: {way_out}",
        socket.display()
    )
}

/// What containerd says when it does not do something.
fn refused(operation: impl std::fmt::Display, status: &Status) -> anyhow::Error {
    let reason = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    let way_out = if reason.contains("snapshotter not loaded") {
        "; add it to [proxy_plugins] of containerd's configuration, or choose another with --snapshotter"
    } else {
        ""
    };
    anyhow!("containerd cannot {operation}: {reason}{way_out}")
}

/// Takes "exists already" for an answer, `None`.
fn unless_exists<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == Code::AlreadyExists => Ok(None),
        Err(status) => Err(status),
    }
}

/// A descriptor as containerd's API has it. Annotations are left out: a layer's
/// are the labels of its snapshot.
fn descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: size(descriptor),
        ..types::Descriptor::default()
    }
}

/// The reverse of [`descriptor`].
fn from_descriptor(descriptor: types::Descriptor) -> anyhow::Result<Descriptor> {
    Ok(Descriptor {
        annotations: descriptor.annotations.into_iter().collect(),
        digest: descriptor.digest.parse()?,
        media_type: descriptor.media_type,
        platform: None,
        size: u64::try_from(descriptor.size).context("a size below zero")?,
    })
}

/// A blob that was read from a file is smaller than `i64::MAX`.
fn size(descriptor: &Descriptor) -> i64 {
    i64::try_from(descriptor.size).unwrap_or(i64::MAX)
}

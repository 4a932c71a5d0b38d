//! containerd as its clients see it, from 1.7 on: what the commands need of its services.
//!
//! What is loaded is loaded under a lease: containerd's garbage collector spares what a
//! lease holds, and collects what is left when the lease goes and nothing that
//! lasts, an image, refers to it.

mod clients;
mod content;
mod images;
mod leases;
mod unpack;

use std::{
    error::Error as StdError,
    io,
    path::{Path, PathBuf},
};

pub use clients::Client;
use containerd_client::types;
pub(crate) use content::{index_gc_labels, manifest_gc_labels};
use hyper_util::rt::TokioIo;
pub use images::NamedImage;
pub use leases::Lease;
use nix_image::Descriptor;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::Error;

/// Largest list of headers that is taken from it, as by Go's clients of gRPC
/// (`defaultClientMaxHeaderListSize`). The message of an error is one.
const MAX_HEADER_BYTES: u32 = 16 << 20;

/// A connection to containerd, in one namespace. containerd makes a namespace when
/// something is put into it.
pub struct Containerd {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Containerd {
    /// Connects to a socket; `unix://` before its path is taken, as crictl and nerdctl do.
    ///
    /// # Errors
    /// [`Error::Unreachable`], and [`Error::Unfit`] for an impossible namespace.
    pub async fn connect(address: &Path, namespace: &str) -> Result<Self, Error> {
        let socket = without_scheme(address);
        let namespace = parse_namespace(namespace)?;
        let channel = containerd_client::connect(socket)
            .await
            .map_err(|error| unreachable(socket, &error))?;
        Ok(Self {
            channel,
            namespace,
            lease: None,
        })
    }

    /// Uses a connection that there is.
    ///
    /// # Errors
    /// [`Error::Unfit`] for an impossible namespace.
    pub fn over(channel: Channel, namespace: &str) -> Result<Self, Error> {
        Ok(Self {
            channel,
            namespace: parse_namespace(namespace)?,
            lease: None,
        })
    }

    fn client<C: Client>(&self) -> C {
        C::over(self.channel.clone())
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

/// A connection that is made when it is first needed, and again whenever it is needed and broken.
/// A call for which it cannot be made fails at once.
#[must_use]
pub fn connect_lazily(address: &Path) -> Channel {
    let socket = without_scheme(address).to_owned();
    // Where the name of a host is wanted, as in headers, that is what local clients say.
    let endpoint =
        Endpoint::from_static("http://localhost").http2_max_header_list_size(MAX_HEADER_BYTES);
    endpoint.connect_with_connector_lazy(service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

fn parse_namespace(namespace: &str) -> Result<MetadataValue<Ascii>, Error> {
    namespace
        .parse()
        .map_err(|_| Error::Unfit(format!("{namespace:?} cannot be a namespace of containerd")))
}

fn without_scheme(address: &Path) -> &Path {
    let text = address
        .to_str()
        .and_then(|text| text.strip_prefix("unix://"));
    text.map_or(address, Path::new)
}

/// An error and what has caused it.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn unreachable(socket: &Path, error: &(dyn StdError + 'static)) -> Error {
    let kind = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>());
    let reason = match kind.map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => {
            "there is no such socket: start containerd, or name its socket".to_owned()
        }
        Some(io::ErrorKind::ConnectionRefused) => {
            "nobody listens there: start containerd, or name its socket".to_owned()
        }
        Some(io::ErrorKind::PermissionDenied) => {
            "permission denied: run as root, or name the socket of a rootless containerd".to_owned()
        }
        _ => causes(error)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": "),
    };
    Error::Unreachable {
        socket: PathBuf::from(socket),
        reason,
    }
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
fn from_descriptor(descriptor: types::Descriptor) -> Option<Descriptor> {
    Some(Descriptor {
        annotations: descriptor.annotations.into_iter().collect(),
        digest: descriptor.digest.parse().ok()?,
        media_type: descriptor.media_type,
        platform: None,
        size: u64::try_from(descriptor.size).ok()?,
    })
}

/// A blob that was read from a file is smaller than `i64::MAX`.
fn size(descriptor: &Descriptor) -> i64 {
    i64::try_from(descriptor.size).unwrap_or(i64::MAX)
}

//! Connections to gRPC servers on unix sockets of this machine: to a running daemon, and to
//! containerd.

use std::{
    error::Error as StdError,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{Status, transport::Channel};

/// How long a server may take to let us in, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a server gives no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is nothing at the path.
    #[error("there is no socket {}", .socket.display())]
    NoSocket { socket: PathBuf },
    /// What is at the path is left over.
    #[error("nobody listens on {}", .socket.display())]
    NobodyListens { socket: PathBuf },
    /// The socket is there, and not for us.
    #[error("no permission to use {}", .socket.display())]
    Permission { socket: PathBuf },
    /// Something that takes connections and says nothing, or something else than gRPC.
    #[error("{} does not answer as a gRPC server", .socket.display())]
    Connect {
        socket: PathBuf,
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It is too slow.
    #[error("{} does not answer within {} s", .socket.display(), PATIENCE.as_secs())]
    Silent { socket: PathBuf },
    /// It answers that it cannot.
    #[error("{} answers {:?}: {}", .socket.display(), .status.code(), .status.message())]
    Refused { socket: PathBuf, status: Status },
}

impl Error {
    /// Whether there is nobody at all.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::NoSocket { .. } | Self::NobodyListens { .. })
    }
}

/// A server that can be asked.
pub(crate) struct Server {
    socket: PathBuf,
    channel: Channel,
}

impl Server {
    /// Connects to a socket; `unix://` before its path is taken.
    pub(crate) async fn connect(address: &Path) -> Result<Self, Error> {
        let text = address
            .to_str()
            .and_then(|text| text.strip_prefix("unix://"));
        let socket = text.map_or(address, Path::new).to_owned();
        match tokio::time::timeout(PATIENCE, containerd_client::connect(&socket)).await {
            Err(_) => Err(Error::Silent { socket }),
            Ok(Err(error)) => Err(unreachable(socket, error.into())),
            Ok(Ok(channel)) => Ok(Self { socket, channel }),
        }
    }

    /// The connection, for a client of a service.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Waits for the answer to a call.
    pub(crate) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Error> {
        let socket = self.socket.clone();
        match tokio::time::timeout(PATIENCE, call).await {
            Err(_) => Err(Error::Silent { socket }),
            Ok(Err(status)) => Err(Error::Refused { socket, status }),
            Ok(Ok(response)) => Ok(response.into_inner()),
        }
    }
}

fn unreachable(socket: PathBuf, source: Box<dyn StdError + Send + Sync>) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&*source);
    let mut kind = None;
    while let Some(error) = cause {
        kind = error
            .downcast_ref::<io::Error>()
            .map(io::Error::kind)
            .or(kind);
        cause = error.source();
    }
    match kind {
        Some(ErrorKind::NotFound) => Error::NoSocket { socket },
        Some(ErrorKind::ConnectionRefused) => Error::NobodyListens { socket },
        Some(ErrorKind::PermissionDenied) => Error::Permission { socket },
        _ => Error::Connect { socket, source },
    }
}

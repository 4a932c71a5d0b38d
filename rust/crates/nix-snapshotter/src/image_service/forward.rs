//! Calls that go on to containerd as they are.

use std::path::{Path, PathBuf};

use tonic::{Status, body::Body, transport::Channel};
use tower::{Service, ServiceExt};

use crate::error::chain;

/// Largest message of the CRI (`maxMsgSize` of kubelet and of containerd).
pub(super) const MAX_MESSAGE: usize = 16 << 20;

/// The connection to containerd. It is made when it is first needed, and again when it has broken.
#[derive(Clone)]
pub(super) struct Containerd {
    socket: PathBuf,
    channel: Channel,
}

impl Containerd {
    pub(super) fn new(socket: &Path) -> Self {
        Self {
            channel: image_loader::connect_lazily(socket),
            socket: socket.to_owned(),
        }
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Forwards a call with its metadata, its bytes as they come, and the same of its answer.
    /// Where containerd cannot be reached, the answer is UNAVAILABLE, at once.
    pub(super) async fn forward(&self, request: http::Request<Body>) -> http::Response<Body> {
        let mut channel = self.channel.clone();
        let answer = async { channel.ready().await?.call(request).await };
        match answer.await {
            Ok(response) => response,
            Err(error) => self.unreachable(&chain(&error)).into_http(),
        }
    }

    /// What is answered without containerd.
    pub(super) fn unreachable(&self, reason: &str) -> Status {
        Status::unavailable(format!(
            "containerd cannot be reached at {}: {reason} (`image_service.containerd_address` names its socket)",
            self.socket.display()
        ))
    }
}

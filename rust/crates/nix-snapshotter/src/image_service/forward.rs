//! Calls that go on to containerd as they are.

use std::{
    error::Error as StdError,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{ConnectError, Status, TimeoutExpired, body::Body, transport::Channel};
use tower::{Service, ServiceExt};

use crate::{
    deadline,
    error::{Error, chain},
};

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
            Ok(response) => response.map(|body| {
                Body::new(Forwarded {
                    body,
                    containerd: self.clone(),
                })
            }),
            Err(error) => self.failure(error.into()).into_http(),
        }
    }

    /// What a caller hears where there is no answer, or no more of one.
    fn failure(&self, error: Box<dyn StdError + Send + Sync>) -> Status {
        let socket = self.socket.display();
        // The status that tonic makes of an error of a body says the same with more words.
        let status = error.downcast_ref::<Status>();
        let reason = chain(status.and_then(StdError::source).unwrap_or(&*error));
        if cause::<TimeoutExpired>(&*error).is_some() {
            return deadline::passed();
        }
        if cause::<ConnectError>(&*error).is_some() {
            let socket = self.socket.clone();
            return Error::Unreachable { socket, reason }.into();
        }
        match cause::<h2::Error>(&*error) {
            // Only this call has ended, for a reason that has a code (gRPC over HTTP2, "Errors").
            Some(end) if end.is_reset() => Status::new(
                Status::from_error(error).code(),
                format!("containerd has ended the call: {reason}"),
            ),
            _ => Status::unavailable(format!(
                "the connection to containerd at {socket} has broken: {reason}"
            )),
        }
    }
}

/// The first error of a type among an error and its causes.
pub(super) fn cause<'a, E: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a E> {
    let mut errors = std::iter::successors(Some(error), |&error| error.source());
    errors.find_map(|error| error.downcast_ref())
}

/// An answer of containerd's on its way. Where it breaks off, it ends with a status that says why,
/// which on the wire an error of a body could not.
struct Forwarded {
    body: Body,
    containerd: Containerd,
}

impl http_body::Body for Forwarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context).map(|frame| {
            let error = match frame? {
                Ok(frame) => return Some(Ok(frame)),
                Err(error) => error,
            };
            let mut trailers = http::HeaderMap::new();
            let status = self.containerd.failure(error.into());
            let written = status.add_header(&mut trailers);
            Some(written.map(|()| Frame::trailers(trailers)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

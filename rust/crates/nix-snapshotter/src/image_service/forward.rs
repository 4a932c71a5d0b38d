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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, pin::Pin, task::Poll};

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};
    use http_body::Frame;
    use http_body_util::{BodyExt, Full, StreamBody};
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{server::NamedService, transport::Server};

    use super::*;

    /// An image service of days to come, with a method that this program has never heard of: it
    /// says three times what it is told, one after the other, and then repeats the metadata.
    #[derive(Clone)]
    struct Later;

    impl NamedService for Later {
        const NAME: &'static str = "runtime.v1.ImageService";
    }

    impl Service<http::Request<Body>> for Later {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            Box::pin(async move {
                let (head, body) = request.into_parts();
                let said = body.collect().await.unwrap().to_bytes();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                trailers.insert("x-method", head.uri.path().parse().unwrap());
                trailers.insert("x-told", head.headers["x-told-bin"].clone());
                let frames = [
                    Frame::data(said.clone()),
                    Frame::data(said.clone()),
                    Frame::data(said),
                    Frame::trailers(trailers),
                ];
                let frames = tokio_stream::iter(frames.map(Ok::<_, Status>));
                let mut response = http::Response::new(Body::new(StreamBody::new(frames)));
                let headers = response.headers_mut();
                headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                headers.insert("x-later", HeaderValue::from_static("header"));
                Ok(response)
            })
        }
    }

    fn request(content: Bytes) -> http::Request<Body> {
        http::Request::post("http://localhost/runtime.v1.ImageService/StreamWhatever")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-told-bin", "AAEC")
            .body(Body::new(Full::new(content)))
            .unwrap()
    }

    #[tokio::test]
    async fn streams_methods_and_metadata_that_nobody_knows_yet_go_through() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let containerd = Containerd::new(&socket);
        let content = Bytes::from_static(b"\x00\x00\x00\x00\x04what");

        // Nobody listens yet.
        let refused = containerd.forward(request(content.clone())).await;
        assert_eq!(refused.headers()["grpc-status"], "14");
        let message = refused.headers()["grpc-message"].to_str().unwrap();
        assert!(message.contains("containerd_address"), "{message}");

        for _ in 0..2 {
            let listener = UnixListener::bind(&socket).unwrap();
            let incoming = UnixListenerStream::new(listener);
            let server = Server::builder().add_service(Later);
            let serving = tokio::spawn(server.serve_with_incoming(incoming));
            // The connection of before may only show now that it is broken.
            let mut response = containerd.forward(request(content.clone())).await;
            if response.headers().contains_key("grpc-status") {
                response = containerd.forward(request(content.clone())).await;
            }
            assert_eq!(response.headers()["x-later"], "header");
            let collected = response.into_body().collect().await.unwrap();
            let trailers = collected.trailers().unwrap().clone();
            assert_eq!(trailers["grpc-status"], "0");
            assert_eq!(
                trailers["x-method"],
                "/runtime.v1.ImageService/StreamWhatever"
            );
            assert_eq!(trailers["x-told"], "AAEC");
            assert_eq!(collected.to_bytes(), [&content[..]; 3].concat());
            // It ends, and comes back.
            serving.abort();
            let _ = serving.await;
            std::fs::remove_file(&socket).unwrap();
        }
    }
}

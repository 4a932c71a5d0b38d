//! The image service as the daemon serves it, before a containerd of days to come, with methods that
//! this program has never heard of: no containerd that there is streams images.

use std::{
    fs, future,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{body::Incoming, client::conn::http2, server, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::Runtime,
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::Code;

use super::*;
use crate::{calls::Calls, inventory::Inventories, metrics::Metrics};

/// How long anything may take that is certain to happen.
const BOUND: Duration = Duration::from_secs(60);

/// How long nothing has to happen for it not to.
const MOMENT: Duration = Duration::from_millis(100);

/// More than hyper takes by itself, 16 KiB.
const LONG: usize = 64 * 1024;

type Response = http::Response<Body>;
type Frames = mpsc::Sender<Result<Frame<Bytes>, Status>>;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let outcome = tokio::time::timeout(BOUND, future).await;
    outcome.expect("it takes too long")
}

/// A containerd that runs until it is dropped, and its connections with it. It answers every call
/// by a function; an error resets the call.
struct LaterContainerd {
    socket: PathBuf,
    runtime: Option<Runtime>,
}

impl LaterContainerd {
    fn start<F>(
        socket: &Path,
        answer: impl Fn(http::Request<Incoming>) -> F + Clone + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Response, h2::Error>> + Send + 'static,
    {
        let runtime = Runtime::new().unwrap();
        let entered = runtime.enter();
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut server = server::conn::http2::Builder::new(TokioExecutor::new());
                server.max_header_list_size(1 << 20);
                let service = service_fn(answer.clone());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        drop(entered);
        Self {
            socket: socket.to_owned(),
            runtime: Some(runtime),
        }
    }
}

impl Drop for LaterContainerd {
    fn drop(&mut self) {
        fs::remove_file(&self.socket).unwrap();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The daemon, and where it looks for containerd.
struct Daemon {
    dir: tempfile::TempDir,
    containerd: PathBuf,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let containerd = dir.path().join("containerd");
        let mut config = Config {
            root: dir.path().join("root"),
            ..Config::default()
        };
        config
            .image_service
            .containerd_address
            .clone_from(&containerd);
        let snapshotter = crate::server::open(&config).unwrap();
        let images = ImageService::new(&config, snapshotter.clone());
        let metrics = Metrics::new(Inventories::new(snapshotter, &config.root));
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let server = crate::server::server(Calls::new(Arc::new(metrics))).add_service(images);
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Self { dir, containerd }
    }

    /// A client that has no deadlines of its own, and takes long headers.
    async fn client(&self) -> Client {
        let stream = UnixStream::connect(self.dir.path().join("sock"));
        let stream = TokioIo::new(stream.await.unwrap());
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_header_list_size(1 << 20);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Client(sender)
    }
}

/// A connection to the daemon.
#[derive(Clone)]
struct Client(http2::SendRequest<Body>);

impl Client {
    async fn call(&mut self, request: http::Request<Body>) -> http::Response<Incoming> {
        soon(self.0.send_request(request)).await.unwrap()
    }

    /// The status of a call that has no message for an answer.
    async fn status(&mut self, request: http::Request<Body>) -> Status {
        let response = self.call(request).await;
        Status::from_header_map(response.headers()).expect("an answer")
    }
}

fn request(method: &str, headers: &[(&'static str, &str)], body: Body) -> http::Request<Body> {
    let uri = format!("http://localhost/runtime.v1.ImageService/{method}");
    let mut request = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

/// A call of a method that this program does not know.
fn unknown(headers: &[(&'static str, &str)]) -> http::Request<Body> {
    request("StreamImages", headers, Body::empty())
}

/// A body that the sender makes while it is sent.
fn streamed() -> (Frames, Body) {
    let (frames, stream) = mpsc::channel(1);
    (
        frames,
        Body::new(StreamBody::new(ReceiverStream::new(stream))),
    )
}

fn response(body: Body) -> Response {
    let mut response = http::Response::new(body);
    let content = http::HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", content);
    response
}

fn trailers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    fields.collect()
}

async fn message(body: &mut Incoming) -> Bytes {
    let frame = soon(body.frame()).await.expect("a frame").unwrap();
    frame.into_data().expect("a message")
}

async fn end(body: &mut Incoming) -> HeaderMap {
    let frame = soon(body.frame()).await.expect("a frame").unwrap();
    frame.into_trailers().expect("trailers")
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_arrive_one_by_one_and_metadata_both_ways() {
    let daemon = Daemon::start();
    let (frames, body) = streamed();
    let body = Arc::new(Mutex::new(Some(body)));
    let _containerd = LaterContainerd::start(&daemon.containerd, move |request| {
        let mut response = response(body.lock().unwrap().take().unwrap());
        let headers = response.headers_mut();
        headers.insert("x-method", request.uri().path().parse().unwrap());
        for told in request.headers().get_all("x-told-bin") {
            headers.append("x-heard-bin", told.clone());
        }
        async move { Ok(response) }
    });
    let mut client = daemon.client().await;
    let told = [("x-told-bin", "AAEC"), ("x-told-bin", "/w")];
    let answer = client.call(unknown(&told)).await;
    assert_eq!(
        answer.headers()["x-method"],
        "/runtime.v1.ImageService/StreamImages"
    );
    let heard: Vec<_> = answer.headers().get_all("x-heard-bin").iter().collect();
    assert_eq!(heard, ["AAEC", "/w"]);
    let mut answer = answer.into_body();
    // Each is made when the one before has arrived.
    for content in ["first", "second", "third"] {
        frames.send(Ok(Frame::data(content.into()))).await.unwrap();
        assert_eq!(message(&mut answer).await, content);
    }
    let last = trailers(&[("grpc-status", "0"), ("x-last-bin", "Aw")]);
    frames
        .send(Ok(Frame::trailers(last.clone())))
        .await
        .unwrap();
    assert_eq!(end(&mut answer).await, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_client_arrive_one_by_one() {
    let daemon = Daemon::start();
    let _containerd = LaterContainerd::start(&daemon.containerd, async |request| {
        Ok(response(Body::new(request.into_body())))
    });
    let (frames, body) = streamed();
    let mut client = daemon.client().await;
    let answer = client.call(request("StreamImages", &[], body)).await;
    let mut answer = answer.into_body();
    for content in ["first", "second", "third"] {
        frames.send(Ok(Frame::data(content.into()))).await.unwrap();
        assert_eq!(message(&mut answer).await, content);
    }
    drop(frames);
    let rest = soon(answer.collect()).await.unwrap();
    assert!(rest.to_bytes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_are_younger_than_this_program_are_kept() {
    let daemon = Daemon::start();
    let _containerd = LaterContainerd::start(&daemon.containerd, async |request| {
        Ok(response(Body::new(request.into_body())))
    });
    let image = cri_api::v1::ImageSpec {
        image: "docker.io/library/redis:latest".to_owned(),
        ..Default::default()
    };
    let known = PullImageRequest { image: Some(image) }.encode_to_vec();
    // Field 1000, a string.
    let message = [&known[..], &[0xc2, 0x3e, 3], b"new"].concat();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let message = Bytes::from([&[0], &length[..], &message].concat());
    for method in ["PullImage", "RemoveImage", "ImageFsInfo", "ImageStatus"] {
        let body = Body::new(Full::new(message.clone()));
        let mut client = daemon.client().await;
        let answer = client.call(request(method, &[], body)).await;
        let answer = soon(answer.into_body().collect()).await.unwrap();
        assert_eq!(answer.to_bytes(), message, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_cancels_the_call_at_containerd() {
    let daemon = Daemon::start();
    let (begun, mut calls) = mpsc::unbounded_channel();
    let _containerd = LaterContainerd::start(&daemon.containerd, move |request| {
        let begun = begun.clone();
        async move {
            let (frames, body) = streamed();
            let (_working, ended) = oneshot::channel::<()>();
            begun.send((frames, ended)).unwrap();
            if !request.headers().contains_key("x-streamed") {
                future::pending::<()>().await;
            }
            Ok(response(body))
        }
    });
    let mut client = daemon.client().await;
    // Before there is an answer.
    let mut waiting = client.clone();
    let call = tokio::spawn(async move { waiting.call(unknown(&[])).await });
    let (_frames, ended) = soon(calls.recv()).await.unwrap();
    call.abort();
    assert!(soon(ended).await.is_err());
    // In the middle of it.
    let answer = client.call(unknown(&[("x-streamed", "")])).await;
    let (frames, _) = soon(calls.recv()).await.unwrap();
    let mut answer = answer.into_body();
    frames.send(Ok(Frame::data("first".into()))).await.unwrap();
    assert_eq!(message(&mut answer).await, "first");
    assert!(tokio::time::timeout(MOMENT, frames.closed()).await.is_err());
    drop(answer);
    soon(frames.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_told_to_containerd_and_its_end_to_the_client() {
    let daemon = Daemon::start();
    let (begun, mut calls) = mpsc::unbounded_channel();
    let _containerd = LaterContainerd::start(&daemon.containerd, move |request| {
        let begun = begun.clone();
        async move {
            let (_working, ended) = oneshot::channel::<()>();
            let timeout = request.headers()["grpc-timeout"].clone();
            begun.send((timeout, ended)).unwrap();
            future::pending().await
        }
    });
    let client = daemon.client().await;
    // Long enough for containerd to hear of each call before its end, and all at once.
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let mut client = client.clone();
            let call = unknown(&[("grpc-timeout", "3000m")]);
            tokio::spawn(async move { client.status(call).await })
        })
        .collect();
    for call in waiting {
        let status = soon(call).await.unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(status.message().contains("deadline"), "{status:?}");
        let (timeout, ended) = soon(calls.recv()).await.unwrap();
        assert_eq!(timeout, "3000m");
        assert!(soon(ended).await.is_err());
    }
    // Without the server, which has deadlines, too.
    let containerd = Containerd::new(&daemon.containerd);
    let answer = soon(containerd.forward(unknown(&[("grpc-timeout", "50m")]))).await;
    let status = Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_headers_and_messages_of_errors_pass() {
    let daemon = Daemon::start();
    let _containerd = LaterContainerd::start(&daemon.containerd, async |request| {
        let told = request.headers()["x-told"].clone();
        if request.headers().contains_key("x-fail") {
            let mut response = response(Body::empty());
            response
                .headers_mut()
                .insert("grpc-status", http::HeaderValue::from_static("9"));
            response.headers_mut().insert("grpc-message", told);
            return Ok(response);
        }
        let (frames, body) = streamed();
        let mut last = trailers(&[("grpc-status", "9")]);
        last.insert("grpc-message", told.clone());
        tokio::spawn(async move { frames.send(Ok(Frame::trailers(last))).await });
        let mut response = response(body);
        response.headers_mut().insert("x-heard", told);
        Ok(response)
    });
    let long = "long".repeat(LONG / 4);
    let mut client = daemon.client().await;
    let answer = client.call(unknown(&[("x-told", &long)])).await;
    assert_eq!(answer.headers()["x-heard"], long);
    assert_eq!(end(&mut answer.into_body()).await["grpc-message"], long);
    let status = client
        .status(unknown(&[("x-told", &long), ("x-fail", "")]))
        .await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, &*long)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_blame_for_the_end_of_a_call_is_told() {
    let daemon = Daemon::start();
    let mut client = daemon.client().await;
    let says = |status: &Status, code: Code, words: &str| {
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(words), "{status:?}");
    };
    let unreachable = "containerd cannot be reached";
    let broken = "the connection to containerd";
    let ended = "containerd has ended the call";
    // Twice: it goes on when there is a containerd again.
    for again in [false, true] {
        let status = soon(async {
            loop {
                let status = client.status(unknown(&[])).await;
                // The first ones may still meet the connection that has broken.
                if !(again && status.message().contains(broken)) {
                    break status;
                }
            }
        })
        .await;
        says(&status, Code::Unavailable, unreachable);
        says(&status, Code::Unavailable, "containerd_address");

        let (begun, mut calls) = mpsc::unbounded_channel();
        let containerd = LaterContainerd::start(&daemon.containerd, move |request| {
            let begun = begun.clone();
            async move {
                if request.headers().contains_key("x-reset") {
                    return Err(h2::Reason::ENHANCE_YOUR_CALM.into());
                }
                let (frames, body) = streamed();
                begun.send(frames).unwrap();
                if !request.headers().contains_key("x-streamed") {
                    future::pending::<()>().await;
                }
                Ok(response(body))
            }
        });
        // containerd ends a call, before the answer or in the middle of it.
        let status = client.status(unknown(&[("x-reset", "")])).await;
        says(&status, Code::ResourceExhausted, ended);
        let answer = client.call(unknown(&[("x-streamed", "")])).await;
        let frames = soon(calls.recv()).await.unwrap();
        frames.send(Err(Status::internal("lost"))).await.unwrap();
        let last = end(&mut answer.into_body()).await;
        let status = Status::from_header_map(&last).unwrap();
        says(&status, Code::Internal, ended);

        // containerd goes away.
        let mut waiting = client.clone();
        let waiting = tokio::spawn(async move { waiting.status(unknown(&[])).await });
        soon(calls.recv()).await.unwrap();
        let answer = client.call(unknown(&[("x-streamed", "")])).await;
        drop(containerd);
        says(&soon(waiting).await.unwrap(), Code::Unavailable, broken);
        let last = end(&mut answer.into_body()).await;
        let status = Status::from_header_map(&last).unwrap();
        says(&status, Code::Unavailable, broken);
    }
}

//! What surrounds every call: its span, its deadline, its line in the log when it has ended, its
//! metrics.
//!
//! [`Calls`] is a layer around all services. It knows the method and the headers of a call and
//! sees its status; what the call is about, the services tell by [`about`]. A call ends when its
//! last byte is sent, or when the client hangs up: both drop its [`Call`].

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument, Level, Span, field::Empty};

use crate::{
    deadline::Deadline,
    logging::{cut, excerpt},
    metrics::Metrics,
};

/// A call that takes longer is told of, whatever its outcome.
const SLOW: Duration = Duration::from_secs(1);

/// How long after the last call those who are connected may begin another, once there is to be an end.
const REST: Duration = Duration::from_millis(500);

/// Most bytes of the message of a call that failed. It holds what Nix said last.
const MESSAGE_BYTES: usize = 8 * 1024;

/// containerd's name for it (`pkg/namespaces`). Its garbage collector sends none, nor does 1.7.
const NAMESPACE: &str = "containerd-namespace";

/// The services whose calls are named; whatever else is asked for is `other`.
const SERVICES: [(&str, &[&str]); 4] = [
    (
        "containerd.services.snapshots.v1.Snapshots",
        &[
            "Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage",
            "Cleanup",
        ],
    ),
    (
        "runtime.v1.ImageService",
        &[
            "ListImages",
            "StreamImages",
            "ImageStatus",
            "PullImage",
            "RemoveImage",
            "ImageFsInfo",
        ],
    ),
    ("grpc.health.v1.Health", &["Check", "Watch"]),
    ("nix_snapshotter.v1.StatusService", &["GetStatus"]),
];

/// Writes what a call is about into its span: fields of it, each with a value that may be empty.
pub(crate) fn about(fields: &[(&str, &str)]) {
    let span = Span::current();
    for (field, value) in fields {
        if !value.is_empty() {
            span.record(*field, &*excerpt(value));
        }
    }
}

/// Puts every call of the services below it into a span, and logs and counts it.
#[derive(Clone)]
pub(crate) struct Calls {
    metrics: Arc<Metrics>,
    in_flight: TaskTracker,
}

impl Calls {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let in_flight = TaskTracker::new();
        // Only a closed one can be waited for; it still takes calls.
        in_flight.close();
        Self { metrics, in_flight }
    }

    /// Ends when no call is in flight, half a second after the last has ended.
    pub(crate) async fn rest(&self) {
        loop {
            self.in_flight.wait().await;
            tokio::time::sleep(REST).await;
            if self.in_flight.is_empty() {
                return;
            }
        }
    }
}

impl<S> Layer<S> for Calls {
    type Service = Observed<S>;

    fn layer(&self, service: S) -> Observed<S> {
        Observed {
            service,
            calls: self.clone(),
        }
    }
}

/// A service whose calls are observed.
#[derive(Clone)]
pub(crate) struct Observed<S> {
    service: S,
    calls: Calls,
}

impl<S> Service<http::Request<Body>> for Observed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut call = Call::begin(&request, &self.calls);
        let deadline = Deadline::of(request.headers());
        let span = call.span.clone();
        let answer = span.in_scope(|| self.service.call(request));
        let observed = async move {
            let response = deadline.bound(answer).await?;
            // Where there is no message, the status is in the headers.
            call.status = Status::from_header_map(response.headers());
            Ok(response.map(|body| Body::new(ObservedBody { body, call })))
        };
        Box::pin(observed.instrument(span))
    }
}

/// An answer on its way.
struct ObservedBody {
    body: Body,
    call: Call,
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // A streamed answer is made while it is sent.
        let frame = this
            .call
            .span
            .in_scope(|| Pin::new(&mut this.body).poll_frame(context));
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            this.call.status = Status::from_header_map(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A call that has not ended yet.
struct Call {
    method: &'static str,
    begun: Instant,
    span: Span,
    metrics: Arc<Metrics>,
    _in_flight: TaskTrackerToken,
    /// `None` until it is known, and for ever if the client hangs up first.
    status: Option<Status>,
}

impl Call {
    fn begin(request: &http::Request<Body>, calls: &Calls) -> Self {
        let method = method(request.uri().path());
        // At the severest level, so that every message from within says what it belongs to.
        let span = tracing::error_span!(
            "call",
            method,
            namespace = Empty,
            image = Empty,
            key = Empty,
            parent = Empty,
            committed_as = Empty,
            snapshot = Empty
        );
        let namespace = request.headers().get(NAMESPACE);
        if let Some(Ok(namespace)) = namespace.map(http::HeaderValue::to_str) {
            span.record("namespace", &*excerpt(namespace));
        }
        calls.metrics.call_begins(method);
        Self {
            method,
            begun: Instant::now(),
            span,
            metrics: Arc::clone(&calls.metrics),
            _in_flight: calls.in_flight.token(),
            status: None,
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let duration = self.begun.elapsed();
        let (code, message) = match &self.status {
            Some(status) => (status.code(), status.message()),
            None => (Code::Cancelled, "the client has hung up"),
        };
        let name = code_name(code);
        self.metrics.call_ends(self.method, name, duration);
        let duration_ms = duration.as_micros() as f64 / 1e3;
        let _entered = self.span.enter();
        match (severity(self.method, code, duration), code) {
            (Level::DEBUG, Code::Ok) => tracing::debug!(code = name, duration_ms, "call ended"),
            (_, Code::Ok) => tracing::info!(code = name, duration_ms, "slow call ended"),
            (level, _) => {
                let error = &*cut(message, MESSAGE_BYTES);
                match level {
                    Level::ERROR => tracing::error!(code = name, duration_ms, error, "call failed"),
                    Level::WARN => tracing::warn!(code = name, duration_ms, error, "call failed"),
                    Level::INFO => tracing::info!(code = name, duration_ms, error, "call failed"),
                    _ => tracing::debug!(code = name, duration_ms, error, "call failed"),
                }
            }
        }
    }
}

/// How loudly the end of a call is told.
fn severity(method: &str, code: Code, duration: Duration) -> Level {
    let by_code = match (code, method) {
        // How containerd asks whether there is something, and learns that it has to make it.
        (Code::Ok | Code::NotFound | Code::AlreadyExists, _) => Level::DEBUG,
        // Its collector tries what may have children still.
        (Code::FailedPrecondition, "Remove") => Level::DEBUG,
        // The other side's own doing.
        (Code::Cancelled | Code::Unimplemented, _) => Level::INFO,
        // The machine's, or a bug.
        (Code::Internal | Code::Unknown | Code::DataLoss | Code::ResourceExhausted, _) => {
            Level::ERROR
        }
        _ => Level::WARN,
    };
    // The more severe of two levels is the smaller.
    match duration > SLOW && method != "Watch" {
        true => by_code.min(Level::INFO),
        false => by_code,
    }
}

/// The method that a path names, out of a set that strangers cannot enlarge.
fn method(path: &str) -> &'static str {
    let named = || {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        let (_, methods) = SERVICES.iter().find(|(known, _)| *known == service)?;
        methods.iter().find(|known| **known == method)
    };
    named().copied().unwrap_or("other")
}

/// The name of a code as containerd and the metrics of other gRPC servers write it
/// (`google.golang.org/grpc/codes`).
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_methods_have_names() {
        for (path, expected) in [
            (
                "/containerd.services.snapshots.v1.Snapshots/Prepare",
                "Prepare",
            ),
            ("/grpc.health.v1.Health/Check", "Check"),
            ("/nix_snapshotter.v1.StatusService/GetStatus", "GetStatus"),
            ("/containerd.services.snapshots.v1.Snapshots/Check", "other"),
            ("/some.Service/Prepare", "other"),
            ("/Prepare", "other"),
            ("", "other"),
        ] {
            assert_eq!(method(path), expected, "{path}");
        }
    }

    #[test]
    fn severity_is_that_of_the_outcome() {
        let (fast, slow) = (Duration::ZERO, SLOW * 2);
        for (method, code, duration, expected) in [
            ("Prepare", Code::Ok, fast, Level::DEBUG),
            ("Prepare", Code::Ok, slow, Level::INFO),
            ("Watch", Code::Ok, slow, Level::DEBUG),
            ("Stat", Code::NotFound, fast, Level::DEBUG),
            ("Stat", Code::NotFound, slow, Level::INFO),
            ("Prepare", Code::AlreadyExists, fast, Level::DEBUG),
            ("Remove", Code::FailedPrecondition, fast, Level::DEBUG),
            ("Prepare", Code::FailedPrecondition, fast, Level::WARN),
            ("Prepare", Code::FailedPrecondition, slow, Level::WARN),
            ("Prepare", Code::Cancelled, slow, Level::INFO),
            ("Commit", Code::Internal, fast, Level::ERROR),
            ("Prepare", Code::ResourceExhausted, fast, Level::ERROR),
            ("List", Code::InvalidArgument, fast, Level::WARN),
        ] {
            let found = severity(method, code, duration);
            assert_eq!(found, expected, "{method} {code:?} {duration:?}");
        }
    }

    #[test]
    fn the_names_of_codes_are_those_of_go() {
        for code in (0..17).map(Code::from) {
            let expected = match code {
                Code::Ok => "OK".to_owned(),
                Code::Cancelled => "Canceled".to_owned(),
                other => format!("{other:?}"),
            };
            assert_eq!(code_name(code), expected);
        }
    }
}

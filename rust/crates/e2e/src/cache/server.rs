//! The files of a directory over HTTP/1.1, as real caches serve them: with ranges, and not always well.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio::{sync::mpsc, time};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tower_http::services::ServeDir;

use crate::http_server::HttpServer;

/// What a client asks a cache for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `/<hash>.narinfo`, and `/nix-cache-info`.
    Narinfos,
    /// `/nar/…`: the contents.
    Nars,
}

impl Part {
    fn of(path: &str) -> Self {
        match path.starts_with("/nar/") {
            true => Self::Nars,
            false => Self::Narinfos,
        }
    }
}

/// What goes wrong with requests.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// This many times, this status is the answer.
    Status {
        /// How many requests it happens to.
        times: usize,
        /// An error.
        status: StatusCode,
    },
    /// This many times, the connection is closed within the answer.
    Cut {
        /// How many requests it happens to.
        times: usize,
        /// How many bytes of the body are sent before.
        after: usize,
    },
    /// The answer comes slowly.
    Slow {
        /// How much of the body is sent in a second.
        bytes_per_second: usize,
    },
    /// There is no answer.
    Stalled,
}

impl Fault {
    /// What is left of it after one more request.
    fn next(self) -> Option<Self> {
        match self {
            Self::Status { times, status } => (times > 1).then_some(Self::Status {
                times: times - 1,
                status,
            }),
            Self::Cut { times, after } => (times > 1).then_some(Self::Cut {
                times: times - 1,
                after,
            }),
            Self::Slow { .. } | Self::Stalled => Some(self),
        }
    }
}

/// The server, and what goes wrong with it.
#[derive(Debug)]
pub(super) struct Server {
    server: HttpServer,
    shared: Shared,
}

impl Server {
    pub(super) fn start(dir: &Path) -> Result<Self> {
        let shared = Shared::default();
        let router = Router::new()
            .fallback_service(ServeDir::new(dir))
            .layer(middleware::from_fn_with_state(shared.clone(), answer));
        let server = HttpServer::start(router)?;
        Ok(Self { server, shared })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub(super) fn fault(&self, part: Part, fault: Option<Fault>) {
        let mut state = self.shared.state();
        match fault {
            Some(fault) => state.faults.insert(part, fault),
            None => state.faults.remove(&part),
        };
    }

    pub(super) fn take_requests(&self, part: Part) -> usize {
        self.shared.state().requests.remove(&part).unwrap_or(0)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.shared.state().in_flight
    }
}

#[derive(Debug, Default)]
struct Served {
    faults: HashMap<Part, Fault>,
    requests: HashMap<Part, usize>,
    in_flight: usize,
}

#[derive(Clone, Debug, Default)]
struct Shared(Arc<Mutex<Served>>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, Served> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request and tells what goes wrong with it.
    fn begin(&self, part: Part) -> (Answering, Option<Fault>) {
        let mut state = self.state();
        *state.requests.entry(part).or_default() += 1;
        state.in_flight += 1;
        let fault = state.faults.remove(&part);
        if let Some(left) = fault.and_then(Fault::next) {
            state.faults.insert(part, left);
        }
        (Answering(self.clone()), fault)
    }
}

/// A request in flight: until the answer is sent, or nobody waits for it any more.
struct Answering(Shared);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}

async fn answer(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let (answering, fault) = shared.begin(Part::of(request.uri().path()));
    match fault {
        Some(Fault::Status { status, .. }) => return status.into_response(),
        Some(Fault::Stalled) => std::future::pending().await,
        _ => {}
    }
    let (head, body) = next.run(request).await.into_parts();
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _answering = answering;
        // It ends early when the client has hung up.
        let _ = send(body, fault, sender).await;
    });
    Response::from_parts(head, Body::from_stream(ReceiverStream::new(receiver)))
}

async fn send(
    body: Body,
    fault: Option<Fault>,
    client: mpsc::Sender<io::Result<Bytes>>,
) -> Result<()> {
    let mut body = body.into_data_stream();
    let mut sent = 0;
    while let Some(chunk) = body.next().await {
        let mut chunk = chunk?;
        match fault {
            Some(Fault::Cut { after, .. }) if sent + chunk.len() > after => {
                client.send(Ok(chunk.split_to(after - sent))).await?;
                client
                    .send(Err(io::ErrorKind::ConnectionReset.into()))
                    .await?;
                return Ok(());
            }
            Some(Fault::Slow { bytes_per_second }) => {
                // Ten times a second: no client takes it for a stall.
                while !chunk.is_empty() {
                    let piece = chunk.len().min(bytes_per_second.div_ceil(10));
                    client.send(Ok(chunk.split_to(piece))).await?;
                    time::sleep(Duration::from_millis(100)).await;
                }
            }
            _ => {
                sent += chunk.len();
                client.send(Ok(chunk)).await?;
            }
        }
    }
    Ok(())
}

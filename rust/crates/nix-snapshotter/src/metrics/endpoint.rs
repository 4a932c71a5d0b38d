//! `GET /metrics` over HTTP/1.1.

use std::{convert::Infallible, io, net, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tracing::debug;

use super::{Metrics, MetricsAddress};
use crate::socket::{Address, Socket, not_accepted, when_free};

/// Connections at a time: more than Prometheus and a person at a terminal need.
const MAX_CONNECTIONS: usize = 8;

/// How long a client may take to send its request, and then to send the next.
const PATIENCE: Duration = Duration::from_secs(30);

/// The media type of OpenMetrics.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A listening endpoint. Nobody is answered until [`MetricsEndpoint::serve`].
pub(crate) struct MetricsEndpoint {
    listener: Listener,
    /// Deletes the unix socket when the endpoint goes.
    _socket: Option<Socket>,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl MetricsEndpoint {
    /// Listens. A unix socket gets the owner and the mode that the daemon's own has.
    ///
    /// # Errors
    /// The address is in use or cannot be bound.
    pub(crate) async fn listen(
        address: &MetricsAddress,
        socket_group: Option<&str>,
    ) -> anyhow::Result<Self> {
        let listening = async {
            anyhow::Ok(match address {
                MetricsAddress::Unix(path) => {
                    let address = Address::claim_when_free(path, socket_group).await?;
                    let socket = address.listen()?;
                    Self {
                        listener: Listener::Unix(socket.listener()?),
                        _socket: Some(socket),
                    }
                }
                MetricsAddress::Loopback(address) => {
                    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
                    let bind = || net::TcpListener::bind(address);
                    let listener = when_free(bind, in_use).await?;
                    listener.set_nonblocking(true)?;
                    Self {
                        listener: Listener::Tcp(TcpListener::from_std(listener)?),
                        _socket: None,
                    }
                }
            })
        };
        listening.await.with_context(|| {
            format!("cannot serve metrics on {address} (`metrics.address` names another place)")
        })
    }

    /// Answers for ever; whoever is being answered when this is dropped hears no more.
    pub(crate) async fn serve(self, metrics: Arc<Metrics>) -> Infallible {
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= MAX_CONNECTIONS {
                connections.join_next().await;
            }
            let metrics = Arc::clone(&metrics);
            let accepted = match &self.listener {
                Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    connections.spawn(answer(stream, metrics));
                }),
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    connections.spawn(answer(stream, metrics));
                }),
            };
            if let Err(error) = accepted {
                not_accepted(&error).await;
            }
        }
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: S, metrics: Arc<Metrics>) {
    let service = service_fn(|request| respond(request, Arc::clone(&metrics)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "a connection for metrics broke");
    }
}

async fn respond(
    request: Request<Incoming>,
    metrics: Arc<Metrics>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let known = matches!(*request.method(), Method::GET | Method::HEAD);
    Ok(match (request.uri().path(), known) {
        ("/metrics", true) => {
            let page = tokio::task::spawn_blocking(move || metrics.page()).await;
            match page
                .map_err(io::Error::other)
                .and_then(|page| page.map_err(io::Error::other))
            {
                Ok(page) => respond_with(StatusCode::OK, CONTENT_TYPE, page),
                Err(error) => {
                    tracing::error!(%error, "cannot write the page of metrics");
                    plain(StatusCode::INTERNAL_SERVER_ERROR)
                }
            }
        }
        ("/metrics", false) => plain(StatusCode::METHOD_NOT_ALLOWED),
        _ => plain(StatusCode::NOT_FOUND),
    })
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    respond_with(
        status,
        "text/plain; charset=utf-8",
        format!("{status}: try GET /metrics\n"),
    )
}

fn respond_with(
    status: StatusCode,
    content_type: &'static str,
    body: String,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

//! A registry that keeps what it has got of a broken upload, as OCI's specification has it and
//! Debian's `docker-registry` does not. It has memory alone, and nothing can be pulled from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio_stream::StreamExt;

use crate::{http_server::HttpServer, image::sha256};

/// Where an upload is; the number of an upload stands for its name.
const UPLOADS: &str = "/v2/a/blobs/uploads/";

/// What a client has done.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The bytes of all uploads, also those of which it did not get more.
    pub received: usize,
    /// How often it was asked how much it has.
    pub asked: usize,
    /// The ranges that were sent.
    pub ranges: Vec<String>,
    /// The digests of the blobs that it has.
    pub blobs: BTreeSet<String>,
    /// The manifests that it has got.
    pub manifests: usize,
    /// How many uploads it was told to forget.
    pub cancelled: usize,
}

#[derive(Debug, Default)]
struct Kept {
    seen: Seen,
    uploads: BTreeMap<String, Vec<u8>>,
    /// Whose turn it is with an upload.
    turns: BTreeMap<String, Arc<Turn>>,
    next: usize,
    /// How many more uploads it refuses in their middle because nobody has logged in.
    expiring: usize,
    /// Whether it has done so, and takes nothing more from anybody who has not.
    wants_login: bool,
}

type Shared = Arc<Mutex<Kept>>;

type Turn = tokio::sync::Mutex<()>;

fn lock(shared: &Shared) -> MutexGuard<'_, Kept> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The server.
#[derive(Debug)]
pub struct Resuming {
    server: HttpServer,
    kept: Shared,
}

impl Resuming {
    /// Starts one. So many times it wants new credentials in the middle of an upload, which has
    /// to be one of a user with a password.
    ///
    /// # Errors
    /// There is no port.
    pub fn start(expiring: usize) -> Result<Self> {
        let kept = Shared::default();
        lock(&kept).expiring = expiring;
        let router = Router::new().fallback(answer).with_state(kept.clone());
        Ok(Self {
            server: HttpServer::start(router)?,
            kept,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How many uploads have begun, and neither ended nor been given up.
    #[must_use]
    pub fn uploads(&self) -> usize {
        lock(&self.kept).uploads.len()
    }

    /// What has happened so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        lock(&self.kept).seen.clone()
    }
}

fn log_in() -> Response {
    let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"tests\"")];
    (StatusCode::UNAUTHORIZED, challenge).into_response()
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let has_login = request.headers().contains_key(header::AUTHORIZATION);
    if lock(&shared).wants_login && !has_login {
        return log_in();
    }
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let name = path.strip_prefix(UPLOADS).unwrap_or_default().to_owned();
    if path == "/v2/" && method == Method::GET {
        return StatusCode::OK.into_response();
    }
    if path.contains("/manifests/") && method == Method::PUT {
        lock(&shared).seen.manifests += 1;
        return StatusCode::CREATED.into_response();
    }
    if method == Method::HEAD {
        let digest = path.rsplit('/').next().unwrap_or_default();
        return match lock(&shared).seen.blobs.contains(digest) {
            true => StatusCode::OK,
            false => StatusCode::NOT_FOUND,
        }
        .into_response();
    }
    // Of a request whose connection was cut, the rest may still be coming in.
    let turn = lock(&shared).turns.entry(name.clone()).or_default().clone();
    let _turn = turn.lock().await;
    match method {
        Method::POST if path == UPLOADS => {
            let mut kept = lock(&shared);
            kept.next += 1;
            let name = kept.next.to_string();
            kept.uploads.insert(name.clone(), Vec::new());
            progress(StatusCode::ACCEPTED, &name, 0)
        }
        Method::GET => {
            let mut kept = lock(&shared);
            kept.seen.asked += 1;
            match kept.uploads.get(&name) {
                Some(content) => progress(StatusCode::NO_CONTENT, &name, content.len()),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        }
        Method::PATCH => patch(&shared, &name, request).await,
        Method::DELETE => {
            let mut kept = lock(&shared);
            match kept.uploads.remove(&name) {
                Some(_) => {
                    kept.seen.cancelled += 1;
                    StatusCode::NO_CONTENT
                }
                None => StatusCode::NOT_FOUND,
            }
            .into_response()
        }
        Method::PUT => {
            if let Err(status) = append(&shared, &name, request, usize::MAX).await {
                return status.into_response();
            }
            let mut kept = lock(&shared);
            let content = kept.uploads.remove(&name).unwrap_or_default();
            let digest = format!("sha256:{}", sha256(&content));
            match query.replace("%3A", ":").ends_with(&digest) {
                true => {
                    kept.seen.blobs.insert(digest);
                    StatusCode::CREATED
                }
                false => StatusCode::BAD_REQUEST,
            }
            .into_response()
        }
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

async fn patch(shared: &Shared, name: &str, request: Request) -> Response {
    let range = request.headers().get(header::CONTENT_RANGE);
    let range = range
        .and_then(|range| range.to_str().ok())
        .map(str::to_owned);
    let limit = {
        let mut kept = lock(shared);
        let has = kept.uploads.get(name).map_or(0, Vec::len);
        let begins = range.as_deref().unwrap_or("0-").split('-').next();
        if begins != Some(&has.to_string()) {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        }
        kept.seen.ranges.extend(range);
        let expires = kept.expiring > 0;
        kept.expiring = kept.expiring.saturating_sub(1);
        kept.wants_login |= expires;
        match expires {
            true => 1 << 20,
            false => usize::MAX,
        }
    };
    match append(shared, name, request, limit).await {
        Ok(has) => progress(StatusCode::ACCEPTED, name, has),
        Err(StatusCode::UNAUTHORIZED) => log_in(),
        Err(status) => status.into_response(),
    }
}

/// Appends what comes to an upload, until it has so many bytes, and keeps it if the connection
/// breaks.
async fn append(
    shared: &Shared,
    name: &str,
    request: Request,
    limit: usize,
) -> Result<usize, StatusCode> {
    let mut body = request.into_body().into_data_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| StatusCode::BAD_REQUEST)?;
        let mut kept = lock(shared);
        kept.seen.received += chunk.len();
        let content = kept.uploads.get_mut(name).ok_or(StatusCode::NOT_FOUND)?;
        content.extend_from_slice(&chunk);
        if content.len() > limit {
            return Err(StatusCode::UNAUTHORIZED);
        }
    }
    let kept = lock(shared);
    Ok(kept.uploads.get(name).map_or(0, Vec::len))
}

fn progress(status: StatusCode, name: &str, has: usize) -> Response {
    let headers = [
        (header::LOCATION, format!("{UPLOADS}{name}")),
        (header::RANGE, format!("0-{}", has.saturating_sub(1))),
    ];
    (status, headers).into_response()
}

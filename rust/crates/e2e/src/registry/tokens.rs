//! A token server of distribution's specification, before a registry that trusts its certificate.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::json;

use super::Certificate;
use crate::{
    host::{Host, unique},
    http_server::HttpServer,
    process::succeed,
};

#[derive(Debug)]
struct Issuer {
    key: PathBuf,
    /// The certificate as the header of a token has it.
    x5c: String,
    dir: PathBuf,
    /// `Basic …` of the one user.
    authorization: String,
    /// How many of the first tokens allow to read only.
    reading_only: usize,
    /// The queries of the tokens that were given.
    given: Mutex<Vec<String>>,
}

/// The server.
#[derive(Debug)]
pub struct TokenServer {
    server: HttpServer,
    certificate: Certificate,
    issuer: Arc<Issuer>,
}

impl TokenServer {
    /// Starts one for a user. So many of its first tokens do not allow to push.
    ///
    /// # Errors
    /// There is no certificate or no port.
    pub fn start(host: &Host, login: (&str, &str), reading_only: usize) -> Result<Self> {
        let certificate = Certificate::new(host)?;
        let pem = fs::read_to_string(certificate.file())?;
        let x5c = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let dir = host.dir().join(unique("tokens"));
        fs::create_dir_all(&dir)?;
        let (user, password) = login;
        let issuer = Arc::new(Issuer {
            key: certificate.key(),
            x5c,
            dir,
            authorization: format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
            reading_only,
            given: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(issuer.clone());
        Ok(Self {
            server: HttpServer::start(router)?,
            certificate,
            issuer,
        })
    }

    /// Its address, as a registry names it.
    #[must_use]
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.address())
    }

    /// What the registry has to trust.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What the tokens were asked with that it has given.
    #[must_use]
    pub fn given(&self) -> Vec<String> {
        let given = self.issuer.given.lock();
        given.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(State(issuer): State<Arc<Issuer>>, request: Request) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION);
    if authorization.is_none_or(|value| value.as_bytes() != issuer.authorization.as_bytes()) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let query = request
        .uri()
        .query()
        .unwrap_or_default()
        .replace("%3A", ":");
    let query = query.replace("%2C", ",").replace("%2F", "/");
    let number = {
        let mut given = issuer.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.push(query.clone());
        given.len()
    };
    match issuer.token(&query, number <= issuer.reading_only) {
        Ok(token) => json!({ "token": token }).to_string().into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

impl Issuer {
    fn token(&self, query: &str, reads_only: bool) -> Result<String> {
        let access: Vec<_> = query
            .split('&')
            .filter_map(|parameter| parameter.strip_prefix("scope=repository:"))
            .filter_map(|scope| scope.rsplit_once(':'))
            .map(|(name, actions)| {
                let actions: Vec<_> = actions
                    .split(',')
                    .filter(|action| !reads_only || *action == "pull")
                    .collect();
                json!({ "type": "repository", "name": name, "actions": actions })
            })
            .collect();
        let now = UNIX_EPOCH.elapsed()?.as_secs();
        let head = json!({ "typ": "JWT", "alg": "RS256", "x5c": [self.x5c] });
        let claims = json!({
            "iss": "tests", "aud": "tests", "sub": "user", "jti": unique("token"),
            "iat": now, "nbf": now - 5, "exp": now + 300, "access": access,
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(head), part(claims));
        let (text, signature) = (
            self.dir.join(unique("text")),
            self.dir.join(unique("signature")),
        );
        fs::write(&text, &signed)?;
        succeed(
            Command::new("openssl")
                .args(["dgst", "-sha256", "-sign"])
                .arg(&self.key)
                .arg("-out")
                .arg(&signature)
                .arg(&text),
        )
        .context("cannot sign a token")?;
        let signature = URL_SAFE_NO_PAD.encode(fs::read(signature)?);
        Ok(format!("{signed}.{signature}"))
    }
}

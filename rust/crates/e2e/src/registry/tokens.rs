//! A token server of distribution's specification, before a registry that trusts its certificate.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::to_bytes,
    extract::{Request, State},
    http::{Method, StatusCode, header},
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

/// How many seconds a registry takes a token for that has expired: clocks differ.
const LEEWAY: u64 = 60;

/// Most bytes of a form that asks for a token.
const MAX_FORM: usize = 16 << 10;

/// What proves who the user is in place of the password. It cannot be sent as it is.
pub const IDENTITY: &str = "identity/of+the=user";

/// How many of the first tokens are not as good as the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstTokens {
    /// They allow to read only.
    pub reading_only: usize,
    /// They are taken for so long that a push begins with them, and not for [`SHORT`].
    pub short: usize,
}

/// The time after which the short of the first tokens have expired. They are taken for at least
/// 5 s, so that a push gets as far as a test wants on a slow machine, too.
pub const SHORT: Duration = Duration::from_secs(7);

#[derive(Debug)]
struct Issuer {
    key: PathBuf,
    /// The certificate as the header of a token has it.
    x5c: String,
    dir: PathBuf,
    /// `Basic …` of the one user.
    authorization: String,
    first: FirstTokens,
    /// What the tokens were asked for with that were given.
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
    /// Starts one for a user, who may give [`IDENTITY`] instead of the password.
    ///
    /// # Errors
    /// There is no certificate or no port.
    pub fn start(host: &Host, login: (&str, &str), first: FirstTokens) -> Result<Self> {
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
            first,
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

    /// The methods and parameters by which it was asked for the tokens that it has given.
    #[must_use]
    pub fn given(&self) -> Vec<String> {
        let given = self.issuer.given.lock();
        given.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(State(issuer): State<Arc<Issuer>>, request: Request) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION);
    let has_password =
        authorization.is_some_and(|value| value.as_bytes() == issuer.authorization.as_bytes());
    let method = request.method().clone();
    let parameters = match method {
        Method::POST => match to_bytes(request.into_body(), MAX_FORM).await {
            Ok(form) => String::from_utf8_lossy(&form).into_owned(),
            Err(_) => return StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        },
        _ => request.uri().query().unwrap_or_default().to_owned(),
    };
    let parameters = decoded(&parameters);
    let has = |parameter: &str| parameters.split('&').any(|each| each == parameter);
    let is_user = match method {
        Method::POST => {
            has("grant_type=refresh_token") && has(&format!("refresh_token={IDENTITY}"))
        }
        _ => has_password,
    };
    if !is_user {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let number = {
        let mut given = issuer.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.push(format!("{method} {parameters}"));
        given.len()
    };
    // Each method has its name for a token.
    let name = match method {
        Method::POST => "access_token",
        _ => "token",
    };
    match issuer.token(&parameters, number) {
        Ok(token) => json!({ name: token }).to_string().into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

/// Parameters without the escapes that are in those of these tests.
fn decoded(parameters: &str) -> String {
    let escapes = [
        ("%3A", ":"),
        ("%2C", ","),
        ("%2F", "/"),
        ("%2B", "+"),
        ("%3D", "="),
    ];
    escapes
        .iter()
        .fold(parameters.replace('+', " "), |text, (escape, character)| {
            text.replace(escape, character)
        })
}

impl Issuer {
    fn token(&self, parameters: &str, number: usize) -> Result<String> {
        let reads_only = number <= self.first.reading_only;
        let access: Vec<_> = parameters
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
        let expires = match number <= self.first.short {
            true => now + SHORT.as_secs() - 1 - LEEWAY,
            false => now + 300,
        };
        let head = json!({ "typ": "JWT", "alg": "RS256", "x5c": [self.x5c] });
        let claims = json!({
            "iss": "tests", "aud": "tests", "sub": "user", "jti": unique("token"),
            "iat": now, "nbf": now - 2 * LEEWAY, "exp": expires, "access": access,
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

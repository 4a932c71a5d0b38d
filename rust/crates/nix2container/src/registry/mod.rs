//! A client of OCI's distribution specification, as far as a push and a look at an image need it.
//!
//! * `transport`: the connection, and whose certificates count.
//! * `credentials`: who the user is; `auth`: how the registry is told.
//! * `upload`: blobs, which go on where they broke off; `read`: manifests and configs.
//! * `retry`: what is tried again; `answer`: what went wrong, in words.

mod answer;
mod auth;
mod credentials;
mod read;
mod retry;
mod transport;
mod upload;

use std::{
    cell::RefCell,
    fmt::{self, Display},
    path::PathBuf,
    time::Duration,
};

use answer::{Answer, Failure, Place, explain};
use anyhow::anyhow;
use auth::{Challenge, TokenRequest};
use clap::{ArgAction, Args, builder::BoolishValueParser};
use credentials::{Login, Secret};
use nix_image::{Descriptor, Digest, Reference};
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
};
use retry::Attempts;
pub(crate) use upload::Stored;

/// The header by which a registry says which digest a manifest has.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// How a registry is spoken to.
#[derive(Args, Clone, Debug)]
pub(crate) struct RegistryArgs {
    /// Speak to the registry without encryption.
    // `=true` and `=false` are as in the Go project, where a flag can be given its value.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        value_parser = BoolishValueParser::new()
    )]
    pub(crate) plain_http: bool,
    /// Trust the certificates in this PEM file, too.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How many seconds the registry may be silent.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

impl RegistryArgs {
    /// How long the registry may be silent.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// A client that speaks to these servers in this way.
    pub(crate) fn client(&self, targets: &[Url]) -> anyhow::Result<Client> {
        transport::client(
            self.plain_http,
            self.ca_file.as_deref(),
            self.timeout(),
            targets,
        )
    }
}

/// What a repository is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

impl Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pull => "pull",
            Self::Push => "push",
        })
    }
}

/// One repository of a registry.
pub(crate) struct Registry {
    http: Client,
    /// `https://HOST/v2/`.
    base: Url,
    domain: String,
    repository: String,
    access: Access,
    login: Option<Login>,
    plain_http: bool,
    timeout: Duration,
    /// What the registry asks for.
    challenge: RefCell<Option<Challenge>>,
    /// What it is given.
    authorization: RefCell<Option<HeaderValue>>,
}

impl Registry {
    /// Finds the registry of a reference, and logs in if it wants that.
    pub(crate) async fn connect(
        reference: &Reference,
        access: Access,
        args: &RegistryArgs,
    ) -> anyhow::Result<Self> {
        let (domain, repository) = (reference.domain(), reference.repository());
        let addresses = transport::addresses(domain, args.plain_http)?;
        let http = args.client(&addresses)?;
        let mut addresses = addresses.into_iter();
        let base = addresses
            .next()
            .ok_or_else(|| anyhow!("{domain} has no address"))?;
        let mut registry = Self {
            http,
            base,
            domain: domain.to_owned(),
            repository: repository.to_owned(),
            access,
            login: credentials::find(domain, repository)?,
            plain_http: args.plain_http,
            timeout: args.timeout(),
            challenge: RefCell::default(),
            authorization: RefCell::default(),
        };
        let what = format!("begin a {access}");
        let mut attempts = Attempts::default();
        loop {
            let failure = match registry.greet().await {
                Ok(()) => return Ok(registry),
                Err(failure) => failure,
            };
            match (&failure, addresses.next()) {
                (Failure::Broken { reason, .. }, Some(next)) => {
                    tracing::debug!("{}: {reason}; trying {next}", registry.base);
                    registry.base = next;
                }
                // Where nobody listens, nobody will in a moment.
                (
                    Failure::Broken {
                        connected: false, ..
                    },
                    _,
                ) => return Err(registry.explain(failure, &what)),
                _ => registry.pause(&mut attempts, failure, &what).await?,
            }
        }
    }

    /// The first request: whether a registry is there, and what it asks for.
    async fn greet(&self) -> Result<(), Failure> {
        let response = self
            .once(Method::GET, &self.base, |request| request)
            .await?;
        accept(response, &[StatusCode::OK], self.timeout).await?;
        Ok(())
    }

    /// Whether the repository has a blob.
    pub(crate) async fn has_blob(&self, digest: Digest) -> anyhow::Result<bool> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let what = format!("ask for {digest}");
        let accepted = [StatusCode::OK, StatusCode::NOT_FOUND];
        let request = |request: RequestBuilder| request;
        let response = self
            .request(&what, Method::HEAD, &url, request, &accepted)
            .await?;
        Ok(response.status() == StatusCode::OK)
    }

    /// Stores a manifest or an index by a tag or by its digest.
    pub(crate) async fn put_manifest(
        &self,
        tag_or_digest: &str,
        descriptor: &Descriptor,
        json: &[u8],
    ) -> anyhow::Result<()> {
        let url = self.url(&format!("manifests/{tag_or_digest}"))?;
        let what = format!("store the manifest {}", descriptor.digest);
        let request = |request: RequestBuilder| {
            request
                .header(CONTENT_TYPE, &descriptor.media_type)
                .body(json.to_vec())
        };
        let response = self
            .request(&what, Method::PUT, &url, request, &[StatusCode::CREATED])
            .await?;
        match header(&response, CONTENT_DIGEST) {
            Some(other) if other != descriptor.digest.to_string() => {
                let failure = anyhow!(
                    "the registry has changed it to {:?}: whoever pulls it gets something else",
                    other.chars().take(80).collect::<String>()
                );
                Err(self.explain(Failure::Fatal(failure), what))
            }
            _ => Ok(()),
        }
    }

    fn url(&self, rest: &str) -> anyhow::Result<Url> {
        Ok(self.base.join(&format!("{}/{rest}", self.repository))?)
    }

    /// Sends a request without much of a body until it has one of the answers that are hoped for.
    async fn request(
        &self,
        what: &dyn Display,
        method: Method,
        url: &Url,
        complete: impl Fn(RequestBuilder) -> RequestBuilder,
        accepted: &[StatusCode],
    ) -> anyhow::Result<Response> {
        self.retried(what, async || {
            let response = self.once(method.clone(), url, &complete).await?;
            accept(response, accepted, self.timeout).await
        })
        .await
    }

    /// Attempts something until it succeeds or there is no hope.
    async fn retried<T>(
        &self,
        what: &dyn Display,
        attempt: impl AsyncFn() -> Result<T, Failure>,
    ) -> anyhow::Result<T> {
        let mut attempts = Attempts::default();
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(failure) => self.pause(&mut attempts, failure, what).await?,
            }
        }
    }

    /// Sends a request once, and a second time with a new token if the one it had is not accepted.
    async fn once(
        &self,
        method: Method,
        url: &Url,
        complete: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Failure> {
        let send = || {
            let request = complete(self.authorized(method.clone(), url));
            answer::within(self.timeout, request.send())
        };
        let response = send().await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.log_in(&response).await? {
            return send().await;
        }
        Ok(response)
    }

    /// A request with what the registry knows the user by. Nobody else is told: uploads may go to
    /// another server.
    fn authorized(&self, method: Method, url: &Url) -> RequestBuilder {
        let request = self.http.request(method, url.clone());
        match &*self.authorization.borrow() {
            Some(value) if url.origin() == self.base.origin() => {
                request.header(AUTHORIZATION, value)
            }
            _ => request,
        }
    }

    /// Does what a 401 asks for. `false` if there is nothing to do it with.
    async fn log_in(&self, response: &Response) -> Result<bool, Failure> {
        if response.url().origin() != self.base.origin() {
            return Ok(false);
        }
        let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let asked = Challenge::parse(values.filter_map(|value| value.to_str().ok()));
        // A 401 in the middle does not always repeat what it wants.
        if let Some(asked) = asked {
            self.challenge.replace(Some(asked));
        }
        let challenge = self.challenge.borrow().clone();
        let secret = self.login.as_ref().map(|login| &login.secret);
        let authorization = match (challenge, secret) {
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                secret,
            ) => {
                let request = TokenRequest {
                    realm: &realm,
                    service: service.as_deref(),
                    scopes: auth::scopes(&self.repository, self.access, scope.as_deref()),
                    secret,
                    plain_http: self.plain_http || self.base.scheme() == "http",
                };
                request.send(&self.http, self.timeout).await?
            }
            (Some(Challenge::Basic), Some(Secret::Password { user, password })) => {
                let value = auth::basic(user, password)?;
                // The same again has no other answer.
                if self.authorization.borrow().as_ref() == Some(&value) {
                    return Ok(false);
                }
                value
            }
            _ => return Ok(false),
        };
        self.authorization.replace(Some(authorization));
        Ok(true)
    }

    /// Waits before the next attempt, or says why there is none.
    async fn pause(
        &self,
        attempts: &mut Attempts,
        failure: Failure,
        what: impl Display,
    ) -> anyhow::Result<()> {
        let delay = match failure.is_transient() {
            true => attempts.after_failure(failure.retry_after(), fastrand::f64()),
            false => None,
        };
        let error = self.explain(failure, what);
        match delay {
            None => Err(error),
            Some(delay) => {
                tracing::warn!("{error}; trying again in {:.1} s", delay.as_secs_f32());
                tokio::time::sleep(delay).await;
                Ok(())
            }
        }
    }

    fn explain(&self, failure: Failure, what: impl Display) -> anyhow::Error {
        let place = Place {
            domain: &self.domain,
            repository: &self.repository,
            access: self.access,
            login: self.login.as_ref().map(|login| login.source.as_str()),
        };
        explain(failure, what, place)
    }
}

/// The response if its status is one of those, and else its words as a failure.
async fn accept(
    response: Response,
    accepted: &[StatusCode],
    timeout: Duration,
) -> Result<Response, Failure> {
    match accepted.contains(&response.status()) {
        true => Ok(response),
        false => Err(Failure::Answer(Answer::read(response, timeout).await)),
    }
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

//! What comes back from a registry when it is not what was asked for, in words.

use std::{error::Error, fmt::Display, future::Future, time::Duration};

use anyhow::anyhow;
use reqwest::{Response, header::RETRY_AFTER};
use serde::Deserialize;

use super::{Access, retry};

/// Most bytes of an answer that is no document of an image: tokens are the longest of them.
pub(super) const MAX_BYTES: u64 = 256 << 10;

/// Most characters of a registry's own words that are repeated.
const MAX_SAID: usize = 300;

/// Why a request did not do what it should.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no answer, or not a whole one.
    Broken {
        /// Why.
        reason: String,
        /// Whether there was a connection at least.
        connected: bool,
    },
    /// A status other than the one that was hoped for.
    Answer(Answer),
    /// The token server does not accept the login.
    Login,
    /// What no further attempt can change.
    Fatal(anyhow::Error),
}

impl Failure {
    /// Whether another attempt may have another end.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Broken { .. } => true,
            Self::Answer(answer) => retry::is_transient(answer.status),
            Self::Login | Self::Fatal(_) => false,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer(answer) => answer.retry_after,
            _ => None,
        }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        if let Some(problem) = certificate_problem(&error) {
            return Self::Fatal(anyhow!(
                "its certificate is not to be trusted: {problem}: give the certificate of its authority by --ca-file"
            ));
        }
        if error.is_builder() || error.is_redirect() {
            return Self::Fatal(anyhow!("{}", innermost(&error)));
        }
        Self::Broken {
            reason: innermost(&error),
            connected: !error.is_connect(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Fatal(error)
    }
}

/// The cause that says most: those around it say only that something failed.
fn innermost(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

fn certificate_problem(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(problem)) = error.downcast_ref() {
            return Some(problem.to_string());
        }
        // The TLS stack hands its errors over within those of I/O, which hide their source.
        if let Some(inner) = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            && let Some(found) = certificate_problem(inner)
        {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Waits for the beginning of an answer.
pub(super) async fn within(
    timeout: Duration,
    answer: impl Future<Output = reqwest::Result<Response>>,
) -> Result<Response, Failure> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(silence(timeout)),
    }
}

pub(super) fn silence(timeout: Duration) -> Failure {
    Failure::Broken {
        reason: format!("no answer within {} s", timeout.as_secs_f32()),
        connected: true,
    }
}

/// The whole body of a short answer, or the beginning of a longer one: at least one byte more than
/// `limit`, so that it can be told from a whole one.
pub(super) async fn body(
    mut response: Response,
    limit: u64,
    timeout: Duration,
) -> Result<Vec<u8>, Failure> {
    let read = async {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > limit {
                break;
            }
        }
        Ok(body)
    };
    match tokio::time::timeout(timeout, read).await {
        Ok(body) => body,
        Err(_) => Err(silence(timeout)),
    }
}

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// The registry's own words, quoted, or nothing.
    said: String,
    /// Who gave it, if it is not the registry.
    by: Option<String>,
}

impl Answer {
    pub(super) async fn read(response: Response, timeout: Duration) -> Self {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| retry::retry_after(value.to_str().ok()?));
        // A status counts without its words, too.
        let body = body(response, MAX_BYTES, timeout).await.unwrap_or_default();
        Self {
            status,
            retry_after,
            said: said(&body),
            by: None,
        }
    }

    pub(super) fn of(mut self, by: String) -> Self {
        self.by = Some(by);
        self
    }
}

/// The registry's own words: those in the errors of OCI's specification, and nothing of the pages
/// of a proxy.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<OneError>,
    }
    #[derive(Deserialize)]
    struct OneError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else {
        return String::new();
    };
    let texts = errors.into_iter().map(|error| match error.message {
        message if message.is_empty() => error.code,
        message => message,
    });
    let text = texts.collect::<Vec<_>>().join(", ");
    let text: String = text.chars().take(MAX_SAID).collect();
    match text.is_empty() {
        true => text,
        false => format!(" ({})", text.escape_debug()),
    }
}

/// Where something was to happen, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) domain: &'a str,
    pub(super) repository: &'a str,
    pub(super) access: Access,
    /// What the login is from, if there is one.
    pub(super) login: Option<&'a str>,
}

/// The failure in one line: what, why, and the way out.
pub(super) fn explain(failure: Failure, what: impl Display, place: Place<'_>) -> anyhow::Error {
    let Place {
        domain,
        repository,
        access,
        login,
    } = place;
    let reason = match failure {
        Failure::Fatal(error) => format!("{error:#}"),
        Failure::Broken { reason, .. } => format!(
            "{reason}: see whether {domain} is the registry that is meant, runs and can be reached"
        ),
        Failure::Login => refused_login(domain, login),
        Failure::Answer(answer) => {
            let Answer {
                status, said, by, ..
            } = &answer;
            let by = by.as_deref().unwrap_or("the registry");
            match status {
                401 if login.is_none() => format!(
                    "{by} wants a login{said}: `skopeo login {domain}` or `docker login {domain}`, or name a file with one by REGISTRY_AUTH_FILE"
                ),
                401 => format!("{}{said}", refused_login(domain, login)),
                403 => format!(
                    "{by} forbids it (403){said}: {}",
                    match login {
                        None => format!(
                            "log in with `skopeo login {domain}`, or choose a repository that all may {access}"
                        ),
                        Some(source) => format!(
                            "the login of {source} needs the right to {access} {repository}"
                        ),
                    }
                ),
                404 => format!(
                    "{by} does not know the repository {repository} (404){said}: {}",
                    match access {
                        Access::Pull => "correct the name",
                        Access::Push => "make it there, or correct the name by --ref",
                    }
                ),
                413 => format!(
                    "it is larger than {by} or a proxy before it takes (413){said}: have the limit raised (nginx: `client_max_body_size`)"
                ),
                429 => format!(
                    "{by} takes no more requests now (429){said}: try again later{}",
                    match answer.retry_after {
                        Some(after) => format!(", after {} s", after.as_secs()),
                        None => String::new(),
                    }
                ),
                500..=599 => format!(
                    "{by} fails ({status}){said}: try again later; its log says what is wrong"
                ),
                status => format!(
                    "{by} answers with status {status}{said}: see whether {domain} is a registry"
                ),
            }
        }
    };
    anyhow!("cannot {what} at {domain}/{repository}: {reason}")
}

fn refused_login(domain: &str, login: Option<&str>) -> String {
    let source = login.unwrap_or("the credentials");
    format!(
        "the login of {source} is refused: log in again with `skopeo login {domain}` or `docker login {domain}`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(status: u16, login: Option<&str>) -> String {
        let answer = Answer {
            status,
            retry_after: (status == 429).then_some(Duration::from_secs(600)),
            said: said(br#"{"errors":[{"code":"C","message":"the\nreason","detail":7}]}"#),
            by: None,
        };
        let place = Place {
            domain: "r.io",
            repository: "a/b",
            access: Access::Push,
            login,
        };
        explain(Failure::Answer(answer), "store x", place).to_string()
    }

    #[test]
    fn each_status_has_one_line_with_the_reason_and_the_way_out() {
        for (status, login, words) in [
            (401, None, &["wants a login", "skopeo login r.io"][..]),
            (401, Some("/f"), &["/f", "refused", "log in again"]),
            (403, None, &["403", "log in"]),
            (403, Some("/f"), &["403", "/f", "right to push a/b"]),
            (404, None, &["404", "--ref"]),
            (413, None, &["413", "client_max_body_size"]),
            (429, None, &["429", "after 600 s"]),
            (500, None, &["500", "its log"]),
            (418, None, &["418", "is a registry"]),
        ] {
            let line = line(status, login);
            for word in words
                .iter()
                .chain(&["cannot store x at r.io/a/b", "reason"])
            {
                assert!(line.contains(word), "{status}: {line}");
            }
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn the_words_of_a_registry_are_bounded_and_those_of_others_left_out() {
        for body in [
            "",
            "<html>500</html>",
            "{}",
            r#"{"errors":[]}"#,
            r#"{"errors":3}"#,
        ] {
            assert_eq!(said(body.as_bytes()), "", "{body}");
        }
        assert_eq!(
            said(br#"{"errors":[{"code":"C"},{"message":"m"}]}"#),
            " (C, m)"
        );
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(9999));
        assert!(said(long.as_bytes()).len() < MAX_SAID + 10);
    }
}

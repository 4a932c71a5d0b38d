//! How a registry wants its clients to say who they are: `WWW-Authenticate`, and the tokens of
//! distribution's token specification.

use std::time::Duration;

use anyhow::{anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Client, RequestBuilder, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue},
};
use serde::Deserialize;

use super::{Access, answer, credentials::Secret, transport::is_loopback};

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token that another server gives.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge in the values of `WWW-Authenticate` that can be met, a token rather than a
    /// password.
    pub(super) fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for value in values {
            for (scheme, parameters) in challenges(value) {
                let get = |name: &str| {
                    parameters
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.clone())
                };
                if scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = get("realm")
                {
                    return Some(Self::Bearer {
                        realm,
                        service: get("service"),
                        scope: get("scope"),
                    });
                }
                if scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

/// The schemes of a header, each with its parameters. What cannot be read is left out.
fn challenges(header: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for item in split_outside_quotes(header) {
        let item = item.trim();
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
            None => (item, None),
        };
        // The first parameter stands behind its scheme, after a space.
        let name = match name.split_once(char::is_whitespace) {
            Some((scheme, name)) => {
                found.push((scheme.to_owned(), Vec::new()));
                name.trim_start()
            }
            None if value.is_none() => {
                if !name.is_empty() {
                    found.push((name.to_owned(), Vec::new()));
                }
                continue;
            }
            None => name,
        };
        if let (Some((_, parameters)), Some(value)) = (found.last_mut(), value) {
            parameters.push((name.to_owned(), unquote(value)));
        }
    }
    found
}

fn split_outside_quotes(header: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    header
        .split(|c| {
            let is_escaped = escaped;
            escaped = quoted && !is_escaped && c == '\\';
            if c == '"' && !is_escaped {
                quoted = !quoted;
            }
            c == ',' && !quoted
        })
        .collect()
}

fn unquote(value: &str) -> String {
    let Some(inner) = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    else {
        return value.to_owned();
    };
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        text.extend(if c == '\\' {
            characters.next()
        } else {
            Some(c)
        });
    }
    text
}

/// The scopes to ask a token for: those that the challenge names, and always all that is done in
/// the repository, so that one token serves from the beginning to the end.
pub(super) fn scopes(repository: &str, access: Access, challenge: Option<&str>) -> Vec<String> {
    let own = format!("repository:{repository}:");
    let actions = match access {
        Access::Pull => "pull",
        Access::Push => "pull,push",
    };
    let mut scopes = vec![format!("{own}{actions}")];
    let others = challenge.unwrap_or_default().split_whitespace();
    scopes.extend(
        others
            .filter(|scope| !scope.starts_with(&own))
            .map(str::to_owned),
    );
    scopes
}

/// The value of `Authorization` for a user and a password.
pub(super) fn basic(user: &str, password: &str) -> anyhow::Result<HeaderValue> {
    secret_header(&format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{password}"))
    ))
}

fn secret_header(text: &str) -> anyhow::Result<HeaderValue> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| anyhow!("it has a character that no header can have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Where a token is asked for, and what for.
pub(super) struct TokenRequest<'a> {
    pub(super) realm: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) scopes: Vec<String>,
    pub(super) secret: Option<&'a Secret>,
    /// Whether the registry itself is spoken to without encryption.
    pub(super) plain_http: bool,
}

impl TokenRequest<'_> {
    /// Gets the token and makes the value of `Authorization` of it.
    ///
    /// One attempt: whoever sends the request that needs the token tries again.
    pub(super) async fn send(
        &self,
        http: &Client,
        timeout: Duration,
    ) -> Result<HeaderValue, answer::Failure> {
        let request = self.request(http).map_err(answer::Failure::Fatal)?;
        let at = format!("the token server {}", self.realm.escape_debug());
        let response = answer::within(timeout, request.send()).await?;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST)
            && self.secret.is_some()
        {
            return Err(answer::Failure::Login);
        }
        if !status.is_success() {
            let answer = answer::Answer::read(response, timeout).await;
            return Err(answer::Failure::Answer(answer.of(at)));
        }
        let body = answer::body(response, answer::MAX_BYTES, timeout).await?;
        token(&body)
            .and_then(|token| secret_header(&format!("Bearer {token}")))
            .map_err(|error| answer::Failure::Fatal(anyhow!("{at} gives no token: {error}")))
    }

    fn request(&self, http: &Client) -> anyhow::Result<RequestBuilder> {
        let realm = self.realm;
        let mut url = Url::parse(realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| anyhow!("the registry names {realm:?} as its token server, which is no address: it is set up wrongly"))?;
        let host = url.host_str().unwrap_or_default();
        if url.scheme() == "http" && !self.plain_http && !is_loopback(host) {
            bail!(
                "the registry names {realm:?} as its token server, where the login could be read on the way: have it set up with https, or pass --plain-http"
            );
        }
        if let Some(Secret::IdentityToken(token)) = self.secret {
            let mut form = vec![
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
                ("client_id", "nix2container"),
            ];
            let scope = self.scopes.join(" ");
            form.push(("scope", &scope));
            form.extend(self.service.map(|service| ("service", service)));
            return Ok(http.post(url).form(&form));
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in &self.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(Secret::Password { user, .. }) = self.secret {
                query.append_pair("account", user);
            }
        }
        let request = http.get(url);
        Ok(match self.secret {
            Some(Secret::Password { user, password }) => {
                request.header(AUTHORIZATION, basic(user, password)?)
            }
            _ => request,
        })
    }
}

fn token(body: &[u8]) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer =
        serde_json::from_slice(body).map_err(|_| anyhow!("its answer is not JSON"))?;
    answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| anyhow!("its answer has neither `token` nor `access_token`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_all_their_forms() {
        let bearer = |service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: "https://auth/token".into(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (values, expected) in [
            (
                &[
                    r#"Bearer realm="https://auth/token",service="r",scope="repository:a/b:pull,push""#,
                ][..],
                bearer(Some("r"), Some("repository:a/b:pull,push")),
            ),
            (
                &[r#"bearer  Realm = "https://auth/token" , SERVICE=r"#],
                bearer(Some("r"), None),
            ),
            (
                &[r#"Bearer realm="https://auth/token""#],
                bearer(None, None),
            ),
            (
                &[r#"Bearer service="a \"b\", c",realm="https://auth/token""#],
                bearer(Some(r#"a "b", c"#), None),
            ),
            (&[r#"Basic realm="a, b""#], Some(Challenge::Basic)),
            (&["basic"], Some(Challenge::Basic)),
            (
                &[r#"Basic realm="x", Bearer realm="https://auth/token",service=r"#],
                bearer(Some("r"), None),
            ),
            (
                &[r#"Basic realm="x""#, r#"Bearer realm="https://auth/token""#],
                bearer(None, None),
            ),
            (&[r#"Negotiate, Basic realm="x""#], Some(Challenge::Basic)),
            (&["Negotiate YWJj=="], None),
            (&["Bearer service=x"], None),
            (&["", ",,", "=", "\""], None),
            (&[], None),
        ] {
            assert_eq!(
                Challenge::parse(values.iter().copied()),
                expected,
                "{values:?}"
            );
        }
    }

    #[test]
    fn a_token_is_asked_for_pushing_and_for_what_is_mounted() {
        assert_eq!(
            scopes("a/b", Access::Push, None),
            ["repository:a/b:pull,push"]
        );
        assert_eq!(scopes("a/b", Access::Pull, None), ["repository:a/b:pull"]);
        assert_eq!(
            scopes(
                "a/b",
                Access::Push,
                Some("repository:a/b:pull repository:base:pull")
            ),
            ["repository:a/b:pull,push", "repository:base:pull"]
        );
    }

    #[test]
    fn tokens_have_either_name() {
        assert_eq!(token(br#"{"token":"t"}"#).unwrap(), "t");
        assert_eq!(
            token(br#"{"access_token":"t","expires_in":3}"#).unwrap(),
            "t"
        );
        for (body, reason) in [
            (&b"<html>"[..], "not JSON"),
            (b"{}", "neither"),
            (br#"{"token":""}"#, "neither"),
        ] {
            let message = token(body).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
        assert!(secret_header("Bearer a\nb").is_err());
    }

    #[test]
    fn a_login_is_not_sent_where_it_can_be_read() {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let http = Client::builder().tls_certs_only([]).build().unwrap();
        let secret = Secret::Password {
            user: "u".into(),
            password: "p".into(),
        };
        let ask = |realm, plain_http| {
            TokenRequest {
                realm,
                service: Some("s"),
                scopes: vec!["repository:a:pull,push".into()],
                secret: Some(&secret),
                plain_http,
            }
            .request(&http)
            .and_then(|request| Ok(request.build()?))
        };
        let request = ask("https://auth/token?x=1", false).unwrap();
        assert_eq!(
            request.url().as_str(),
            "https://auth/token?x=1&service=s&scope=repository%3Aa%3Apull%2Cpush&account=u"
        );
        assert_eq!(request.headers()[AUTHORIZATION], "Basic dTpw");
        let refresh = TokenRequest {
            realm: "https://auth/token",
            service: Some("s"),
            scopes: vec!["x".into(), "y".into()],
            secret: Some(&Secret::IdentityToken("t".into())),
            plain_http: false,
        };
        let refresh = refresh.request(&http).unwrap().build().unwrap();
        assert_eq!(refresh.method(), "POST");
        assert_eq!(
            refresh.body().unwrap().as_bytes().unwrap(),
            b"grant_type=refresh_token&refresh_token=t&client_id=nix2container&scope=x+y&service=s"
        );
        assert!(ask("http://auth/token", true).is_ok());
        assert!(ask("http://127.0.0.1:1/token", false).is_ok());
        for realm in ["http://auth/token", "file:///etc/passwd", "nothing"] {
            assert!(ask(realm, false).is_err(), "{realm}");
        }
    }
}

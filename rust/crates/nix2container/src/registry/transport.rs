//! The connection to a registry: whether it is encrypted, and whose certificates count.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use reqwest::{Certificate, Client, Url, redirect::Policy};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(20);

/// Where the API of Docker Hub is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// Most redirections of one request.
const REDIRECTIONS: usize = 10;

/// What is wrong with an address that a registry sends its clients to, and the way out.
pub(super) const IN_PLAIN_TEXT: &str = "in plain text, which others could read and change on the way: have the registry, or the proxy before it, set up to name addresses with https";

/// Makes the client. Certificates are those of the system, or of `SSL_CERT_FILE`, and those in
/// `ca_file`. A proxy of the environment is used, but not to reach this machine itself.
pub(super) fn client(
    plain_http: bool,
    ca_file: Option<&Path>,
    timeout: Duration,
    targets: &[Url],
) -> anyhow::Result<Client> {
    // Somebody else may have chosen it already: there is one choice only.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .connect_timeout(CONNECT.min(timeout))
        .redirect(Policy::custom(|attempt| {
            let is_secret = attempt
                .previous()
                .last()
                .is_some_and(|from| from.scheme() == "https");
            match attempt.previous().len() {
                _ if is_secret && attempt.url().scheme() != "https" => {
                    let target = attempt.url().host_str().unwrap_or_default();
                    let reason = format!("it redirects from https to {target} {IN_PLAIN_TEXT}");
                    attempt.error(reason)
                }
                length if length > REDIRECTIONS => attempt.error(format!(
                    "it redirects more than {REDIRECTIONS} times: have the registry, or the proxy before it, set up anew"
                )),
                _ => attempt.follow(),
            }
        }))
        .user_agent(concat!("nix2container/", env!("CARGO_PKG_VERSION")));
    let is_here = |url: &Url| url.host_str().is_some_and(is_loopback);
    let client = match targets.iter().all(is_here) {
        true => client.no_proxy(),
        false => client,
    };
    let client = match (ca_file, plain_http) {
        (Some(file), _) => client.tls_certs_merge(certificates(file)?),
        // A machine without certificates can push in plain text.
        (None, true) => client.tls_certs_only([]),
        (None, false) => client,
    };
    client.build().map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        anyhow!(
            "there are no certificates to check a registry by: {}: install ca-certificates, or name a file of them by SSL_CERT_FILE",
            cause.unwrap_or_else(|| error.to_string())
        )
    })
}

fn certificates(file: &Path) -> anyhow::Result<Vec<Certificate>> {
    let name = file.display();
    let pem = fs::read(file).with_context(|| format!("cannot read the certificates in {name}"))?;
    let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if certificates.is_empty() {
        bail!(
            "{name} of --ca-file has no certificate: it must be PEM, `-----BEGIN CERTIFICATE-----`"
        );
    }
    Ok(certificates)
}

/// The addresses at which the API of a registry may be, in the order to try them. `domain` is
/// what references call it.
pub(super) fn addresses(domain: &str, plain_http: bool) -> anyhow::Result<Vec<Url>> {
    let host = match domain {
        "docker.io" => DOCKER_HUB,
        domain => domain,
    };
    let url = |scheme: &str| {
        Url::parse(&format!("{scheme}://{host}/v2/"))
            .with_context(|| format!("{domain} cannot be the address of a registry"))
    };
    let secure = url("https")?;
    let alone = secure.host_str().unwrap_or_default();
    Ok(match (plain_http, is_loopback(alone)) {
        (true, _) => vec![url("http")?],
        (false, true) => vec![secure, url("http")?],
        (false, false) => vec![secure],
    })
}

/// Whether nobody between can read what is sent to this host.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        || bare.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_spoken_to_in_plain_text_unasked() {
        let addresses = |domain, plain| {
            let urls = addresses(domain, plain).unwrap();
            urls.iter().map(Url::to_string).collect::<Vec<_>>()
        };
        assert_eq!(addresses("r.io", false), ["https://r.io/v2/"]);
        assert_eq!(addresses("r.io", true), ["http://r.io/v2/"]);
        assert_eq!(
            addresses("docker.io", false),
            ["https://registry-1.docker.io/v2/"]
        );
        assert_eq!(
            addresses("localhost:5000", false),
            ["https://localhost:5000/v2/", "http://localhost:5000/v2/"]
        );
        assert_eq!(addresses("[::1]:5000", false).len(), 2);
        for host in ["127.0.0.1", "127.8.9.1", "LOCALHOST", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example.org",
            "128.0.0.1",
            "127.0.0.1.nip.io",
            "[::2]",
            "10.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "no certificate").unwrap();
        let message = certificates(file.path()).unwrap_err().to_string();
        assert!(message.contains("--ca-file"), "{message}");
        assert!(message.contains(file.path().to_str().unwrap()), "{message}");
    }
}

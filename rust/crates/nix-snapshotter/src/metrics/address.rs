//! Where the page of metrics may be served: nowhere that strangers can reach.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use serde::Deserialize;

use crate::socket;

/// A unix socket or a loopback address. Nobody is asked who they are there, so nothing else is
/// taken.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum MetricsAddress {
    Unix(PathBuf),
    Loopback(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str =
            "write \"unix:///run/nix-snapshotter/metrics.sock\" or \"127.0.0.1:9600\"";
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return match socket::check_path(&path) {
                Ok(()) => Ok(Self::Unix(path)),
                Err(reason) => Err(format!("{text:?} names a socket that {reason}")),
            };
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| format!("{text:?} is no address: {FORMS}"))?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{text:?} can be reached from other machines, and there is no authentication: \
                 {FORMS}, and put a proxy that authenticates in front of it"
            ));
        }
        if address.port() == 0 {
            return Err(format!("{text:?} has no port: {FORMS}"));
        }
        Ok(Self::Loopback(address))
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix://{}", path.display()),
            Self::Loopback(address) => write!(formatter, "http://{address}/metrics"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_loopback_addresses_are_taken() {
        for (text, expected) in [
            (
                "unix:///run/m.sock",
                MetricsAddress::Unix("/run/m.sock".into()),
            ),
            (
                "127.0.0.1:9600",
                MetricsAddress::Loopback(([127, 0, 0, 1], 9600).into()),
            ),
            (
                "127.1.2.3:1",
                MetricsAddress::Loopback(([127, 1, 2, 3], 1).into()),
            ),
            (
                "[::1]:9600",
                MetricsAddress::Loopback((std::net::Ipv6Addr::LOCALHOST, 9600).into()),
            ),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn whatever_strangers_can_reach_is_refused_with_the_reason() {
        let long = format!("unix:///{}", "a".repeat(100));
        for (text, reason) in [
            ("0.0.0.0:9600", "no authentication"),
            ("[::]:9600", "no authentication"),
            ("192.0.2.7:9600", "no authentication"),
            // Only a resolver knows where it leads.
            ("localhost:9600", "no address"),
            ("9600", "no address"),
            (":9600", "no address"),
            ("127.0.0.1", "no address"),
            ("/run/m.sock", "no address"),
            ("http://127.0.0.1:9600", "no address"),
            ("127.0.0.1:0", "no port"),
            ("unix://run/m.sock", "absolute"),
            ("unix://", "absolute"),
            (&*long, "101 bytes"),
            ("", "no address"),
        ] {
            let refusal = text.parse::<MetricsAddress>().unwrap_err();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }
}

//! The deadline of a call, which its caller tells in a header.
//!
//! tonic's server ends a call at its deadline, too, but says CANCELLED, as if the caller had changed
//! its mind (0.14, `TimeoutExpired`). A [`Deadline`] is made before that server's own, and so is the
//! first to pass.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Sleep;
use tonic::{Status, body::Body};

/// How a caller says for how long it waits (gRPC over HTTP2, "Timeout").
const HEADER: &str = "grpc-timeout";

/// Most digits of a value of [`HEADER`].
const DIGITS: usize = 8;

/// When a call has to be answered, if its caller has said so.
pub(crate) struct Deadline(Option<Sleep>);

impl Deadline {
    /// Reads it from the headers of a call that begins now.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self(timeout(headers).map(tokio::time::sleep))
    }

    /// The answer to the call, unless it comes too late. The work for one that does is dropped.
    pub(crate) async fn bound<E>(
        self,
        answer: impl Future<Output = Result<http::Response<Body>, E>>,
    ) -> Result<http::Response<Body>, E> {
        let Some(at_deadline) = self.0 else {
            return answer.await;
        };
        tokio::select! {
            biased;
            () = at_deadline => Ok(passed().into_http()),
            answer = answer => answer,
        }
    }
}

/// What the caller hears whose deadline has passed.
pub(crate) fn passed() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    let (value, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if value.len() > DIGITS {
        return None;
    }
    let value: u32 = value.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(60 * 60),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_number_and_a_unit() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("0m", Some(Duration::ZERO)),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("999999999n", None),
            ("-1S", None),
            ("1", None),
            ("S", None),
            ("1s", None),
            ("1é", None),
            ("", None),
        ] {
            let value = http::HeaderValue::from_bytes(text.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), value)]);
            assert_eq!(timeout(&headers), expected, "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }
}

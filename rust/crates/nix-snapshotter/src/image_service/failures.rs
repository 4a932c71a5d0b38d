//! What fails again and again, and is said once.

use image_loader::Error as Load;
use tonic::{Code, Status};
use tracing::{debug, warn};

use crate::error::{Error, chain};

/// The reason for which something that is tried for ever has failed last.
#[derive(Default)]
pub(super) struct Failures(Option<String>);

impl Failures {
    /// Says why it has failed: as a warning where that is news, and not for as long as containerd is
    /// away, which is for others to say.
    pub(super) fn tell(&mut self, what: &str, error: &Error) {
        let reason = chain(error);
        if self.is_news(&reason, is_away(error)) {
            warn!(error = reason, "{what}");
        } else {
            debug!(error = reason, "{what}");
        }
    }

    /// It has succeeded.
    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    fn is_news(&mut self, reason: &str, is_away: bool) -> bool {
        if is_away || self.0.as_deref() == Some(reason) {
            return false;
        }
        self.0 = Some(reason.to_owned());
        true
    }
}

/// Whether nothing is wrong but that containerd, or its way to this daemon, is not there.
fn is_away(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } => true,
        Error::Cri { status, .. } => is_broken(status),
        Error::Load(error) => match &**error {
            Load::Refused { status, .. } => is_broken(status),
            Load::Unreachable { .. } => true,
            _ => false,
        },
        _ => false,
    }
}

/// A status that containerd has sent has no cause here; one of a connection that broke has.
fn is_broken(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_reason_is_news_until_it_has_been_said() {
        let mut failures = Failures::default();
        assert!(failures.is_news("one", false));
        assert!(!failures.is_news("one", false));
        assert!(!failures.is_news("away", true));
        assert!(!failures.is_news("one", false));
        assert!(failures.is_news("two", false));
        failures.end();
        assert!(failures.is_news("two", false));
    }

    #[test]
    fn a_containerd_that_is_away_is_told_from_one_that_refuses() {
        let refused = |status| {
            let status = Box::new(status);
            let operation = "list its images".to_owned();
            Error::from(Load::Refused { operation, status })
        };
        assert!(is_away(&refused(Status::unavailable("nobody"))));
        assert!(is_away(&refused(Status::from_error(Box::new(
            io::Error::other("broken pipe")
        )))));
        assert!(!is_away(&refused(Status::out_of_range("too large"))));
        assert!(!is_away(&refused(Status::unknown("no such bucket"))));
        assert!(!is_away(&Error::NoOutcome));
    }
}

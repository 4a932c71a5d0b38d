//! Which failures are tried again, and after which time.

use std::time::Duration;

/// How often a request is tried in all.
pub(super) const ATTEMPTS: u32 = 5;

/// The time before the second attempt; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// The longest time between attempts that is chosen here.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// The longest time that a registry can ask for. Who asks for more is given up: nobody watches a
/// program that does nothing for so long.
const LONGEST_REQUESTED: Duration = Duration::from_secs(120);

/// Bytes that a registry must have got beyond the most it had before, for an upload to begin
/// counting its attempts anew.
const PROGRESS: u64 = 1 << 20;

/// Whether a registry that gives this status may give another if it is asked again.
pub(super) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}

/// The time to wait that `Retry-After` asks for, in seconds. Registries do not send the other form, a date.
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Counts the attempts at one piece of work.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failed: u32,
    /// The most bytes that the registry had.
    best: u64,
}

impl Attempts {
    /// The time to wait before the next attempt; `None` to give up. `requested` is what the
    /// registry asks for, and `random` is in 0..1: clients that failed together must not come
    /// back together.
    pub(super) fn after_failure(
        &mut self,
        requested: Option<Duration>,
        random: f64,
    ) -> Option<Duration> {
        self.failed += 1;
        if self.failed >= ATTEMPTS {
            return None;
        }
        let doubled = FIRST_DELAY.saturating_mul(1 << (self.failed - 1));
        let chosen = doubled.min(LONGEST_DELAY).mul_f64(0.5 + random / 2.0);
        match requested {
            Some(requested) if requested > LONGEST_REQUESTED => None,
            Some(requested) => Some(requested.max(chosen)),
            None => Some(chosen),
        }
    }

    /// Takes note of how many bytes the registry has. An upload that goes on is not given up, even
    /// if its connection breaks often.
    pub(super) fn reached(&mut self, bytes: u64) {
        if bytes >= self.best.saturating_add(PROGRESS) {
            self.best = bytes;
            self.failed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(is_transient(status), "{status}");
        }
        for status in [200, 301, 400, 401, 403, 404, 405, 413, 416] {
            assert!(!is_transient(status), "{status}");
        }
    }

    #[test]
    fn the_time_between_attempts_doubles_and_they_are_bounded() {
        let mut attempts = Attempts::default();
        let delays: Vec<_> = std::iter::from_fn(|| attempts.after_failure(None, 1.0)).collect();
        let millis: Vec<_> = delays.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [500, 1000, 2000, 4000]);
        let half = Attempts::default().after_failure(None, 0.0).unwrap();
        assert_eq!(half.as_millis(), 250);
    }

    #[test]
    fn the_registry_is_waited_for_as_long_as_it_asks_within_reason() {
        let ask =
            |seconds| Attempts::default().after_failure(Some(Duration::from_secs(seconds)), 1.0);
        assert_eq!(ask(7), Some(Duration::from_secs(7)));
        assert_eq!(ask(0), Some(Duration::from_millis(500)));
        assert_eq!(ask(120), Some(Duration::from_secs(120)));
        assert_eq!(ask(121), None);
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("-1"), None);
        assert_eq!(retry_after("Fri, 31 Dec 1999 23:59:59 GMT"), None);
    }

    #[test]
    fn progress_gives_new_attempts_and_its_lack_does_not() {
        let mut attempts = Attempts::default();
        for _ in 1..ATTEMPTS {
            assert!(attempts.after_failure(None, 0.5).is_some());
        }
        attempts.reached(PROGRESS - 1);
        attempts.reached(PROGRESS);
        assert!(attempts.after_failure(None, 0.5).is_some());
        // The same bytes again are no progress.
        for _ in 2..ATTEMPTS {
            attempts.reached(PROGRESS);
            assert!(attempts.after_failure(None, 0.5).is_some());
        }
        attempts.reached(PROGRESS);
        assert!(attempts.after_failure(None, 0.5).is_none());
    }
}

//! The lock that write transactions take turns by, which knows how long they waited for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How calls that change the store have waited for one another since it was opened. What the disk
/// takes afterwards, to have a change durable, does not count: they wait for that together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreWaits {
    /// How many calls found the store taken and had to wait.
    pub waits: u64,
    /// For how long, all of them together.
    pub total: Duration,
}

pub(super) struct WriteLock<T> {
    mutex: Mutex<T>,
    waits: AtomicU64,
    /// In nanoseconds, which u64 holds for 584 years.
    waited: AtomicU64,
}

impl<T> WriteLock<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            mutex: Mutex::new(value),
            waits: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        match self.mutex.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let start = Instant::now();
                let guard = self.mutex.lock().unwrap_or_else(PoisonError::into_inner);
                let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.waits.fetch_add(1, Ordering::Relaxed);
                self.waited.fetch_add(nanos, Ordering::Relaxed);
                guard
            }
        }
    }

    pub(super) fn waits(&self) -> StoreWaits {
        StoreWaits {
            waits: self.waits.load(Ordering::Relaxed),
            total: Duration::from_nanos(self.waited.load(Ordering::Relaxed)),
        }
    }
}

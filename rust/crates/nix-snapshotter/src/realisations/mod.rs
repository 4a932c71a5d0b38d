//! Realisations for calls that come and go: who shares one, who has to wait, what is left.
//!
//! A realisation is shared by all calls that ask for the same closure meanwhile. Only a
//! limited number of them run at once, in the order in which they were asked for; but
//! one that finds everything in the store only makes GC roots, and waits for nobody.
//!
//! ```text
//!  call ──┐  Arc                    Weak
//!  call ──┼──────▶ SharedRealisation ◀── the table, by closure
//!  call ──┘          │         ▲
//!             cancels│         │ outcome
//!                    ▼         │
//!                   the task: turn → Nix, into the directories of an id of its own
//! ```
//! The task belongs to no call. It is cancelled when the last one has gone away, at whatever
//! point that is; the id goes when Nix and its children have ended, and with it everything
//! that was made. When it succeeds, the first call that wakes takes the id with its roots for its own
//! snapshot. The others have theirs made on what is present then. Where all calls only asked for a
//! snapshot to come, the id waits for it as long as one of them does.

mod stats;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::HashMap,
    future,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use nix_store::{Closure, LayerClosure, Realiser, StorePath};
use snapshots::{Reservation, Snapshotter};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::{Instrument, debug, info, warn};

pub(crate) use self::stats::RealisationStats;
use self::stats::{Counted, Counters};
use crate::error::Error;

/// How long cancelled realisations are waited for when the daemon ends: longer than Nix may take,
/// which gets 3 s after SIGTERM and as much after SIGKILL (`TERMINATION` in `nix_store`).
const LAST_TASKS: Duration = Duration::from_secs(10);

/// The id of a snapshot to be, and the closure that its GC roots hold.
pub(crate) struct RealisedLayer {
    pub(crate) reservation: Reservation,
    pub(crate) closure: Closure,
}

/// All realisations of the daemon.
pub(crate) struct Realisations {
    snapshots: Arc<Snapshotter>,
    realiser: Realiser,
    /// A permit for each realisation that may fetch at once.
    turns: Semaphore,
    /// Those that calls share.
    shared: Mutex<HashMap<LayerClosure, Weak<SharedRealisation>>>,
    counters: Counters,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// A realisation that has something to fetch or to build.
#[derive(Clone, Debug)]
pub(crate) struct UnderWay {
    pub(crate) layer: LayerClosure,
    /// How long ago it was asked for.
    pub(crate) age: Duration,
}

/// What was realised for a snapshot to come: the next call that asks for the same closure takes it.
/// It is held until then, while this lives.
pub(crate) struct RealisedAhead {
    _realisation: Arc<SharedRealisation>,
}

/// A realisation as its calls hold it.
struct SharedRealisation {
    realisations: Arc<Realisations>,
    layer: Arc<LayerClosure>,
    own: Weak<Self>,
    begun: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
    /// The last call that goes away cancels the task.
    _cancel: DropGuard,
}

/// What the task of a realisation ends with. The layer is for one call.
type Outcome = Result<Mutex<Option<RealisedLayer>>, Arc<nix_store::Error>>;

impl Realisations {
    /// At most `max_fetching` realisations that have something to fetch will run at once.
    pub(crate) fn new(
        snapshots: Arc<Snapshotter>,
        realiser: Realiser,
        max_fetching: u16,
    ) -> Arc<Self> {
        Arc::new(Self {
            snapshots,
            realiser,
            turns: Semaphore::new(max_fetching.into()),
            shared: Mutex::default(),
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        })
    }

    pub(crate) fn stats(&self) -> RealisationStats {
        self.counters.snapshot()
    }

    /// What calls wait for, the oldest first.
    pub(crate) fn under_way(&self) -> Vec<UnderWay> {
        let shared: Vec<_> = self
            .shared()
            .iter()
            .filter_map(|(layer, found)| Some((layer.clone(), found.upgrade()?)))
            .collect();
        let mut found: Vec<_> = shared
            .into_iter()
            .filter(|(_, realisation)| !realisation.has_ended())
            .map(|(layer, realisation)| UnderWay {
                layer,
                age: realisation.begun.elapsed(),
            })
            .collect();
        found.sort_by_key(|realisation| Reverse(realisation.age));
        found
    }

    /// Whether a closure is being realised. What of it is in the store may not be whole then: Nix
    /// writes a store object where it is going to be.
    pub(crate) fn is_under_way(&self, layer: &LayerClosure) -> bool {
        let found = self.shared().get(layer).and_then(Weak::upgrade);
        found.is_some_and(|found| !found.has_ended())
    }

    /// Has the store paths of a layer provided and held. Nothing is left of it if this is dropped.
    pub(crate) async fn realise(
        self: &Arc<Self>,
        layer: &Arc<LayerClosure>,
    ) -> Result<RealisedLayer, Error> {
        let shared = self.share(layer);
        shared.ended().await?;
        let taken = shared.take();
        self.unshare(layer, &shared.own);
        if let Some(realised) = taken {
            return Ok(realised);
        }
        // Another call has it. Its roots may go at any time: nothing is taken for granted.
        let own = Arc::new_cyclic(|own| self.begin(layer, own));
        own.ended().await?;
        own.take().ok_or(Error::NoOutcome)
    }

    /// Has the store paths of a layer provided and held for the next call that asks for them.
    pub(crate) async fn realise_ahead(
        self: &Arc<Self>,
        layer: &Arc<LayerClosure>,
    ) -> Result<RealisedAhead, Error> {
        let shared = self.share(layer);
        shared.ended().await?;
        Ok(RealisedAhead {
            _realisation: shared,
        })
    }

    /// The realisation of this closure that is under way or has not been taken, or a new one.
    fn share(self: &Arc<Self>, layer: &Arc<LayerClosure>) -> Arc<SharedRealisation> {
        let mut shared = self.shared();
        if let Some(found) = shared.get(&**layer).and_then(Weak::upgrade) {
            if !found.has_ended() {
                info!("waiting for the realisation of this closure that is under way");
            }
            return found;
        }
        let new = Arc::new_cyclic(|own| self.begin(layer, own));
        shared.insert((**layer).clone(), Arc::downgrade(&new));
        new
    }

    /// From now on, whoever asks for this closure begins anew.
    fn unshare(&self, layer: &LayerClosure, own: &Weak<SharedRealisation>) {
        let mut shared = self.shared();
        // Where all calls had gone away, another may have begun anew already.
        if shared.get(layer).is_some_and(|found| found.ptr_eq(own)) {
            shared.remove(layer);
        }
    }

    fn shared(&self) -> MutexGuard<'_, HashMap<LayerClosure, Weak<SharedRealisation>>> {
        // A panic cannot leave the table half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(
        self: &Arc<Self>,
        layer: &Arc<LayerClosure>,
        own: &Weak<SharedRealisation>,
    ) -> SharedRealisation {
        let cancel = self.shutdown.child_token();
        let (sender, outcome) = watch::channel(None);
        let shared = SharedRealisation {
            realisations: Arc::clone(self),
            layer: Arc::clone(layer),
            own: own.clone(),
            begun: Instant::now(),
            outcome,
            _cancel: cancel.clone().drop_guard(),
        };
        let (this, layer, own) = (Arc::clone(self), Arc::clone(layer), own.clone());
        let task = async move {
            let (outcome, fetched) = match this.run(&layer, &cancel).await {
                Ok((realised, fetched)) => (Ok(Mutex::new(Some(realised))), fetched),
                Err(error) => {
                    this.unshare(&layer, &own);
                    (Err(Arc::new(error)), Vec::new())
                }
            };
            // Where all calls have gone away, it ends here.
            let _ = sender.send(Some(outcome));
            drop(sender);
            this.measure(&fetched).await;
        };
        // Its messages are those of the call that asked first.
        self.tasks.spawn(task.in_current_span());
        shared
    }

    /// Realises a layer into directories of its own, of which nothing is left if that fails.
    async fn run(
        &self,
        layer: &Arc<LayerClosure>,
        cancel: &CancellationToken,
    ) -> Result<(RealisedLayer, Vec<StorePath>), nix_store::Error> {
        let result = self.run_in_turn(layer, cancel).await;
        let ended = match &result {
            Ok(_) => &self.counters.succeeded,
            Err(nix_store::Error::Cancelled) => &self.counters.cancelled,
            Err(_) => &self.counters.failed,
        };
        ended.fetch_add(1, Relaxed);
        result
    }

    async fn run_in_turn(
        &self,
        layer: &Arc<LayerClosure>,
        cancel: &CancellationToken,
    ) -> Result<(RealisedLayer, Vec<StorePath>), nix_store::Error> {
        let _turn = self.turn(layer, cancel).await?;
        let reservation = self.snapshots.reserve();
        let roots = self.realiser.roots(reservation.attachment_dir());
        let running = Counted::in_(&self.counters.running);
        let start = Instant::now();
        let result = self.realiser.realise(layer, &roots, cancel).await;
        drop(running);
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.counters.nanoseconds.fetch_add(nanoseconds, Relaxed);
        match result {
            Ok(realised) => {
                let fetched = realised.fetched;
                self.counters.paths.fetch_add(fetched.len() as u64, Relaxed);
                let closure = realised.closure;
                Ok((
                    RealisedLayer {
                        reservation,
                        closure,
                    },
                    fetched,
                ))
            }
            Err(error) => {
                // It deletes, which blocks. Whoever hears of the failure finds nothing left.
                let _ = tokio::task::spawn_blocking(|| drop(reservation)).await;
                Err(error)
            }
        }
    }

    /// Waits until this may run; `None` where that needs no turn.
    async fn turn(
        &self,
        layer: &Arc<LayerClosure>,
        cancel: &CancellationToken,
    ) -> Result<Option<SemaphorePermit<'_>>, nix_store::Error> {
        // Looking at a thousand paths takes some milliseconds. They are saved where turns are free.
        if let Ok(permit) = self.turns.try_acquire() {
            return Ok(Some(permit));
        }
        let (realiser, looked_at) = (self.realiser.clone(), Arc::clone(layer));
        let present = tokio::task::spawn_blocking(move || realiser.is_present(&looked_at)).await;
        if present.unwrap_or(false) {
            return Ok(None);
        }
        let waiting = async {
            let _waiting = Counted::in_(&self.counters.waiting);
            info!("waiting for a turn: `max_realisations` of them are under way");
            future::pending().await
        };
        tokio::select! {
            // No turn is for who is cancelled, and who counts as waiting is in the queue.
            biased;
            () = cancel.cancelled() => Err(nix_store::Error::Cancelled),
            // It is never closed.
            Ok(permit) = self.turns.acquire() => Ok(Some(permit)),
            never = waiting => never,
        }
    }

    /// Counts the size of what was fetched. No call waits for this.
    async fn measure(&self, fetched: &[StorePath]) {
        match self.realiser.nar_size(fetched, &self.shutdown).await {
            Ok(bytes) => {
                self.counters.bytes.fetch_add(bytes, Relaxed);
            }
            Err(error) => debug!(%error, "what was fetched is not counted"),
        }
    }

    /// Cancels all realisations, and waits until they have ended and nothing is left of them.
    pub(crate) async fn shut_down(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        if time::timeout(LAST_TASKS, self.tasks.wait()).await.is_err() {
            warn!("a realisation has not ended after it was cancelled");
        }
    }
}

impl Drop for SharedRealisation {
    /// What nobody has taken is for nobody any more. The table is not locked where one is dropped.
    fn drop(&mut self) {
        self.realisations.unshare(&self.layer, &self.own);
    }
}

impl SharedRealisation {
    fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Waits for the outcome.
    async fn ended(&self) -> Result<(), Error> {
        let mut receiver = self.outcome.clone();
        let outcome = receiver.wait_for(Option::is_some).await;
        match outcome.ok().as_deref() {
            Some(Some(Ok(_))) => Ok(()),
            Some(Some(Err(error))) => Err(Arc::clone(error).into()),
            Some(None) | None => Err(Error::NoOutcome),
        }
    }

    /// The layer, once it is there; `None` when another call has taken it.
    fn take(&self) -> Option<RealisedLayer> {
        let outcome = self.outcome.borrow();
        let layer = outcome.as_ref()?.as_ref().ok()?;
        layer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

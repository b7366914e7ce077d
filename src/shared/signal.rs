//! A gate together with what wakes its sleeper.

use std::sync::atomic::{AtomicU64, Ordering};

use super::gate::Gate;

/// Wakes one side, from any thread, without waiting.
pub(crate) trait Wake {
    fn signal(&self);
}

/// One thing that one side may wait for.
#[derive(Debug)]
pub(crate) struct Signal<W> {
    gate: Gate,
    wake: W,
    signals: AtomicU64,
}

impl<W: Wake> Signal<W> {
    pub(crate) fn new(wake: W) -> Self {
        Self {
            gate: Gate::new(),
            wake,
            signals: AtomicU64::new(0),
        }
    }

    /// What the waiting side sleeps on.
    pub(crate) fn wake(&self) -> &W {
        &self.wake
    }

    /// Whether a sleep has been announced since the last signal.
    #[allow(dead_code, reason = "for a platform whose wake is drained")]
    pub(crate) fn is_armed(&self) -> bool {
        self.gate.is_armed()
    }

    /// Announces a sleep; the caller looks once more after it.
    pub(crate) fn arm(&self) {
        self.gate.arm();
    }

    /// Looks, arms, and looks again: after a `None` the caller may sleep.
    pub(crate) fn look<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        look().or_else(|| {
            self.arm();
            look()
        })
    }

    /// To be called after a change that the other side may be waiting for.
    pub(crate) fn notify(&self) {
        self.notify_if(|| true);
    }

    /// The same, if the change is worth a signal; see [`Gate::open`].
    pub(crate) fn notify_if(&self, is_worth_it: impl FnOnce() -> bool) {
        if self.gate.open(is_worth_it) {
            self.signal();
        }
    }

    /// [`notify`](Self::notify) after a change that a sequentially consistent fence has followed.
    pub(crate) fn notify_after_fence(&self) {
        if self.gate.open_after_fence(|| true) {
            self.signal();
        }
    }

    /// To be called after one of those above, whose fence does for this too: the same for sleepers
    /// that wait for something else, at another gate.
    pub(crate) fn notify_also(&self, gate: &Gate, is_worth_it: impl FnOnce() -> bool) {
        if gate.open_after_fence(is_worth_it) {
            self.signal();
        }
    }

    fn signal(&self) {
        self.signals.fetch_add(1, Ordering::Relaxed);
        self.wake.signal();
    }

    /// How often the sleeper was woken.
    pub(crate) fn signals(&self) -> u64 {
        self.signals.load(Ordering::Relaxed)
    }
}

//! A gate together with what wakes its sleeper.

use super::gate::Gate;
use crate::sync::Count;

/// Wakes one side, from any thread, without waiting.
pub(crate) trait Wake {
    fn signal(&self);
}

/// One thing that one side may wait for.
#[derive(Debug)]
pub(crate) struct Signal<W> {
    gate: Gate,
    wake: W,
    signals: Count,
}

impl<W: Wake> Signal<W> {
    pub(crate) fn new(wake: W) -> Self {
        Self {
            gate: Gate::new(),
            wake,
            signals: Count::default(),
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
        self.arm_also(&self.gate);
    }

    /// The same at another gate: see [`notify_also`](Self::notify_also).
    pub(crate) fn arm_also(&self, gate: &Gate) {
        gate.arm();
    }

    /// Takes the signals so far from a wake that keeps them.
    #[allow(dead_code, reason = "for a platform whose wake is drained")]
    pub(crate) fn drain(&self, drain: impl FnOnce(&W)) {
        // loom does not see a descriptor, nor switch threads there: it does here.
        #[cfg(tokio_krun_loom)]
        self.signals.see();
        drain(&self.wake);
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
        self.signals.add_one(|| self.wake.signal());
    }

    /// How often the sleeper was woken.
    pub(crate) fn signals(&self) -> u64 {
        self.signals.get()
    }

    /// Sleeps for as long as the sleeper was woken no more often than `before`.
    #[cfg(all(test, tokio_krun_loom))]
    pub(crate) fn wait_beyond(&self, before: u64) {
        self.signals.wait_while(before);
    }
}

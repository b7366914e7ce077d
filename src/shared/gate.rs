//! The arming protocol: how a side that finds nothing to do goes to sleep without missing the
//! moment there is something, and how the other side pays for a wake only then.
//!
//! ```text
//! the waiting side                    the other side
//! 1  look: nothing                    a  make the change (push, pop, close)
//! 2  arm, fence                       b  fence
//! 3  look again: still nothing        c  armed? then disarm and signal
//! 4  sleep until the signal
//! ```
//!
//! The two fences are sequentially consistent, so one comes before the other in their single
//! order: if 2's is first, c sees the arm and signals; if b's is first, 3 sees the change. Without
//! either, both sides could miss each other (the store-buffer pattern) and the sleeper never wake.
//!
//! There is no disarming when 3 finds something: several tasks may wait on one gate, and one of
//! them would take back another's arm. The price is one signal that nobody needed.
//!
//! A sleeper whose signal another sleeper could take away (tokio's readiness, which any task may
//! clear) must be registered for it before step 2, not between 3 and 4.
//!
//! What is looked at, and what a signal is, are the caller's: this file knows atomics only, and the
//! models at its foot check it with loom.

use crate::sync::{AtomicBool, Ordering, fence};

/// The flag of one side that may sleep.
#[derive(Debug)]
pub(crate) struct Gate {
    armed: AtomicBool,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            armed: AtomicBool::new(false),
        }
    }

    /// Says that the caller sleeps unless its next look finds something (step 2).
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        // Pairs with the fence in `open`.
        fence(Ordering::SeqCst);
    }

    /// Whether [`open`](Self::open) has asked for no signal since the last [`arm`](Self::arm).
    pub(crate) fn is_armed(&self) -> bool {
        // Relaxed: the answer may be out of date as soon as it is given.
        self.armed.load(Ordering::Relaxed)
    }

    /// To be called after a change the sleeper may wait for (steps b and c). `true` asks the
    /// caller to signal.
    ///
    /// `is_worth_it` may hold a signal back. It is asked after the fence, so it sees what other
    /// threads had changed before theirs: of two changes that are worth a signal only together, the
    /// later one sees both.
    #[must_use]
    pub(crate) fn open(&self, is_worth_it: impl FnOnce() -> bool) -> bool {
        // Pairs with the fence in `arm`.
        fence(Ordering::SeqCst);
        self.open_after_fence(is_worth_it)
    }

    /// The same for a change that a sequentially consistent fence has followed.
    #[must_use]
    pub(crate) fn open_after_fence(&self, is_worth_it: impl FnOnce() -> bool) -> bool {
        // The load keeps the cache line shared while nobody sleeps; the swap lets one of several
        // callers signal. What the sleeper then reads is ordered by the ring's own atomics.
        self.armed.load(Ordering::Relaxed)
            && is_worth_it()
            && self.armed.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, tokio_krun_loom))]
pub(crate) mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;

    use super::*;
    use crate::models::{bounded, spawn};
    use crate::sync::Count;

    /// A gate and the signal that its sleepers wait for. Signals are numbered, and a sleeper is
    /// registered for the next one by knowing the last: so it is with tokio's readiness, where
    /// another task may clear a signal but cannot take it from who is registered.
    ///
    /// If a signal never comes, loom reports a deadlock.
    pub(crate) struct Sleep {
        gate: Gate,
        signals: Count,
    }

    impl Sleep {
        pub(crate) fn new() -> Self {
            Self {
                gate: Gate::new(),
                signals: Count::default(),
            }
        }

        pub(crate) fn notify_if(&self, is_worth_it: impl FnOnce() -> bool) {
            if self.gate.open(is_worth_it) {
                self.signal();
            }
        }

        pub(crate) fn notify_after_fence(&self) {
            if self.gate.open_after_fence(|| true) {
                self.signal();
            }
        }

        fn signal(&self) {
            self.signals.add_one(|| {});
        }

        pub(crate) fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
            loop {
                if let Some(found) = look() {
                    return found;
                }
                let last = self.signals.get();
                self.gate.arm();
                if let Some(found) = look() {
                    return found;
                }
                self.signals.wait_while(last);
            }
        }
    }

    fn put((sleep, items): &(Sleep, AtomicUsize)) {
        items.fetch_add(1, Ordering::Relaxed);
        sleep.notify_if(|| true);
    }

    fn take(items: &AtomicUsize) -> Option<()> {
        items
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |items| {
                items.checked_sub(1)
            })
            .ok()
            .map(drop)
    }

    /// In every order, however often the threads are put off.
    #[test]
    fn a_sleeper_is_woken_for_one_item() {
        loom::model(|| {
            let shared = Arc::new((Sleep::new(), AtomicUsize::new(0)));
            let producer = spawn(&shared, put);
            shared.0.until(|| take(&shared.1));
            producer.join().unwrap();
        });
    }

    #[test]
    fn a_sleeper_is_woken_for_each_of_two_items() {
        bounded(4).check(|| {
            let shared = Arc::new((Sleep::new(), AtomicUsize::new(0)));
            let producer = spawn(&shared, |shared| {
                for _ in 0..2 {
                    put(shared);
                }
            });
            for _ in 0..2 {
                shared.0.until(|| take(&shared.1));
            }
            producer.join().unwrap();
        });
    }

    #[test]
    fn a_sleeper_is_woken_by_either_of_two_producers() {
        bounded(3).check(|| {
            let shared = Arc::new((Sleep::new(), AtomicUsize::new(0)));
            let producers = [(); 2].map(|()| spawn(&shared, put));
            for _ in 0..2 {
                shared.0.until(|| take(&shared.1));
            }
            for producer in producers {
                producer.join().unwrap();
            }
        });
    }

    #[test]
    fn each_of_two_sleepers_is_woken() {
        bounded(3).check(|| {
            let shared = Arc::new((Sleep::new(), AtomicUsize::new(0)));
            let sleepers =
                [(); 2].map(|()| spawn(&shared, |shared| shared.0.until(|| take(&shared.1))));
            for _ in 0..2 {
                put(&shared);
            }
            for sleeper in sleepers {
                sleeper.join().unwrap();
            }
        });
    }

    /// Two changes by two threads that are worth a signal only together.
    #[test]
    fn a_signal_that_takes_two_changes_is_sent() {
        bounded(3).check(|| {
            let shared = Arc::new((Sleep::new(), AtomicUsize::new(0), AtomicUsize::new(0)));
            let both = |shared: &(Sleep, AtomicUsize, AtomicUsize)| {
                shared.1.load(Ordering::Relaxed) == 1 && shared.2.load(Ordering::Relaxed) == 1
            };
            let first = spawn(&shared, move |shared| {
                shared.1.store(1, Ordering::Relaxed);
                shared.0.notify_if(|| both(shared));
            });
            let second = spawn(&shared, move |shared| {
                shared.2.store(1, Ordering::Relaxed);
                shared.0.notify_if(|| both(shared));
            });
            shared.0.until(|| both(&shared).then_some(()));
            first.join().unwrap();
            second.join().unwrap();
        });
    }
}

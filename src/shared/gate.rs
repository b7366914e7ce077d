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

    /// To be called after a change the sleeper may wait for (steps b and c). `true` asks the
    /// caller to signal.
    #[must_use]
    pub(crate) fn open(&self) -> bool {
        // Pairs with the fence in `arm`.
        fence(Ordering::SeqCst);
        // The load keeps the cache line shared while nobody sleeps; the swap lets one of several
        // callers signal. What the sleeper then reads is ordered by the ring's own atomics.
        self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, tokio_krun_loom))]
mod models {
    use loom::sync::Arc;
    use loom::sync::Condvar;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    use super::*;
    use crate::sync::{Mutex, lock};

    /// A gate, the signal that the sleeper blocks on, and the thing it waits for.
    struct Channel {
        gate: Gate,
        signalled: Mutex<bool>,
        changed: Condvar,
        items: AtomicUsize,
    }

    impl Channel {
        fn new() -> Self {
            Self {
                gate: Gate::new(),
                signalled: Mutex::new(false),
                changed: Condvar::new(),
                items: AtomicUsize::new(0),
            }
        }

        fn produce(&self) {
            self.items.fetch_add(1, Ordering::Relaxed);
            if self.gate.open() {
                *lock(&self.signalled) = true;
                self.changed.notify_all();
            }
        }

        fn take(&self) -> bool {
            self.items
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |items| {
                    items.checked_sub(1)
                })
                .is_ok()
        }

        /// Loom reports a deadlock if the signal never comes.
        fn consume(&self) {
            loop {
                if self.take() {
                    return;
                }
                self.gate.arm();
                if self.take() {
                    return;
                }
                let mut signalled = lock(&self.signalled);
                while !*signalled {
                    signalled = self.changed.wait(signalled).unwrap();
                }
                *signalled = false;
            }
        }
    }

    #[test]
    fn a_sleeper_is_woken_for_each_of_two_items() {
        loom::model(|| {
            let channel = Arc::new(Channel::new());
            let producer = thread::spawn({
                let channel = Arc::clone(&channel);
                move || {
                    channel.produce();
                    channel.produce();
                }
            });
            channel.consume();
            channel.consume();
            producer.join().unwrap();
        });
    }

    #[test]
    fn a_sleeper_is_woken_by_either_of_two_producers() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let channel = Arc::new(Channel::new());
            let producers = [(); 2].map(|()| {
                let channel = Arc::clone(&channel);
                thread::spawn(move || channel.produce())
            });
            channel.consume();
            channel.consume();
            for producer in producers {
                producer.join().unwrap();
            }
        });
    }
}

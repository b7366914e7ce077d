//! How a side that has nothing to do goes to sleep, and how the other side wakes it: the arming protocol.
//!
//! ```text
//! the waiting side                    the other side
//! 1  look: nothing                    a  make the change (push, pop, close)
//! 2  arm, fence                       b  fence
//! 3  look again: still nothing        c  armed? then disarm and wake
//! 4  sleep until the wake
//! ```
//!
//! So the other side pays for a wake only if somebody sleeps.
//!
//! Both fences are sequentially consistent, so one comes first in their single order. If the waiting side's is first,
//! c sees the arm and wakes. If the other side's is first, 3 sees the change. Without either fence, both sides could
//! miss each other (the store-buffer pattern) and the sleeper would never wake.
//!
//! Finding something in step 3 does not disarm: several tasks may wait for one signal, and one of them would take
//! back another's arm. The price is one wake that nobody needed.
//!
//! Another sleeper may take a wake away, as any task may clear tokio's readiness. So a sleeper registers for the wake
//! before step 2, not between 3 and 4.
//!
//! What is looked at, and what a wake is, are the caller's. The models at the end of this file check the protocol
//! with loom.

#[cfg(any(test, feature = "test-util"))]
use std::fmt;
use std::sync::Arc;
#[cfg(any(test, feature = "test-util"))]
use std::sync::OnceLock;

use crate::sync::{AtomicBool, Count, Ordering, fence};

/// Wakes one side, from any thread, without waiting.
pub(crate) trait Wake {
    fn signal(&self);
}

impl<W: Wake> Wake for Arc<W> {
    fn signal(&self) {
        (**self).signal();
    }
}

/// One thing that one side may wait for.
#[derive(Debug)]
pub(crate) struct Signal<W> {
    armed: AtomicBool,
    wake: W,
    signals: Count,
    #[cfg(any(test, feature = "test-util"))]
    in_place: InPlace,
}

/// What an in-process guest without threads does at each wake, in place of krun's thread.
#[cfg(any(test, feature = "test-util"))]
#[derive(Default)]
struct InPlace(OnceLock<Box<dyn Fn() + Send + Sync>>);

#[cfg(any(test, feature = "test-util"))]
impl fmt::Debug for InPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InPlace").finish_non_exhaustive()
    }
}

impl<W: Wake> Signal<W> {
    pub(crate) fn new(wake: W) -> Self {
        Self {
            armed: AtomicBool::new(false),
            wake,
            signals: Count::default(),
            #[cfg(any(test, feature = "test-util"))]
            in_place: InPlace::default(),
        }
    }

    /// From now on, `act` also runs at each wake, on the thread that wakes. Only the first call counts.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn act_in_place(&self, act: impl Fn() + Send + Sync + 'static) {
        let _ = self.in_place.0.set(Box::new(act));
    }

    fn send(&self) {
        self.wake.signal();
        #[cfg(any(test, feature = "test-util"))]
        if let Some(act) = self.in_place.0.get() {
            act();
        }
    }

    /// What the waiting side sleeps on.
    pub(crate) fn wake(&self) -> &W {
        &self.wake
    }

    /// How often the other side woke this one.
    pub(crate) fn signals(&self) -> u64 {
        self.signals.get()
    }
}

/// The waiting side.
impl<W: Wake> Signal<W> {
    /// Announces that the caller sleeps unless its next look finds something (step 2).
    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        // Pairs with the fence in `notify_if`.
        fence(Ordering::SeqCst);
    }

    /// Looks, arms, and looks again (steps 1 to 3): after `None` the caller may sleep.
    pub(crate) fn look_or_arm<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        look().or_else(|| {
            self.arm();
            look()
        })
    }

    /// Whether no wake was sent since the last [`arm`](Self::arm).
    #[cfg(unix)]
    pub(crate) fn is_armed(&self) -> bool {
        // Relaxed: the answer may be out of date as soon as it is given.
        self.armed.load(Ordering::Relaxed)
    }

    /// Ends the caller's own next wait at once.
    #[cfg(unix)]
    pub(crate) fn wake_self(&self) {
        self.send();
    }

    /// Takes the wakes so far, if `W` keeps them until they are taken.
    #[cfg(unix)]
    pub(crate) fn drain(&self, drain: impl FnOnce(&W)) {
        // loom does not see a descriptor, nor does it switch threads there. Here it does.
        #[cfg(all(test, tokio_krun_loom))]
        self.signals.see();
        drain(&self.wake);
    }
}

/// The other side, after each change that the waiting side may wait for (steps b and c).
impl<W: Wake> Signal<W> {
    pub(crate) fn notify(&self) {
        self.notify_if(|| true);
    }

    /// Wakes only if the change is worth it. `is_worth_it` runs after the fence, so it sees what other threads had
    /// changed before theirs: of two changes that are worth a wake only together, the later one sees both.
    pub(crate) fn notify_if(&self, is_worth_it: impl FnOnce() -> bool) {
        // Pairs with the fence in `arm`.
        fence(Ordering::SeqCst);
        self.notify_if_after_fence(is_worth_it);
    }

    /// For a change that a sequentially consistent fence has followed.
    pub(crate) fn notify_after_fence(&self) {
        self.notify_if_after_fence(|| true);
    }

    /// Both of the above.
    pub(crate) fn notify_if_after_fence(&self, is_worth_it: impl FnOnce() -> bool) {
        // The load keeps the cache line shared while nobody sleeps; the swap lets only one of several callers wake.
        // What the sleeper then reads is ordered by the ring's own atomics.
        let wakes = self.armed.load(Ordering::Relaxed)
            && is_worth_it()
            && self.armed.swap(false, Ordering::Relaxed);
        if wakes {
            self.signals.add_one(|| self.send());
        }
    }
}

#[cfg(all(test, tokio_krun_loom))]
pub(crate) mod models {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;

    use super::*;
    use crate::models::{bounded, spawn};

    /// A wake that nobody can sleep on: a model waits for the next one to be counted. Wakes are numbered, and a
    /// sleeper is registered for the next one by knowing the last. So it is with tokio's readiness: another task may
    /// clear a wake but cannot take it from a task that is registered.
    ///
    /// If a wake never comes, loom reports a deadlock.
    pub(crate) struct Counted;

    impl Wake for Counted {
        fn signal(&self) {}
    }

    impl<W: Wake> Signal<W> {
        /// Sleeps while the waiting side was woken no more often than `before`.
        pub(crate) fn wait_beyond(&self, before: u64) {
            self.signals.wait_while(before);
        }

        /// Steps 1 to 4, until a look finds something.
        pub(crate) fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
            loop {
                if let Some(found) = look() {
                    return found;
                }
                let before = self.signals();
                self.arm();
                if let Some(found) = look() {
                    return found;
                }
                self.wait_beyond(before);
            }
        }
    }

    fn put((signal, items): &(Signal<Counted>, AtomicUsize)) {
        items.fetch_add(1, Ordering::Relaxed);
        signal.notify();
    }

    fn take(items: &AtomicUsize) -> Option<()> {
        items
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |items| {
                items.checked_sub(1)
            })
            .ok()
            .map(drop)
    }

    /// Checked in every order.
    #[test]
    fn sleeper_is_woken_for_one_item() {
        loom::model(|| {
            let shared = Arc::new((Signal::new(Counted), AtomicUsize::new(0)));
            let producer = spawn(&shared, put);
            shared.0.until(|| take(&shared.1));
            producer.join().unwrap();
        });
    }

    #[test]
    fn sleeper_is_woken_for_each_of_two_items() {
        bounded(4).check(|| {
            let shared = Arc::new((Signal::new(Counted), AtomicUsize::new(0)));
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
    fn sleeper_is_woken_by_either_of_two_producers() {
        bounded(3).check(|| {
            let shared = Arc::new((Signal::new(Counted), AtomicUsize::new(0)));
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
            let shared = Arc::new((Signal::new(Counted), AtomicUsize::new(0)));
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

    #[test]
    fn wake_worth_sending_only_after_two_changes_is_sent() {
        bounded(3).check(|| {
            let shared = Arc::new((
                Signal::new(Counted),
                AtomicUsize::new(0),
                AtomicUsize::new(0),
            ));
            let both = |shared: &(Signal<Counted>, AtomicUsize, AtomicUsize)| {
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

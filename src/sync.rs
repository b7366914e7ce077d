//! The primitives of the shared state: std's and crossbeam's, or loom's when a model is checked. What loom must see goes
//! through this file.

#[cfg(not(all(test, tokio_krun_loom)))]
use std::ops::Range;

#[cfg(not(all(test, tokio_krun_loom)))]
pub(crate) use {
    crossbeam_queue::ArrayQueue,
    std::sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
};

#[cfg(all(test, tokio_krun_loom))]
pub(crate) use {
    loom::sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    model::{Accesses, ArrayQueue, Count, Mutex, MutexGuard},
};

#[cfg(all(test, tokio_krun_loom))]
pub(crate) use model::Kept;

/// What a thread of the platform's part sleeps on.
#[cfg(unix)]
pub(crate) mod blocking {
    #[cfg(all(test, tokio_krun_loom))]
    pub(crate) use loom::sync::{Condvar, Mutex};
    #[cfg(not(all(test, tokio_krun_loom)))]
    pub(crate) use std::sync::{Condvar, Mutex};
}

/// Tells loom which bytes of shared memory are read and written. It fails a model in which one thread writes a byte that
/// another uses at the same time.
#[cfg(not(all(test, tokio_krun_loom)))]
pub(crate) struct Accesses;

#[cfg(not(all(test, tokio_krun_loom)))]
impl Accesses {
    pub(crate) fn new(_bytes: usize) -> Self {
        Self
    }

    pub(crate) fn read(&self, _bytes: Range<usize>) {}

    pub(crate) fn write(&self, _bytes: Range<usize>) {}
}

/// Counts how often something has happened.
#[cfg(not(all(test, tokio_krun_loom)))]
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

#[cfg(not(all(test, tokio_krun_loom)))]
impl Count {
    pub(crate) fn add_one(&self, happens: impl FnOnce()) {
        happens();
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Locks, even if another thread panicked while it held the lock. What these mutexes guard is consistent between any two
/// statements, and krun's threads must not panic.
#[cfg(not(all(test, tokio_krun_loom)))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, tokio_krun_loom))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        match mutex.try_lock() {
            Some(guard) => return guard,
            None => loom::thread::yield_now(),
        }
    }
}

/// Locks if no other thread holds the lock.
#[cfg(not(all(test, tokio_krun_loom)))]
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(std::sync::TryLockError::WouldBlock) => None,
    }
}

#[cfg(all(test, tokio_krun_loom))]
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    mutex.try_lock()
}

#[cfg(all(test, tokio_krun_loom))]
mod model {
    use std::collections::VecDeque;
    use std::ops::{Deref, DerefMut, Range};
    use std::{fmt, sync};

    use loom::cell::UnsafeCell;

    use super::{AtomicBool, AtomicU64, Ordering};

    /// In a model, something to wait for. To loom, a sleep that nothing ends is a deadlock.
    ///
    /// A thread that sees a signal, or is woken by one, also sees what was done before it, as with every wake of a real
    /// system. Nothing else is ordered, and a count may be out of date.
    #[derive(Default)]
    pub(crate) struct Count {
        count: AtomicU64,
        sleeping: loom::sync::Mutex<()>,
        changed: loom::sync::Condvar,
    }

    impl Count {
        pub(crate) fn add_one(&self, happens: impl FnOnce()) {
            // loom switches threads only before its own steps. It does not see a signal to a descriptor, so the signal and
            // its counting are one step.
            self.count.fetch_add(1, Ordering::Release);
            happens();
            drop(self.sleeping.lock().unwrap());
            self.changed.notify_all();
        }

        pub(crate) fn get(&self) -> u64 {
            self.count.load(Ordering::Acquire)
        }

        /// Sees all signals so far, like the system call that takes them.
        pub(crate) fn see(&self) {
            self.count.fetch_add(0, Ordering::Acquire);
        }

        /// Sleeps while the count is `count`.
        #[cfg(test)]
        pub(crate) fn wait_while(&self, count: u64) {
            let mut sleeping = self.sleeping.lock().unwrap();
            while self.count.load(Ordering::Acquire) == count {
                sleeping = self.changed.wait(sleeping).unwrap();
            }
        }
    }

    impl fmt::Debug for Count {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Count").finish_non_exhaustive()
        }
    }

    /// A value that a failing model does not drop. Its drop would take steps when loom has none left, and the process
    /// would end without naming the model that failed.
    #[cfg(test)]
    pub(crate) struct Kept<T>(Option<T>);

    #[cfg(test)]
    impl<T> Kept<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(Some(value))
        }
    }

    #[cfg(test)]
    impl<T> Deref for Kept<T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    #[cfg(test)]
    impl<T> Drop for Kept<T> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                std::mem::forget(self.0.take());
            }
        }
    }

    pub(crate) struct Accesses(Vec<UnsafeCell<()>>);

    impl Accesses {
        pub(crate) fn new(bytes: usize) -> Self {
            Self((0..bytes).map(|_| UnsafeCell::new(())).collect())
        }

        pub(crate) fn read(&self, bytes: Range<usize>) {
            self.0[bytes].iter().for_each(|byte| byte.with(drop));
        }

        pub(crate) fn write(&self, bytes: Range<usize>) {
            self.0[bytes].iter().for_each(|byte| byte.with_mut(drop));
        }
    }

    /// Stands for std's mutex, which orders by acquire and release only. loom's own is sequentially consistent and would
    /// hide a missing fence.
    pub(crate) struct Mutex<T> {
        locked: AtomicBool,
        value: sync::Mutex<T>,
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self {
                locked: AtomicBool::new(false),
                value: sync::Mutex::new(value),
            }
        }

        pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.locked
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                .ok()?;
            let value = Some(self.value.try_lock().expect("it was unlocked"));
            Some(MutexGuard { mutex: self, value })
        }
    }

    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// Only taken by `drop`.
        value: Option<sync::MutexGuard<'a, T>>,
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.value.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.value.as_mut().unwrap()
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            self.value = None;
            self.mutex.locked.store(false, Ordering::Release);
        }
    }

    /// Stands for crossbeam's queue, which is opaque to loom. The models check our protocol around it. One thread pushes
    /// at a time, and one pops.
    ///
    /// What either side sees of the other may be out of date. Finding an item, or a free slot, makes visible what was done
    /// before; the length makes nothing visible.
    pub(crate) struct ArrayQueue<T> {
        /// The items, and how many the pushing and the popping side have pushed and popped.
        items: sync::Mutex<(VecDeque<T>, u64, u64)>,
        capacity: usize,
        pushed: AtomicU64,
        popped: AtomicU64,
    }

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            Self {
                items: sync::Mutex::new((VecDeque::new(), 0, 0)),
                capacity,
                pushed: AtomicU64::new(0),
                popped: AtomicU64::new(0),
            }
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            let popped = self.popped.load(Ordering::Acquire);
            let pushed = {
                let mut items = self.items.lock().unwrap();
                if items.1 - popped == self.capacity as u64 {
                    return Err(item);
                }
                items.0.push_back(item);
                items.1 += 1;
                items.1
            };
            self.pushed.store(pushed, Ordering::Release);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            let pushed = self.pushed.load(Ordering::Acquire);
            let (item, popped) = {
                let mut items = self.items.lock().unwrap();
                if items.2 == pushed {
                    return None;
                }
                items.2 += 1;
                (items.0.pop_front(), items.2)
            };
            self.popped.store(popped, Ordering::Release);
            item
        }

        pub(crate) fn len(&self) -> usize {
            let pushed = self.pushed.load(Ordering::Relaxed);
            pushed.saturating_sub(self.popped.load(Ordering::Relaxed)) as usize
        }

        pub(crate) fn capacity(&self) -> usize {
            self.capacity
        }
    }
}

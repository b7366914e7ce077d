//! What the shared state is made of: std's and crossbeam's primitives, or loom's when a model is
//! checked. The only file that names either.

#[cfg(not(tokio_krun_loom))]
pub(crate) use {
    crossbeam_queue::ArrayQueue,
    std::sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
};

#[cfg(tokio_krun_loom)]
pub(crate) use {
    loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence},
    model::{ArrayQueue, Count, Mutex},
};

/// How often something has happened.
#[cfg(not(tokio_krun_loom))]
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

#[cfg(not(tokio_krun_loom))]
impl Count {
    pub(crate) fn add_one(&self, happens: impl FnOnce()) {
        happens();
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Locks, also after a panic elsewhere: what these mutexes guard is whole between any two
/// statements, and krun's threads must not panic.
#[cfg(not(tokio_krun_loom))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(tokio_krun_loom)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> model::MutexGuard<'_, T> {
    loop {
        match mutex.try_lock() {
            Some(guard) => return guard,
            None => loom::thread::yield_now(),
        }
    }
}

/// Locks if nobody has it locked.
#[cfg(not(tokio_krun_loom))]
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<std::sync::MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(std::sync::TryLockError::WouldBlock) => None,
    }
}

#[cfg(tokio_krun_loom)]
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<model::MutexGuard<'_, T>> {
    mutex.try_lock()
}

#[cfg(tokio_krun_loom)]
mod model {
    use std::collections::VecDeque;
    use std::ops::{Deref, DerefMut};
    use std::{fmt, sync};

    use super::{AtomicBool, Ordering, lock};

    /// In a model, something to wait for: a sleep that nothing ends is a deadlock to loom.
    #[derive(Default)]
    pub(crate) struct Count {
        count: loom::sync::Mutex<u64>,
        changed: loom::sync::Condvar,
    }

    impl Count {
        pub(crate) fn add_one(&self, happens: impl FnOnce()) {
            let mut count = self.count.lock().unwrap();
            happens();
            *count += 1;
            self.changed.notify_all();
        }

        pub(crate) fn get(&self) -> u64 {
            *self.count.lock().unwrap()
        }

        /// Sleeps for as long as it is `count`.
        #[cfg(test)]
        pub(crate) fn wait_while(&self, count: u64) {
            let mut now = self.count.lock().unwrap();
            while *now == count {
                now = self.changed.wait(now).unwrap();
            }
        }
    }

    impl fmt::Debug for Count {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Count").finish_non_exhaustive()
        }
    }

    /// Stands for std's, which orders by acquiring and releasing and no more. loom's own would hide
    /// a missing fence, for it is sequentially consistent.
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

    /// Stands for crossbeam's queue, which is opaque to loom: the models are of our protocol
    /// around it.
    pub(crate) struct ArrayQueue<T> {
        items: Mutex<VecDeque<T>>,
        capacity: usize,
    }

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            Self {
                items: Mutex::new(VecDeque::new()),
                capacity,
            }
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            let mut items = lock(&self.items);
            if items.len() == self.capacity {
                return Err(item);
            }
            items.push_back(item);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            lock(&self.items).pop_front()
        }

        pub(crate) fn len(&self) -> usize {
            lock(&self.items).len()
        }

        pub(crate) fn capacity(&self) -> usize {
            self.capacity
        }
    }
}

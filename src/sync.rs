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
    loom::sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
    model::ArrayQueue,
};

/// Locks, also after a panic elsewhere: what these mutexes guard is whole between any two
/// statements, and krun's threads must not panic.
#[cfg(not(tokio_krun_loom))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(tokio_krun_loom)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> loom::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap()
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
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<loom::sync::MutexGuard<'_, T>> {
    mutex.try_lock().ok()
}

#[cfg(tokio_krun_loom)]
mod model {
    use loom::sync::Mutex;
    use std::collections::VecDeque;

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
            let mut items = self.items.lock().unwrap();
            if items.len() == self.capacity {
                return Err(item);
            }
            items.push_back(item);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.items.lock().unwrap().pop_front()
        }

        pub(crate) fn len(&self) -> usize {
            self.items.lock().unwrap().len()
        }

        pub(crate) fn capacity(&self) -> usize {
            self.capacity
        }
    }
}

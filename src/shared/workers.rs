//! krun's workers, as far as the port knows of them: a checkpoint needs to know that they have ended.
//!
//! krun never says that it starts or joins a worker. But a worker calls the port, and the thread that calls counts from then
//! on. A thread-local takes it off when the thread ends, which is before krun's `join` returns.
//!
//! A worker that has not called since it started is not seen: it sleeps, as there is nothing for it to do. If it calls after
//! the capture, it counts [then](Workers::so_far).

#[cfg(unix)]
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many workers a port has.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    now: Arc<AtomicUsize>,
    so_far: AtomicUsize,
}

/// One worker, until this is dropped.
#[cfg(any(unix, feature = "test-util"))]
#[derive(Debug)]
pub(crate) struct Worker(Arc<AtomicUsize>);

#[cfg(any(unix, feature = "test-util"))]
impl Drop for Worker {
    fn drop(&mut self) {
        // Pairs with the load in `have_ended`: whoever sees it sees all that the worker has done.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(unix)]
thread_local! {
    /// The ports that this thread is a worker of: one, if it is krun's.
    static MINE: RefCell<Vec<Worker>> = const { RefCell::new(Vec::new()) };
}

impl Workers {
    /// For a worker that is no thread of its own.
    #[cfg(any(unix, feature = "test-util"))]
    pub(crate) fn add(&self) -> Worker {
        self.so_far.fetch_add(1, Ordering::Relaxed);
        self.now.fetch_add(1, Ordering::Relaxed);
        Worker(Arc::clone(&self.now))
    }

    pub(crate) fn have_ended(&self) -> bool {
        self.now.load(Ordering::Acquire) == 0
    }

    /// How many there were since the port was created. It grows if a worker calls after they had ended, even one that had not
    /// called before.
    pub(crate) fn so_far(&self) -> usize {
        self.so_far.load(Ordering::Relaxed)
    }
}

/// By thread. On Windows, krun's threads never call us.
#[cfg(unix)]
impl Workers {
    /// The current thread is a worker until it [leaves](Self::leave) or ends.
    pub(crate) fn enter(&self) {
        self.with_mine(|mine| {
            if !mine.iter().any(|worker| self.is_of(worker)) {
                // Ports that are gone.
                mine.retain(|worker| Arc::strong_count(&worker.0) > 1);
                mine.push(self.add());
            }
        });
    }

    pub(crate) fn leave(&self) {
        self.with_mine(|mine| mine.retain(|worker| !self.is_of(worker)));
    }

    fn is_of(&self, worker: &Worker) -> bool {
        Arc::ptr_eq(&self.now, &worker.0)
    }

    /// Does nothing on a thread that is about to end, as it has left.
    fn with_mine(&self, work: impl FnOnce(&mut Vec<Worker>)) {
        let _ = MINE.try_with(|mine| mine.try_borrow_mut().map(|mut mine| work(&mut mine)));
    }
}

#[cfg(all(test, unix, not(tokio_krun_loom)))]
#[allow(clippy::unwrap_used, reason = "krun's threads do not run tests")]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn thread_counts_until_it_was_joined() {
        let workers = Arc::new(Workers::default());
        for _ in 0..if cfg!(miri) { 3 } else { 300 } {
            thread::spawn({
                let workers = Arc::clone(&workers);
                move || {
                    workers.enter();
                    workers.enter();
                    assert!(!workers.have_ended());
                }
            })
            .join()
            .unwrap();
            assert!(workers.have_ended());
        }
    }

    #[test]
    fn thread_that_leaves_counts_no_more_at_this_port_only() {
        let [left, kept] = [Workers::default(), Workers::default()];
        left.enter();
        kept.enter();
        left.leave();
        assert!(left.have_ended() && !kept.have_ended());
        left.enter();
        assert!(!left.have_ended());
    }

    #[test]
    fn thread_forgets_ports_that_are_gone() {
        for _ in 0..10 {
            Workers::default().enter();
        }
        assert_eq!(MINE.with_borrow(Vec::len), 1);
    }
}

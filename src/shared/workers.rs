//! krun's workers, as far as the port knows of them: a checkpoint needs to know that they have ended.
//!
//! krun never says that it starts or joins a worker. But a worker calls the port, and the thread that calls counts from then
//! on. A thread-local takes it off when the thread ends, which is before krun's `join` returns.
//!
//! A worker that has not called since it started is not seen: it sleeps, as there is nothing for it to do. If it calls after
//! the capture, it counts [then](Workers::so_far).

#[cfg(unix)]
use std::cell::RefCell;
#[cfg(any(unix, feature = "test-util"))]
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// How many workers a port has.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    now: Arc<AtomicUsize>,
    so_far: AtomicUsize,
    /// How many there had been when the stream was taken into a state, if it was.
    at_last_capture: OnceLock<usize>,
}

/// One worker, until this is dropped. It keeps nothing of the port alive.
#[cfg(any(unix, feature = "test-util"))]
#[derive(Debug)]
pub(crate) struct Worker(Weak<AtomicUsize>);

#[cfg(any(unix, feature = "test-util"))]
impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(now) = self.0.upgrade() {
            // Pairs with the load in `have_ended`: whoever sees it sees all that the worker has done.
            now.fetch_sub(1, Ordering::Release);
        }
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
        // First: a capture that does not see this worker yet finds at its end that one has come.
        self.now.fetch_add(1, Ordering::Relaxed);
        // Pairs with the load in `so_far`.
        self.so_far.fetch_add(1, Ordering::Release);
        Worker(Arc::downgrade(&self.now))
    }

    /// The stream has become a state, captured when there had been `so_far` workers.
    pub(crate) fn was_last_capture(&self, so_far: usize) {
        let _ = self.at_last_capture.set(so_far);
    }

    /// Whether a worker has come since the stream became a state.
    pub(crate) fn have_come_since_last_capture(&self) -> bool {
        self.at_last_capture
            .get()
            .is_some_and(|before| *before != self.so_far())
    }

    pub(crate) fn have_ended(&self) -> bool {
        self.now.load(Ordering::Acquire) == 0
    }

    /// How many there were since the port was created. It grows if a worker calls after they had ended, even one that had not
    /// called before.
    pub(crate) fn so_far(&self) -> usize {
        // Whoever counts a worker here also sees that it is there.
        self.so_far.load(Ordering::Acquire)
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
                mine.retain(|worker| worker.0.strong_count() > 0);
                mine.push(self.add());
            }
        });
    }

    pub(crate) fn leave(&self) {
        self.with_mine(|mine| mine.retain(|worker| !self.is_of(worker)));
    }

    fn is_of(&self, worker: &Worker) -> bool {
        // The `Weak` keeps the address from being used again.
        Arc::as_ptr(&self.now) == worker.0.as_ptr()
    }

    /// Does nothing on a thread that is about to end, as it has left.
    fn with_mine(&self, work: impl FnOnce(&mut Vec<Worker>)) {
        let _ = MINE.try_with(|mine| mine.try_borrow_mut().map(|mut mine| work(&mut mine)));
    }
}

#[cfg(all(test, unix, not(tokio_krun_loom)))]
#[allow(clippy::unwrap_used, reason = "krun's threads do not run tests")]
mod tests {
    use std::sync::Mutex;
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
    fn threads_forget_ports_that_are_gone() {
        let ports = Arc::new(Mutex::new(Workers::default()));
        let known = || MINE.with_borrow(Vec::len);
        for _ in 0..10 {
            *ports.lock().unwrap() = Workers::default();
            let other = Arc::clone(&ports);
            thread::scope(|scope| {
                // Two threads know each port, like krun's.
                scope.spawn(move || other.lock().unwrap().enter());
            });
            ports.lock().unwrap().enter();
        }
        assert_eq!(known(), 1);
    }

    /// As `add` does it, in two steps, with a capture between them.
    #[test]
    fn worker_that_comes_during_capture_is_seen_then_or_later() {
        let workers = Workers::default();
        let before = workers.so_far();
        workers.now.fetch_add(1, Ordering::Relaxed);
        let looks_at_rest = workers.have_ended();
        workers.so_far.fetch_add(1, Ordering::Release);
        assert!(!looks_at_rest || workers.so_far() != before);
    }
}

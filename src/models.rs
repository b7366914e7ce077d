//! What all loom models share. Each model is beside the code that it checks.

use std::ops::Deref;

use loom::model::Builder;
use loom::thread::{self, JoinHandle};

/// A model in which threads are preempted at most `preemptions` times.
pub(crate) fn bounded(preemptions: usize) -> Builder {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model
}

/// Runs `run` on another thread, with a handle to what the threads share.
pub(crate) fn spawn<S, T>(shared: &S, run: impl FnOnce(&S::Target) -> T + 'static) -> JoinHandle<T>
where
    S: Clone + Deref + 'static,
    T: 'static,
{
    let shared = shared.clone();
    thread::spawn(move || run(&shared))
}

//! What the models that loom checks have in common. Each stands beside what it is of.

use std::ops::Deref;

use loom::model::Builder;
use loom::thread::{self, JoinHandle};

/// A model in which no thread is put off more often than `preemptions` times.
pub(crate) fn bounded(preemptions: usize) -> Builder {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model
}

/// Another thread with what is shared.
pub(crate) fn spawn<S, T>(shared: &S, run: impl FnOnce(&S::Target) -> T + 'static) -> JoinHandle<T>
where
    S: Clone + Deref + 'static,
    T: 'static,
{
    let shared = shared.clone();
    thread::spawn(move || run(&shared))
}

//! How much the bridge has read, for the in-process guest's `drained`.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
pub(crate) struct Taken {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    bytes: u64,
    ended: bool,
}

impl Taken {
    pub(crate) fn add(&self, bytes: usize) {
        self.progress().bytes += bytes as u64;
        self.changed.notify_all();
    }

    pub(crate) fn end(&self) {
        self.progress().ended = true;
        self.changed.notify_all();
    }

    /// Blocks until `bytes` were read, or no more will be.
    pub(super) fn wait_for(&self, bytes: u64) {
        let _progress = self
            .changed
            .wait_while(self.progress(), |progress| {
                progress.bytes < bytes && !progress.ended
            })
            .unwrap_or_else(PoisonError::into_inner);
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! A wake for one thread that has nothing else to wait for.

use std::io;
use std::sync::PoisonError;

use crate::shared::Wake;
use crate::sync::blocking::{Condvar, Mutex};

#[derive(Debug)]
pub(crate) struct ThreadWake {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl ThreadWake {
    /// Never fails; the signature is that of every wake.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            signalled: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// Blocks until there was a signal since the last wait, and takes it.
    pub(super) fn wait(&self) {
        let mut signalled = self
            .signalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while !*signalled {
            signalled = self
                .changed
                .wait(signalled)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *signalled = false;
    }
}

impl Wake for ThreadWake {
    fn signal(&self) {
        *self
            .signalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }
}

//! A thread that you can wait for asynchronously, and that reports whether it panicked.

use std::io;
use std::thread::{self, Thread};

use tokio::sync::watch;

use super::PANICKED;
use crate::foreign;

#[derive(Clone)]
pub(super) struct Worker {
    thread: Thread,
    /// Becomes `true` when the thread ends without a panic, and closes when it ends.
    ended: watch::Receiver<bool>,
}

impl Worker {
    pub(super) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (end, ended) = watch::channel(false);
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            work();
            let _ = end.send(true);
        })?;
        Ok(Self {
            thread: thread.thread().clone(),
            ended,
        })
    }

    pub(super) fn thread(&self) -> Thread {
        self.thread.clone()
    }

    pub(super) fn unpark(&self) {
        self.thread.unpark();
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.ended.borrow() || self.has_panicked()
    }

    pub(super) fn has_panicked(&self) -> bool {
        // In this order: once it is closed, the value is final.
        self.ended.has_changed().is_err() && !*self.ended.borrow()
    }

    /// Wakes the thread and waits until it has ended.
    pub(super) async fn end(&self) {
        self.unpark();
        let mut ended = self.ended.clone();
        let has_ended = foreign::guarded(ended.wait_for(|ended| *ended))
            .await
            .is_ok();
        assert!(has_ended, "{PANICKED}");
    }
}

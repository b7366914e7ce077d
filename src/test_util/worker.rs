//! A thread that you can wait for asynchronously, and that reports whether it panicked.

use std::io;
use std::thread::{self, Thread};

use tokio::sync::oneshot;

#[derive(Debug)]
pub(super) struct Worker {
    thread: Thread,
    /// Receives a value when the thread ends without a panic, and closes if it panics.
    ended: Option<oneshot::Receiver<()>>,
}

impl Worker {
    pub(super) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            work();
            let _ = end.send(());
        })?;
        Ok(Self {
            thread: thread.thread().clone(),
            ended: Some(ended),
        })
    }

    pub(super) fn thread(&self) -> Thread {
        self.thread.clone()
    }

    pub(super) fn unpark(&self) {
        self.thread.unpark();
    }

    pub(super) fn has_panicked(&mut self) -> bool {
        let ended = self.ended.as_mut().map(oneshot::Receiver::try_recv);
        matches!(ended, Some(Err(oneshot::error::TryRecvError::Closed)))
    }

    /// Wakes the thread and waits until it has ended.
    pub(super) async fn end(&mut self) {
        self.unpark();
        if let Some(ended) = self.ended.take() {
            ended
                .await
                .expect("a worker of the guest panicked: see its message above");
        }
    }
}

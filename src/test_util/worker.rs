//! A thread that tells when it ends, and whether by a panic.

use std::io;
use std::thread::{self, Thread};

use tokio::sync::oneshot;

#[derive(Debug)]
pub(crate) struct Worker {
    thread: Thread,
    /// Dropped by the thread when it ends; a value says that it did not panic.
    ended: Option<oneshot::Receiver<()>>,
}

impl Worker {
    pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
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

    pub(crate) fn thread(&self) -> Thread {
        self.thread.clone()
    }

    pub(crate) fn unpark(&self) {
        self.thread.unpark();
    }

    pub(crate) fn has_panicked(&mut self) -> bool {
        let ended = self.ended.as_mut().map(oneshot::Receiver::try_recv);
        matches!(ended, Some(Err(oneshot::error::TryRecvError::Closed)))
    }

    /// Waits until it has ended.
    pub(crate) async fn end(&mut self) {
        self.unpark();
        if let Some(ended) = self.ended.take() {
            ended.await.expect("a worker of the guest has panicked");
        }
    }
}

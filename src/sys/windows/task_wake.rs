//! A wake for tasks, of any runtime.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::shared::{Signal, Wake};

#[derive(Debug)]
pub(crate) struct TaskWake {
    /// For any number of tasks: each is woken.
    waiting: Notify,
    /// For the one that polls.
    polling: Mutex<Polling>,
}

#[derive(Debug, Default)]
struct Polling {
    signalled: bool,
    task: Option<Waker>,
}

impl TaskWake {
    /// Never fails; the signature is that of every wake.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: Notify::new(),
            polling: Mutex::default(),
        })
    }

    /// Ready once there has been a signal since the last time this was ready. Wakes the last task
    /// that polled.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut polling = self.polling();
        if std::mem::take(&mut polling.signalled) {
            return Poll::Ready(());
        }
        match &mut polling.task {
            Some(task) => task.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Ready once there has been a signal since the call: not since the first poll.
    pub(super) fn signalled(&self) -> impl Future<Output = ()> {
        self.waiting.notified()
    }

    fn polling(&self) -> MutexGuard<'_, Polling> {
        self.polling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for TaskWake {
    fn signal(&self) {
        let task = {
            let mut polling = self.polling();
            polling.signalled = true;
            polling.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
        self.waiting.notify_waiters();
    }
}

/// Waits until `look` finds something: registers, arms, and looks, in the order of
/// [`gate`](crate::shared)'s protocol.
pub(super) async fn until<T>(signal: &Signal<TaskWake>, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        let signalled = signal.wake().signalled();
        if let Some(found) = signal.look(&mut look) {
            return found;
        }
        signalled.await;
    }
}

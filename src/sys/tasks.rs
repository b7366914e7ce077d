//! A wake for tasks, of any runtime.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::foreign;
use crate::shared::Wake;

#[derive(Default)]
pub(crate) struct TaskWake {
    /// For any number of tasks: each is woken.
    waiting: Notify,
    /// For the one that polls.
    polling: Mutex<Polling>,
}

#[derive(Default)]
struct Polling {
    signalled: bool,
    task: Option<Waker>,
}

impl TaskWake {
    /// Ready once there was a signal since the last time this was ready. Wakes the last task that polled.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Cloning and dropping a waker is the caller's code, so it happens without the lock.
        let task = cx.waker().clone();
        let mut polling = self.polling();
        if std::mem::take(&mut polling.signalled) {
            drop(polling);
            return Poll::Ready(());
        }
        let _last = polling.task.replace(task);
        drop(polling);
        Poll::Pending
    }

    /// Ready once there was a signal since this call, which may be before the first poll.
    pub(crate) fn signalled(&self) -> impl Future<Output = ()> {
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
        foreign::run(|| {
            if let Some(task) = task {
                task.wake();
            }
        });
        foreign::run(|| self.waiting.notify_waiters());
    }
}

impl fmt::Debug for TaskWake {
    /// Takes no lock, because the formatter may run the caller's code.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskWake").finish_non_exhaustive()
    }
}

//! What each side sleeps on: a wake for tasks, of any runtime.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::{fmt, io};

use tokio::sync::Notify;

use crate::foreign;
use crate::shared::{Signal, Wake};

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
    /// Never fails; every wake has this signature.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: Notify::new(),
            polling: Mutex::default(),
        })
    }

    /// Ready once there was a signal since the last time this was ready. Wakes the last task that polled.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
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
    fn signalled(&self) -> impl Future<Output = ()> {
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

/// How the host's tasks wait for a wake.
#[derive(Debug)]
pub(crate) struct HostWait(Arc<TaskWake>);

impl HostWait {
    /// Never fails; every platform has this signature.
    pub(crate) fn register(wake: Arc<TaskWake>) -> io::Result<Self> {
        Ok(Self(wake))
    }

    /// Ready once there was a signal since the last time this was ready. Wakes the last task that polled.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll(cx).map(Ok)
    }

    /// The same for any number of tasks at once: each is woken.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.0.signalled().await;
        Ok(())
    }
}

/// Waits until `look` finds something. In the order of the [protocol](crate::shared::Signal): registers, arms, looks.
pub(crate) async fn until<T>(signal: &Signal<TaskWake>, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        let signalled = signal.wake().signalled();
        if let Some(found) = signal.look_or_arm(&mut look) {
            return found;
        }
        signalled.await;
    }
}

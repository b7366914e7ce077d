//! How each side waits for a [`TaskWake`].

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::TaskWake;
use crate::shared::Signal;

impl TaskWake {
    /// Never fails; every wake has this signature.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self::default())
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

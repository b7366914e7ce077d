//! How the host's tasks wait for a wake.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::TaskWake;
use crate::shared::{ConsoleSharedState, Signal};

#[derive(Debug)]
pub(crate) struct HostWait {
    shared: Arc<ConsoleSharedState>,
    signal: fn(&ConsoleSharedState) -> &Signal<TaskWake>,
}

impl HostWait {
    /// Never fails; the signature is that of every platform.
    pub(crate) fn register(
        shared: &Arc<ConsoleSharedState>,
        signal: fn(&ConsoleSharedState) -> &Signal<TaskWake>,
    ) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::clone(shared),
            signal,
        })
    }

    /// Ready once there has been a signal since the last time this was ready. Wakes the last task
    /// that polled.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wake().poll(cx).map(Ok)
    }

    /// The same for any number of tasks at once: each is woken.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.wake().signalled().await;
        Ok(())
    }

    fn wake(&self) -> &TaskWake {
        (self.signal)(&self.shared).wake()
    }
}

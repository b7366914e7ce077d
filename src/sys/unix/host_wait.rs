//! How the host's tasks wait for a wake pipe: tokio's `AsyncFd`.

#![expect(
    unsafe_code,
    reason = "`AsyncFd::register`, the way that tokio has not deprecated, asks for a promise about the descriptor"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::WakePipe;
use crate::shared::{ConsoleSharedState, Signal};

#[derive(Debug)]
pub(crate) struct HostWait(AsyncFd<Registered>);

impl HostWait {
    /// Registers one of the shared signals with the current runtime.
    ///
    /// # Panics
    ///
    /// If the current runtime has no I/O driver, as for each of tokio's own streams.
    #[track_caller]
    pub(crate) fn register(
        shared: &Arc<ConsoleSharedState>,
        signal: fn(&ConsoleSharedState) -> &Signal<WakePipe>,
    ) -> io::Result<Self> {
        let registered = Registered {
            descriptor: signal(shared).wake().as_raw_fd(),
            _owner: Arc::clone(shared),
        };
        // SAFETY: the descriptor is valid, and it stays open and the same for the registration's
        // whole life: it belongs to the shared state, which never replaces it and which
        // `registered` keeps alive. `as_raw_fd` returns a field that never changes.
        let registered = unsafe { AsyncFd::register_with_interest(registered, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Ready once there has been a signal since the last time this was ready; it may also be
    /// ready without one. Wakes the last task that polled. The error is that of a runtime that has
    /// shut down.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.0.poll_read_ready(cx))?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl HostWait {
    /// The same for any number of tasks at once: each is woken.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[derive(Debug)]
struct Registered {
    descriptor: RawFd,
    /// Keeps `descriptor` open.
    _owner: Arc<ConsoleSharedState>,
}

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor
    }
}

//! The port as the agent opens it: the in-process part of [`VirtioPort`](crate::agent::VirtioPort).

use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, future};

use tokio::io::{Interest, ReadBuf, Ready};

use super::Machine;

/// Dropping it closes the port in the guest.
#[allow(dead_code, reason = "`VirtioPort` is to use it")]
pub(crate) struct Port {
    machine: Arc<Machine>,
}

#[allow(dead_code, reason = "`VirtioPort` is to use it")]
impl Port {
    pub(super) fn new(machine: Arc<Machine>) -> Self {
        Self { machine }
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.machine.virtqueues.poll_read(cx, buf).map(Ok)
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.machine.virtqueues.poll_write(cx, buf)
    }

    /// For one task a direction: the last one that polled is woken.
    pub(crate) fn poll_read_ready(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        todo!()
    }

    /// For one task a direction: the last one that polled is woken.
    pub(crate) fn poll_write_ready(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        todo!()
    }

    pub(crate) fn try_read(&self, _buf: &mut [u8]) -> io::Result<usize> {
        todo!()
    }

    pub(crate) fn try_write(&self, _buf: &[u8]) -> io::Result<usize> {
        todo!()
    }

    /// For any number of tasks at once: each is woken.
    pub(crate) async fn ready(&self, _interest: Interest) -> io::Result<Ready> {
        future::pending().await
    }
}

// As tokio's own streams are. No code of the caller's runs under a lock.
impl UnwindSafe for Port {}
impl RefUnwindSafe for Port {}

impl fmt::Debug for Port {
    /// Takes no lock, because the formatter may run the caller's code.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").finish_non_exhaustive()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.machine.virtqueues.close();
    }
}

/// Opens the port called `name` of the guest in whose scope the task runs (`Guest::run`), and waits for it as in a VM.
/// `None` outside such a scope.

#[allow(dead_code, reason = "`VirtioPort` is to use it")]
pub(crate) async fn open_in_process(_name: &str) -> Option<io::Result<Port>> {
    None
}

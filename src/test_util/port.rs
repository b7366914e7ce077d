//! The port as the agent opens it: the in-process part of [`VirtioPort`](crate::agent::VirtioPort).

use std::future::poll_fn;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::{fmt, future::Future};

use tokio::io::{Interest, ReadBuf, Ready};
use tokio::task::coop;

use super::machine::Machine;
use super::virtqueue::Virtqueues;
use crate::foreign;
use crate::sys::TaskWake;

/// Dropping it closes the port in the guest.
pub(crate) struct Port {
    virtqueues: Arc<Virtqueues>,
    /// The guest runs for as long as a port is open.
    _machine: Arc<Machine>,
}

impl Port {
    /// The port must have been [opened](Virtqueues::open).
    pub(super) fn new(virtqueues: &Arc<Virtqueues>, machine: &Arc<Machine>) -> Self {
        Self {
            virtqueues: Arc::clone(virtqueues),
            _machine: Arc::clone(machine),
        }
    }

    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let limit = buf.remaining();
        if limit == 0 {
            return Poll::Ready(Ok(()));
        }
        let virtqueues = &self.virtqueues;
        let look = || virtqueues.read(limit, |bytes| buf.put_slice(bytes));
        poll_until(&virtqueues.readable, cx, look).map(|_| Ok(()))
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let virtqueues = &self.virtqueues;
        poll_until(&virtqueues.writable, cx, || virtqueues.write(buf))
    }

    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let look = || self.is_ready(Interest::READABLE).map(Ok);
        poll_until(&self.virtqueues.readable, cx, look).map_ok(drop)
    }

    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let look = || self.is_ready(Interest::WRITABLE).map(Ok);
        poll_until(&self.virtqueues.writable, cx, look).map_ok(drop)
    }

    fn is_ready(&self, interest: Interest) -> Option<Ready> {
        Some(self.virtqueues.ready(interest)).filter(|ready| !ready.is_empty())
    }

    pub(crate) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let limit = buf.len();
        let sink = |bytes: &[u8]| buf[..bytes.len()].copy_from_slice(bytes);
        let read = self.virtqueues.read(limit, sink);
        read.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    pub(crate) fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        let written = self.virtqueues.write(buf);
        written.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
    }

    /// For any number of tasks at once: each is woken.
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        if !interest.is_readable() && !interest.is_writable() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        loop {
            let budget = poll_fn(coop::poll_proceed).await;
            // Before the look, so that no signal after it is missed.
            let mut readable = pin!(self.virtqueues.readable.signalled());
            let mut writable = pin!(self.virtqueues.writable.signalled());
            if let Some(ready) = self.is_ready(interest) {
                budget.made_progress();
                return Ok(ready);
            }
            drop(budget);
            let signalled = poll_fn(|cx| {
                let is_readable = interest.is_readable() && readable.as_mut().poll(cx).is_ready();
                let is_writable = interest.is_writable() && writable.as_mut().poll(cx).is_ready();
                match is_readable || is_writable {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            });
            foreign::guarded(signalled).await;
        }
    }
}

/// Polls until `look` finds something, for one task a direction: the last one that polled is woken.
fn poll_until<T>(
    wake: &TaskWake,
    cx: &mut Context<'_>,
    mut look: impl FnMut() -> Option<T>,
) -> Poll<T> {
    let budget = ready!(coop::poll_proceed(cx));
    let found = loop {
        if let Some(found) = look() {
            break Some(found);
        }
        if wake.poll(cx).is_pending() {
            // Once more, for what came before the wake knew of the task.
            break look();
        }
    };
    match found {
        Some(found) => {
            budget.made_progress();
            Poll::Ready(found)
        }
        None => Poll::Pending,
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
        self.virtqueues.close();
    }
}

//! What the stream and its halves share: every way of reading, writing and waiting, once.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, IoSliceMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use tokio::io::{Interest, ReadBuf, Ready};
use tokio::task::coop;

use crate::error::Error;
use crate::shared::ConsoleSharedState;
use crate::sys::HostWait;

/// The host's end. Dropping it is the end of the stream and of each of its halves.
#[derive(Debug)]
#[allow(
    unreachable_pub,
    reason = "a sealed trait shows it; no one can name it"
)]
pub struct Host {
    shared: Arc<ConsoleSharedState>,
    readable: HostWait,
    writable: HostWait,
    hang_up_on_drop: bool,
}

impl Host {
    #[track_caller]
    pub(crate) fn register(
        shared: Arc<ConsoleSharedState>,
        hang_up_on_drop: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            readable: HostWait::register(&shared, |shared| &shared.tx_data)?,
            writable: HostWait::register(&shared, |shared| &shared.rx_room)?,
            shared,
            hang_up_on_drop,
        })
    }

    pub(crate) fn shared(&self) -> &ConsoleSharedState {
        &self.shared
    }
}

// As tokio's own streams are. Under a lock only code of the caller's can panic (a `BufMut`), and until it has returned
// nothing has been read.
impl UnwindSafe for Host {}
impl RefUnwindSafe for Host {}

impl Drop for Host {
    fn drop(&mut self) {
        if self.hang_up_on_drop {
            self.shared.host_hang_up();
        } else {
            self.shared.host_shut_down();
        }
        self.shared.host_stop_reading();
    }
}

/// Waiting for a look to find something.
///
/// The order matters, as any task may clear the readiness that tokio keeps for all of them: be
/// registered for the next signal, arm the gate, look. A signal after the arming wakes all who are
/// registered; one before it was for something that the look finds.
///
/// What is found costs the task some of its budget: a side that always finds something gives way to
/// other tasks at times.
impl Host {
    /// For one task: the last that polled is woken.
    fn poll_found<T>(
        &self,
        side: Side,
        cx: &mut Context<'_>,
        mut look: impl FnMut(&Arc<ConsoleSharedState>) -> Option<T>,
    ) -> Poll<io::Result<T>> {
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            if let Some(found) = self.shared.busy_look(|| look(&self.shared)) {
                budget.made_progress();
                return Poll::Ready(Ok(found));
            }
            if self.wait(side).poll(cx)?.is_ready() {
                continue;
            }
            self.arm(side);
            return match look(&self.shared) {
                Some(found) => {
                    budget.made_progress();
                    Poll::Ready(Ok(found))
                }
                None => Poll::Pending,
            };
        }
    }

    /// For any number of tasks at once: each is woken. `look` is asked for any of `sides`.
    async fn found<T>(&self, sides: &[Side], mut look: impl FnMut() -> Option<T>) -> io::Result<T> {
        loop {
            let budget = poll_fn(coop::poll_proceed).await;
            if let Some(found) = self.shared.busy_look(&mut look) {
                budget.made_progress();
                return Ok(found);
            }
            drop(budget);
            let mut readable = pin!(self.readable.wait());
            let mut writable = pin!(self.writable.wait());
            let found = poll_fn(|cx| {
                for side in sides {
                    let wait = match side {
                        Side::Reading => readable.as_mut(),
                        Side::Writing | Side::Draining => writable.as_mut(),
                    };
                    if let Poll::Ready(result) = wait.poll(cx) {
                        return Poll::Ready(result.map(|()| None));
                    }
                    self.arm(*side);
                }
                match look() {
                    Some(found) => Poll::Ready(Ok(Some(found))),
                    None => Poll::Pending,
                }
            })
            .await?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    fn wait(&self, side: Side) -> &HostWait {
        match side {
            Side::Reading => &self.readable,
            Side::Writing | Side::Draining => &self.writable,
        }
    }

    fn arm(&self, side: Side) {
        match side {
            Side::Reading => self.shared.tx_data.arm(),
            Side::Writing => self.shared.rx_room.arm(),
            Side::Draining => self.shared.host_waits_for_drain(),
        }
    }
}

/// What the host waits for.
#[derive(Clone, Copy, Debug)]
enum Side {
    Reading,
    Writing,
    /// For what was written to be taken.
    Draining,
}

/// By polling: one task a direction, the last that polled.
impl Host {
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let limit = buf.remaining();
        if limit == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_found(Side::Reading, cx, |shared| {
            shared.host_read(limit, |bytes| buf.put_slice(bytes))
        })
        .map(|result| result?.map(drop))
    }

    pub(crate) fn poll_peek(&self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        self.poll_found(Side::Reading, cx, |shared| shared.host_peek())
            .map(|result| result?)
    }

    /// No bytes at the end.
    pub(crate) fn poll_read_bytes(&self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        self.poll_found(Side::Reading, cx, |shared| shared.host_read_bytes())
            .map(|result| result?)
    }

    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_found(Side::Reading, cx, |shared| shared.host_is_readable())
            .map_ok(drop)
    }

    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        sources: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_found(Side::Writing, cx, |shared| shared.host_write(sources))
            .map(|result| result?)
    }

    pub(crate) fn poll_write_bytes(
        &self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        self.poll_found(Side::Writing, cx, |shared| shared.host_write_bytes(bytes))
            .map(|result| result?)
    }

    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_found(Side::Writing, cx, |shared| shared.host_is_writable())
            .map_ok(drop)
    }
}

/// At once or not at all.
impl Host {
    pub(crate) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.try_read_vectored(&mut [IoSliceMut::new(buf)])
    }

    pub(crate) fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        // As tokio does: what it has room for now. A vector can always grow, and a guest that goes on
        // writing could have one call go on for ever.
        let limit = buf.chunk_mut().len();
        if limit == 0 {
            return Ok(0);
        }
        now(self.shared.host_read(limit, |bytes| buf.put_slice(bytes)))
    }

    pub(crate) fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let limit = bufs
            .iter()
            .fold(0, |sum: usize, buf| sum.saturating_add(buf.len()));
        if limit == 0 {
            return Ok(0);
        }
        let mut targets = bufs.iter_mut().map(|buf| &mut **buf);
        let mut target: &mut [u8] = &mut [];
        now(self.shared.host_read(limit, |mut bytes| {
            while !bytes.is_empty() {
                if target.is_empty() {
                    // There is one: no more bytes come than `limit`.
                    let Some(next) = targets.next() else { return };
                    target = next;
                }
                let (now, later) = bytes.split_at(bytes.len().min(target.len()));
                let (filled, rest) = std::mem::take(&mut target).split_at_mut(now.len());
                filled.copy_from_slice(now);
                target = rest;
                bytes = later;
            }
        }))
    }

    pub(crate) fn try_write(&self, sources: &[IoSlice<'_>]) -> io::Result<usize> {
        now(self.shared.host_write(sources))
    }
}

/// What a look has found, or that it would have to wait.
fn now<T>(found: Option<io::Result<T>>) -> io::Result<T> {
    found.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// By waiting, any number of tasks at once.
impl Host {
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        let sides: &[Side] = match (interest.is_readable(), interest.is_writable()) {
            (true, true) => &[Side::Reading, Side::Writing],
            (true, false) => &[Side::Reading],
            (false, true) => &[Side::Writing],
            (false, false) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let look = || Some(self.ready_now(interest)).filter(|ready| !ready.is_empty());
        self.found(sides, look).await
    }

    fn ready_now(&self, interest: Interest) -> Ready {
        let mut ready = Ready::EMPTY;
        if interest.is_readable() {
            match self.shared.host_is_readable() {
                Some(true) => ready |= Ready::READABLE,
                Some(false) => ready |= Ready::READABLE | Ready::READ_CLOSED,
                None => {}
            }
        }
        if interest.is_writable() {
            match self.shared.host_is_writable() {
                Some(true) => ready |= Ready::WRITABLE,
                Some(false) => ready |= Ready::WRITABLE | Ready::WRITE_CLOSED,
                None => {}
            }
        }
        ready
    }

    pub(crate) async fn guest_opened(&self) -> io::Result<()> {
        let look = || self.shared.host_sees_guest();
        if self.found(&[Side::Reading], look).await? {
            Ok(())
        } else {
            Err(Error::GuestGone.into())
        }
    }

    pub(crate) async fn drained(&self) -> io::Result<()> {
        let position = self.shared.host_written();
        let look = || self.shared.host_is_drained(position);
        self.found(&[Side::Draining], look).await?
    }
}

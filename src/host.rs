//! The host's end: how a task tries, arms, and waits. The stream and its halves delegate to it.

#![expect(
    unsafe_code,
    reason = "`BufMut::advance_mut`, as `put_slice` would run the caller's code while the ring is locked"
)]

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, IoSliceMut};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{Interest, ReadBuf, Ready};
use tokio::sync::SemaphorePermit;
use tokio::task::coop;

use crate::error::Error;
use crate::permit::Permit;
use crate::shared::{Admit, Captured, Chunk, ConsoleSharedState};
use crate::stats::Stats;
use crate::sys::HostWait;

/// The host's end. Dropping it ends the stream and each of its halves.
#[allow(
    unreachable_pub,
    reason = "a sealed trait shows it; no one can name it"
)]
pub struct Host {
    shared: Arc<ConsoleSharedState>,
    readable: HostWait,
    writable: HostWait,
    /// Whether the last look found something: the guest is active.
    guest_is_active: AtomicBool,
}

impl Host {
    /// Registers with the current runtime.
    pub(crate) fn register(shared: Arc<ConsoleSharedState>) -> io::Result<Self> {
        Ok(Self {
            readable: HostWait::register(Arc::clone(shared.tx_data.wake()))?,
            writable: HostWait::register(Arc::clone(shared.rx_room.wake()))?,
            shared,
            guest_is_active: AtomicBool::new(false),
        })
    }

    pub(crate) fn shut_down(&self) {
        self.shared.host_shut_down();
    }

    pub(crate) fn hang_up(&self) {
        self.shared.host_hang_up();
    }

    pub(crate) fn close(&self) {
        self.shared.host_end();
    }

    pub(crate) fn stop_reading(&self) {
        self.shared.host_stop_reading();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.has_host_ended()
    }

    pub(crate) fn unread(&self) -> usize {
        self.shared.host_unread()
    }

    pub(crate) fn has_guest_opened(&self) -> bool {
        self.shared.host_sees_guest() == Some(true)
    }

    /// For a stream that ends with it.
    pub(crate) fn capture_last(&self) -> Result<Captured, Error> {
        // First, so that one that comes meanwhile counts as one that came afterwards.
        let workers = self.shared.workers.so_far();
        let state = self.shared.capture()?;
        self.shared.workers.was_last_capture(workers);
        Ok(state)
    }

    pub(crate) fn stats(&self) -> Stats {
        self.shared.stats()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.shared.capacity()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

// As tokio's own streams are. No code of the caller's runs under a lock.
impl UnwindSafe for Host {}
impl RefUnwindSafe for Host {}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.host_end();
    }
}

/// What a task waits for.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// Bytes from the guest.
    Reading,
    /// Room for bytes to the guest.
    Writing,
    /// That the guest reads what was written.
    Draining,
}

/// Waiting until a look finds something.
///
/// The order matters, as any task may clear the readiness that tokio keeps for all of them: register for the next
/// wake, arm the signal, look. A wake after the arming reaches every task that is registered; a wake before it was for
/// something that the look finds.
///
/// Finding something costs the task some of its budget, so a side that always finds something gives way to other tasks
/// now and then.
impl Host {
    /// For one task a direction: the last one that polled is woken.
    fn poll_until<T>(
        &self,
        side: Side,
        cx: &mut Context<'_>,
        mut look: impl FnMut(&Arc<ConsoleSharedState>) -> Option<T>,
    ) -> Poll<io::Result<T>> {
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            if let Some(found) = self.look_for_a_while(side, || look(&self.shared)) {
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
                None => {
                    self.sleep(side);
                    Poll::Pending
                }
            };
        }
    }

    /// For any number of tasks at once: each is woken. `look` finds what any of `sides` may bring.
    async fn until<T>(&self, sides: &[Side], mut look: impl FnMut() -> Option<T>) -> io::Result<T> {
        loop {
            let budget = poll_fn(coop::poll_proceed).await;
            if let Some(found) = self.look_for_a_while(sides[0], &mut look) {
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
                    None => {
                        sides.iter().for_each(|side| self.sleep(*side));
                        Poll::Pending
                    }
                }
            })
            .await?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// Once, or more often if the guest is active.
    fn look_for_a_while<T>(&self, side: Side, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let mut found = look();
        // Relaxed: it only says whether to look again. Stored only if it changes, so the cache line stays shared.
        let guest_was_active = self.guest_is_active.load(Ordering::Relaxed);
        if found.is_none() && guest_was_active {
            let mut again = match side {
                Side::Reading => self.shared.host_looks_again(),
                Side::Writing | Side::Draining => self.shared.look_again(),
            };
            while found.is_none() && again.again() {
                found = look();
            }
        }
        if found.is_some() != guest_was_active {
            self.guest_is_active
                .store(found.is_some(), Ordering::Relaxed);
        }
        found
    }

    fn wait(&self, side: Side) -> &HostWait {
        match side {
            Side::Reading => &self.readable,
            Side::Writing | Side::Draining => &self.writable,
        }
    }

    /// The last step before the task sleeps.
    fn sleep(&self, side: Side) {
        if let Side::Reading = side {
            self.shared.host_stops_looking();
        }
    }

    fn arm(&self, side: Side) {
        match side {
            Side::Reading => self.shared.tx_data.arm(),
            Side::Writing => self.shared.rx_room.arm(),
            Side::Draining => self.shared.rx_drained.arm(),
        }
    }
}

/// By polling.
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
        self.poll_until(Side::Reading, cx, |shared| {
            shared.host_read(limit, |bytes| buf.put_slice(bytes))
        })
        .map(|result| result?.map(drop))
    }

    /// No bytes at the end.
    pub(crate) fn poll_read_bytes(&self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        self.poll_until(Side::Reading, cx, |shared| shared.host_read_bytes())
            .map(|result| result?)
    }

    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_until(Side::Reading, cx, |shared| shared.host_is_readable())
            .map_ok(drop)
    }

    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        sources: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_until(Side::Writing, cx, |shared| {
            shared.host_write(sources, Admit::Part)
        })
        .map(|result| result?)
    }

    pub(crate) fn poll_write_bytes(
        &self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        self.poll_until(Side::Writing, cx, |shared| {
            shared.host_write_bytes(bytes, Admit::Part).0
        })
        .map(|result| result?)
    }

    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_until(Side::Writing, cx, |shared| shared.host_is_writable())
            .map_ok(drop)
    }
}

/// At once or not at all.
impl Host {
    pub(crate) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.try_read_vectored(&mut [IoSliceMut::new(buf)])
    }

    pub(crate) fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        // As tokio does: what it has room for now. A vector can always grow, so a guest that keeps writing could keep
        // one call going for ever. The buffer is the caller's code, so it does not run while the ring is locked.
        let target = buf.chunk_mut();
        let limit = target.len();
        if limit == 0 {
            return Ok(0);
        }
        let mut filled = 0;
        let read = now(self.shared.host_read(limit, |bytes| {
            target[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        }))?;
        // SAFETY: the first `read` bytes of `chunk_mut` were just copied into.
        unsafe { buf.advance_mut(read) };
        Ok(read)
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

    /// Appends what there is, up to `limit` bytes. `buf` grows before the ring is locked, and is no code of the caller's.
    pub(crate) fn try_read_available(&self, buf: &mut BytesMut, limit: usize) -> io::Result<usize> {
        if limit == 0 {
            return Ok(0);
        }
        now(self.read_available_now(buf, limit))
    }

    fn read_available_now(&self, buf: &mut BytesMut, limit: usize) -> Option<io::Result<usize>> {
        // First, so that the buffer does not grow for nothing.
        let has_bytes = self.shared.host_is_readable()?;
        let limit = limit.min(self.shared.host_unread().max(1));
        if has_bytes {
            buf.reserve(limit);
        }
        self.shared
            .host_read(limit, |bytes| buf.extend_from_slice(bytes))
    }

    pub(crate) fn try_write(&self, sources: &[IoSlice<'_>]) -> io::Result<usize> {
        now(self.shared.host_write(sources, Admit::Part))
    }

    pub(crate) fn try_write_all(&self, bytes: &[u8]) -> io::Result<()> {
        self.check_fits(bytes.len())?;
        now(self.shared.host_write(&[IoSlice::new(bytes)], Admit::Whole)).map(drop)
    }

    pub(crate) fn try_write_all_bytes(&self, mut bytes: Bytes) -> Result<(), (Bytes, io::Error)> {
        let written = self.write_all_bytes_now(&mut bytes).0;
        written.map_err(|error| (bytes, error))
    }

    /// Also returns the bytes that were copied: dropping them may run the caller's code.
    fn write_all_bytes_now(&self, bytes: &mut Bytes) -> (io::Result<()>, Bytes) {
        if let Err(error) = self.check_fits(bytes.len()) {
            return (Err(error), Bytes::new());
        }
        let (written, copied) = self.shared.host_write_bytes(bytes, Admit::Whole);
        (now(written).map(drop), copied)
    }

    pub(crate) fn try_reserve(&self, length: usize) -> io::Result<Permit<'_>> {
        self.check_fits(length)?;
        now(self.shared.host_try_claim(length))?;
        Ok(Permit::of_claimed(&self.shared, length))
    }

    /// Nothing waits for more room than there can be.
    fn check_fits(&self, length: usize) -> io::Result<()> {
        let most = self.capacity();
        if length > most {
            return Err(Error::TooLong { length, most }.into());
        }
        Ok(())
    }
}

fn now<T>(found: Option<io::Result<T>>) -> io::Result<T> {
    found.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// By waiting.
impl Host {
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        let sides: &[Side] = match (interest.is_readable(), interest.is_writable()) {
            (true, true) => &[Side::Reading, Side::Writing],
            (true, false) => &[Side::Reading],
            (false, true) => &[Side::Writing],
            (false, false) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let look = || Some(self.ready_now(interest)).filter(|ready| !ready.is_empty());
        self.until(sides, look).await
    }

    fn ready_now(&self, interest: Interest) -> Ready {
        let mut ready = Ready::EMPTY;
        if interest.is_readable() {
            if self.shared.host_is_readable().is_some() {
                ready |= Ready::READABLE;
            }
            if self.shared.has_reading_ended() {
                ready |= Ready::READABLE | Ready::READ_CLOSED;
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
        if self.until(&[Side::Reading], look).await? {
            Ok(())
        } else if self.shared.has_host_ended() {
            Err(Error::ShutDown.into())
        } else {
            Err(Error::GuestGone.into())
        }
    }

    pub(crate) async fn closed(&self) {
        self.shared.guest_gone().wait().await;
    }

    pub(crate) async fn write_bytes(&self, bytes: &mut Bytes) -> io::Result<usize> {
        // If it has to wait, it takes its turn, so that it gets room beside tasks that reserve all of it again and again.
        let found = poll_fn(|cx| {
            let budget = ready!(coop::poll_proceed(cx));
            budget.made_progress();
            Poll::Ready(self.shared.host_write_bytes(bytes, Admit::Part).0)
        });
        if let Some(written) = found.await {
            return written;
        }
        // Dropped after the turn, as that may run the caller's code.
        let _item = bytes.clone();
        let _turn = self.turn().await;
        let look = || self.shared.host_write_bytes(bytes, Admit::Part).0;
        self.until(&[Side::Writing], look).await?
    }

    pub(crate) async fn read_bytes(&self) -> io::Result<Bytes> {
        let look = || self.shared.host_read_bytes();
        self.until(&[Side::Reading], look).await?
    }

    pub(crate) async fn read_available(
        &self,
        buf: &mut BytesMut,
        limit: usize,
    ) -> io::Result<usize> {
        if limit == 0 {
            return Ok(0);
        }
        let look = || self.read_available_now(buf, limit);
        self.until(&[Side::Reading], look).await?
    }

    /// `None` once writing has ended: what follows fails at once.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.shared.turn.acquire().await.ok()
    }

    pub(crate) async fn reserve(&self, length: usize) -> io::Result<Permit<'_>> {
        self.check_fits(length)?;
        let turn = self.turn().await;
        let permit = self.claim(length).await?;
        drop(turn);
        Ok(permit)
    }

    /// For the task whose turn it is.
    async fn claim(&self, length: usize) -> io::Result<Permit<'_>> {
        let _waits = GivesUp(&self.shared);
        let look = || self.shared.host_claim(length);
        self.until(&[Side::Writing], look).await??;
        Ok(Permit::of_claimed(&self.shared, length))
    }

    /// Writes all of `bytes`, or hands them back with `WouldBlock` if they must wait: see [`write_whole`](Self::write_whole).
    /// Waits only for the task's budget.
    pub(crate) fn poll_write_whole(
        &self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        let budget = ready!(coop::poll_proceed(cx));
        let mut copied = Bytes::new();
        let written = match self.shared.turn.try_acquire() {
            Ok(_turn) if bytes.len() <= self.capacity() => {
                let written;
                (written, copied) = self.write_all_bytes_now(bytes);
                written
            }
            _ => Err(io::ErrorKind::WouldBlock.into()),
        };
        budget.made_progress();
        // Only now, as that may run the caller's code.
        drop(copied);
        Poll::Ready(written)
    }

    /// Writes all of `bytes`. Nothing of another task's comes between them.
    pub(crate) async fn write_whole(&self, mut bytes: Bytes) -> io::Result<()> {
        // Dropped after the turn, as that may run the caller's code.
        let _item = bytes.clone();
        let _turn = self.turn().await;
        if bytes.len() <= self.capacity() {
            return self.claim(bytes.len()).await?.write_all_bytes(bytes);
        }
        let _exclusive = Exclusive::begin(&self.shared);
        while !bytes.is_empty() {
            let look = || self.shared.host_write_bytes(&mut bytes, Admit::Exclusive).0;
            self.until(&[Side::Writing], look).await??;
        }
        Ok(())
    }

    pub(crate) async fn drained(&self) -> io::Result<()> {
        let position = self.shared.host_written();
        let look = || self.shared.host_is_drained(position);
        self.until(&[Side::Draining], look).await?
    }
}

/// Ends the wait of a claim that was dropped before it had its room.
struct GivesUp<'a>(&'a ConsoleSharedState);

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        self.0.host_gives_up_claim();
    }
}

/// While it lives, all room belongs to one long write.
struct Exclusive<'a>(&'a ConsoleSharedState);

impl<'a> Exclusive<'a> {
    fn begin(shared: &'a ConsoleSharedState) -> Self {
        shared.host_set_exclusive(true);
        Self(shared)
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.0.host_set_exclusive(false);
    }
}

/// The chunk that `poll_fill_buf` showed last: a handle that keeps it alive.
#[derive(Default)]
pub(crate) struct Peeked(Option<Chunk>);

impl fmt::Debug for Peeked {
    /// Shows no payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

impl Peeked {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Chunk::rest)
    }

    pub(crate) fn poll_fill_buf(
        &mut self,
        host: &Host,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<&[u8]>> {
        let peeked = host.poll_until(Side::Reading, cx, |shared| shared.host_peek());
        self.0 = Some(ready!(peeked)??);
        Poll::Ready(Ok(self.bytes()))
    }

    pub(crate) fn consume(&mut self, host: &Host, amount: usize) {
        // First, so that the ring lets go of the last handle and its storage returns to the pool now.
        self.clear();
        host.shared.host_consume(amount);
    }

    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}

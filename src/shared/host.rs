//! The host's end of the shared state.
//!
//! A look that finds nothing is `None`: the caller arms a signal and looks again before it waits.

use std::io::{self, IoSlice};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::ConsoleSharedState;
use super::ring::{Admit, Refused};
use crate::error::Error;
use crate::sync::{Ordering, fence};

/// Reading what the guest transmitted.
impl ConsoleSharedState {
    /// Hands up to `limit` bytes to `sink`, `Some(0)` at the end. `limit` is not zero.
    pub(crate) fn host_read(
        &self,
        limit: usize,
        sink: impl FnMut(&[u8]),
    ) -> Option<io::Result<usize>> {
        let read = self.tx_ring.read(limit, sink)?;
        self.offer_tx_room();
        Some(self.unless_cut_off(read == 0, read))
    }

    /// The next chunk, without a copy if that pays; no bytes at the end.
    pub(crate) fn host_read_bytes(self: &Arc<Self>) -> Option<io::Result<Bytes>> {
        let bytes = self.tx_ring.read_bytes(
            |bytes, taken| self.lend(bytes, taken, true),
            |bytes| self.hold(bytes),
        )?;
        self.offer_tx_room();
        Some(self.unless_cut_off(bytes.is_empty(), bytes))
    }

    /// A handle to the next chunk, which is not read by that; no bytes at the end.
    pub(crate) fn host_peek(self: &Arc<Self>) -> Option<io::Result<Bytes>> {
        let bytes = self
            .tx_ring
            .peek(|bytes, taken| self.lend(bytes, taken, false))?;
        Some(self.unless_cut_off(bytes.is_empty(), bytes))
    }

    /// The end is an error if bytes were lost there.
    fn unless_cut_off<T>(&self, is_end: bool, found: T) -> io::Result<T> {
        if is_end && self.tx_ring.is_cut_off() {
            return Err(Error::CutOff.into());
        }
        Ok(found)
    }

    /// Takes bytes that [`host_peek`](Self::host_peek) showed as read.
    pub(crate) fn host_consume(&self, count: usize) {
        self.tx_ring.consume(count);
        self.offer_tx_room();
    }

    /// Whether there are bytes, `Some(false)` at the end.
    pub(crate) fn host_is_readable(&self) -> Option<bool> {
        self.tx_ring.is_readable()
    }

    fn offer_tx_room(&self) {
        self.tx_room.notify_if(|| self.tx_ring.is_worth_a_wake());
    }

    fn lend(self: &Arc<Self>, bytes: Vec<u8>, taken: usize, is_held: bool) -> Bytes {
        Bytes::from_owner(LentChunk {
            bytes,
            taken,
            is_held,
            shared: Arc::clone(self),
        })
    }

    fn hold(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        Bytes::from_owner(HeldBytes {
            bytes,
            shared: Arc::clone(self),
        })
    }

    /// Whether krun has called: `Some(false)` if it never will.
    pub(crate) fn host_sees_guest(&self) -> Option<bool> {
        // First: a guest that opened its port and then went is seen to have opened it.
        let has_gone = self.tx_ring.is_closed();
        if self.guest_opened.load(Ordering::Relaxed) {
            return Some(true);
        }
        has_gone.then_some(false)
    }

    /// The host reads no more: what the guest still writes is discarded.
    pub(crate) fn host_stop_reading(&self) {
        self.tx_ring.abandon();
        self.tx_room.notify();
        self.host_gone.set();
    }

    /// Blocks until the host has stopped reading or `limit` is over.
    pub(crate) fn wait_until_host_stops_reading(&self, limit: Duration) {
        self.host_gone.wait(limit);
    }

    /// Whether the guest's writes must not wait from now on.
    pub(crate) fn set_quiesced(&self, quiesced: bool) {
        self.trace
            .lifecycle(if quiesced { "quiesced" } else { "resumed" });
        self.quiesced.store(quiesced, Ordering::Relaxed);
        self.tx_room.notify();
    }
}

/// Writing what the guest will receive.
impl ConsoleSharedState {
    /// Copies as much as there is room for.
    pub(crate) fn host_write(&self, sources: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        self.host_wrote(self.rx_ring.write(sources, Admit::Part))
    }

    /// Takes as much as there is room for from the front of `bytes`, without a copy if that pays.
    pub(crate) fn host_write_bytes(&self, bytes: &mut Bytes) -> Option<io::Result<usize>> {
        let (written, _copied) = self.rx_ring.write_bytes(bytes);
        self.host_wrote(written)
    }

    fn host_wrote(&self, written: Result<usize, Refused>) -> Option<io::Result<usize>> {
        // Whatever it was, see `Ring::write`.
        self.rx_data.notify_after_fence();
        match written {
            Ok(written) => Some(Ok(written)),
            Err(Refused::Full) => None,
            Err(Refused::Closed) => Some(Err(Error::ShutDown.into())),
            Err(Refused::Abandoned) => Some(Err(Error::GuestGone.into())),
        }
    }

    /// Whether there is room, `Some(false)` if there never will be.
    pub(crate) fn host_is_writable(&self) -> Option<bool> {
        if self.rx_ring.is_closed() || self.rx_ring.is_abandoned() {
            return Some(false);
        }
        self.rx_ring.has_room().then_some(true)
    }

    /// The position after what was written so far.
    pub(crate) fn host_written(&self) -> u64 {
        self.rx_ring.end_position()
    }

    /// Whether the guest has taken everything before `position`, an error if it never will. Until
    /// then there will be a signal, if `drain_gate` was [armed](Self::host_waits_for_drain) **before**
    /// the call.
    pub(crate) fn host_is_drained(&self, position: u64) -> Option<io::Result<()>> {
        self.drain_mark.fetch_min(position, Ordering::Relaxed);
        // Pairs with the fence in `Gate::open`: after it the guest's side sees the mark, or this sees
        // what it has read. The arming came before, so whoever clears the mark also signals.
        fence(Ordering::SeqCst);
        Some(match self.rx_ring.has_read_to(position)? {
            true => Ok(()),
            false => Err(Error::GuestGone.into()),
        })
    }

    /// Announces a sleep on `rx_room` that [`host_is_drained`](Self::host_is_drained) ends.
    pub(crate) fn host_waits_for_drain(&self) {
        self.rx_room.arm_also(&self.drain_gate);
    }

    /// Ends the host's writing without a word to the guest.
    pub(crate) fn host_shut_down(&self) {
        self.rx_ring.close();
        self.rx_data.notify_after_fence();
        // Whoever waits for room learns that there will be none.
        self.rx_room.notify();
    }

    /// Ends the host's writing: after the last byte the guest reads the end of the file.
    pub(crate) fn host_hang_up(&self) {
        self.trace.lifecycle("the host hangs up");
        self.rx_ring.close();
        // Relaxed: see `guest_read`.
        self.hung_up.store(true, Ordering::Relaxed);
        self.rx_data.notify();
        self.rx_room.notify();
    }
}

/// A chunk of the ring's, for as long as there is a handle to it.
struct LentChunk {
    bytes: Vec<u8>,
    /// What had been read before.
    taken: usize,
    /// Whether the rest counts until then, as [`HeldBytes`] do.
    is_held: bool,
    shared: Arc<ConsoleSharedState>,
}

impl AsRef<[u8]> for LentChunk {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }
}

impl Drop for LentChunk {
    fn drop(&mut self) {
        let count = self.as_ref().len();
        self.shared.tx_ring.give_back(mem::take(&mut self.bytes));
        if self.is_held {
            self.shared.tx_ring.release(count);
            self.shared.offer_tx_room();
        }
    }
}

/// Bytes that were read and count until they are dropped.
struct HeldBytes {
    bytes: Bytes,
    shared: Arc<ConsoleSharedState>,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        let count = mem::take(&mut self.bytes).len();
        self.shared.tx_ring.release(count);
        self.shared.offer_tx_room();
    }
}

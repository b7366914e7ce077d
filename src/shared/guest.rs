//! The guest's end of the shared state. krun's threads call it, so nothing here panics.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod peer;

use std::io::IoSlice;
use std::mem;

use super::ConsoleSharedState;
use super::ring::{Admit, Refused};
use crate::sync::Ordering;

impl ConsoleSharedState {
    /// krun calls only once the guest has opened its port.
    pub(crate) fn guest_calls(&self) {
        if !self.guest_opened.load(Ordering::Relaxed)
            && !self.guest_opened.swap(true, Ordering::Relaxed)
        {
            self.trace.lifecycle("the guest has opened its port");
            self.tx_data.notify();
        }
    }

    /// Fills `target` as far as there are bytes: `None` if there are none yet, `Some(0)` at the
    /// end. `target` is not empty.
    pub(crate) fn guest_read(&self, mut target: &mut [u8]) -> Option<usize> {
        let read = self.rx_ring.read(target.len(), |bytes| {
            // The ring hands out no more than it was asked for, so the target is never short.
            if let Some((head, tail)) = mem::take(&mut target).split_at_mut_checked(bytes.len()) {
                head.copy_from_slice(bytes);
                target = tail;
            }
        })?;
        // Relaxed: the end that `read` found has ordered all there was before it, and the fence of the
        // signal in `host_hang_up` makes sure that one look finds this. A host that only shut down has
        // not hung up.
        if read == 0 && !self.hung_up.load(Ordering::Relaxed) {
            return None;
        }
        self.offer_rx_room();
        Some(read)
    }

    /// Whether there is something to read, or the end.
    pub(crate) fn guest_may_read(&self) -> bool {
        self.rx_ring.has_unread() || self.hung_up.load(Ordering::Relaxed)
    }

    /// After the guest has read.
    fn offer_rx_room(&self) {
        self.rx_room.notify_if(|| self.rx_ring.is_worth_a_wake());
        self.rx_room
            .notify_also(&self.drain_gate, || self.passes_drain_mark());
    }

    /// Whether a task waits for what has just been read; it sets its mark anew if it waits on.
    fn passes_drain_mark(&self) -> bool {
        let mark = self.drain_mark.load(Ordering::Relaxed);
        mark != u64::MAX
            && self.rx_ring.has_read_to(mark).is_some()
            // Also if it is another mark by now: a lower one has been read as well, and hides this one.
            && self.drain_mark.swap(u64::MAX, Ordering::Relaxed) != u64::MAX
    }

    /// Copies all of `source` (of more than the ring holds, a ringful): `None` if there is no room
    /// for that yet.
    ///
    /// `source` is not empty.
    pub(crate) fn guest_write(&self, source: &[u8]) -> Option<usize> {
        let quiesced = self.quiesced.load(Ordering::Relaxed);
        let admit = if quiesced { Admit::Over } else { Admit::Whole };
        let written = self.tx_ring.write(&[IoSlice::new(source)], admit);
        // Whatever it was, see `Ring::write`.
        self.tx_data.notify_after_fence();
        match written {
            Ok(written) => Some(written),
            Err(Refused::Full) => None,
            Err(Refused::Closed | Refused::Abandoned) => {
                self.tx_ring.discard(source.len());
                Some(source.len())
            }
        }
    }

    /// Whether the write that [`guest_write`](Self::guest_write) last refused may now succeed.
    pub(crate) fn guest_may_write(&self) -> bool {
        self.quiesced.load(Ordering::Relaxed) || self.tx_ring.has_wanted_room()
    }

    /// The guest, or krun's end of the port, is gone: the host reads what is left and then the end.
    pub(crate) fn guest_end(&self) {
        self.trace.lifecycle("the guest has gone");
        // First: who has read the end can write no more.
        self.end_rx();
        self.tx_ring.close();
        self.tx_data.notify_after_fence();
    }

    /// The guest reads no more.
    fn end_rx(&self) {
        self.rx_ring.abandon();
        self.rx_room.notify();
        self.rx_room.notify_also(&self.drain_gate, || true);
    }
}

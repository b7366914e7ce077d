//! The guest's end of the shared state for krun's end as a peer of I/O, which reads from and writes to
//! something of its own rather than being called: Windows' pipe.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{self, IoSlice};

use bytes::BufMut;
use bytes::buf::Limit;

use crate::shared::ConsoleSharedState;
use crate::shared::ring::{Admit, Refused};
use crate::sync::Ordering;

/// What is read at once when nobody will read it.
const SCRATCH: usize = 4096;

/// What a peer reads into.
pub(crate) type Target<'a> = Limit<&'a mut Vec<u8>>;

impl ConsoleSharedState {
    /// Lets `source` read the guest's bytes straight into a chunk, once: `None` if there is no room
    /// and they may wait.
    ///
    /// While the port is quiesced nothing may wait, as in [`guest_write`](Self::guest_write); and
    /// once the host reads no more, what comes is discarded and counted. Both go by `scratch`.
    pub(crate) fn guest_write_from(
        &self,
        mut source: impl FnMut(&mut Target<'_>) -> io::Result<usize>,
        scratch: &mut Vec<u8>,
    ) -> Option<io::Result<usize>> {
        match self.tx_ring.fill(&mut source) {
            Ok(result) => {
                // Also if nothing came, see `fill`.
                self.tx_data.notify();
                return Some(result);
            }
            Err(Refused::Full) if !self.quiesced.load(Ordering::Relaxed) => return None,
            Err(_) => {}
        }
        scratch.clear();
        let result = source(&mut scratch.limit(SCRATCH));
        match self.tx_ring.write(&[IoSlice::new(scratch)], Admit::Over) {
            Ok(_) => self.tx_data.notify(),
            Err(_) => self.tx_ring.discard(scratch.len()),
        }
        Some(result)
    }

    /// Shows the next bytes for the guest to `sink`, which is not to wait: `None` if there are none
    /// yet, `Some(Ok(0))` if the guest is to read the end now, and otherwise what `sink` says.
    pub(crate) fn guest_peek(
        &self,
        sink: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut shown = false;
        let result = self.rx_ring.show(|bytes| {
            shown = true;
            sink(bytes)
        })?;
        // Pairs with the store in `host_hang_up`. A host that only shut down has not hung up.
        (shown || self.hung_up.load(Ordering::Acquire)).then_some(result)
    }

    /// Takes bytes that [`guest_peek`](Self::guest_peek) showed as read.
    pub(crate) fn guest_consume(&self, count: usize) {
        self.rx_ring.consume(count);
        self.rx_room
            .notify_if(|| self.passes_drain_mark() || self.rx_ring.is_worth_a_wake());
    }

    /// The guest reads no more. What it has written is still read, until it
    /// [ends](Self::guest_end).
    pub(crate) fn guest_stop_reading(&self) {
        self.rx_ring.abandon();
        self.rx_room.notify();
    }

    /// Someone else came in the guest's place.
    pub(crate) fn guest_was_a_stranger(&self) {
        self.trace
            .lifecycle("a client of another process was turned away");
    }
}

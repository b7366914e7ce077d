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
                // Whatever it was, see `Ring::write`.
                self.tx_data.notify_after_fence();
                return Some(result);
            }
            Err(refused) => {
                self.tx_data.notify_after_fence();
                if refused == Refused::Full && !self.quiesced.load(Ordering::Relaxed) {
                    return None;
                }
            }
        }
        scratch.clear();
        // Who reads into it takes the room that it has, and does not ask for more.
        scratch.reserve(SCRATCH);
        let result = source(&mut scratch.limit(SCRATCH));
        let written = self.tx_ring.write(&[IoSlice::new(scratch)], Admit::Over);
        self.tx_data.notify_after_fence();
        if written.is_err() {
            self.tx_ring.discard(scratch.len());
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
        // Relaxed as in `guest_read`. A host that only shut down has not hung up.
        (shown || self.hung_up.load(Ordering::Relaxed)).then_some(result)
    }

    /// Takes bytes that [`guest_peek`](Self::guest_peek) showed as read.
    pub(crate) fn guest_consume(&self, count: usize) {
        self.rx_ring.consume(count);
        self.offer_rx_room();
    }

    /// The guest reads no more. What it has written is still read, until it
    /// [ends](Self::guest_end).
    pub(crate) fn guest_stop_reading(&self) {
        self.end_rx();
    }

    /// Someone else came in the guest's place.
    pub(crate) fn guest_was_a_stranger(&self) {
        self.trace
            .lifecycle("a client of another process was turned away");
    }
}

#[cfg(all(test, not(tokio_krun_loom)))]
#[allow(clippy::unwrap_used, reason = "no thread of krun's runs tests")]
mod tests {
    use std::time::Duration;

    use super::*;

    const CAPACITY: usize = 4096;

    fn shared() -> ConsoleSharedState {
        ConsoleSharedState::new(CAPACITY, Duration::ZERO).unwrap()
    }

    fn would_block() -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn read_all(shared: &ConsoleSharedState) -> Vec<u8> {
        let mut read = Vec::new();
        while let Some(Ok(1..)) = shared.host_read(100, |bytes| read.extend_from_slice(bytes)) {}
        read
    }

    #[test]
    fn pieces_of_any_size_come_out_in_order_up_to_the_bound() {
        let shared = shared();
        let mut scratch = Vec::new();
        for round in 0..5u8 {
            let mut sent = Vec::new();
            let mut next = round;
            // Each time as much as is offered, up to 700 bytes.
            while let Some(result) = shared.guest_write_from(
                |target| {
                    let length = target.remaining_mut().min(700);
                    for _ in 0..length {
                        next = next.wrapping_mul(31).wrapping_add(7);
                        target.put_u8(next);
                        sent.push(next);
                    }
                    Ok(length)
                },
                &mut scratch,
            ) {
                assert!(result.unwrap() > 0);
            }
            assert_eq!(sent.len(), CAPACITY);
            assert!(!shared.guest_may_write());
            assert_eq!(read_all(&shared), sent);
            assert!(shared.guest_may_write());
        }
        assert_eq!(scratch.capacity(), 0);
    }

    /// What the open chunk holds is out of the reader's reach while it is offered to be filled.
    #[test]
    fn a_reader_that_looked_while_nothing_came_is_woken() {
        let shared = shared();
        shared.guest_write(b"here").unwrap();
        let source = |_: &mut Target<'_>| {
            let look = || shared.host_read(4, |_| {});
            assert!(shared.tx_data.look(look).is_none());
            would_block()
        };
        let before = shared.tx_data.signals();
        assert!(shared.guest_write_from(source, &mut Vec::new()).is_some());
        assert_eq!(shared.tx_data.signals(), before + 1);
        assert_eq!(read_all(&shared), b"here");
    }

    #[test]
    fn a_reader_that_goes_meanwhile_leaves_nothing_behind() {
        let shared = shared();
        shared.guest_write(b"before").unwrap();
        let mut scratch = Vec::new();
        let source = |target: &mut Target<'_>| {
            shared.host_stop_reading();
            target.put_slice(b"now");
            Ok(3)
        };
        assert!(shared.guest_write_from(source, &mut scratch).is_some());
        let source = |target: &mut Target<'_>| {
            assert_eq!(target.chunk_mut().len(), SCRATCH);
            target.put_slice(b"later");
            Ok(5)
        };
        assert!(shared.guest_write_from(source, &mut scratch).is_some());
        let stats = shared.stats().tx;
        assert_eq!((stats.queued, stats.discarded), (0, 14));
    }

    #[test]
    fn while_quiesced_nothing_waits_and_nothing_comes_from_behind_a_hole() {
        let shared = shared();
        let mut scratch = Vec::new();
        let mut fill = |shared: &ConsoleSharedState| {
            let source = |target: &mut Target<'_>| {
                let length = target.remaining_mut().min(1000);
                target.put_bytes(7, length);
                Ok(length)
            };
            shared.guest_write_from(source, &mut scratch)
        };
        while fill(&shared).is_some() {}
        shared.set_quiesced(true);
        let mut taken = CAPACITY;
        while taken < 3 * CAPACITY {
            taken += fill(&shared).unwrap().unwrap();
        }
        assert_eq!(shared.stats().tx.queued as usize, 2 * CAPACITY);
        assert_eq!(shared.stats().tx.discarded as usize, taken - 2 * CAPACITY);
        assert_eq!(read_all(&shared), [7; 2 * CAPACITY]);
        let end = shared.host_read(1, |_| {}).unwrap();
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_shown_counts_until_it_is_consumed() {
        let shared = shared();
        let mut sent = bytes::Bytes::from_static(b"four");
        shared.host_write_bytes(&mut sent).unwrap().unwrap();
        for _ in 0..2 {
            let shown = shared.guest_peek(|bytes| {
                assert_eq!(bytes, b"four");
                Ok(3)
            });
            assert_eq!(shown.unwrap().unwrap(), 3);
            assert_eq!(shared.stats().rx.queued, 4);
        }
        shared.guest_consume(3);
        assert_eq!(shared.stats().rx.queued, 1);
        assert!(shared.guest_peek(|_| would_block()).unwrap().is_err());
        shared.guest_consume(1);
        assert!(shared.guest_peek(|_| Ok(1)).is_none());
        shared.host_shut_down();
        assert!(shared.guest_peek(|_| Ok(1)).is_none());
        shared.host_hang_up();
        assert_eq!(shared.guest_peek(|_| Ok(1)).unwrap().unwrap(), 0);
    }
}

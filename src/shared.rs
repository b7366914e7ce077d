//! What both ends share: the two rings, the four signals between them, and who is still there.
//!
//! The rings are named from the guest's side, as virtio's queues are: `tx_ring` holds what the
//! guest transmitted, `rx_ring` what it will receive. Each has two signals: that there is
//! something to read, and that there is room again.
//!
//! Nothing here knows a descriptor, a handle or tokio: what a signal is made of comes from
//! [`sys`].

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod gate;
mod latch;
mod ring;
mod signal;

use std::time::Duration;
use std::{fmt, io, mem};

use crate::options::Options;
use crate::sync::{AtomicBool, Ordering};
use crate::sys;
use latch::Latch;
use ring::{Admit, Refused, Ring};
pub(crate) use signal::{Signal, Wake};

pub(crate) struct ConsoleSharedState {
    tx_ring: Ring,
    rx_ring: Ring,
    /// To the host: the guest has transmitted.
    pub(crate) tx_data: Signal<sys::TxData>,
    /// To the guest: its next transmission finds room.
    pub(crate) tx_room: Signal<sys::TxRoom>,
    /// To the guest: there is something to receive.
    pub(crate) rx_data: Signal<sys::RxData>,
    /// To the host: its next write finds room.
    pub(crate) rx_room: Signal<sys::RxRoom>,
    /// The guest's writes must not wait; see [`PortHandle::quiesce`](crate::PortHandle::quiesce).
    quiesced: AtomicBool,
    /// The guest is to read the end of the file after the last byte.
    hung_up: AtomicBool,
    host_gone: Latch,
}

impl ConsoleSharedState {
    /// `options` are valid.
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        let ring = || Ring::new(options.capacity, options.slots);
        Ok(Self {
            tx_ring: ring(),
            rx_ring: ring(),
            tx_data: Signal::new(sys::TxData::new()?),
            tx_room: Signal::new(sys::TxRoom::new()?),
            rx_data: Signal::new(sys::RxData::new()?),
            rx_room: Signal::new(sys::RxRoom::new()?),
            quiesced: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
            host_gone: Latch::default(),
        })
    }
}

/// The host's end.
impl ConsoleSharedState {
    /// Hands up to `limit` of the guest's bytes to `sink`: `None` if there are none yet, `Some(0)`
    /// at the end. `limit` is not zero.
    pub(crate) fn host_read(&self, limit: usize, sink: impl FnMut(&[u8])) -> Option<usize> {
        let read = self.tx_ring.read(limit, sink)?;
        if self.tx_ring.is_worth_a_wake() {
            self.tx_room.notify();
        }
        Some(read)
    }

    /// Copies as much as there is room for: `None` if there is none yet.
    pub(crate) fn host_write(&self, source: &[u8]) -> Option<io::Result<usize>> {
        match self.rx_ring.write(source, Admit::Part) {
            Ok(written) => {
                self.rx_data.notify();
                Some(Ok(written))
            }
            Err(Refused::Full) => None,
            Err(Refused::Closed | Refused::Abandoned) => {
                Some(Err(io::ErrorKind::BrokenPipe.into()))
            }
        }
    }

    /// Ends the host's writing without a word to the guest.
    pub(crate) fn host_shut_down(&self) {
        self.rx_ring.close();
    }

    /// Ends the host's writing: after the last byte the guest reads the end of the file.
    pub(crate) fn host_hang_up(&self) {
        self.rx_ring.close();
        // Pairs with the load in `guest_read`.
        self.hung_up.store(true, Ordering::Release);
        self.rx_data.notify();
    }

    /// The host reads no more: what the guest still writes is discarded.
    pub(crate) fn host_stop_reading(&self) {
        self.tx_ring.abandon();
        self.tx_room.notify();
        self.host_gone.set();
    }

    /// Blocks until the host has stopped reading or `limit` is over, and says which: `true` if the
    /// host has.
    pub(crate) fn wait_until_host_stops_reading(&self, limit: Duration) -> bool {
        self.host_gone.wait(limit)
    }

    /// Whether the guest's writes must not wait from now on.
    pub(crate) fn set_quiesced(&self, quiesced: bool) {
        self.quiesced.store(quiesced, Ordering::Relaxed);
        self.tx_room.notify();
    }

    /// Bytes the guest has written that nobody will read.
    pub(crate) fn tx_discarded(&self) -> u64 {
        self.tx_ring.discarded()
    }
}

/// The guest's end.
impl ConsoleSharedState {
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
        // Pairs with the store in `host_hang_up`. A host that only shut down has not hung up.
        if read == 0 && !self.hung_up.load(Ordering::Acquire) {
            return None;
        }
        if self.rx_ring.is_worth_a_wake() {
            self.rx_room.notify();
        }
        Some(read)
    }

    /// Copies all of `source` (of more than the ring holds, a ringful): `None` if there is no room
    /// for that yet.
    ///
    /// An empty write never has room unless the guest is quiesced: krun would offer the same empty
    /// descriptor again at once, for ever, so its thread is better asleep.
    pub(crate) fn guest_write(&self, source: &[u8]) -> Option<usize> {
        let quiesced = self.quiesced.load(Ordering::Relaxed);
        if source.is_empty() {
            self.tx_ring.want_more_than_there_is();
            return quiesced.then_some(0);
        }
        let admit = if quiesced { Admit::Over } else { Admit::Whole };
        match self.tx_ring.write(source, admit) {
            Ok(written) => {
                self.tx_data.notify();
                Some(written)
            }
            Err(Refused::Full) => None,
            Err(Refused::Closed | Refused::Abandoned) => {
                self.tx_ring.discard(source.len() as u64);
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
        self.tx_ring.close();
        self.tx_data.notify();
        self.rx_ring.abandon();
        self.rx_room.notify();
    }
}

impl fmt::Debug for ConsoleSharedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleSharedState")
            .field("tx_ring", &self.tx_ring)
            .field("rx_ring", &self.rx_ring)
            .field("hung_up", &self.hung_up)
            .field("quiesced", &self.quiesced)
            .finish_non_exhaustive()
    }
}

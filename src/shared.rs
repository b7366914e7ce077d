//! What both ends share: the two rings, the four signals between them, and who is still there.
//!
//! The rings are named from the guest's side, as virtio's queues are: `tx_ring` holds what the
//! guest transmitted, `rx_ring` what it will receive. Each has two signals: that there is
//! something to read, and that there is room again.
//!
//! Nothing here knows a descriptor, a handle or tokio: what a signal is made of comes from
//! [`sys`].

mod gate;
#[allow(dead_code, reason = "each platform needs its own part")]
mod guest;
mod host;
mod latch;
mod ring;
mod signal;

use std::{fmt, io};

use crate::stats::{RingStats, Stats};
use crate::sync::{AtomicBool, AtomicU64};
use crate::sys;
use crate::trace::Trace;
use latch::Latch;
use ring::Ring;
pub(crate) use signal::{Signal, Wake};

pub(crate) struct ConsoleSharedState {
    tx_ring: Ring,
    rx_ring: Ring,
    /// To the host: the guest has transmitted, or opened its port.
    pub(crate) tx_data: Signal<sys::TxData>,
    /// To the guest: its next transmission finds room.
    pub(crate) tx_room: Signal<sys::TxRoom>,
    /// To the guest: there is something to receive.
    pub(crate) rx_data: Signal<sys::RxData>,
    /// To the host: its next write finds room, or what it waits for has been taken.
    pub(crate) rx_room: Signal<sys::RxRoom>,
    /// The guest is to read the end of the file after the last byte.
    hung_up: AtomicBool,
    /// krun has called.
    guest_opened: AtomicBool,
    /// The guest's writes must not wait; see [`PortHandle::quiesce`](crate::PortHandle::quiesce).
    quiesced: AtomicBool,
    /// The lowest position in `rx_ring` that a task waits for the guest to take; `u64::MAX` for
    /// none.
    drain_mark: AtomicU64,
    host_gone: Latch,
    trace: Trace,
}

impl ConsoleSharedState {
    /// Two rings of `capacity` bytes in `slots` chunks each: valid numbers, see
    /// [`Options`](crate::Options).
    pub(crate) fn new(capacity: usize, slots: usize) -> io::Result<Self> {
        let ring = || Ring::new(capacity, slots);
        Ok(Self {
            tx_ring: ring(),
            rx_ring: ring(),
            tx_data: Signal::new(sys::TxData::new()?),
            tx_room: Signal::new(sys::TxRoom::new()?),
            rx_data: Signal::new(sys::RxData::new()?),
            rx_room: Signal::new(sys::RxRoom::new()?),
            hung_up: AtomicBool::new(false),
            guest_opened: AtomicBool::new(false),
            quiesced: AtomicBool::new(false),
            drain_mark: AtomicU64::new(u64::MAX),
            host_gone: Latch::default(),
            trace: Trace::new(),
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            tx: RingStats {
                data_wakes: self.tx_data.signals(),
                room_wakes: self.tx_room.signals(),
                ..self.tx_ring.stats()
            },
            rx: RingStats {
                data_wakes: self.rx_data.signals(),
                room_wakes: self.rx_room.signals(),
                ..self.rx_ring.stats()
            },
        }
    }
}

impl fmt::Debug for ConsoleSharedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleSharedState")
            .field("tx_ring", &self.tx_ring)
            .field("rx_ring", &self.rx_ring)
            .field("hung_up", &self.hung_up)
            .field("guest_opened", &self.guest_opened)
            .field("quiesced", &self.quiesced)
            .finish_non_exhaustive()
    }
}

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
#[cfg(all(test, tokio_krun_loom))]
mod models;
mod pool;
mod ring;
mod signal;

use std::time::{Duration, Instant};
use std::{fmt, hint, io};

use crate::stats::{RingStats, Stats};
use crate::sync::{AtomicBool, AtomicU64};
use crate::sys;
use crate::trace::Trace;
use gate::Gate;
use latch::Latch;
use pool::USUAL_CHUNK;
use ring::Ring;
pub(crate) use signal::{Signal, Wake};

/// Into how many chunks a small capacity is cut.
const LEAST_CHUNKS: usize = 8;

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
    /// For those who wait on `rx_room` only until the guest has taken up to `drain_mark`.
    drain_gate: Gate,
    /// The lowest position in `rx_ring` that one of them waits for; `u64::MAX` for none.
    drain_mark: AtomicU64,
    /// How long a side that finds nothing goes on looking before it sleeps.
    busy_poll: Duration,
    host_gone: Latch,
    trace: Trace,
}

impl ConsoleSharedState {
    /// Two rings of `capacity` bytes each: a valid number, see [`Options`](crate::Options).
    pub(crate) fn new(capacity: usize, busy_poll: Duration) -> io::Result<Self> {
        // A ring of few chunks would be one chunk too short much of the time.
        let chunk_size = USUAL_CHUNK.min(capacity.div_ceil(LEAST_CHUNKS));
        let ring = || Ring::new(capacity, chunk_size);
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
            drain_gate: Gate::new(),
            drain_mark: AtomicU64::new(u64::MAX),
            busy_poll,
            host_gone: Latch::default(),
            trace: Trace::new(),
        })
    }

    /// Looks, and if that finds nothing goes on looking for as long as the options say: before
    /// either side arms a signal.
    pub(crate) fn busy_look<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let mut found = look();
        if found.is_none() && !self.busy_poll.is_zero() {
            let began = Instant::now();
            while found.is_none() && began.elapsed() < self.busy_poll {
                hint::spin_loop();
                found = look();
            }
        }
        found
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

#[cfg(all(test, not(tokio_krun_loom)))]
mod tests {
    use super::*;

    /// How often a look that finds something the third time is taken, and what is found.
    fn looks(busy_poll: Duration) -> (u32, Option<()>) {
        let shared = ConsoleSharedState::new(32 * 1024, busy_poll).unwrap();
        let mut looks = 0;
        let found = shared.busy_look(|| {
            looks += 1;
            (looks == 3).then_some(())
        });
        (looks, found)
    }

    #[test]
    fn a_side_goes_on_looking_only_if_it_is_told_to() {
        assert_eq!(looks(Duration::ZERO), (1, None));
        assert_eq!(looks(Duration::MAX), (3, Some(())));
    }
}

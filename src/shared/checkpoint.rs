//! Capture of both directions at one moment, and how a new stream begins with that.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[cfg(all(test, tokio_krun_loom))]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "krun's threads do not run models"
)]
mod models;

use super::ConsoleSharedState;
use super::ring::RingState;
use crate::error::Error;
use crate::sync::Ordering;

/// Both directions at one moment, and what was said of their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    /// How many bytes each direction holds.
    pub(crate) capacity: usize,
    pub(crate) guest_opened: bool,
    /// The host writes no more.
    pub(crate) shut_down: bool,
    pub(crate) hung_up: bool,
    /// The host reads no more.
    pub(crate) reading_ended: bool,
    /// The stream was dropped or closed.
    pub(crate) closed: bool,
    pub(crate) tx: RingState,
    pub(crate) rx: RingState,
}

impl Captured {
    /// The smallest capacity of a stream that can begin with this.
    pub(crate) fn least_capacity(&self) -> usize {
        // A port that is quiesced takes up to twice its capacity from the guest.
        self.rx.unread.len().max(self.tx.unread.len().div_ceil(2))
    }
}

impl ConsoleSharedState {
    /// Copies both directions at one moment, if the guest's side is at rest. Changes nothing.
    pub(crate) fn capture(&self) -> Result<Captured, Error> {
        // No other code locks both rings, so the order does not matter.
        let mut tx = self.tx_ring.hold_still();
        let mut rx = self.rx_ring.hold_still();
        // What will not change comes first.
        if self.tx_ring.is_cut_off() {
            return Err(Error::CutOff);
        }
        if self.tx_ring.is_closed() || self.rx_ring.is_abandoned() {
            return Err(Error::GuestGone);
        }
        self.check_rest()?;
        Ok(Captured {
            capacity: self.capacity(),
            guest_opened: self.guest_opened.load(Ordering::Relaxed),
            shut_down: self.rx_ring.is_closed(),
            hung_up: self.hung_up.load(Ordering::Relaxed),
            reading_ended: self.tx_ring.is_abandoned(),
            closed: self.has_host_ended(),
            tx: tx.copy(),
            rx: rx.copy(),
        })
    }

    fn check_rest(&self) -> Result<(), Error> {
        #[cfg(windows)]
        if self.is_piped.load(Ordering::Relaxed) {
            return Err(Error::InPipe);
        }
        match self.workers.have_ended() {
            true => Ok(()),
            false => Err(Error::NotAtRest),
        }
    }

    /// Begins a new stream with `state`, before anybody uses it. Its capacity is large enough.
    pub(crate) fn restore(&self, state: &Captured) {
        self.tx_ring.restore(&state.tx);
        self.rx_ring.restore(&state.rx);
        self.guest_opened
            .store(state.guest_opened, Ordering::Relaxed);
        if state.hung_up {
            self.host_hang_up();
        } else if state.shut_down {
            self.host_shut_down();
        }
        if state.reading_ended {
            self.host_stop_reading();
        }
        self.host_ended.store(state.closed, Ordering::Relaxed);
    }
}

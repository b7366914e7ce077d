//! The port's two virtqueues, between the guest's driver and krun's workers.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{Interest, Ready};
use tokio::sync::Notify;

use crate::foreign;
use crate::shared::Wake;
use crate::sys::TaskWake;

/// Descriptors in each queue: krun's `DEFAULT_QUEUE_SIZE`.
const QUEUE_SIZE: usize = 32;
/// The size of a buffer that Linux offers the host to fill.
const RX_BUFFER: usize = 4096;
/// The most bytes that Linux puts into one descriptor.
const TX_BUFFER: usize = 32 * 1024;

/// Tells a worker of krun's that its queue has a descriptor again.
pub(super) type Kick = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
pub(super) struct Virtqueues {
    state: Mutex<State>,
    /// Wakes the agent's tasks that want to read.
    pub(super) readable: TaskWake,
    /// Wakes the agent's tasks that want to write.
    pub(super) writable: TaskWake,
    tx_completed: Notify,
}

#[derive(Default)]
struct State {
    guest_connected: bool,
    /// The port was open when the guest was captured, and its agent has not come for it yet.
    is_to_be_taken_over: bool,
    host_gone: bool,
    /// The guest has begun to power off: nobody opens the port any more.
    is_powering_off: bool,
    powered_off: bool,
    paused: bool,
    /// Buffers that krun has filled for the guest.
    rx_used: VecDeque<Vec<u8>>,
    /// How many bytes of the first one the guest has read.
    rx_taken: usize,
    /// Descriptors that the guest has sent and krun has not taken yet.
    tx_avail: VecDeque<Vec<u8>>,
    /// The TX worker holds a descriptor.
    tx_busy: bool,
    rx_worker: Worker,
    tx_worker: Worker,
}

/// What a checkpoint saves of both queues.
#[derive(Clone)]
pub(super) struct Queues {
    guest_connected: bool,
    host_gone: bool,
    rx_used: VecDeque<Vec<u8>>,
    rx_taken: usize,
    tx_avail: VecDeque<Vec<u8>>,
}

impl Virtqueues {
    /// `None` unless the CPUs stand still. krun's workers do, too.
    pub(super) fn capture(&self) -> Option<Queues> {
        let state = self.state();
        (state.paused && !state.tx_busy && !state.powered_off).then(|| Queues {
            guest_connected: state.guest_connected,
            host_gone: state.host_gone,
            rx_used: state.rx_used.clone(),
            rx_taken: state.rx_taken,
            tx_avail: state.tx_avail.clone(),
        })
    }

    /// The CPUs stand still at first.
    pub(super) fn restore(queues: &Queues) -> Self {
        let queues = queues.clone();
        let state = State {
            guest_connected: queues.guest_connected,
            is_to_be_taken_over: queues.guest_connected,
            host_gone: queues.host_gone,
            paused: true,
            rx_used: queues.rx_used,
            rx_taken: queues.rx_taken,
            tx_avail: queues.tx_avail,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            ..Self::default()
        }
    }
}

/// A worker of krun's, as the driver knows it.
#[derive(Default)]
struct Worker {
    kick: Option<Kick>,
    /// It has found its queue empty.
    is_starved: bool,
}

impl Worker {
    /// What to call, without the lock, after a descriptor was added.
    #[must_use]
    fn offer(&mut self) -> Option<Kick> {
        std::mem::take(&mut self.is_starved)
            .then(|| self.kick.clone())
            .flatten()
    }
}

fn run(kick: Option<Kick>) {
    if let Some(kick) = kick {
        kick();
    }
}

impl State {
    /// The host has closed the port, or the machine is off. While its CPUs stand still, the guest learns nothing.
    fn has_ended(&self) -> bool {
        (self.host_gone && !self.paused) || self.powered_off
    }

    /// How many descriptors the guest cannot reuse yet.
    fn tx_in_use(&self) -> usize {
        self.tx_avail.len() + usize::from(self.tx_busy)
    }

    fn discard_rx(&mut self) -> Option<Kick> {
        self.rx_used.clear();
        self.rx_taken = 0;
        self.rx_worker.offer()
    }
}

impl Virtqueues {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the agent's tasks. Without the lock: a waker is the caller's code.
    fn wake_agent(&self) {
        self.readable.signal();
        self.writable.signal();
    }
}

/// The guest's driver.
impl Virtqueues {
    /// Fails if the port is already open: Linux allows one process at a time.
    pub(super) fn open(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.is_powering_off {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if state.guest_connected && !std::mem::take(&mut state.is_to_be_taken_over) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        state.guest_connected = true;
        Ok(())
    }

    /// From now on, [`open`](Self::open) fails.
    pub(super) fn begin_power_off(&self) {
        self.state().is_powering_off = true;
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        state.guest_connected = false;
        let kick = state.discard_rx();
        drop(state);
        run(kick);
    }

    pub(super) fn power_off(&self) {
        let mut state = self.state();
        state.is_powering_off = true;
        state.powered_off = true;
        state.tx_avail.clear();
        state.tx_busy = false;
        // krun's workers have ended, or nobody waits for them.
        let _ = state.discard_rx();
        drop(state);
        self.wake_agent();
        self.tx_completed.notify_waiters();
    }

    /// Stops or resumes the guest's vCPUs: while they are stopped, the agent's reads and writes wait.
    pub(super) fn set_paused(&self, paused: bool) {
        self.state().paused = paused;
        self.wake_agent();
    }

    /// Gives `sink` what the guest has received, up to `limit` bytes of one buffer: `None` if there is nothing yet,
    /// `Some(0)` at the end. `limit` is not zero.
    pub(super) fn read(&self, limit: usize, sink: impl FnOnce(&[u8])) -> Option<usize> {
        let mut state = self.state();
        let Some(first) = state.rx_used.front().filter(|_| !state.paused) else {
            return state.has_ended().then_some(0);
        };
        let rest = &first[state.rx_taken..];
        let (length, is_all) = (rest.len().min(limit), rest.len() <= limit);
        sink(&rest[..length]);
        let mut kick = None;
        if is_all {
            state.rx_used.pop_front();
            state.rx_taken = 0;
            kick = state.rx_worker.offer();
        } else {
            state.rx_taken += length;
        }
        drop(state);
        run(kick);
        Some(length)
    }

    /// Sends as much of `bytes` as one descriptor takes: `None` if there is no descriptor left.
    pub(super) fn write(&self, bytes: &[u8]) -> Option<io::Result<usize>> {
        let mut state = self.state();
        if state.has_ended() {
            return Some(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.paused || (!bytes.is_empty() && state.tx_in_use() >= QUEUE_SIZE) {
            return None;
        }
        let length = bytes.len().min(TX_BUFFER);
        if length > 0 {
            state.tx_avail.push_back(bytes[..length].to_vec());
            let kick = state.tx_worker.offer();
            drop(state);
            run(kick);
        }
        Some(Ok(length))
    }

    /// Which of `interest` the port is ready for, as Linux's `poll` answers. A hang-up shows at once.
    pub(super) fn ready(&self, interest: Interest) -> Ready {
        let state = self.state();
        let has_ended = state.has_ended();
        let mut ready = Ready::EMPTY;
        if interest.is_readable() {
            if has_ended {
                ready |= Ready::READABLE | Ready::READ_CLOSED;
            } else if !state.paused && !state.rx_used.is_empty() {
                ready |= Ready::READABLE;
            }
        }
        if interest.is_writable() {
            if has_ended {
                ready |= Ready::WRITABLE | Ready::WRITE_CLOSED;
            } else if !state.paused && state.tx_in_use() < QUEUE_SIZE {
                ready |= Ready::WRITABLE;
            }
        }
        ready
    }

    /// Waits until krun's end has taken every descriptor.
    pub(super) async fn drained(&self) {
        loop {
            // Before looking at the state, so that no completion after it is missed.
            let completed = self.tx_completed.notified();
            if self.state().tx_in_use() == 0 {
                return;
            }
            foreign::guarded(completed).await;
        }
    }
}

/// krun's workers.
impl Virtqueues {
    /// Sets what is called when a worker that has found its queue empty finds a descriptor again.
    pub(super) fn set_kicks(&self, rx: Kick, tx: Kick) {
        let mut state = self.state();
        state.rx_worker.kick = Some(rx);
        state.tx_worker.kick = Some(tx);
    }

    /// Takes a buffer to fill, if the guest offers one.
    pub(super) fn pop_rx(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        // A buffer that the guest has not read yet is not on offer.
        let is_starved = state.rx_used.len() >= QUEUE_SIZE;
        state.rx_worker.is_starved = is_starved;
        (!is_starved).then(|| vec![0; RX_BUFFER])
    }

    /// Gives a filled buffer to the guest. While its port is closed, the guest discards it.
    pub(super) fn complete_rx(&self, buffer: Vec<u8>) {
        let mut state = self.state();
        if state.guest_connected && !state.powered_off {
            state.rx_used.push_back(buffer);
        }
    }

    /// Interrupts the guest for what it has received. Only then does its driver wake those who read.
    pub(super) fn signal_rx(&self) {
        self.readable.signal();
    }

    /// Tells the guest that the host has closed the port.
    pub(super) fn close_host(&self) {
        self.state().host_gone = true;
        self.wake_agent();
    }

    /// Takes the next descriptor that the guest has sent.
    pub(super) fn pop_tx(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        let descriptor = state.tx_avail.pop_front();
        state.tx_worker.is_starved = descriptor.is_none();
        state.tx_busy |= descriptor.is_some();
        descriptor
    }

    /// Gives a sent descriptor back to the guest.
    pub(super) fn complete_tx(&self) {
        self.state().tx_busy = false;
        self.tx_completed.notify_waiters();
    }

    /// Interrupts the guest for what it has sent. Only then does its driver wake those who write.
    pub(super) fn signal_tx(&self) {
        self.writable.signal();
    }
}

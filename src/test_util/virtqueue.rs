//! The port's two virtqueues, between the guest's driver and krun's workers.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::Thread;

use tokio::io::ReadBuf;
use tokio::sync::Notify;

/// Descriptors in each queue: krun's `DEFAULT_QUEUE_SIZE`.
const QUEUE_SIZE: usize = 32;
/// The size of a buffer that Linux offers the host to fill.
const RX_BUFFER: usize = 4096;
/// The most bytes that Linux puts into one descriptor.
const TX_BUFFER: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct Virtqueues {
    state: Mutex<State>,
    tx_completed: Notify,
}

#[derive(Debug, Default)]
struct State {
    guest_connected: bool,
    host_gone: bool,
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
    rx_thread: Option<Thread>,
    tx_thread: Option<Thread>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn notify(thread: &Option<Thread>) {
        if let Some(thread) = thread {
            thread.unpark();
        }
    }

    /// The tasks of the agent that wait. Wake them without the lock: a waker is the caller's code.
    fn take_wakers(&mut self) -> [Option<Waker>; 2] {
        [self.reader.take(), self.writer.take()]
    }

    /// How many descriptors the guest cannot reuse yet.
    fn tx_in_use(&self) -> usize {
        self.tx_avail.len() + usize::from(self.tx_busy)
    }

    fn discard_rx(&mut self) {
        self.rx_used.clear();
        self.rx_taken = 0;
        Self::notify(&self.rx_thread);
    }
}

fn wake(wakers: [Option<Waker>; 2]) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}

impl Virtqueues {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            tx_completed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The guest's driver.
impl Virtqueues {
    /// Returns `false` if the port is already open: Linux allows one process at a time.
    pub(super) fn open(&self) -> bool {
        !std::mem::replace(&mut self.state().guest_connected, true)
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        state.guest_connected = false;
        state.discard_rx();
    }

    pub(super) fn power_off(&self) {
        let mut state = self.state();
        state.powered_off = true;
        state.tx_avail.clear();
        state.discard_rx();
        let wakers = state.take_wakers();
        drop(state);
        wake(wakers);
    }

    /// Stops or resumes the guest's vCPUs: while they are stopped, the agent's reads and writes wait.
    pub(super) fn set_paused(&self, paused: bool) {
        let mut state = self.state();
        state.paused = paused;
        let wakers = state.take_wakers();
        drop(state);
        wake(wakers);
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<()> {
        if buf.remaining() == 0 {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let mut state = self.state();
        let Some(first) = state.rx_used.front().filter(|_| !state.paused) else {
            if (state.host_gone && !state.paused) || state.powered_off {
                return Poll::Ready(());
            }
            let last = state.reader.replace(waker);
            drop(state);
            drop(last);
            return Poll::Pending;
        };
        let rest = &first[state.rx_taken..];
        let length = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..length]);
        if length < rest.len() {
            state.rx_taken += length;
        } else {
            state.rx_used.pop_front();
            state.rx_taken = 0;
            State::notify(&state.rx_thread);
        }
        Poll::Ready(())
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let waker = cx.waker().clone();
        let mut state = self.state();
        if (state.host_gone && !state.paused) || state.powered_off {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if state.paused || state.tx_in_use() >= QUEUE_SIZE {
            let last = state.writer.replace(waker);
            drop(state);
            drop(last);
            return Poll::Pending;
        }
        let length = buf.len().min(TX_BUFFER);
        state.tx_avail.push_back(buf[..length].to_vec());
        State::notify(&state.tx_thread);
        Poll::Ready(Ok(length))
    }

    /// Waits until krun's end has taken every descriptor.
    pub(super) async fn drained(&self) {
        loop {
            // Before looking at the state, so that no completion after it is missed.
            let completed = self.tx_completed.notified();
            if self.state().tx_in_use() == 0 {
                return;
            }
            completed.await;
        }
    }
}

/// krun's workers.
impl Virtqueues {
    /// Sets the threads to unpark when a descriptor becomes available.
    pub(super) fn set_threads(&self, rx_thread: Thread, tx_thread: Thread) {
        let mut state = self.state();
        state.rx_thread = Some(rx_thread);
        state.tx_thread = Some(tx_thread);
    }

    /// Takes a buffer to fill, if the guest offers one.
    pub(super) fn pop_rx(&self) -> Option<Vec<u8>> {
        // A buffer that the guest has not read yet is not on offer.
        let offers = self.state().rx_used.len() < QUEUE_SIZE;
        offers.then(|| vec![0; RX_BUFFER])
    }

    /// Gives a filled buffer to the guest. While its port is closed, the guest discards it.
    pub(super) fn complete_rx(&self, buffer: Vec<u8>) {
        let mut state = self.state();
        if state.guest_connected {
            state.rx_used.push_back(buffer);
        }
    }

    /// Interrupts the guest. Only then does its driver look at what was completed.
    pub(super) fn signal_used_queue(&self) {
        let mut state = self.state();
        let wakers = state.take_wakers();
        drop(state);
        wake(wakers);
    }

    /// Tells the guest that the host has closed the port.
    pub(super) fn close_host(&self) {
        self.state().host_gone = true;
        self.signal_used_queue();
    }

    /// Takes the next descriptor that the guest has sent.
    pub(super) fn pop_tx(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        let descriptor = state.tx_avail.pop_front()?;
        state.tx_busy = true;
        Some(descriptor)
    }

    /// Gives a sent descriptor back to the guest.
    pub(super) fn complete_tx(&self) {
        self.state().tx_busy = false;
        self.tx_completed.notify_waiters();
    }
}

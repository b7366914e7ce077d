//! The guest's end of the rings themselves.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread;

use super::bridge::{AgentConsolePipeBridge, GuestEnd};
use super::task_wake::until;
use crate::port::AgentPort;

/// The guest's end without krun and its pipe, for tests that play the guest byte by byte: what is
/// written here can be read from the stream at once, and the other way round.
///
/// It has the methods that krun's end has on Linux and macOS. Dropping it ends the guest's side.
#[derive(Debug)]
#[must_use = "dropping it ends the stream"]
pub struct RingEnd {
    end: GuestEnd,
    /// Waits for a krun that never comes.
    _bridge: AgentConsolePipeBridge,
}

impl RingEnd {
    /// Takes krun's place at `port`.
    pub fn new(port: AgentPort) -> Self {
        let bridge = port.into_bridge();
        Self {
            end: bridge.guest_end(),
            _bridge: bridge,
        }
    }

    /// Copies bytes for the guest into `buf`, as many as there are: none at the end.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there are none now, or if `buf` is empty.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let shared = self.end.shared();
        shared.guest_calls();
        if buf.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = shared.rx_data.look(|| shared.guest_read(buf));
        read.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Copies the guest's bytes out of `buf`: all of them, or a ringful of more than that.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room for them.
    pub fn write(&self, buf: &[u8]) -> io::Result<usize> {
        let shared = self.end.shared();
        shared.guest_calls();
        if buf.is_empty() {
            return Ok(0);
        }
        let written = shared.guest_write(buf);
        written.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Blocks until [`write`](Self::write) is worth another call.
    pub fn wait_until_writable(&self) {
        let shared = self.end.shared();
        block_on(until(&shared.tx_room, || {
            shared.guest_may_write().then_some(())
        }));
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let mut future = pin!(future);
    let waker = Arc::new(Unpark(thread::current())).into();
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

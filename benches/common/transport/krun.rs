//! This crate.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tokio_krun::{AgentConsoleBackend, Options, OwnedReadHalf, OwnedWriteHalf};

use crate::common::vmm::{Channel, Input, Output, Transport};

/// An `AgentStream` with `Options::busy_poll` of this many microseconds.
pub(crate) struct KrunSpinning<const MICROSECONDS: u64>;

pub(crate) type Krun = KrunSpinning<0>;

pub(crate) struct Backend(Arc<AgentConsoleBackend>);

impl<const MICROSECONDS: u64> Transport for KrunSpinning<MICROSECONDS> {
    const NAME: &'static str = match MICROSECONDS {
        0 => "tokio-krun",
        _ => "tokio-krun, busy poll",
    };
    type Read = OwnedReadHalf;
    type Write = OwnedWriteHalf;
    type Input = Backend;
    type Output = Backend;

    fn new(capacity: Option<usize>) -> Channel<Self> {
        let mut options = Options::new().busy_poll(Duration::from_micros(MICROSECONDS));
        if let Some(capacity) = capacity {
            options = options.capacity(capacity);
        }
        let (stream, port) = options.create().expect("cannot create a stream");
        let (read, write) = stream.into_split();
        let stats = port.handle();
        let backend = Arc::new(port.into_backend());
        Channel {
            read,
            write,
            input: Backend(Arc::clone(&backend)),
            output: Backend(backend),
            stats: Some(stats),
        }
    }
}

impl Input for Backend {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }

    #[expect(unsafe_code, reason = "krun's trait returns a raw descriptor")]
    fn wait_until_readable(&mut self) {
        // SAFETY: the backend owns the descriptor and outlives this call.
        let wake = unsafe { BorrowedFd::borrow_raw(self.0.read_wake_fd()) };
        poll(&mut [PollFd::from_borrowed_fd(wake, PollFlags::IN)], None).expect("cannot wait");
    }
}

impl Output for Backend {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn wait_until_writable(&mut self) {
        self.0.wait_until_writable();
    }
}

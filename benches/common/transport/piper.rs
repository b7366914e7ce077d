//! The crate `piper`, one pipe for each direction. A thread that parks drives the VMM's end.

use std::io;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::thread;

use piper::{Reader, Writer, pipe};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, FuturesAsyncWriteCompatExt};

use super::Unpark;
use crate::common::vmm::{Channel, Input, Output, Transport};

pub(crate) struct Piper;

pub(crate) struct End<T> {
    half: T,
    waker: OnceLock<Waker>,
}

impl Transport for Piper {
    const NAME: &'static str = "piper";
    type Read = Compat<Reader>;
    type Write = Compat<Writer>;
    type Input = End<Reader>;
    type Output = End<Writer>;

    fn new(capacity: Option<usize>) -> Channel<Self> {
        // piper has no default capacity.
        let capacity = capacity.unwrap_or(1 << 20);
        let (read, output) = pipe(capacity);
        let (input, write) = pipe(capacity);
        Channel {
            read: read.compat(),
            write: write.compat_write(),
            input: End {
                half: input,
                waker: OnceLock::new(),
            },
            output: End {
                half: output,
                waker: OnceLock::new(),
            },
            stats: None,
        }
    }
}

impl Input for End<Reader> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut cx = Context::from_waker(self.waker.get_or_init(Unpark::waker));
        match self.half.poll_drain_bytes(&mut cx, buf) {
            Poll::Ready(read) => Ok(read),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn wait_until_readable(&mut self) {
        thread::park();
    }
}

impl Output for End<Writer> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut cx = Context::from_waker(self.waker.get_or_init(Unpark::waker));
        match self.half.poll_fill_bytes(&mut cx, buf) {
            Poll::Ready(written) => Ok(written),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn wait_until_writable(&mut self) {
        thread::park();
    }
}

//! `tokio::io::duplex`. A thread that parks drives the VMM's end.

use std::io;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::thread;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex, split};

use super::Unpark;
use crate::common::vmm::{Channel, Input, Output, Transport};

pub(crate) struct Duplex;

pub(crate) struct End<T> {
    half: T,
    waker: OnceLock<Waker>,
}

impl<T> End<T> {
    fn new(half: T) -> Self {
        Self {
            half,
            waker: OnceLock::new(),
        }
    }
}

impl Transport for Duplex {
    const NAME: &'static str = "duplex";
    type Read = ReadHalf<DuplexStream>;
    type Write = WriteHalf<DuplexStream>;
    type Input = End<ReadHalf<DuplexStream>>;
    type Output = End<WriteHalf<DuplexStream>>;

    fn new(capacity: Option<usize>) -> Channel<Self> {
        // `duplex` has no default capacity.
        let (host, vmm) = duplex(capacity.unwrap_or(1 << 20));
        let (read, write) = split(host);
        let (input, output) = split(vmm);
        Channel {
            read,
            write,
            input: End::new(input),
            output: End::new(output),
            stats: None,
        }
    }
}

/// Turns a pending poll into `WouldBlock`.
fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Input for End<ReadHalf<DuplexStream>> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        let mut cx = Context::from_waker(self.waker.get_or_init(Unpark::waker));
        now(Pin::new(&mut self.half).poll_read(&mut cx, &mut buf))?;
        Ok(buf.filled().len())
    }

    fn wait_until_readable(&mut self) {
        thread::park();
    }
}

impl Output for End<WriteHalf<DuplexStream>> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut cx = Context::from_waker(self.waker.get_or_init(Unpark::waker));
        now(Pin::new(&mut self.half).poll_write(&mut cx, buf))
    }

    fn wait_until_writable(&mut self) {
        thread::park();
    }
}

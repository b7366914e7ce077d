//! The channel that host programs write by hand today, in its plainest form.
//!
//! It has two rings of `Vec<u8>`. Each push also writes a byte to a pipe. The host waits for the pipe
//! with `AsyncFd`.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, ready};

use crossbeam_queue::ArrayQueue;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::common::vmm::{Channel, Input, Output, Transport};

/// How many chunks each ring holds if no capacity is given.
const SLOTS: usize = 256;
/// Bytes for each slot if a capacity is given: a Linux guest's largest descriptor. A larger write takes several.
const SLOT: usize = 32 * 1024;

pub(crate) struct HandWritten;

/// One direction.
struct Ring {
    chunks: ArrayQueue<Vec<u8>>,
    /// The most bytes of a chunk.
    slot: usize,
    closed: AtomicBool,
    data: Pipe,
    room: Room,
}

struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// How the ring's writer learns that there is room.
enum Room {
    /// Wakes the host's task.
    Pipe(Pipe),
    /// Wakes krun's TX thread.
    Thread(Mutex<()>, Condvar),
}

impl Pipe {
    fn new() -> Self {
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("cannot create a pipe");
        Self { reader, writer }
    }

    fn signal(&self) {
        let _ = rustix::io::write(&self.writer, &[1]);
    }

    fn drain(&self) {
        while rustix::io::read(&self.reader, &mut [0; 256]).is_ok_and(|read| read == 256) {}
    }

    fn register(&self) -> AsyncFd<OwnedFd> {
        let reader = self.reader.try_clone().expect("cannot duplicate the pipe");
        #[allow(deprecated, reason = "programs call it today")]
        AsyncFd::new(reader).expect("cannot register the pipe")
    }
}

impl Ring {
    fn new(capacity: Option<usize>, room: Room) -> Arc<Self> {
        Arc::new(Self {
            chunks: ArrayQueue::new(capacity.map_or(SLOTS, |bytes| bytes.div_ceil(SLOT))),
            slot: capacity.map_or(usize::MAX, |_| SLOT),
            closed: AtomicBool::new(false),
            data: Pipe::new(),
            room,
        })
    }

    fn push(&self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(self.slot)];
        if self.closed.load(Ordering::Acquire) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.chunks.is_full() || self.chunks.push(bytes.to_vec()).is_err() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.data.signal();
        Ok(bytes.len())
    }

    fn pop(&self) -> Option<Vec<u8>> {
        let chunk = self.chunks.pop();
        if chunk.is_some() {
            self.offer_room();
        }
        chunk
    }

    fn offer_room(&self) {
        match &self.room {
            Room::Pipe(pipe) => pipe.signal(),
            Room::Thread(lock, changed) => {
                let _guard = lock.lock().expect("a thread panicked");
                changed.notify_one();
            }
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.data.signal();
        self.offer_room();
    }
}

/// A ring's reader. It keeps the unread rest of the current chunk.
struct ChunkReader {
    ring: Arc<Ring>,
    chunk: Vec<u8>,
    taken: usize,
}

impl ChunkReader {
    fn new(ring: &Arc<Ring>) -> Self {
        Self {
            ring: Arc::clone(ring),
            chunk: Vec::new(),
            taken: 0,
        }
    }

    /// `None` if the ring is empty. An empty slice at end of file.
    fn next(&mut self, limit: usize) -> Option<&[u8]> {
        if self.taken == self.chunk.len() {
            let closed = self.ring.closed.load(Ordering::Acquire);
            match self.ring.pop() {
                Some(chunk) => (self.chunk, self.taken) = (chunk, 0),
                None => return closed.then_some(&[]),
            }
        }
        let rest = &self.chunk[self.taken..];
        let now = rest.len().min(limit);
        self.taken += now;
        Some(&rest[..now])
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        self.ring.close();
    }
}

pub(crate) struct HandWrittenRead {
    reader: ChunkReader,
    data: AsyncFd<OwnedFd>,
}

pub(crate) struct HandWrittenWrite {
    ring: Arc<Ring>,
    room: AsyncFd<OwnedFd>,
}

pub(crate) struct HandWrittenInput(ChunkReader);
pub(crate) struct HandWrittenOutput(Arc<Ring>);

impl Transport for HandWritten {
    const NAME: &'static str = "hand-written";
    type Read = HandWrittenRead;
    type Write = HandWrittenWrite;
    type Input = HandWrittenInput;
    type Output = HandWrittenOutput;

    fn new(capacity: Option<usize>) -> Channel<Self> {
        let tx = Ring::new(capacity, Room::Thread(Mutex::new(()), Condvar::new()));
        let room = Pipe::new();
        let write_room = room.register();
        let rx = Ring::new(capacity, Room::Pipe(room));
        Channel {
            read: HandWrittenRead {
                reader: ChunkReader::new(&tx),
                data: tx.data.register(),
            },
            write: HandWrittenWrite {
                ring: Arc::clone(&rx),
                room: write_room,
            },
            input: HandWrittenInput(ChunkReader::new(&rx)),
            output: HandWrittenOutput(tx),
            stats: None,
        }
    }
}

impl AsyncRead for HandWrittenRead {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.reader.next(buf.remaining()) {
                buf.put_slice(bytes);
                return Poll::Ready(Ok(()));
            }
            let mut guard = ready!(this.data.poll_read_ready(cx))?;
            this.reader.ring.data.drain();
            guard.clear_ready();
            // A push before the drain is visible in the ring now. A later push writes a new byte.
            if let Some(bytes) = this.reader.next(buf.remaining()) {
                buf.put_slice(bytes);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for HandWrittenWrite {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.ring.push(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            let mut guard = ready!(self.room.poll_read_ready(cx))?;
            if let Room::Pipe(room) = &self.ring.room {
                room.drain();
            }
            guard.clear_ready();
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ring.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for HandWrittenWrite {
    fn drop(&mut self) {
        self.ring.close();
    }
}

impl Input for HandWrittenInput {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.0.taken == self.0.chunk.len() && self.0.ring.chunks.is_empty() {
            self.0.ring.data.drain();
        }
        let bytes = self
            .0
            .next(buf.len())
            .ok_or(io::Error::from(io::ErrorKind::WouldBlock))?;
        buf[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }

    fn wait_until_readable(&mut self) {
        let mut wake = [PollFd::new(&self.0.ring.data.reader, PollFlags::IN)];
        poll(&mut wake, None).expect("cannot wait");
    }
}

impl Output for HandWrittenOutput {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.push(buf)
    }

    fn wait_until_writable(&mut self) {
        let Room::Thread(lock, changed) = &self.0.room else {
            return;
        };
        let mut guard = lock.lock().expect("a thread panicked");
        while self.0.chunks.is_full() && !self.0.closed.load(Ordering::Acquire) {
            guard = changed.wait(guard).expect("a thread panicked");
        }
    }
}

impl Drop for HandWrittenOutput {
    fn drop(&mut self) {
        self.0.close();
    }
}

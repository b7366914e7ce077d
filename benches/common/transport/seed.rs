//! What host programs write by hand today, reproduced in its plainest form: two rings of
//! `Vec<u8>`, each push followed by a byte into a pipe, and `AsyncFd` on the host's side.

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

/// How many chunks each ring holds when no capacity is asked for.
const SLOTS: usize = 256;
/// A Linux guest's largest descriptor: with a capacity, what a slot is taken to hold.
const SLOT: usize = 32 * 1024;

pub(crate) struct Seed;

/// One direction.
struct Ring {
    chunks: ArrayQueue<Vec<u8>>,
    closed: AtomicBool,
    data: Pipe,
    room: Room,
}

struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

/// How the ring's writer learns of room.
enum Room {
    /// The host's task.
    Pipe(Pipe),
    /// krun's TX thread.
    Thread(Mutex<()>, Condvar),
}

impl Pipe {
    fn new() -> Self {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        Self { reader, writer }
    }

    fn signal(&self) {
        let _ = rustix::io::write(&self.writer, &[1]);
    }

    fn drain(&self) {
        while rustix::io::read(&self.reader, &mut [0; 256]).is_ok_and(|read| read == 256) {}
    }

    fn register(&self) -> AsyncFd<OwnedFd> {
        let reader = self.reader.try_clone().expect("a descriptor");
        #[allow(deprecated, reason = "what programs call today")]
        AsyncFd::new(reader).expect("a registration")
    }
}

impl Ring {
    fn new(capacity: Option<usize>, room: Room) -> Arc<Self> {
        Arc::new(Self {
            chunks: ArrayQueue::new(capacity.map_or(SLOTS, |bytes| bytes.div_ceil(SLOT))),
            closed: AtomicBool::new(false),
            data: Pipe::new(),
            room,
        })
    }

    fn push(&self, bytes: &[u8]) -> io::Result<usize> {
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
                let _guard = lock.lock().expect("no panic");
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

/// A ring's reader, which keeps the rest of the chunk it is at.
struct Rest {
    ring: Arc<Ring>,
    chunk: Vec<u8>,
    taken: usize,
}

impl Rest {
    fn new(ring: &Arc<Ring>) -> Self {
        Self {
            ring: Arc::clone(ring),
            chunk: Vec::new(),
            taken: 0,
        }
    }

    /// `None` if there is nothing yet, nothing at the end.
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

impl Drop for Rest {
    fn drop(&mut self) {
        self.ring.close();
    }
}

pub(crate) struct SeedRead {
    rest: Rest,
    data: AsyncFd<OwnedFd>,
}

pub(crate) struct SeedWrite {
    ring: Arc<Ring>,
    room: AsyncFd<OwnedFd>,
}

pub(crate) struct SeedInput(Rest);
pub(crate) struct SeedOutput(Arc<Ring>);

impl Transport for Seed {
    const NAME: &'static str = "by hand";
    type Read = SeedRead;
    type Write = SeedWrite;
    type Input = SeedInput;
    type Output = SeedOutput;

    fn new(capacity: Option<usize>) -> Channel<Self> {
        let tx = Ring::new(capacity, Room::Thread(Mutex::new(()), Condvar::new()));
        let room = Pipe::new();
        let write_room = room.register();
        let rx = Ring::new(capacity, Room::Pipe(room));
        Channel {
            read: SeedRead {
                rest: Rest::new(&tx),
                data: tx.data.register(),
            },
            write: SeedWrite {
                ring: Arc::clone(&rx),
                room: write_room,
            },
            input: SeedInput(Rest::new(&rx)),
            output: SeedOutput(tx),
        }
    }
}

impl AsyncRead for SeedRead {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.rest.next(buf.remaining()) {
                buf.put_slice(bytes);
                return Poll::Ready(Ok(()));
            }
            let mut guard = ready!(this.data.poll_read_ready(cx))?;
            this.rest.ring.data.drain();
            guard.clear_ready();
            // What was pushed before the drain is in the ring; what comes now is a new edge.
            if let Some(bytes) = this.rest.next(buf.remaining()) {
                buf.put_slice(bytes);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for SeedWrite {
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

impl Drop for SeedWrite {
    fn drop(&mut self) {
        self.ring.close();
    }
}

impl Input for SeedInput {
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
        poll(&mut wake, None).expect("a wait");
    }
}

impl Output for SeedOutput {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.push(buf)
    }

    fn wait_until_writable(&mut self) {
        let Room::Thread(lock, changed) = &self.0.room else {
            return;
        };
        let mut guard = lock.lock().expect("no panic");
        while self.0.chunks.is_full() && !self.0.closed.load(Ordering::Acquire) {
            guard = changed.wait(guard).expect("no panic");
        }
    }
}

impl Drop for SeedOutput {
    fn drop(&mut self) {
        self.0.close();
    }
}

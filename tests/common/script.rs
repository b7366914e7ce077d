//! Operations on both ends, played on a stream and on two plain queues that are to agree with it.
//!
//! One thread plays krun and the host's tasks, so each outcome is known: how many bytes move, which
//! ones, and when there is nothing, no room, or an end. What two threads may see is for the loom
//! models. `tests/model.rs` makes up the operations by chance, `fuzz/` by what they reach.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_krun::{Chunks, Options, OwnedReadHalf, OwnedWriteHalf, PortHandle};

use crate::common::{self, Backend, SMALL};

const SLOTS: usize = 8;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    GuestWrite(usize),
    GuestRead(usize),
    GuestGoes,
    TryRead(usize),
    TryReadBuf(usize),
    TryReadVectored(usize, usize),
    /// Polled once and dropped if it waits.
    Read(usize),
    FillBuf(usize),
    /// The next chunk, held on to or not.
    Chunk(bool),
    DropHeld,
    TryWrite(usize),
    TryWriteVectored(usize, usize),
    /// Polled once and dropped if it waits.
    Write(usize),
    SendChunk(usize),
    ShutDown,
    HangUp,
    DropRead,
    DropWrite,
    Reunite,
}

/// Plays `steps`, then drops all that is left, and panics where stream and queues differ. Within a runtime.
pub(crate) fn play<'a>(steps: impl IntoIterator<Item = &'a Step>) {
    let mut run = Run::new();
    for step in steps {
        run.play(step);
    }
    // Whatever has happened: once all is dropped, nothing is left behind.
    run.held.clear();
    run.read = None;
    run.write = None;
    run.backend = None;
    assert_eq!(run.handle.stats().tx.queued, 0);
    assert_eq!(run.handle.stats().rx.queued, 0);
}

/// The two directions as plain queues.
#[derive(Default)]
struct Model {
    tx: VecDeque<u8>,
    rx: VecDeque<u8>,
    next_byte: usize,
    discarded: u64,
    host_closed: bool,
    hung_up: bool,
    guest_gone: bool,
    /// The guest has read data and not waited since, so a wait comes before the end.
    gave_data: bool,
}

impl Model {
    fn fresh(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        for _ in 0..length {
            // A period that shares no factor with any chunk's size.
            self.next_byte = (self.next_byte + 1) % 251;
            bytes.push(self.next_byte as u8);
        }
        bytes
    }

    /// Bytes that were written and not taken are made again by the next write.
    fn unwrite(&mut self, length: usize) {
        self.next_byte = (self.next_byte + 251 - length % 251) % 251;
    }
}

struct Run {
    model: Model,
    read: Option<OwnedReadHalf>,
    write: Option<OwnedWriteHalf>,
    backend: Option<Backend>,
    handle: PortHandle,
    held: Vec<(Bytes, Vec<u8>)>,
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

impl Run {
    fn new() -> Self {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let (read, write) = stream.into_split();
        Self {
            model: Model::default(),
            read: Some(read),
            write: Some(write),
            handle: port.handle(),
            backend: Some(common::backend(port)),
            held: Vec::new(),
        }
    }

    fn play(&mut self, step: &Step) {
        match *step {
            Step::GuestWrite(length) => self.guest_write(length),
            Step::GuestRead(length) => self.guest_read(length),
            Step::GuestGoes => {
                self.model.guest_gone = self.backend.take().is_some() || self.model.guest_gone;
                self.model.rx.clear();
            }
            Step::TryRead(length) => self.read_with(length, |half| {
                let mut buffer = vec![0; length];
                half.try_read(&mut buffer)
                    .map(|read| buffer[..read].to_vec())
            }),
            Step::TryReadBuf(length) => self.read_with(length, |half| {
                let mut buffer = bytes::BufMut::limit(BytesMut::new(), length);
                half.try_read_buf(&mut buffer)
                    .map(|_| buffer.into_inner().to_vec())
            }),
            Step::TryReadVectored(a, b) => self.read_with(a + b, |half| {
                let mut buffer = vec![0; a + b];
                let (first, second) = buffer.split_at_mut(a);
                let mut slices = [first, second].map(IoSliceMut::new);
                let read = half.try_read_vectored(&mut slices)?;
                Ok(buffer[..read].to_vec())
            }),
            Step::Read(length) => self.read_with(length, |half| {
                let mut buffer = vec![0; length];
                let polled = tokio_test::task::spawn(half.read(&mut buffer)).poll();
                let Poll::Ready(read) = polled else {
                    return Err(io::ErrorKind::WouldBlock.into());
                };
                Ok(buffer[..read?].to_vec())
            }),
            Step::FillBuf(consume) => self.fill_buf(consume),
            Step::Chunk(hold) => self.chunk(hold),
            Step::DropHeld => self.held.clear(),
            Step::TryWrite(length) => self.write_with(length, |half, bytes| half.try_write(bytes)),
            Step::TryWriteVectored(a, b) => self.write_with(a + b, |half, bytes| {
                let slices = [&bytes[..a], &bytes[a..]].map(IoSlice::new);
                half.try_write_vectored(&slices)
            }),
            Step::Write(length) => self.write_with(length, |half, bytes| {
                match tokio_test::task::spawn(half.write(bytes)).poll() {
                    Poll::Ready(written) => written,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }),
            Step::SendChunk(length) => self.send_chunk(length),
            Step::ShutDown => {
                if let Some(half) = &mut self.write {
                    let shut_down = tokio_test::task::spawn(half.shutdown()).poll();
                    assert!(matches!(shut_down, Poll::Ready(Ok(()))));
                    self.model.host_closed = true;
                }
            }
            Step::HangUp => {
                if let Some(half) = &mut self.write {
                    half.hang_up();
                    self.model.host_closed = true;
                    self.model.hung_up = true;
                }
            }
            Step::DropRead => {
                if self.read.take().is_some() {
                    self.model.discarded += self.model.tx.len() as u64;
                    self.model.tx.clear();
                    self.both_halves_gone();
                }
            }
            Step::DropWrite => {
                if self.write.take().is_some() {
                    self.model.host_closed = true;
                    self.both_halves_gone();
                }
            }
            Step::Reunite => {
                if let (Some(read), Some(write)) = (self.read.take(), self.write.take()) {
                    let (read, write) = read.reunite(write).unwrap().into_split();
                    (self.read, self.write) = (Some(read), Some(write));
                } else {
                    // One was gone, and dropping the other ended the stream; or both were.
                    self.model.discarded += self.model.tx.len() as u64;
                    self.model.tx.clear();
                    self.model.host_closed = true;
                    self.both_halves_gone();
                }
            }
        }
        self.check();
    }

    fn both_halves_gone(&mut self) {
        if self.read.is_none() && self.write.is_none() {
            self.model.hung_up = true;
        }
    }

    fn check(&self) {
        let stats = self.handle.stats();
        assert_eq!(stats.tx.discarded, self.model.discarded);
        assert!(stats.tx.queued <= SMALL as u64 && stats.rx.queued <= SMALL as u64);
        assert!(stats.tx.queued >= self.model.tx.len() as u64);
        if self.held.is_empty() {
            // A chunk that was peeked at counts whole until it is read.
            let most = self.model.tx.len() + SMALL / SLOTS;
            assert!(stats.tx.queued <= most as u64);
        }
        if !self.model.guest_gone {
            assert_eq!(stats.rx.queued, self.model.rx.len() as u64);
        }
        for (bytes, expected) in &self.held {
            assert!(bytes == expected, "a held chunk has changed");
        }
    }

    fn guest_write(&mut self, length: usize) {
        let Some(backend) = &self.backend else { return };
        if length == 0 {
            // Takes its time by design, and is tested with the other rules of krun's threads.
            return;
        }
        let bytes = self.model.fresh(length);
        let room = SMALL - self.handle.stats().tx.queued as usize;
        let written = backend.write(&bytes);
        if self.read.is_none() {
            assert_eq!(written.unwrap(), length);
            self.model.discarded += length as u64;
        } else if room < length.min(SMALL) {
            assert_eq!(kind(written), io::ErrorKind::WouldBlock);
            self.model.unwrite(length);
        } else {
            let written = written.unwrap();
            assert_eq!(written, length.min(SMALL));
            self.model.tx.extend(&bytes[..written]);
            self.model.unwrite(length - written);
        }
    }

    fn guest_read(&mut self, length: usize) {
        let Some(backend) = &self.backend else { return };
        let mut buffer = vec![0; length];
        let read = backend.read(&mut buffer);
        let model = &mut self.model;
        if length == 0 {
            assert_eq!(kind(read), io::ErrorKind::WouldBlock);
        } else if !model.rx.is_empty() {
            let expected: Vec<u8> = model.rx.drain(..length.min(model.rx.len())).collect();
            let read = read.unwrap();
            assert!(buffer[..read] == expected, "{read} bytes to the guest");
            // Only krun's own calls need a wait between the last bytes and the end.
            model.gave_data = cfg!(unix);
        } else if model.hung_up && !model.gave_data {
            assert_eq!(read.unwrap(), 0);
        } else {
            assert_eq!(kind(read), io::ErrorKind::WouldBlock);
            // krun waits, and asks for this at each wait.
            #[cfg(unix)]
            backend.read_wake_fd();
            model.gave_data = false;
        }
    }

    fn read_with(
        &mut self,
        limit: usize,
        read: impl FnOnce(&mut OwnedReadHalf) -> io::Result<Vec<u8>>,
    ) {
        let Some(half) = &mut self.read else { return };
        let result = read(half);
        let model = &mut self.model;
        if limit == 0 || (model.tx.is_empty() && model.guest_gone) {
            assert!(result.unwrap().is_empty());
        } else if model.tx.is_empty() {
            assert_eq!(kind(result), io::ErrorKind::WouldBlock);
        } else {
            let expected: Vec<u8> = model.tx.drain(..limit.min(model.tx.len())).collect();
            assert!(result.unwrap() == expected, "bytes to the host");
        }
    }

    fn fill_buf(&mut self, consume: usize) {
        let Some(half) = &mut self.read else { return };
        let shown = match tokio_test::task::spawn(half.fill_buf()).poll() {
            Poll::Ready(shown) => shown.unwrap().to_vec(),
            Poll::Pending => {
                assert!(self.model.tx.is_empty() && !self.model.guest_gone);
                return;
            }
        };
        assert_eq!(shown.is_empty(), self.model.tx.is_empty());
        assert!(shown.iter().eq(self.model.tx.iter().take(shown.len())));
        let consume = consume.min(shown.len());
        half.consume(consume);
        self.model.tx.drain(..consume);
    }

    fn chunk(&mut self, hold: bool) {
        let Some(half) = &mut self.read else { return };
        let mut chunks = Chunks::new(half);
        match tokio_test::task::spawn(chunks.next()).poll() {
            Poll::Pending => assert!(self.model.tx.is_empty() && !self.model.guest_gone),
            Poll::Ready(None) => assert!(self.model.tx.is_empty() && self.model.guest_gone),
            Poll::Ready(Some(chunk)) => {
                let chunk = chunk.unwrap();
                assert!(!chunk.is_empty());
                let expected: Vec<u8> = self.model.tx.drain(..chunk.len()).collect();
                assert!(chunk == expected, "a chunk to the host");
                if hold {
                    self.held.push((chunk, expected));
                }
            }
        }
    }

    fn write_with(
        &mut self,
        length: usize,
        write: impl FnOnce(&mut OwnedWriteHalf, &[u8]) -> io::Result<usize>,
    ) {
        let Some(half) = &mut self.write else { return };
        let bytes = self.model.fresh(length);
        let stats = self.handle.stats().rx;
        let result = write(half, &bytes);
        let room = SMALL - self.model.rx.len();
        let written = if self.model.host_closed || self.model.guest_gone {
            assert_eq!(kind(result), io::ErrorKind::BrokenPipe);
            0
        } else if length > 0 && room == 0 {
            assert_eq!(kind(result), io::ErrorKind::WouldBlock);
            0
        } else if stats.chunks_queued < SLOTS {
            let written = result.unwrap();
            assert_eq!(written, length.min(room));
            written
        } else {
            // Half-filled chunks may have used up the slots.
            result.unwrap_or(0)
        };
        self.model.rx.extend(&bytes[..written]);
        self.model.unwrite(length - written);
    }

    fn send_chunk(&mut self, length: usize) {
        self.write_with(length, |half, bytes| {
            let before = half.stats().rx.queued;
            let mut chunks = Chunks::new(&mut *half);
            let item = Bytes::copy_from_slice(bytes);
            let polled = tokio_test::task::spawn(chunks.send(item)).poll();
            let _rest_is_lost = chunks.into_inner();
            match polled {
                // An empty item is nothing to send, also to a guest that has gone.
                Poll::Ready(Ok(())) if bytes.is_empty() => half.try_write(&[]),
                Poll::Ready(Ok(())) => Ok(bytes.len()),
                Poll::Ready(Err(error)) => Err(error),
                Poll::Pending => match (half.stats().rx.queued - before) as usize {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    written => Ok(written),
                },
            }
        });
    }
}

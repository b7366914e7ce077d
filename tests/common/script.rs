//! Plays operations of both ends on a stream and on two plain queues, and checks that the two agree.
//!
//! One thread plays krun and the host's tasks, so each outcome is known: how many bytes move, which ones, and when a
//! call finds no bytes, no room or an end. The loom models cover races between threads. `tests/model.rs` chooses the
//! operations at random, `fuzz/` by coverage.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::LazyLock;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_krun::{Chunks, Options, OwnedReadHalf, OwnedWriteHalf, PortHandle};

use crate::common::{self, Backend, SMALL};

/// How a stream is created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) capacity: usize,
    pub(crate) hang_up_on_drop: bool,
}

/// A ring of eight small chunks.
pub(crate) const SMALL_RING: Setup = Setup {
    capacity: SMALL,
    hang_up_on_drop: true,
};

pub(crate) const USUAL_CHUNK: usize = 64 * 1024;
/// A ring of chunks of the usual size, from the pool that all streams share: eight, and part of a ninth. It is hardly
/// larger than the smallest such ring.
pub(crate) const USUAL_RING: Setup = Setup {
    capacity: 8 * USUAL_CHUNK + 1000,
    hang_up_on_drop: true,
};

#[derive(Clone, Debug)]
pub(crate) enum Step {
    GuestWrite(usize),
    GuestRead(usize),
    GuestGoes,
    TryRead(usize),
    TryReadBuf(usize),
    TryReadVectored(usize, usize),
    /// Polled once, and dropped if pending.
    Read(usize),
    FillBuf(usize),
    /// Takes the next chunk, and keeps it if true.
    Chunk(bool),
    DropHeld,
    TryWrite(usize),
    TryWriteVectored(usize, usize),
    /// Polled once, and dropped if pending.
    Write(usize),
    SendChunk(usize),
    ShutDown,
    HangUp,
    DropRead,
    DropWrite,
    /// This and the next drop a half with `forget`, which ends nothing.
    ForgetRead,
    ForgetWrite,
    Reunite,
    /// This and the next four are polled once, and dropped if pending.
    Drained,
    Ready,
    PollReadReady,
    PollWriteReady,
    GuestOpened,
    Quiesce,
    Resume,
}

/// Plays `steps`, then drops everything. Panics if the stream and the queues differ. Needs a runtime.
pub(crate) fn play<'a>(setup: Setup, steps: impl IntoIterator<Item = &'a Step>) {
    let mut run = Run::new(setup);
    for step in steps {
        run.play(step);
    }
    // Whatever the steps were, nothing stays queued once everything is dropped.
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
    /// The guest has gone without taking all that the host wrote.
    lost_rx: bool,
    /// krun has made its first call.
    guest_opened: bool,
    /// The host has stopped reading.
    read_stopped: bool,
    quiesced: bool,
    /// While quiesced, the ring had no room for some bytes. The host gets none of those that follow.
    cut_off: bool,
    /// The guest has read data and not waited since. It has to wait before it reads end of file.
    gave_data: bool,
}

impl Model {
    /// The host has read everything, and nothing more will come.
    fn is_tx_over(&self) -> bool {
        self.tx.is_empty() && self.has_tx_ended()
    }

    /// Nothing more will come.
    fn has_tx_ended(&self) -> bool {
        self.guest_gone || self.cut_off
    }

    /// Checks for end of file, or for an error if bytes were lost.
    fn check_end(&self, end: io::Result<bool>) {
        if self.cut_off {
            assert_eq!(kind(end), io::ErrorKind::UnexpectedEof);
        } else {
            assert!(end.unwrap(), "bytes instead of end of file");
        }
    }

    fn stop_reading(&mut self) {
        self.read_stopped = true;
        self.discarded += self.tx.len() as u64;
        self.tx.clear();
    }

    /// The next bytes of a sequence with a period of 251, which shares no factor with any chunk's size.
    fn fresh(&mut self, length: usize) -> Vec<u8> {
        static PERIODS: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let length = 251 + 2 * USUAL_RING.capacity;
            (0..length).map(|number| (number % 251) as u8).collect()
        });
        let first = self.next_byte;
        self.next_byte = (first + length) % 251;
        PERIODS[first..first + length].to_vec()
    }

    /// Goes back over bytes that a write did not take, so that the next write repeats them.
    fn unwrite(&mut self, length: usize) {
        self.next_byte = (self.next_byte + 251 - length % 251) % 251;
    }
}

struct Run {
    setup: Setup,
    model: Model,
    read: Option<OwnedReadHalf>,
    write: Option<OwnedWriteHalf>,
    backend: Option<Backend>,
    handle: PortHandle,
    held: Vec<(Bytes, Vec<u8>)>,
}

/// Copies slices: going byte by byte would take most of a debug build's time.
fn take(queue: &mut VecDeque<u8>, most: usize) -> Vec<u8> {
    let length = most.min(queue.len());
    let (first, second) = queue.as_slices();
    let now = length.min(first.len());
    let taken = [&first[..now], &second[..length - now]].concat();
    queue.drain(..length);
    taken
}

fn poll_once<F: Future>(operation: F) -> Poll<F::Output> {
    tokio_test::task::spawn(operation).poll()
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

impl Run {
    fn new(setup: Setup) -> Self {
        let options = Options::new().capacity(setup.capacity);
        let options = options.hang_up_on_drop(setup.hang_up_on_drop);
        let (stream, port) = options.create().unwrap();
        let (read, write) = stream.into_split();
        Self {
            setup,
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
                if self.backend.take().is_some() {
                    self.model.guest_gone = true;
                    self.model.lost_rx = !self.model.rx.is_empty();
                    self.model.rx.clear();
                }
            }
            Step::TryRead(length) => self.read_with(length, |half| {
                let mut buffer = vec![0; length];
                half.try_read(&mut buffer)
                    .map(|read| buffer[..read].to_vec())
            }),
            Step::TryReadBuf(length) => self.read_with(length, |half| {
                let mut buffer = bytes::BufMut::limit(BytesMut::with_capacity(length), length);
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
                    self.model.stop_reading();
                    self.end_if_both_halves_are_gone();
                }
            }
            Step::DropWrite => {
                if self.write.take().is_some() {
                    self.model.host_closed = true;
                    self.end_if_both_halves_are_gone();
                }
            }
            Step::ForgetRead => {
                if let Some(half) = self.read.take() {
                    half.forget();
                    self.end_if_both_halves_are_gone();
                }
            }
            Step::ForgetWrite => {
                if let Some(half) = self.write.take() {
                    half.forget();
                    self.end_if_both_halves_are_gone();
                }
            }
            Step::Reunite => match (self.read.take(), self.write.take()) {
                (Some(read), Some(write)) => {
                    let (read, write) = read.reunite(write).unwrap().into_split();
                    (self.read, self.write) = (Some(read), Some(write));
                }
                (None, None) => {}
                // One half was gone already, and dropping the other ends the stream.
                (read, write) => {
                    drop((read, write));
                    self.end_if_both_halves_are_gone();
                }
            },
            Step::Drained => self.drained(),
            Step::Ready => self.ready(),
            Step::PollReadReady => {
                let Some(half) = &self.read else { return };
                let polled = poll_once(std::future::poll_fn(|cx| half.poll_read_ready(cx)));
                let expected = !self.model.tx.is_empty() || self.model.is_tx_over();
                assert_eq!(polled.map(Result::unwrap).is_ready(), expected);
            }
            Step::PollWriteReady => {
                let Some(half) = &self.write else { return };
                let polled = poll_once(std::future::poll_fn(|cx| half.poll_write_ready(cx)));
                self.check_writable(polled.map(Result::unwrap).is_ready());
            }
            Step::GuestOpened => {
                let Some(half) = &self.read else { return };
                assert_eq!(half.has_guest_opened(), self.model.guest_opened);
                match poll_once(half.guest_opened()) {
                    Poll::Ready(Ok(())) => assert!(self.model.guest_opened),
                    Poll::Ready(Err(error)) => {
                        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
                        assert!(self.model.guest_gone && !self.model.guest_opened);
                    }
                    Poll::Pending => assert!(!self.model.guest_gone && !self.model.guest_opened),
                }
            }
            Step::Quiesce => {
                self.handle.quiesce();
                self.model.quiesced = true;
            }
            Step::Resume => {
                self.handle.resume();
                self.model.quiesced = false;
            }
        }
        self.check();
    }

    /// The stream ends with its last half, even if that was forgotten.
    fn end_if_both_halves_are_gone(&mut self) {
        if self.read.is_none() && self.write.is_none() {
            self.model.stop_reading();
            self.model.host_closed = true;
            self.model.hung_up |= self.setup.hang_up_on_drop;
        }
    }

    /// Checks `is_writable`: it means that a write of one byte would be taken, or would fail.
    fn check_writable(&self, is_writable: bool) {
        if self.model.host_closed || self.model.guest_gone {
            assert!(is_writable);
        } else {
            assert_eq!(is_writable, self.model.rx.len() < self.setup.capacity);
        }
    }

    fn drained(&mut self) {
        let Some(half) = &self.write else { return };
        match poll_once(half.drained()) {
            Poll::Ready(Ok(())) => {
                // If the guest has gone, it took everything first.
                assert!(self.model.rx.is_empty() && !self.model.lost_rx);
            }
            Poll::Ready(Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
                assert!(self.model.lost_rx);
            }
            Poll::Pending => assert!(!self.model.rx.is_empty() && !self.model.guest_gone),
        }
    }

    fn ready(&mut self) {
        let both = tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE;
        let ready = match (&self.read, &self.write) {
            (Some(half), _) => poll_once(half.ready(both)),
            (None, Some(half)) => poll_once(half.ready(both)),
            (None, None) => return,
        };
        let ready = match ready {
            Poll::Ready(ready) => ready.unwrap(),
            Poll::Pending => tokio::io::Ready::EMPTY,
        };
        let model = &self.model;
        self.check_writable(ready.is_writable());
        assert_eq!(
            ready.is_write_closed(),
            model.host_closed || model.guest_gone
        );
        if !model.read_stopped {
            let expected = !model.tx.is_empty() || model.is_tx_over();
            assert_eq!(ready.is_readable(), expected);
            assert_eq!(ready.is_read_closed(), model.has_tx_ended());
        }
    }

    fn check(&self) {
        let stats = self.handle.stats();
        assert_eq!(stats.tx.discarded, self.model.discarded);
        // Up to twice the capacity, because the stream may have been quiesced.
        assert!(stats.tx.queued <= 2 * self.setup.capacity as u64);
        assert!(stats.rx.queued <= self.setup.capacity as u64);
        let held: usize = self.held.iter().map(|(bytes, _)| bytes.len()).sum();
        assert!(stats.tx.queued >= self.model.tx.len() as u64);
        // Held chunks that were copied do not count.
        assert!(stats.tx.queued <= (self.model.tx.len() + held) as u64);
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
            // This is slow by design. `tests/backend.rs` tests it with the other rules of krun's threads.
            return;
        }
        let bytes = self.model.fresh(length);
        let capacity = self.setup.capacity;
        let queued = self.handle.stats().tx.queued as usize;
        let written = backend.write(&bytes);
        let model = &mut self.model;
        model.guest_opened = true;
        if model.read_stopped || model.cut_off {
            assert_eq!(written.unwrap(), length);
            model.discarded += length as u64;
        } else if model.quiesced {
            assert_eq!(written.unwrap(), length);
            let taken = length.min(2 * capacity - queued);
            model.tx.extend(&bytes[..taken]);
            model.discarded += (length - taken) as u64;
            model.cut_off = taken < length;
        } else if capacity.saturating_sub(queued) < length.min(capacity) {
            assert_eq!(kind(written), io::ErrorKind::WouldBlock);
            model.unwrite(length);
        } else {
            let written = written.unwrap();
            assert_eq!(written, length.min(capacity));
            model.tx.extend(&bytes[..written]);
            model.unwrite(length - written);
        }
    }

    fn guest_read(&mut self, length: usize) {
        let Some(backend) = &self.backend else { return };
        let mut buffer = vec![0; length];
        let read = backend.read(&mut buffer);
        let model = &mut self.model;
        model.guest_opened = true;
        if length == 0 {
            assert_eq!(kind(read), io::ErrorKind::WouldBlock);
        } else if !model.rx.is_empty() {
            let expected: Vec<u8> = take(&mut model.rx, length);
            let read = read.unwrap();
            assert!(
                buffer[..read] == expected,
                "the guest read {read} bytes, some of them wrong"
            );
            // Only krun's own calls need a wait between the last bytes and end of file.
            model.gave_data = cfg!(unix);
        } else if model.hung_up && !model.gave_data {
            assert_eq!(read.unwrap(), 0);
        } else {
            assert_eq!(kind(read), io::ErrorKind::WouldBlock);
            // Here krun waits, and asks for the descriptor at each wait.
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
        if limit == 0 {
            assert!(result.unwrap().is_empty());
        } else if model.is_tx_over() {
            model.check_end(result.map(|read| read.is_empty()));
        } else if model.tx.is_empty() {
            assert_eq!(kind(result), io::ErrorKind::WouldBlock);
        } else {
            let expected: Vec<u8> = take(&mut model.tx, limit);
            assert!(result.unwrap() == expected, "wrong bytes in a read");
        }
    }

    fn fill_buf(&mut self, consume: usize) {
        let Some(half) = &mut self.read else { return };
        let shown = match poll_once(half.fill_buf()) {
            Poll::Ready(shown) if self.model.is_tx_over() => {
                self.model.check_end(shown.map(<[u8]>::is_empty));
                return;
            }
            Poll::Ready(shown) => shown.unwrap().to_vec(),
            Poll::Pending => {
                assert!(self.model.tx.is_empty() && !self.model.is_tx_over());
                return;
            }
        };
        assert_eq!(shown.is_empty(), self.model.tx.is_empty());
        let consume = consume.min(shown.len());
        half.consume(consume);
        let mut expected = take(&mut self.model.tx, consume);
        let (first, second) = self.model.tx.as_slices();
        let rest = shown.len() - consume;
        let now = rest.min(first.len());
        expected.extend_from_slice(&first[..now]);
        expected.extend_from_slice(&second[..rest - now]);
        assert!(shown == expected, "wrong bytes from `fill_buf`");
    }

    fn chunk(&mut self, hold: bool) {
        let Some(half) = &mut self.read else { return };
        let mut chunks = Chunks::new(half);
        match tokio_test::task::spawn(chunks.next()).poll() {
            Poll::Pending => assert!(self.model.tx.is_empty() && !self.model.is_tx_over()),
            Poll::Ready(None) => assert!(self.model.is_tx_over() && !self.model.cut_off),
            Poll::Ready(Some(Err(error))) => {
                assert!(self.model.is_tx_over());
                self.model.check_end(Err(error));
            }
            Poll::Ready(Some(chunk)) => {
                let chunk = chunk.unwrap();
                assert!(!chunk.is_empty());
                let expected: Vec<u8> = take(&mut self.model.tx, chunk.len());
                assert!(chunk == expected, "wrong bytes in a chunk");
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
        let result = write(half, &bytes);
        let room = self.setup.capacity - self.model.rx.len();
        let written = if self.model.host_closed || self.model.guest_gone {
            assert_eq!(kind(result), io::ErrorKind::BrokenPipe);
            0
        } else if length > 0 && room == 0 {
            assert_eq!(kind(result), io::ErrorKind::WouldBlock);
            0
        } else if length == 0 {
            assert_eq!(result.unwrap(), 0);
            0
        } else {
            let written = result.unwrap();
            assert_eq!(written, length.min(room));
            written
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
                // An empty item succeeds even if the guest has gone. `write_with` expects what an empty write returns.
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

//! Plays operations of both ends on a stream and on two plain queues, and checks that the two agree.
//!
//! One thread plays krun and the host's tasks, so each outcome is known: how many bytes move, which ones, and when a
//! call finds no bytes, no room or an end. The loom models cover races between threads. `tests/model.rs` chooses the
//! operations at random, `fuzz/` by coverage.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::iter::Peekable;
use std::sync::LazyLock;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_krun::{
    Chunks, Error, Options, OwnedReadHalf, OwnedWriteHalf, Permit, PortHandle, StreamState,
};

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

/// Rings that are full after few bytes.
pub(crate) const TINY_RINGS: [Setup; 3] = [tiny_ring(1), tiny_ring(4), tiny_ring(1000)];

const fn tiny_ring(capacity: usize) -> Setup {
    Setup {
        capacity,
        hang_up_on_drop: true,
    }
}

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
    TryWriteAll(usize),
    TryWriteBytes(usize),
    /// Keeps the permit.
    TryReserve(usize),
    /// Polled once, and dropped if pending. Keeps the permit.
    Reserve(usize),
    /// Which of the kept permits, and how many bytes it is used for: up to one too many, which is refused.
    UsePermit(usize, Use, usize),
    UseWholePermit(usize, Use),
    DropPermit(usize),
    /// Polled once, and dropped if pending. Other tasks could send too.
    SendShared(usize),
    /// To a buffer that holds so many bytes, up to a limit.
    TryReadAvailable(usize, usize),
    /// Polled once, and dropped if pending.
    ReadAvailable(usize, usize),
    Close(By),
    /// Captures the stream and compares a copy of it. Goes on as it was.
    Fork,
    /// Captures the stream and goes on with a restored one.
    Restore,
}

/// What is written with a permit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Slice,
    Slices,
    Bytes,
}

/// Who closes the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    Half,
    Handle,
}

impl Step {
    /// Whether no permit may borrow the writing half.
    fn needs_whole_write_half(&self) -> bool {
        matches!(
            self,
            Self::Write(_)
                | Self::SendChunk(_)
                | Self::ShutDown
                | Self::HangUp
                | Self::DropWrite
                | Self::ForgetWrite
                | Self::Reunite
                | Self::Restore
        )
    }
}

/// Plays `steps`, then drops everything. Panics if the stream and the queues differ. Needs a runtime.
pub(crate) fn play<'a>(setup: Setup, steps: impl IntoIterator<Item = &'a Step>) {
    let (mut run, mut write) = Run::new(setup);
    let mut steps = steps.into_iter().peekable();
    while steps.peek().is_some() {
        run.play_while_half_is_shared(write.as_ref(), &mut steps);
        if let Some(step) = steps.next() {
            run.play_with_whole_half(&mut write, step);
        }
    }
    // Whatever the steps were, nothing stays queued once everything is dropped.
    run.held.clear();
    run.read = None;
    drop(write);
    run.backend = None;
    assert_eq!(run.handle.stats().tx.queued, 0);
    assert_eq!(run.handle.stats().rx.queued, 0);
}

/// The two directions as plain queues.
#[derive(Default)]
struct Model {
    tx: VecDeque<u8>,
    rx: VecDeque<u8>,
    /// Room in `rx` that is set aside for permits.
    claimed: usize,
    next_byte: usize,
    discarded: u64,
    /// The host writes no more.
    host_closed: bool,
    /// The stream was closed, or both of its halves have gone.
    host_ended: bool,
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
        self.guest_gone || self.cut_off || self.host_ended
    }

    /// Writes fail.
    fn has_rx_ended(&self) -> bool {
        self.host_closed || self.guest_gone
    }

    /// Checks for end of file, or for an error if bytes were lost and the host has not closed the stream.
    fn check_end(&self, end: io::Result<bool>) {
        if self.cut_off && !self.host_ended {
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
    backend: Option<Backend>,
    handle: PortHandle,
    held: Vec<(Bytes, Vec<u8>)>,
    /// The test has called krun's end since it left it.
    called: bool,
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

/// The result of an operation that does not wait.
fn now<T>(operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match poll_once(operation) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// What `read` appends to a buffer that holds `before` bytes.
fn append(
    before: usize,
    read: impl FnOnce(&mut BytesMut) -> io::Result<usize>,
) -> io::Result<Vec<u8>> {
    let mut buffer = BytesMut::new();
    buffer.resize(before, 0xee);
    let read = read(&mut buffer);
    let appended = buffer.split_off(before);
    assert!(buffer.iter().all(|byte| *byte == 0xee));
    assert_eq!(appended.len(), *read.as_ref().unwrap_or(&0));
    read.map(|_| appended.to_vec())
}

/// Takes one of the permits, if there are any.
fn pick<'h>(permits: &mut Vec<Permit<'h>>, which: usize) -> Option<Permit<'h>> {
    let which = which.checked_rem(permits.len())?;
    Some(permits.swap_remove(which))
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

fn options(setup: Setup) -> Options {
    let options = if setup.capacity < Options::MIN_CAPACITY {
        Options::new().test_capacity(setup.capacity)
    } else {
        Options::new().capacity(setup.capacity)
    };
    options.hang_up_on_drop(setup.hang_up_on_drop)
}

impl Run {
    /// The writing half is not part of it, as permits borrow that.
    fn new(setup: Setup) -> (Self, Option<OwnedWriteHalf>) {
        let (stream, port) = options(setup).create().unwrap();
        let (read, write) = stream.into_split();
        let run = Self {
            setup,
            model: Model::default(),
            read: Some(read),
            handle: port.handle(),
            backend: Some(common::backend(port)),
            held: Vec::new(),
            called: false,
        };
        (run, Some(write))
    }

    /// Plays steps up to one that needs the whole writing half. Permits are kept meanwhile.
    fn play_while_half_is_shared<'a>(
        &mut self,
        half: Option<&OwnedWriteHalf>,
        steps: &mut Peekable<impl Iterator<Item = &'a Step>>,
    ) {
        let mut permits = Vec::new();
        while let Some(step) = steps.next_if(|step| !step.needs_whole_write_half()) {
            self.play(half, &mut permits, step);
            self.check();
            let claimed: usize = permits.iter().map(Permit::length).sum();
            assert_eq!(self.model.claimed, claimed);
        }
        self.model.claimed = 0;
    }

    fn play<'h>(
        &mut self,
        write: Option<&'h OwnedWriteHalf>,
        permits: &mut Vec<Permit<'h>>,
        step: &Step,
    ) {
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
                let read = now(half.read(&mut buffer))?;
                Ok(buffer[..read].to_vec())
            }),
            Step::TryReadAvailable(before, limit) => self.read_with(limit, |half| {
                append(before, |buffer| half.try_read_available(buffer, limit))
            }),
            Step::ReadAvailable(before, limit) => self.read_with(limit, |half| {
                append(before, |buffer| now(half.read_available(buffer, limit)))
            }),
            Step::FillBuf(consume) => self.fill_buf(consume),
            Step::Chunk(hold) => self.chunk(hold),
            Step::DropHeld => self.held.clear(),
            Step::TryWrite(length) => {
                self.write_with(write, length, |half, bytes| half.try_write(bytes));
            }
            Step::TryWriteVectored(a, b) => self.write_with(write, a + b, |half, bytes| {
                let slices = [&bytes[..a], &bytes[a..]].map(IoSlice::new);
                half.try_write_vectored(&slices)
            }),
            Step::TryWriteAll(length) => {
                let Some(half) = write else { return };
                let expected = self.whole(length);
                self.write_whole(length, expected, |bytes| half.try_write_all(bytes));
            }
            Step::TryWriteBytes(length) => {
                let Some(half) = write else { return };
                let expected = self.whole(length);
                self.write_whole(length, expected, |bytes| {
                    let written = half.try_write_all_bytes(Bytes::copy_from_slice(bytes));
                    written.map_err(|(rejected, error)| {
                        assert!(rejected == bytes, "not all bytes were handed back");
                        error
                    })
                });
            }
            Step::TryReserve(length) => {
                let Some(half) = write else { return };
                self.reserve(permits, length, half.try_reserve(length));
            }
            Step::Reserve(length) => {
                let Some(half) = write else { return };
                self.reserve(permits, length, now(half.reserve(length)));
            }
            Step::UsePermit(which, how, length) => {
                let Some(permit) = pick(permits, which) else {
                    return;
                };
                let length = length % (permit.length() + 2);
                self.use_permit(permit, how, length);
            }
            Step::UseWholePermit(which, how) => {
                let Some(permit) = pick(permits, which) else {
                    return;
                };
                let length = permit.length();
                self.use_permit(permit, how, length);
            }
            Step::DropPermit(which) => {
                let Some(permit) = pick(permits, which) else {
                    return;
                };
                self.model.claimed -= permit.length();
            }
            Step::SendShared(length) => {
                if let Some(half) = write {
                    self.send_shared(half, length);
                }
            }
            Step::Close(by) => {
                match (by, &self.read, write) {
                    (By::Handle, ..) => self.handle.close(),
                    (By::Half, Some(half), _) => half.close(),
                    (By::Half, None, Some(half)) => half.close(),
                    // It has ended with its halves.
                    (By::Half, None, None) => {}
                }
                self.end();
            }
            Step::DropRead => {
                if self.read.take().is_some() {
                    self.model.stop_reading();
                    if write.is_none() {
                        self.end();
                    }
                }
            }
            Step::ForgetRead => {
                if let Some(half) = self.read.take() {
                    half.forget();
                    if write.is_none() {
                        self.end();
                    }
                }
            }
            Step::Drained => {
                if let Some(half) = write {
                    self.drained(half);
                }
            }
            Step::Ready => self.ready(write),
            Step::PollReadReady => {
                let Some(half) = &self.read else { return };
                let polled = poll_once(std::future::poll_fn(|cx| half.poll_read_ready(cx)));
                let expected = !self.model.tx.is_empty() || self.model.is_tx_over();
                assert_eq!(polled.map(Result::unwrap).is_ready(), expected);
            }
            Step::PollWriteReady => {
                let Some(half) = write else { return };
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
                        assert!(self.model.guest_gone || self.model.host_ended);
                        assert!(!self.model.guest_opened);
                    }
                    Poll::Pending => {
                        assert!(!self.model.guest_gone && !self.model.host_ended);
                        assert!(!self.model.guest_opened);
                    }
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
            Step::Fork => {
                if let Some(state) = self.capture() {
                    self.compare_copy(&state);
                }
            }
            Step::Write(_)
            | Step::SendChunk(_)
            | Step::ShutDown
            | Step::HangUp
            | Step::DropWrite
            | Step::ForgetWrite
            | Step::Reunite
            | Step::Restore => unreachable!("needs the whole writing half"),
        }
    }

    fn play_with_whole_half(&mut self, write: &mut Option<OwnedWriteHalf>, step: &Step) {
        match *step {
            Step::Write(length) => {
                self.write_with(write.as_mut(), length, |half, bytes| now(half.write(bytes)))
            }
            Step::SendChunk(length) => self.send_chunk(write.as_mut(), length),
            Step::ShutDown => {
                if let Some(half) = write {
                    now(half.shutdown()).unwrap();
                    self.model.host_closed = true;
                }
            }
            Step::HangUp => {
                if let Some(half) = write {
                    half.hang_up();
                    self.model.host_closed = true;
                    self.model.hung_up = true;
                }
            }
            Step::DropWrite => {
                if write.take().is_some() {
                    self.model.host_closed = true;
                    if self.read.is_none() {
                        self.end();
                    }
                }
            }
            Step::ForgetWrite => {
                if let Some(half) = write.take() {
                    half.forget();
                    if self.read.is_none() {
                        self.end();
                    }
                }
            }
            Step::Reunite => match (self.read.take(), write.take()) {
                (Some(read), Some(half)) => {
                    let (read, half) = read.reunite(half).unwrap().into_split();
                    (self.read, *write) = (Some(read), Some(half));
                }
                (None, None) => {}
                // One half was gone already, and dropping the other ends the stream.
                (read, half) => {
                    drop((read, half));
                    self.end();
                }
            },
            Step::Restore => self.restore(write),
            _ => unreachable!("needs no more than a borrow of the writing half"),
        }
        self.check();
    }

    /// The stream was closed. It also ends with its last half, even if that was forgotten.
    fn end(&mut self) {
        self.model.stop_reading();
        self.model.host_closed = true;
        self.model.host_ended = true;
        self.model.hung_up |= self.setup.hang_up_on_drop;
    }

    /// Room for a write without a permit.
    fn room(&self) -> usize {
        self.setup.capacity - self.model.rx.len() - self.model.claimed
    }

    /// Checks `is_writable`: it means that a write of one byte would be taken, or would fail.
    fn check_writable(&self, is_writable: bool) {
        if self.model.has_rx_ended() {
            assert!(is_writable);
        } else {
            assert_eq!(is_writable, self.room() > 0);
        }
    }

    fn drained(&self, half: &OwnedWriteHalf) {
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

    fn ready(&self, write: Option<&OwnedWriteHalf>) {
        let both = tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE;
        let ready = match (&self.read, write) {
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
        assert_eq!(ready.is_write_closed(), model.has_rx_ended());
        if !model.read_stopped || model.host_ended {
            let expected = !model.tx.is_empty() || model.is_tx_over();
            assert_eq!(ready.is_readable(), expected);
            assert_eq!(ready.is_read_closed(), model.has_tx_ended());
        }
    }

    /// Captures the stream by reference. `None` if it cannot be captured, for the right reason.
    fn capture(&mut self) -> Option<StreamState> {
        let checkpoint = self.handle.checkpoint();
        if let Some(backend) = &self.backend {
            // At the guest's end of the rings nobody is counted.
            if self.called && !self.model.cut_off && cfg!(unix) {
                assert!(matches!(checkpoint.capture(), Err(Error::NotAtRest)));
            }
            common::leave(backend);
            self.called = false;
        }
        let captured = checkpoint.capture();
        self.check_captured(captured)
    }

    fn check_captured(&self, captured: Result<StreamState, Error>) -> Option<StreamState> {
        let model = &self.model;
        match captured {
            Err(Error::CutOff) => assert!(model.cut_off),
            Err(Error::GuestGone) => assert!(model.guest_gone),
            Err(error) => panic!("{error}"),
            Ok(state) => {
                assert!(!model.cut_off && !model.guest_gone);
                let stats = state.stats();
                assert_eq!(stats.tx.queued, model.tx.len() as u64);
                assert_eq!(stats.rx.queued, model.rx.len() as u64);
                let now = self.handle.stats();
                assert_eq!(
                    (stats.tx.bytes, stats.rx.bytes),
                    (now.tx.bytes, now.rx.bytes)
                );
                let mut written = Vec::new();
                state.write_to(&mut written).unwrap();
                let mut rest = &written[..];
                assert_eq!(StreamState::read_from(&mut rest).unwrap(), state);
                assert!(rest.is_empty());
                return Some(state);
            }
        }
        None
    }

    /// Both ends of a restored stream have what the queues have.
    fn compare_copy(&self, state: &StreamState) {
        let (stream, port) = options(self.setup).restore(state).unwrap();
        let backend = common::backend(port);
        let model = &self.model;
        assert_eq!(stream.has_guest_opened(), model.guest_opened);
        if !model.host_ended {
            let mut tx = vec![0; model.tx.len() + 1];
            let read = stream.try_read(&mut tx).unwrap_or(0);
            assert!(model.tx == &tx[..read], "the copy differs towards the host");
        }
        let mut rx = vec![0; model.rx.len() + 1];
        let read = backend.read(&mut rx).unwrap_or(0);
        assert!(
            model.rx == &rx[..read],
            "the copy differs towards the guest"
        );
    }

    fn restore(&mut self, write: &mut Option<OwnedWriteHalf>) {
        let state = match (self.read.take(), write.take()) {
            (Some(read), Some(half)) => {
                if let Some(backend) = &self.backend {
                    common::leave(backend);
                    self.called = false;
                }
                match read.reunite(half).unwrap().into_state() {
                    Ok(state) => self.check_captured(Ok(state)),
                    Err((stream, error)) => {
                        let (read, half) = stream.into_split();
                        (self.read, *write) = (Some(read), Some(half));
                        self.check_captured(Err(error))
                    }
                }
            }
            (read, half) => {
                (self.read, *write) = (read, half);
                self.capture()
            }
        };
        let Some(state) = state else { return };
        let (had_read, had_write) = (self.read.is_some(), write.is_some());
        let is_by_value = !had_read && !had_write && !self.model.host_ended;
        let (stream, port) = options(self.setup).restore(&state).unwrap();
        (self.read, *write) = (None, None);
        self.handle = port.handle();
        self.backend = Some(common::backend(port));
        (self.model.gave_data, self.model.discarded) = (false, 0);
        self.model.quiesced = false;
        let (read, half) = stream.into_split();
        if had_read || is_by_value {
            self.read = Some(read);
        } else if self.model.read_stopped {
            drop(read);
        } else {
            read.forget();
        }
        if had_write || is_by_value {
            *write = Some(half);
        } else if self.model.host_closed {
            drop(half);
        } else {
            half.forget();
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
        self.called = true;
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
        self.called = true;
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
            Poll::Ready(None) => {
                assert!(self.model.is_tx_over() && (!self.model.cut_off || self.model.host_ended))
            }
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

    fn write_with<H>(
        &mut self,
        half: Option<H>,
        length: usize,
        write: impl FnOnce(H, &[u8]) -> io::Result<usize>,
    ) {
        let Some(half) = half else { return };
        let bytes = self.model.fresh(length);
        let result = write(half, &bytes);
        let room = self.room();
        let written = if self.model.has_rx_ended() {
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
        self.wrote(&bytes, written);
    }

    fn wrote(&mut self, bytes: &[u8], written: usize) {
        self.model.rx.extend(&bytes[..written]);
        self.model.unwrite(bytes.len() - written);
    }

    /// What a call must return that writes `length` bytes or nothing, or sets room for them aside.
    fn whole(&self, length: usize) -> Result<(), io::ErrorKind> {
        if length > self.setup.capacity {
            Err(io::ErrorKind::InvalidInput)
        } else if self.model.has_rx_ended() {
            Err(io::ErrorKind::BrokenPipe)
        } else if length > self.room() {
            Err(io::ErrorKind::WouldBlock)
        } else {
            Ok(())
        }
    }

    fn write_whole(
        &mut self,
        length: usize,
        expected: Result<(), io::ErrorKind>,
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) {
        let bytes = self.model.fresh(length);
        let result = write(&bytes);
        assert_eq!(result.map_err(|error| error.kind()), expected);
        self.wrote(&bytes, if expected.is_ok() { length } else { 0 });
    }

    fn reserve<'h>(
        &mut self,
        permits: &mut Vec<Permit<'h>>,
        length: usize,
        reserved: io::Result<Permit<'h>>,
    ) {
        let expected = self.whole(length);
        match reserved {
            Ok(permit) => {
                assert_eq!(expected, Ok(()));
                assert_eq!(permit.length(), length);
                self.model.claimed += length;
                permits.push(permit);
            }
            Err(error) => assert_eq!(Err(error.kind()), expected),
        }
    }

    fn use_permit(&mut self, permit: Permit<'_>, how: Use, length: usize) {
        let most = permit.length();
        self.model.claimed -= most;
        let expected = if length > most {
            Err(io::ErrorKind::InvalidInput)
        } else if self.model.has_rx_ended() {
            Err(io::ErrorKind::BrokenPipe)
        } else {
            Ok(())
        };
        self.write_whole(length, expected, |bytes| match how {
            Use::Slice => permit.write_all(bytes),
            Use::Slices => {
                let (first, second) = bytes.split_at(length / 2);
                permit.write_all_vectored(&[first, second].map(IoSlice::new))
            }
            Use::Bytes => permit.write_all_bytes(Bytes::copy_from_slice(bytes)),
        });
    }

    fn send_chunk(&mut self, half: Option<&mut OwnedWriteHalf>, length: usize) {
        self.write_with(half, length, |half, bytes| {
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

    /// An item goes in whole. One that is larger than the ring begins only once the ring is empty, and the rest of it is
    /// lost here.
    fn send_shared(&mut self, half: &OwnedWriteHalf, length: usize) {
        let bytes = self.model.fresh(length);
        let mut chunks = Chunks::new(half);
        let polled = poll_once(chunks.send(Bytes::copy_from_slice(&bytes)));
        drop(chunks);
        let polled = polled.map_err(|error| error.kind());
        let (expected, written) = if length == 0 {
            (Poll::Ready(Ok(())), 0)
        } else if self.model.has_rx_ended() {
            (Poll::Ready(Err(io::ErrorKind::BrokenPipe)), 0)
        } else if length <= self.room() {
            (Poll::Ready(Ok(())), length)
        } else if length > self.setup.capacity && self.model.claimed == 0 {
            (Poll::Pending, self.room())
        } else {
            (Poll::Pending, 0)
        };
        assert_eq!(polled, expected);
        self.wrote(&bytes, written);
    }
}

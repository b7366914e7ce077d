//! One direction's bytes: a queue of recycled chunks, bounded in bytes and in chunks.
//!
//! A write copies its bytes once, into the **open** chunk, and moves that to the queue of **full**
//! ones when it has no room left; so small writes share a chunk, and each chunk in the queue but
//! the open one is full. That is what bounds the memory whatever sizes are written: at most
//! `slots` full chunks (twice that while over the bound, see [`Admit::Over`]), the open one, one in
//! the writer's hands, and two in the reader's.
//!
//! A reader that finds no full chunk takes the open one. It may do so just after the writer has
//! filled one and opened the next, and then holds that next one too early: each chunk therefore
//! carries the position of its first byte, and one that is ahead is set aside until its turn.
//!
//! Neither side ever waits for the other here. The mutexes only keep apart callers of the same
//! side; the reader never takes the writer's, which is held while guest memory is read and may so
//! be held for long.
//!
//! Waking is the caller's business.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fmt;

use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Mutex, Ordering, fence, lock};

pub(crate) struct Ring {
    full: ArrayQueue<Chunk>,
    /// The chunk that is being filled, while neither side has it in its hands.
    open: ArrayQueue<Chunk>,
    /// Storage that was read out, for the writer to use again.
    spare: ArrayQueue<Vec<u8>>,
    writer: Mutex<()>,
    reader: Mutex<Reader>,
    /// Bytes admitted since the start: the position of the next byte to be written.
    written: AtomicU64,
    /// Bytes taken out since the start: the position of the next byte to be read.
    read: AtomicU64,
    /// Room that the last write was short of, if it was refused.
    wanted: AtomicU64,
    /// Bytes that were accepted and thrown away, or never read.
    discarded: AtomicU64,
    /// The writer has ended: after the bytes that are left comes the end.
    closed: AtomicBool,
    /// The reader has gone: nothing that is written will be read.
    abandoned: AtomicBool,
    capacity: u64,
    chunk_size: usize,
}

struct Chunk {
    /// Of its first byte in the stream.
    position: u64,
    bytes: Vec<u8>,
    /// How many of `bytes` have been read.
    taken: usize,
}

#[derive(Default)]
struct Reader {
    current: Option<Chunk>,
    /// Taken before its turn; see the module's documentation.
    ahead: Option<Chunk>,
}

/// How much of a write is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// As much as there is room for.
    Part,
    /// All of it or nothing; of a write larger than the whole ring, a ringful.
    Whole,
    /// All of it, never waiting: up to twice the capacity into the ring, the rest discarded.
    Over,
}

/// Why a write took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No room now.
    Full,
    /// The writer has closed this direction.
    Closed,
    /// The reader has gone.
    Abandoned,
}

impl Ring {
    /// Neither number is zero, and `capacity` is at least `slots`.
    pub(crate) fn new(capacity: usize, slots: usize) -> Self {
        Self {
            // Twice the slots for `Admit::Over`.
            full: ArrayQueue::new(slots.saturating_mul(2)),
            open: ArrayQueue::new(1),
            spare: ArrayQueue::new(slots),
            writer: Mutex::new(()),
            reader: Mutex::new(Reader::default()),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            capacity: capacity as u64,
            chunk_size: capacity.div_ceil(slots),
        }
    }

    /// Copies bytes in and says how many were taken: none only if `source` is empty.
    pub(crate) fn write(&self, source: &[u8], admit: Admit) -> Result<usize, Refused> {
        let _writer = lock(&self.writer);
        // Relaxed: `close` also holds the lock.
        if self.closed.load(Ordering::Relaxed) {
            return Err(Refused::Closed);
        }
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Refused::Abandoned);
        }
        if source.is_empty() {
            return Ok(0);
        }
        let length = source.len() as u64;
        let (wanted, bound) = match admit {
            Admit::Part => (1, self.capacity),
            Admit::Whole => (length.min(self.capacity), self.capacity),
            Admit::Over => (length, self.capacity.saturating_mul(2)),
        };
        let room = bound.saturating_sub(self.queued());
        if room < wanted {
            if admit == Admit::Over {
                self.discard(length);
                return Ok(source.len());
            }
            // Relaxed: the writer looks at the room itself before it sleeps.
            self.wanted.store(wanted, Ordering::Relaxed);
            return Err(Refused::Full);
        }
        // Seldom not zero, so the line stays shared.
        if self.wanted.load(Ordering::Relaxed) != 0 {
            self.wanted.store(0, Ordering::Relaxed);
        }
        let (source, _) = source.split_at(length.min(room) as usize);
        self.push(source);
        // Pairs with the fence in `abandon`: either its sweep finds these bytes, or this load
        // finds that the reader has gone.
        fence(Ordering::SeqCst);
        if self.abandoned.load(Ordering::Relaxed) {
            self.sweep();
        }
        Ok(source.len())
    }

    /// Appends bytes there is room for, under the writer's lock; `source` is not empty.
    fn push(&self, mut source: &[u8]) {
        let mut position = self.written.load(Ordering::Relaxed);
        // Before the bytes can be read, so that `read` never overtakes it.
        self.written.store(
            position.wrapping_add(source.len() as u64),
            Ordering::Release,
        );
        let mut open = self.open.pop();
        while !source.is_empty() {
            let mut chunk = open.take().unwrap_or_else(|| self.fresh_chunk(position));
            let space = self.chunk_size.saturating_sub(chunk.bytes.len());
            let (now, later) = source.split_at(space.min(source.len()));
            chunk.bytes.extend_from_slice(now);
            position = position.wrapping_add(now.len() as u64);
            source = later;
            let queue = if chunk.bytes.len() < self.chunk_size {
                &self.open
            } else {
                &self.full
            };
            // Neither can be at its end: `open` was emptied above and only this side fills it, and
            // full chunks hold no more bytes than were admitted.
            let refused = queue.push(chunk).is_err();
            debug_assert!(!refused, "more chunks than the byte bound allows");
        }
    }

    fn fresh_chunk(&self, position: u64) -> Chunk {
        let bytes = self
            .spare
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(self.chunk_size));
        Chunk {
            position,
            bytes,
            taken: 0,
        }
    }

    /// Hands up to `limit` bytes to `sink`, in order and piece by piece, and says how many:
    /// `None` if there are none yet, `Some(0)` at the end. `limit` is not zero.
    pub(crate) fn read(&self, limit: usize, sink: impl FnMut(&[u8])) -> Option<usize> {
        // Before the look, and pairs with the store in `close`: a look after it misses nothing
        // that was written before the close.
        let closed = self.closed.load(Ordering::Acquire);
        match self.take(&mut lock(&self.reader), limit, sink) {
            0 if closed => Some(0),
            0 => None,
            taken => Some(taken),
        }
    }

    fn take(&self, reader: &mut Reader, limit: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let mut left = limit;
        while left > 0 {
            let Some(mut chunk) = reader.current.take().or_else(|| self.next_chunk(reader)) else {
                break;
            };
            let rest = chunk.bytes.get(chunk.taken..).unwrap_or_default();
            let (part, later) = rest.split_at(rest.len().min(left));
            sink(part);
            left = left.saturating_sub(part.len());
            chunk.taken = chunk.taken.saturating_add(part.len());
            // Only this side adds to it, under the reader's lock.
            let read = self.read.load(Ordering::Relaxed);
            self.read
                .store(read.wrapping_add(part.len() as u64), Ordering::Release);
            if later.is_empty() {
                self.recycle(chunk);
            } else {
                reader.current = Some(chunk);
            }
        }
        limit.saturating_sub(left)
    }

    /// The chunk that begins where the last one ended.
    fn next_chunk(&self, reader: &mut Reader) -> Option<Chunk> {
        let position = self.read.load(Ordering::Relaxed);
        if reader
            .ahead
            .as_ref()
            .is_some_and(|chunk| chunk.position == position)
        {
            return reader.ahead.take();
        }
        if let Some(chunk) = self.full.pop() {
            return Some(chunk);
        }
        let chunk = self.open.pop()?;
        if chunk.position == position {
            return Some(chunk);
        }
        // It was opened after the look at `full`, and those before it are there by now.
        reader.ahead = Some(chunk);
        self.full.pop()
    }

    fn recycle(&self, chunk: Chunk) {
        let mut bytes = chunk.bytes;
        // Appending to what is empty: no old byte is ever shown.
        bytes.clear();
        // There may be more chunks than `slots` after an `Admit::Over`; the rest is freed.
        let _ = self.spare.push(bytes);
    }

    /// Ends the writer's side: what is in the ring is still read, then the end.
    pub(crate) fn close(&self) {
        // Under the lock, so that no write is half done.
        let _writer = lock(&self.writer);
        // Pairs with the load in `read`.
        self.closed.store(true, Ordering::Release);
    }

    /// Ends the reader's side: what is unread, and what is still written, is discarded.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        // Pairs with the fence in `write`.
        fence(Ordering::SeqCst);
        self.sweep();
    }

    fn sweep(&self) {
        let swept = self.take(&mut lock(&self.reader), usize::MAX, |_| {});
        self.discard(swept as u64);
    }

    pub(crate) fn discard(&self, bytes: u64) {
        self.discarded.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Bytes in the ring.
    fn queued(&self) -> u64 {
        // Acquire pairs with the store in `take`. `read` first: `written` only grows meanwhile,
        // so the difference is never negative.
        let read = self.read.load(Ordering::Acquire);
        self.written.load(Ordering::Acquire).wrapping_sub(read)
    }

    fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.queued())
    }

    /// Whether the last write that was refused would now be taken, or learn that it never will.
    pub(crate) fn has_wanted_room(&self) -> bool {
        let ended = self.closed.load(Ordering::Relaxed) || self.abandoned.load(Ordering::Relaxed);
        let room = if ended { self.capacity } else { self.room() };
        room >= self.wanted.load(Ordering::Relaxed)
    }

    /// Makes [`has_wanted_room`](Self::has_wanted_room) false until the next refused write.
    pub(crate) fn want_more_than_there_is(&self) {
        self.wanted.store(u64::MAX, Ordering::Relaxed);
    }

    /// Whether there is room enough to wake a writer for: half the ring, so that under load one
    /// wake is paid for half a ring of bytes. An empty ring always has it, so a writer that sleeps
    /// is woken before the reader does.
    pub(crate) fn is_worth_a_wake(&self) -> bool {
        self.has_wanted_room() && self.room() >= self.capacity / 2
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("capacity", &self.capacity)
            .field("queued", &self.queued())
            .field("discarded", &self.discarded())
            .field("closed", &self.closed)
            .field("abandoned", &self.abandoned)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, tokio_krun_loom))]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Reads until the end, yielding where a real reader would sleep.
    fn read_to_end(ring: &Ring, limit: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            match ring.read(limit, |part| bytes.extend_from_slice(part)) {
                Some(0) => return bytes,
                Some(_) => {}
                None => thread::yield_now(),
            }
        }
    }

    /// Chunks of two bytes, so that full and open chunks are mixed: the reader must not take them
    /// out of turn, nor miss one at the end.
    #[test]
    fn bytes_come_out_in_order_and_then_the_end() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let ring = Arc::new(Ring::new(8, 4));
            let writer = thread::spawn({
                let ring = Arc::clone(&ring);
                move || {
                    assert_eq!(ring.write(&[1], Admit::Whole), Ok(1));
                    assert_eq!(ring.write(&[2, 3], Admit::Whole), Ok(2));
                    ring.close();
                }
            });
            assert_eq!(read_to_end(&ring, 8), [1, 2, 3]);
            writer.join().unwrap();
        });
    }

    #[test]
    fn a_full_ring_takes_more_only_after_a_read() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let ring = Arc::new(Ring::new(2, 2));
            let writer = thread::spawn({
                let ring = Arc::clone(&ring);
                move || {
                    assert_eq!(ring.write(&[1, 2], Admit::Whole), Ok(2));
                    let mut written = ring.write(&[3], Admit::Whole);
                    while written == Err(Refused::Full) {
                        thread::yield_now();
                        written = ring.write(&[3], Admit::Whole);
                    }
                    assert_eq!(written, Ok(1));
                    ring.close();
                }
            });
            assert_eq!(read_to_end(&ring, 1), [1, 2, 3]);
            writer.join().unwrap();
        });
    }

    /// Whatever the order, each byte is either refused or counted as discarded.
    #[test]
    fn a_write_that_meets_the_readers_end_is_accounted_for() {
        loom::model(|| {
            let ring = Arc::new(Ring::new(4, 2));
            let writer = thread::spawn({
                let ring = Arc::clone(&ring);
                move || ring.write(&[1, 2, 3], Admit::Whole)
            });
            ring.abandon();
            match writer.join().unwrap() {
                Ok(written) => {
                    assert_eq!(written, 3);
                    assert_eq!(ring.discarded(), 3);
                    assert_eq!(ring.queued(), 0);
                }
                Err(refused) => {
                    assert_eq!(refused, Refused::Abandoned);
                    assert_eq!(ring.discarded(), 0);
                }
            }
        });
    }
}

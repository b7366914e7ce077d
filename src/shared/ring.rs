//! One direction's bytes: a queue of recycled chunks, bounded in bytes and in chunks.
//!
//! A write copies its bytes once, into the **open** chunk, and moves that to the queue of **full**
//! ones when it has no room left; so small writes share a chunk, and each chunk in the queue but
//! the open one is full. That is what bounds the memory whatever sizes the guest writes: at most
//! `slots` full chunks (twice that while over the bound, see [`Admit::Over`]), the open one, one in
//! the writer's hands, and two in the
//! reader's; and the slots themselves. The host may also give whole [`Bytes`](bytes::Bytes), which are
//! queued as they are.
//!
//! A reader that finds no full chunk takes the open one. It may do so just after the writer has
//! filled one and opened the next, and then holds that next one too early: each chunk therefore
//! carries the position of its first byte, and one that is ahead is set aside until its turn.
//!
//! A reader may also take a chunk away as [`Bytes`](bytes::Bytes), without a copy. Its bytes then
//! count against the bound until the last handle to them is dropped; so what is **read** and what is
//! **released** are two positions. A handle to a chunk that was only peeked at counts for nothing.
//!
//! Neither side waits for the other while that is at its bytes. The mutexes keep apart callers of the
//! same side; the reader never takes the writer's, which is held while guest memory is read and may
//! so be held for long, and the writer takes the reader's only when the reader has gone. (The queues
//! spin for the few instructions in which the other side moves a chunk.)
//!
//! Waking is the caller's business.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod chunk;
#[cfg(all(test, tokio_krun_loom))]
mod models;
mod reader;
mod writer;

use std::fmt;

use crate::stats::RingStats;
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Mutex, Ordering};
use chunk::Chunk;
use reader::Reader;
pub(crate) use writer::{Admit, Refused};

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
    /// Bytes that count no longer. The same as `read`, but for what was taken away as [`Bytes`].
    released: AtomicU64,
    /// Room that the last write was short of, if it was refused.
    wanted: AtomicU64,
    /// Of the bytes read, those that went to nobody.
    swept: AtomicU64,
    /// Where reading ended, if the reader has gone.
    abandoned_at: AtomicU64,
    /// Bytes that were accepted and thrown away, or never read.
    discarded: AtomicU64,
    /// The most bytes there have been in the ring.
    high_water: AtomicU64,
    /// Chunks that have come to the reader's hands.
    chunks: AtomicU64,
    /// Writes that found no room.
    refused: AtomicU64,
    /// The writer has ended: after the bytes that are left comes the end.
    closed: AtomicBool,
    /// The writer's side was ended by bytes that found no room.
    cut_off: AtomicBool,
    /// The reader has gone: nothing that is written will be read.
    abandoned: AtomicBool,
    capacity: u64,
    chunk_size: usize,
}

impl Ring {
    /// Neither number is zero, and `capacity` is at least `slots`.
    pub(crate) fn new(capacity: usize, slots: usize) -> Self {
        Self {
            // Twice the slots for `Admit::Over`, or for chunks that are half full (see
            // `write_bytes`), and the two that `room` keeps back.
            full: ArrayQueue::new(slots.saturating_mul(2).saturating_add(2)),
            open: ArrayQueue::new(1),
            spare: ArrayQueue::new(slots),
            writer: Mutex::new(()),
            reader: Mutex::new(Reader::default()),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            released: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            swept: AtomicU64::new(0),
            abandoned_at: AtomicU64::new(u64::MAX),
            discarded: AtomicU64::new(0),
            high_water: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            capacity: capacity as u64,
            chunk_size: capacity.div_ceil(slots),
        }
    }
}

/// For either side.
impl Ring {
    pub(crate) fn discard(&self, bytes: usize) {
        self.discarded.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: what its writer did before is seen.
        self.closed.load(Ordering::Acquire)
    }

    /// To be asked at the end: whether bytes were lost there.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Too few bytes to keep a chunk's storage, or its slot, for them alone.
    fn is_small(&self, length: usize) -> bool {
        length < self.chunk_size / 2
    }

    /// Bytes that count against the bound.
    fn queued(&self) -> u64 {
        // Acquire pairs with `release`. `released` first: `written` only grows meanwhile, so the
        // difference is never negative.
        let released = self.released.load(Ordering::Acquire);
        self.written.load(Ordering::Acquire).wrapping_sub(released)
    }

    fn room(&self) -> u64 {
        self.room_under(self.capacity)
    }

    fn room_under(&self, bound: u64) -> u64 {
        // A push may need a chunk more than its bytes fill, and `write_bytes` one more for the
        // open chunk. This limits only a writer of half-filled chunks: full ones meet the bound
        // in bytes first.
        let slots = self.full.capacity().saturating_sub(self.full.len());
        let chunk_size = self.chunk_size as u64;
        bound
            .saturating_sub(self.queued())
            .min(chunk_size.saturating_mul(slots.saturating_sub(2) as u64))
    }

    pub(crate) fn stats(&self) -> RingStats {
        RingStats {
            queued: self.queued(),
            chunks_queued: self.full.len() + self.open.len(),
            high_water: self.high_water.load(Ordering::Relaxed),
            bytes: self
                .read
                .load(Ordering::Relaxed)
                .saturating_sub(self.swept.load(Ordering::Relaxed)),
            chunks: self.chunks.load(Ordering::Relaxed),
            full: self.refused.load(Ordering::Relaxed),
            discarded: self.discarded.load(Ordering::Relaxed),
            ..RingStats::default()
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("capacity", &self.capacity)
            .field("queued", &self.queued())
            .field("discarded", &self.discarded)
            .field("closed", &self.closed)
            .field("abandoned", &self.abandoned)
            .finish_non_exhaustive()
    }
}

//! One direction's bytes: a queue of recycled chunks, bounded in bytes and in chunks.
//!
//! A write copies its bytes once, into the **open** chunk, and moves that to the queue of **full**
//! ones when it has no room left; so small writes share a chunk, and each chunk in the queue is
//! full. That is what bounds the memory whatever sizes the guest writes: at most `slots` full
//! chunks (twice that while over the bound, see [`Admit::Over`]), the open one, two in the reader's
//! hands; and the slots themselves. Storage comes from a [`Pool`] and goes back to it, all of it
//! when there is nothing to read. The host may also give whole [`Bytes`](bytes::Bytes), which are
//! queued as they are.
//!
//! The open chunk is the writer's, under its lock, which is held while guest memory is read and may
//! so be held for long. A reader that finds no full chunk takes the open one if that lock is free,
//! and leaves the writer the storage it has read out last. If it is not free, there is nothing to
//! read *yet*: whoever has held the writer's lock [announces](Ring::write) it afterwards, also if
//! nothing was written. So neither side waits for the other while that is at its bytes. The writer
//! takes the reader's lock only when the reader has gone.
//!
//! A reader may also take a chunk away as [`Bytes`](bytes::Bytes), without a copy. Its bytes then
//! count against the bound until the last handle to them is dropped; so what is **read** and what is
//! **released** are two positions. A handle to a chunk that was only peeked at counts for nothing.
//!
//! What each side writes is on cache lines of its own, and the writer looks at the reader's only
//! when the room it knows of does not do.
//!
//! Waking is the caller's business.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod chunk;
#[cfg(all(test, tokio_krun_loom))]
#[allow(clippy::unwrap_used, reason = "no thread of krun's runs models")]
mod models;
mod reader;
mod writer;

use std::fmt;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::pool::Pool;
use crate::stats::RingStats;
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Mutex, Ordering};
use chunk::Chunk;
use reader::Reader;
use writer::Writer;
pub(crate) use writer::{Admit, Refused};

pub(crate) struct Ring {
    full: ArrayQueue<Chunk>,
    pool: Arc<Pool>,
    writer: CachePadded<Mutex<Writer>>,
    reader: CachePadded<Mutex<Reader>>,
    put: CachePadded<Put>,
    taken: CachePadded<Taken>,
    ends: CachePadded<Ends>,
    capacity: u64,
}

/// Moved by the writer, under its lock.
#[derive(Default)]
struct Put {
    /// Bytes admitted since the start: the position of the next byte to be written.
    written: AtomicU64,
    /// Chunks that were begun.
    chunks: AtomicU64,
    /// The most bytes there have been in the ring.
    high_water: AtomicU64,
}

/// Moved by the reader, under its lock but for `released`.
#[derive(Default)]
struct Taken {
    /// Bytes taken out since the start: the position of the next byte to be read.
    read: AtomicU64,
    /// Bytes that count no longer. The same as `read`, but for what was taken away as [`Bytes`].
    released: AtomicU64,
    /// Chunks that have come to the reader's hands.
    chunks: AtomicU64,
}

/// What changes seldom.
struct Ends {
    /// The writer has ended: after the bytes that are left comes the end.
    closed: AtomicBool,
    /// The writer's side was ended by bytes that found no room.
    cut_off: AtomicBool,
    /// The reader has gone: nothing that is written will be read.
    abandoned: AtomicBool,
    /// Where reading ended, if the reader has gone.
    abandoned_at: AtomicU64,
    /// Room that the last write was short of, if it was refused.
    wanted: AtomicU64,
    /// Writes that found no room.
    refused: AtomicU64,
    /// Of the bytes read, those that went to nobody.
    swept: AtomicU64,
    /// Bytes that were accepted and thrown away, or never read.
    discarded: AtomicU64,
}

impl Ring {
    /// Neither number is zero, and `capacity` is at least `chunk_size`.
    pub(crate) fn new(capacity: usize, chunk_size: usize) -> Self {
        let slots = capacity.div_ceil(chunk_size);
        Self {
            // Twice the slots for `Admit::Over`, or for chunks that are half full (see
            // `write_bytes`), and the two that `room` keeps back.
            full: ArrayQueue::new(slots.saturating_mul(2).saturating_add(2)),
            pool: Pool::for_chunks(chunk_size, slots),
            writer: CachePadded::new(Mutex::new(Writer::default())),
            reader: CachePadded::new(Mutex::new(Reader::default())),
            put: CachePadded::default(),
            taken: CachePadded::default(),
            ends: CachePadded::new(Ends {
                closed: AtomicBool::new(false),
                cut_off: AtomicBool::new(false),
                abandoned: AtomicBool::new(false),
                abandoned_at: AtomicU64::new(u64::MAX),
                wanted: AtomicU64::new(0),
                refused: AtomicU64::new(0),
                swept: AtomicU64::new(0),
                discarded: AtomicU64::new(0),
            }),
            capacity: capacity as u64,
        }
    }
}

/// For either side.
impl Ring {
    pub(crate) fn discard(&self, bytes: usize) {
        self.ends
            .discarded
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: what its writer did before is seen.
        self.ends.closed.load(Ordering::Acquire)
    }

    /// To be asked at the end: whether bytes were lost there.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.ends.cut_off.load(Ordering::Relaxed)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.ends.abandoned.load(Ordering::Relaxed)
    }

    /// Too few bytes to keep a chunk's storage, or its slot, for them alone.
    fn is_small(&self, length: usize) -> bool {
        length < self.pool.chunk_size() / 2
    }

    /// Bytes that count against the bound.
    fn queued(&self) -> u64 {
        // First, and pairs with `release`: who sees that bytes were released also sees that they were
        // written, so the difference is never negative.
        let released = self.taken.released.load(Ordering::Acquire);
        self.put
            .written
            .load(Ordering::Relaxed)
            .wrapping_sub(released)
    }

    /// Room for bytes, to anyone but a writer, which has [a way of its own](Self::admit).
    fn room(&self) -> u64 {
        self.room_under(self.capacity, self.queued(), self.free_slots())
    }

    fn room_under(&self, bound: u64, queued: u64, free_slots: usize) -> u64 {
        // A push may need a chunk more than its bytes fill, and `write_bytes` one more for the
        // open chunk. This limits only a writer of half-filled chunks: full ones meet the bound
        // in bytes first.
        let chunks = free_slots.saturating_sub(2) as u64;
        bound
            .saturating_sub(queued)
            .min(chunks.saturating_mul(self.pool.chunk_size() as u64))
    }

    fn free_slots(&self) -> usize {
        self.full.capacity().saturating_sub(self.full.len())
    }

    pub(crate) fn stats(&self) -> RingStats {
        // First, as in `queued`, and pairs with the store in `current`.
        let taken = self.taken.chunks.load(Ordering::Acquire);
        let begun = self.put.chunks.load(Ordering::Relaxed);
        RingStats {
            queued: self.queued(),
            chunks_queued: usize::try_from(begun.wrapping_sub(taken)).unwrap_or(usize::MAX),
            high_water: self.put.high_water.load(Ordering::Relaxed),
            bytes: self
                .taken
                .read
                .load(Ordering::Relaxed)
                .saturating_sub(self.ends.swept.load(Ordering::Relaxed)),
            chunks: taken,
            full: self.ends.refused.load(Ordering::Relaxed),
            discarded: self.ends.discarded.load(Ordering::Relaxed),
            ..RingStats::default()
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("capacity", &self.capacity)
            .field("queued", &self.queued())
            .field("discarded", &self.ends.discarded)
            .field("closed", &self.ends.closed)
            .field("abandoned", &self.ends.abandoned)
            .finish_non_exhaustive()
    }
}

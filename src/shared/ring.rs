//! One direction's bytes: a queue of chunks, bounded in bytes.
//!
//! A write copies its bytes once, into the **open** chunk. The chunk is queued with its first bytes, and the writer goes on
//! appending behind what the reader reads, so neither waits for the other. So small writes share a chunk, and memory is
//! bounded whatever sizes the guest writes. The host may also write whole [`Bytes`](bytes::Bytes), which are queued as
//! they are.
//!
//! Storage comes from a [`Pool`] and goes back to it once it was read, the open chunk's before the reader sleeps.
//!
//! A reader may take a chunk away as [`Bytes`] without a copy. Its bytes count against the bound until the last
//! handle to them is dropped. So **read** and **released** are two positions. Peeking at a chunk changes neither.
//!
//! The writer's side may **claim** room for certain writes. Other writes get only what is left. A claim that finds too little room
//! may wait for it; then other writes get only what that leaves, too.
//!
//! Each side's counters have cache lines of their own, and the writer looks at the reader's only when the room
//! that it knows of is not enough.
//!
//! Nothing here wakes anyone: that is the caller's part, see [`ConsoleSharedState`](super::ConsoleSharedState).

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod chunk;
#[cfg(all(test, tokio_krun_loom))]
#[allow(clippy::unwrap_used, reason = "krun's threads do not run models")]
mod models;
mod pool;
mod prefetch;
mod reader;
mod state;
mod writer;

use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::stats::RingStats;
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Mutex, Ordering};
pub(crate) use chunk::Chunk;
use pool::Pool;
pub(crate) use pool::USUAL_CHUNK;
use reader::Reader;
pub(crate) use reader::{Given, ReadChunk};
pub(crate) use state::RingState;
use writer::Writer;
pub(crate) use writer::{Admit, Refused};

pub(crate) struct Ring {
    /// The chunks after the one that is being read. The writer may still append to the last of all.
    queue: ArrayQueue<Chunk>,
    pool: Arc<Pool>,
    writer: CachePadded<Mutex<Writer>>,
    reader: CachePadded<Mutex<Reader>>,
    put: CachePadded<Put>,
    taken: CachePadded<Taken>,
    ends: CachePadded<Ends>,
    capacity: u64,
    /// As many full chunks as the capacity makes, rounded up.
    chunks: usize,
}

/// Changed by the writer, under its lock.
#[derive(Default)]
struct Put {
    /// Bytes written since the start: the position of the next byte to write.
    written: AtomicU64,
    /// The most bytes that were in the ring at once.
    high_water: AtomicU64,
    /// Room that is set aside for certain writes.
    claimed: AtomicU64,
    /// Room that is to be set aside next, once there is so much.
    awaited: AtomicU64,
    /// All room is for one long write.
    exclusive: AtomicBool,
}

/// Changed by the reader, under its lock except for `returned`.
#[derive(Default)]
struct Taken {
    /// Bytes read since the start: the position of the next byte to read.
    read: AtomicU64,
    /// Of these, the bytes that were copied, or thrown away.
    copied: AtomicU64,
    /// Of the others, for which there were handles, the bytes whose handles are gone.
    returned: AtomicU64,
    /// The position at which the reader last went to sleep.
    slept_at: AtomicU64,
}

/// What seldom changes.
struct Ends {
    /// The writer has ended: after the bytes that are left comes the end.
    closed: AtomicBool,
    /// The writer was ended because bytes found no room.
    cut_off: AtomicBool,
    /// The reader has gone: nothing written from now on is read.
    abandoned: AtomicBool,
    /// The position at which the reader went.
    abandoned_at: AtomicU64,
    /// Where the writer began its last chunk; see [`sys::current_core`].
    writers_core: AtomicU64,
    /// The room that the last write needed, if it was refused.
    wanted: AtomicU64,
    /// Writes that found no room.
    refused: AtomicU64,
    /// Bytes that counted as read but went to nobody.
    swept: AtomicU64,
    /// Bytes that were accepted and thrown away, or never read.
    discarded: AtomicU64,
}

impl Ring {
    /// Neither number is zero, and `capacity` is at least `chunk_size`.
    pub(crate) fn new(capacity: usize, chunk_size: usize) -> Self {
        let chunks = capacity.div_ceil(chunk_size);
        Self {
            // Room for twice the capacity in full chunks (`Admit::Quiesced`), or for the capacity in full chunks
            // and as many that are not full (`write_bytes`), and for the open chunk at the end.
            queue: ArrayQueue::new(chunks.saturating_mul(2).saturating_add(2)),
            pool: Pool::for_chunks(chunk_size, chunks),
            writer: CachePadded::new(Mutex::new(Writer::default())),
            reader: CachePadded::new(Mutex::new(Reader::default())),
            put: CachePadded::default(),
            taken: CachePadded::default(),
            ends: CachePadded::new(Ends {
                closed: AtomicBool::new(false),
                cut_off: AtomicBool::new(false),
                abandoned: AtomicBool::new(false),
                abandoned_at: AtomicU64::new(u64::MAX),
                writers_core: AtomicU64::new(0),
                wanted: AtomicU64::new(0),
                refused: AtomicU64::new(0),
                swept: AtomicU64::new(0),
                discarded: AtomicU64::new(0),
            }),
            capacity: capacity as u64,
            chunks,
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
        // Acquire: makes visible what its writer did before.
        self.ends.closed.load(Ordering::Acquire)
    }

    /// Whether bytes were lost at the end. Ask only after reading the end.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.ends.cut_off.load(Ordering::Relaxed)
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.ends.abandoned.load(Ordering::Relaxed)
    }

    /// Too few bytes to spend a chunk's storage or a slot on.
    fn is_small(&self, length: usize) -> bool {
        length < (self.pool.chunk_size() / 2).max(1)
    }

    /// Bytes that count against the bound.
    pub(crate) fn queued(&self) -> u64 {
        // First: whoever sees that bytes were released also sees that they were written, so the difference is never
        // negative.
        let released = self.released();
        self.put
            .written
            .load(Ordering::Relaxed)
            .wrapping_sub(released)
    }

    /// The bytes that no longer count against the bound, since the start.
    pub(crate) fn released(&self) -> u64 {
        // Both pair with the stores in `release_copied` and `release`. Each only grows, so the sum is never too large.
        let copied = self.taken.copied.load(Ordering::Acquire);
        let returned = self.taken.returned.load(Ordering::Acquire);
        copied.wrapping_add(returned)
    }

    pub(crate) fn capacity(&self) -> usize {
        // No truncation: it came from a `usize`.
        self.capacity as usize
    }

    /// Bytes that fit now, claimed or not. A writer has its own way, [`admit`](Self::admit).
    fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.queued())
    }

    pub(crate) fn stats(&self) -> RingStats {
        RingStats {
            queued: self.queued(),
            high_water: self.put.high_water.load(Ordering::Relaxed),
            bytes: self
                .taken
                .read
                .load(Ordering::Relaxed)
                .saturating_sub(self.ends.swept.load(Ordering::Relaxed)),
            full: self.ends.refused.load(Ordering::Relaxed),
            discarded: self.ends.discarded.load(Ordering::Relaxed),
            ..RingStats::default()
        }
    }
}

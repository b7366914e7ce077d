//! One direction's bytes: a queue of chunks, bounded in bytes.
//!
//! A write copies its bytes once, into the **open** chunk. When that is full, it moves to the queue of **full**
//! chunks. So small writes share a chunk, and memory is bounded whatever sizes the guest writes. Storage comes
//! from a [`Pool`] and goes back to it, all of it once there is nothing to read. The host may also write whole
//! [`Bytes`], which are queued as they are.
//!
//! The open chunk belongs to the writer, under the writer's lock. The writer holds that lock while it copies
//! guest memory, which may take long. A reader that finds no full chunk tries that lock and takes the open chunk
//! if it gets it, leaving the writer the storage that it has just emptied. If it does not get the lock, there is
//! nothing to read *yet*: everyone who held the writer's lock notifies the reader afterwards, even if nothing was
//! written. So neither side waits while the other copies. The writer takes the reader's lock only once the reader
//! has gone.
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

#[cfg(all(test, tokio_krun_loom))]
#[allow(clippy::unwrap_used, reason = "krun's threads do not run models")]
mod models;
mod reader;
mod state;
mod writer;

use std::mem;
use std::sync::{Arc, LazyLock};

use bytes::{Buf, Bytes};
use crossbeam_utils::CachePadded;

use crate::stats::RingStats;
use crate::sync::{ArrayQueue, AtomicBool, AtomicU64, Mutex, Ordering, lock};
use reader::Reader;
pub(crate) use reader::{Given, ReadChunk};
pub(crate) use state::RingState;
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

/// Changed by the reader, under its lock except for `released`.
#[derive(Default)]
struct Taken {
    /// Bytes read since the start: the position of the next byte to read.
    read: AtomicU64,
    /// Bytes that no longer count against the bound: those read, except those still held as [`Bytes`].
    released: AtomicU64,
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
            full: ArrayQueue::new(chunks.saturating_mul(2).saturating_add(2)),
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
        length < self.pool.chunk_size / 2
    }

    /// Bytes that count against the bound.
    pub(crate) fn queued(&self) -> u64 {
        // First, and pairs with `release`: whoever sees that bytes were released also sees that they were written,
        // so the difference is never negative.
        let released = self.taken.released.load(Ordering::Acquire);
        self.put
            .written
            .load(Ordering::Relaxed)
            .wrapping_sub(released)
    }

    pub(crate) fn capacity(&self) -> usize {
        // No truncation: it came from a `usize`.
        self.capacity as usize
    }

    /// Bytes that fit now, claimed or not. A writer has its own way, [`admit`](Self::admit).
    fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.queued())
    }

    /// Returns storage to the pool.
    pub(crate) fn recycle(&self, chunk: Chunk) {
        if let Chunk::Own(bytes, _) = chunk {
            self.pool.put(bytes);
        }
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

/// A piece of the stream.
pub(crate) enum Chunk {
    /// The ring's own storage, and how much of it was read.
    Own(Vec<u8>, usize),
    /// The caller's bytes, queued as they were written. Dropping them may run the caller's code.
    Given(Bytes),
    /// The ring's own storage while the reader has handles to it: a [`Lent`] inside.
    Lent(Bytes),
}

impl Chunk {
    pub(crate) fn rest(&self) -> &[u8] {
        match self {
            Self::Own(bytes, taken) => bytes.get(*taken..).unwrap_or_default(),
            Self::Given(bytes) | Self::Lent(bytes) => bytes,
        }
    }

    /// `count` is at most the length of `rest`.
    fn advance(&mut self, count: usize) {
        match self {
            Self::Own(_, taken) => *taken = taken.saturating_add(count),
            Self::Given(bytes) | Self::Lent(bytes) => bytes.advance(count),
        }
    }
}

/// A chunk's storage behind a [`Bytes`]: the last handle returns it to the pool.
struct Lent {
    bytes: Vec<u8>,
    taken: usize,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.put(mem::take(&mut self.bytes));
    }
}

/// The usual size of a chunk, in bytes: two descriptors of a Linux guest.
pub(crate) const USUAL_CHUNK: usize = 64 * 1024;

/// The most bytes that the process's pool keeps. Further storage is freed.
const POOL_BYTES: usize = 32 * 1024 * 1024;

/// Storage of chunks, empty and ready for use. Chunks of the usual size share one pool for the process.
struct Pool {
    chunk_size: usize,
    /// The most chunks it keeps.
    most: usize,
    /// Each empty, with a capacity of `chunk_size`.
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// `most` is for a pool of other than the usual size.
    fn for_chunks(chunk_size: usize, most: usize) -> Arc<Self> {
        static USUAL: LazyLock<Arc<Pool>> =
            LazyLock::new(|| Arc::new(Pool::new(USUAL_CHUNK, POOL_BYTES / USUAL_CHUNK)));
        if chunk_size == USUAL_CHUNK {
            Arc::clone(&USUAL)
        } else {
            Arc::new(Self::new(chunk_size, most))
        }
    }

    fn new(chunk_size: usize, most: usize) -> Self {
        Self {
            chunk_size,
            most,
            free: Mutex::new(Vec::new()),
        }
    }

    fn take(&self) -> Vec<u8> {
        let free = lock(&self.free).pop();
        free.unwrap_or_else(|| Vec::with_capacity(self.chunk_size))
    }

    /// Takes storage back. Ignores a vector without any.
    fn put(&self, mut bytes: Vec<u8>) {
        if bytes.capacity() == 0 {
            return;
        }
        // Bytes are only ever appended, so no old byte is ever shown.
        bytes.clear();
        let mut free = lock(&self.free);
        if free.len() < self.most {
            free.push(bytes);
        }
    }
}

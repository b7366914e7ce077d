//! A piece of the stream: storage that the writer fills from front to back while the reader reads what is written, or
//! the caller's bytes.
//!
//! Storage has one [`Open`] handle, which appends, and any number of [`Chunk`]s, which see what was appended so far.
//! Neither waits for the other. The last handle that is dropped returns the storage to its pool.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![expect(
    unsafe_code,
    reason = "one thread appends to storage while others read what was appended before"
)]

use std::ptr;
use std::slice;
use std::sync::Weak;

use bytes::{Buf, Bytes};

use super::pool::Pool;
use super::prefetch;
use crate::sync::{Accesses, Arc, AtomicUsize, Ordering};

/// Added to the count of written bytes once there will be no more.
const SEALED: usize = 1 << (usize::BITS - 1);

/// Memory for one chunk.
pub(super) struct Storage {
    /// Owns the memory, and is otherwise only asked for its capacity: its own length stays zero.
    memory: Vec<u8>,
    start: *mut u8,
    /// How many bytes from the start are written, plus [`SEALED`]. Only the [`Open`] handle changes it.
    state: AtomicUsize,
    accesses: Accesses,
    pool: Weak<Pool>,
}

// SAFETY: `start` points to the memory that `memory` owns, so it may move to another thread with it.
unsafe impl Send for Storage {}
// SAFETY: shared, the memory is used only by `Open::append` and `Part::rest`. `append`, of which one runs at a time, writes
// bytes from `state` on; `rest` reads bytes before `state`, which never change while a handle to the storage is shared.
unsafe impl Sync for Storage {}

impl Storage {
    fn new(size: usize, pool: Weak<Pool>) -> Self {
        let mut memory = Vec::with_capacity(size);
        Self {
            start: memory.as_mut_ptr(),
            memory,
            state: AtomicUsize::new(0),
            accesses: Accesses::new(size),
            pool,
        }
    }

    /// How many bytes are written, and whether there will be no more.
    fn look(&self) -> (usize, bool) {
        // Pairs with the store in `append`: makes those bytes visible.
        let state = self.state.load(Ordering::Acquire);
        let written = state & !SEALED;
        let is_sealed = state != written || written == self.memory.capacity();
        (written, is_sealed)
    }
}

/// Storage to which there is no other handle.
pub(super) type Unused = Arc<Storage>;

/// A handle to storage. The last one returns it to its pool.
struct Handle(Option<Arc<Storage>>);

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(mut storage) = self.0.take()
            // If two handles are dropped at the same moment, neither may be the only one. Then the memory is freed.
            && let Some(unused) = Arc::get_mut(&mut storage)
            && let Some(pool) = unused.pool.upgrade()
        {
            pool.put(storage);
        }
    }
}

/// The handle that appends to storage: there is one at a time.
pub(super) struct Open(Handle);

impl Open {
    pub(super) fn create(size: usize, pool: Weak<Pool>) -> Self {
        Self(Handle(Some(Arc::new(Storage::new(size, pool)))))
    }

    /// Forgets what the storage held before, so that no old byte is ever shown. `None` if somebody else has a handle to it.
    pub(super) fn new(mut storage: Unused) -> Option<Self> {
        // As nobody else has a handle, there is no other `Open`.
        let unused = Arc::get_mut(&mut storage)?;
        unused.state = AtomicUsize::new(0);
        Some(Self(Handle(Some(storage))))
    }

    /// Appends what fits, and returns what does not.
    pub(super) fn append<'a>(&mut self, source: &'a [u8]) -> &'a [u8] {
        let Some(storage) = &self.0.0 else {
            return source;
        };
        // Relaxed: only this handle changes it.
        let written = storage.state.load(Ordering::Relaxed);
        let space = storage.memory.capacity().saturating_sub(written);
        let (now, later) = source.split_at(source.len().min(space));
        let end = written.saturating_add(now.len());
        storage.accesses.write(written..end);
        prefetch::for_writing(storage.start, end, now.len(), storage.memory.capacity());
        let target = storage.start.wrapping_add(written);
        // SAFETY: `written..end` lies within the memory. Nobody else writes to it, as this is the only handle that
        // appends and it is borrowed mutably. Nobody reads it, as readers stop at `state`. `source` is not part of it:
        // it is borrowed, and no reference to memory after `state` was ever given out.
        unsafe {
            ptr::copy_nonoverlapping(now.as_ptr(), target, now.len());
        }
        // Pairs with the load in `look`.
        storage.state.store(end, Ordering::Release);
        later
    }

    pub(super) fn is_full(&self) -> bool {
        // Relaxed: only this handle changes it.
        let written = |storage: &Arc<Storage>| storage.state.load(Ordering::Relaxed);
        let is_full = |storage| written(storage) == storage.memory.capacity();
        self.0.0.as_ref().is_none_or(is_full)
    }

    /// Says that nothing more will be appended.
    pub(super) fn seal(self) {
        if let Some(storage) = &self.0.0 {
            // Only this handle changes it. Release: whoever sees the seal sees all that was appended.
            storage.state.fetch_or(SEALED, Ordering::Release);
        }
    }

    /// What reads the storage, from the start.
    pub(super) fn chunk(&self) -> Chunk {
        Chunk::Own(Part {
            handle: Handle(self.0.0.clone()),
            from: 0,
            seen: 0,
            is_last: false,
        })
    }
}

/// What is unread of a piece of the stream.
pub(crate) enum Chunk {
    /// In the ring's own storage.
    Own(Part),
    /// The caller's bytes, queued as they were written. Dropping them may run the caller's code.
    Given(Bytes),
}

/// The unread part of storage, as far as it was seen. Reading it does not touch what the writer changes.
pub(crate) struct Part {
    handle: Handle,
    from: usize,
    /// How many bytes of the storage were written at the last look.
    seen: usize,
    /// There will be no more than was seen.
    is_last: bool,
}

impl Part {
    fn rest(&self) -> &[u8] {
        let Some(storage) = &self.handle.0 else {
            return &[];
        };
        storage.accesses.read(self.from..self.seen);
        // SAFETY: at the last look, the first `seen` bytes were written, so they are initialized. Nobody writes to them while
        // there is this handle: `append` writes behind them, and only `Open::new`, which has the only handle, makes them
        // fewer.
        let seen = unsafe { slice::from_raw_parts(storage.start, self.seen) };
        seen.get(self.from..).unwrap_or_default()
    }
}

impl Chunk {
    /// What can be read: as much as the last look has found.
    pub(crate) fn rest(&self) -> &[u8] {
        match self {
            Self::Own(part) => part.rest(),
            Self::Given(bytes) => bytes,
        }
    }

    /// Looks how much more was written.
    pub(super) fn look(&mut self) {
        if let Self::Own(part) = self
            && let Some(storage) = &part.handle.0
        {
            (part.seen, part.is_last) = storage.look();
        }
    }

    /// Whether nothing comes after what the last look has found.
    pub(super) fn is_last(&self) -> bool {
        match self {
            Self::Own(part) => part.is_last,
            Self::Given(_) => true,
        }
    }

    pub(super) fn is_read_out(&self) -> bool {
        self.is_last() && self.rest().is_empty()
    }

    /// `count` is at most the length of `rest`.
    pub(super) fn advance(&mut self, count: usize) {
        match self {
            Self::Own(part) => part.from = part.from.saturating_add(count),
            Self::Given(bytes) => bytes.advance(count),
        }
    }

    /// A handle to `rest`, which stays unread.
    pub(super) fn share(&self) -> Self {
        match self {
            Self::Own(part) => Self::Own(Part {
                handle: Handle(part.handle.0.clone()),
                from: part.from,
                seen: part.seen,
                is_last: true,
            }),
            Self::Given(bytes) => Self::Given(bytes.clone()),
        }
    }
}

//! The reader's side of a ring: taking bytes out.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use bytes::Bytes;

use super::{Chunk, Ring, prefetch};
use crate::foreign;
use crate::sync::{Ordering, fence, lock, try_lock};
use crate::sys;

/// So many bytes since the reader last slept mean that the writer is busy.
const WELL_FED: u64 = 64 * 1024;

#[derive(Default)]
pub(super) struct Reader {
    /// The chunk that is being read. The writer may still append to it.
    pub(super) current: Option<Chunk>,
}

/// What [`Ring::read_chunk`] has taken away.
pub(crate) enum ReadChunk {
    /// Bytes that count no longer; none at the end.
    Copied(Bytes),
    /// A chunk that counts against the bound until it is [released](Ring::release).
    Held(Chunk),
}

impl Ring {
    /// Copies up to `limit` bytes to `sink`, in order and piece by piece, and returns how many: `None` if there are
    /// none yet, `Some(0)` at the end. `limit` is not zero. `sink` must not be the caller's code.
    ///
    /// Also returns the caller's bytes that were read to their end. Drop them once the writer was woken.
    pub(crate) fn read(&self, limit: usize, mut sink: impl FnMut(&[u8])) -> (Option<usize>, Given) {
        let closed = self.was_closed();
        let mut given = Given::default();
        let copy = |rest: &[u8], count| prefetch::read(rest, count, &mut sink);
        let read = self.take(&mut lock(&self.reader), limit, copy, &mut given);
        (Some(read).filter(|read| *read > 0 || closed), given)
    }

    /// Takes away what there is of the current chunk: `None` if there is nothing yet.
    ///
    /// A few bytes are copied instead, so that keeping them does not keep a whole chunk.
    pub(crate) fn read_chunk(&self) -> Option<ReadChunk> {
        let closed = self.was_closed();
        let mut reader = lock(&self.reader);
        let mut given = Given::default();
        let Some(chunk) = self.current(&mut reader) else {
            return closed.then(|| ReadChunk::Copied(Bytes::new()));
        };
        chunk.look();
        let length = chunk.rest().len();
        let read = if self.is_small(length) {
            ReadChunk::Copied(Bytes::copy_from_slice(chunk.rest()))
        } else {
            ReadChunk::Held(chunk.share())
        };
        if matches!(read, ReadChunk::Copied(_)) {
            self.release_copied(length);
        }
        Self::pass(&mut reader, length, &mut given);
        self.advance_read(length);
        drop(reader);
        drop(given);
        Some(read)
    }

    /// A handle to what there is of the current chunk, which stays unread: `None` if there is nothing yet, no bytes at
    /// the end.
    pub(crate) fn peek(&self) -> Option<Chunk> {
        let closed = self.was_closed();
        let mut reader = lock(&self.reader);
        match self.current(&mut reader) {
            Some(chunk) => {
                chunk.look();
                Some(chunk.share())
            }
            None => closed.then(|| Chunk::Given(Bytes::new())),
        }
    }

    /// Counts `count` bytes of the current chunk as read, or all of it if it is shorter.
    pub(crate) fn consume(&self, count: usize) {
        let mut reader = lock(&self.reader);
        let current = reader.current.as_ref();
        let length = current.map_or(0, |chunk| chunk.rest().len());
        let mut given = Given::default();
        self.take(&mut reader, count.min(length), |_, _| {}, &mut given);
        drop(reader);
        drop(given);
    }

    /// Whether there is something to read, or `Some(false)` at the end: `None` if neither yet.
    pub(crate) fn is_readable(&self) -> Option<bool> {
        let closed = self.was_closed();
        match self.current(&mut lock(&self.reader)) {
            Some(_) => Some(true),
            None => closed.then_some(false),
        }
    }

    /// Whether the writer has ended. Each look asks this **first**, and pairs with the store in `end`: a look after
    /// it misses nothing that was written before the end.
    fn was_closed(&self) -> bool {
        self.ends.closed.load(Ordering::Acquire)
    }

    /// Takes up to `limit` bytes out: `sink` gets what is unread of each chunk, and how many bytes of it are taken. Bytes of the caller's that were read to their end go to `given`, as they must not be
    /// dropped while the reader is locked.
    fn take(
        &self,
        reader: &mut Reader,
        limit: usize,
        mut sink: impl FnMut(&[u8], usize),
        given: &mut Given,
    ) -> usize {
        let mut left = limit;
        while left > 0 {
            let Some(chunk) = self.current(reader) else {
                break;
            };
            let rest = chunk.rest();
            let count = rest.len().min(left);
            sink(rest, count);
            left = left.saturating_sub(count);
            Self::pass(reader, count, given);
        }
        let count = limit.saturating_sub(left);
        // First: whoever sees that all was read finds the room that this made.
        self.release_copied(count);
        self.advance_read(count);
        count
    }

    /// The chunk to read from now: `None` if nothing was written yet. The writer's cache lines are looked at only once
    /// everything was read that was seen before.
    fn current<'a>(&self, reader: &'a mut Reader) -> Option<&'a mut Chunk> {
        let is_read_out = reader.current.as_mut().is_none_or(|chunk| {
            if chunk.rest().is_empty() {
                chunk.look();
            }
            chunk.is_read_out()
        });
        if is_read_out {
            reader.current = Some(self.queue.pop()?);
            reader.current.as_mut()?.look();
        }
        let current = reader.current.as_mut();
        current.filter(|chunk| !chunk.rest().is_empty())
    }

    /// Moves on by `count` bytes of the current chunk, and lets go of it if it is read out.
    fn pass(reader: &mut Reader, count: usize, given: &mut Given) {
        if let Some(chunk) = &mut reader.current {
            chunk.advance(count);
            if chunk.is_read_out()
                && let Some(Chunk::Given(bytes)) = reader.current.take()
            {
                given.push(bytes);
            }
        }
    }

    /// For a reader that will sleep: returns the open chunk's storage, if everything was read.
    pub(crate) fn let_go_of_storage(&self) {
        let mut reader = lock(&self.reader);
        let read = self.taken.read.load(Ordering::Relaxed);
        self.taken.slept_at.store(read, Ordering::Relaxed);
        // If the writer's side is in use, this chunk stays until the reader sleeps the next time.
        if let Some(mut writer) = try_lock(&self.writer)
            && let Some(chunk) = &mut reader.current
        {
            chunk.look();
            if chunk.rest().is_empty() {
                if !chunk.is_last() {
                    // Not sealed, so this is what the writer has open.
                    writer.open = None;
                }
                reader.current = None;
            }
        }
    }

    /// Counts `count` bytes as read. For the holder of the lock.
    fn advance_read(&self, count: usize) {
        let read = self.taken.read.load(Ordering::Relaxed);
        // Pairs with the loads in `unread` and `has_read_to`.
        self.taken
            .read
            .store(read.wrapping_add(count as u64), Ordering::Release);
    }

    /// Makes room for `count` bytes that were read. For the holder of the lock.
    fn release_copied(&self, count: usize) {
        let copied = self.taken.copied.load(Ordering::Relaxed);
        // Pairs with the load in `released`.
        self.taken
            .copied
            .store(copied.wrapping_add(count as u64), Ordering::Release);
    }

    /// Makes room for `count` bytes that were [held](ReadChunk::Held).
    pub(crate) fn release(&self, count: usize) {
        // Pairs with the load in `released`.
        self.taken
            .returned
            .fetch_add(count as u64, Ordering::Release);
    }

    /// Whether it pays to look once more before the reader sleeps: it was fed well since it last slept, and the writer may
    /// be at work, as it runs on another core.
    pub(crate) fn is_worth_another_look(&self) -> bool {
        let read = self.taken.read.load(Ordering::Relaxed);
        let slept_at = self.taken.slept_at.load(Ordering::Relaxed);
        read.wrapping_sub(slept_at) >= WELL_FED
            && self.ends.writers_core.load(Ordering::Relaxed) != sys::current_core()
    }

    /// Whether the room that reading has made is enough to wake a waiting writer: half the ring, so that under load
    /// one wake is paid for half a ring of bytes; or any room that it can use, once everything was read. So a writer
    /// that can go on is woken before the reader sleeps.
    pub(crate) fn is_worth_waking_writer(&self) -> bool {
        let room = self.room();
        let claimed = self.claimed();
        let half = self.capacity.saturating_sub(claimed) / 2;
        self.is_wanted(room) && (room.saturating_sub(claimed) >= half || !self.has_unread())
    }

    /// Whether bytes were written that were not read. A look may not find them yet, as the writer may be at them.
    pub(crate) fn has_unread(&self) -> bool {
        self.unread() != 0
    }

    /// How many bytes were written and not read.
    pub(crate) fn unread(&self) -> u64 {
        // First, and Acquire: whoever sees that bytes were read also sees that they were written, so the difference is
        // never negative.
        let read = self.taken.read.load(Ordering::Acquire);
        self.put.written.load(Ordering::Relaxed).wrapping_sub(read)
    }

    /// Ends the reader's side: what is unread, and what is still written, is discarded. Drop what it returns once
    /// everyone was notified: that may run the caller's code.
    pub(crate) fn abandon(&self) -> Given {
        self.ends
            .abandoned_at
            .fetch_min(self.taken.read.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release: whoever sees what the sweep moves also sees these.
        self.ends.abandoned.store(true, Ordering::Release);
        // Pairs with the fence in `with_writer`.
        fence(Ordering::SeqCst);
        self.sweep()
    }

    /// Discards everything that is unread.
    pub(super) fn sweep(&self) -> Given {
        let mut given = Given::default();
        let mut reader = lock(&self.reader);
        let swept = self.take(&mut reader, usize::MAX, |_, _| {}, &mut given);
        self.ends.swept.fetch_add(swept as u64, Ordering::Relaxed);
        self.discard(swept);
        drop(reader);
        self.let_go_of_storage();
        given
    }
}

/// Bytes of the caller's that the ring no longer needs.
#[derive(Default)]
#[must_use = "dropping it may run the caller's code: unlock and notify first"]
pub(crate) struct Given {
    /// The only one, most of the time: so that a read allocates nothing.
    first: Option<Bytes>,
    rest: Vec<Bytes>,
}

impl Given {
    fn push(&mut self, bytes: Bytes) {
        if self.first.is_none() {
            self.first = Some(bytes);
        } else {
            self.rest.push(bytes);
        }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        for bytes in self.first.take().into_iter().chain(self.rest.drain(..)) {
            foreign::run(|| drop(bytes));
        }
    }
}

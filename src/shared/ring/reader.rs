//! The reader's side of a ring: taking bytes out.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::{Chunk, Lent, Ring};
use crate::foreign;
use crate::sync::{Ordering, fence, lock, try_lock};

#[derive(Default)]
pub(super) struct Reader {
    /// The chunk that is being read: never an empty one.
    pub(super) current: Option<Chunk>,
    /// Storage that was read out, for the writer's next open chunk; or none.
    idle: Vec<u8>,
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
        let read = self.take(&mut lock(&self.reader), limit, &mut sink, &mut given);
        (Some(read).filter(|read| *read > 0 || closed), given)
    }

    /// Takes the rest of the current chunk away: `None` if there is none yet.
    ///
    /// A few bytes are copied instead, so that keeping them does not keep a whole chunk.
    pub(crate) fn read_chunk(&self) -> Option<ReadChunk> {
        let closed = self.was_closed();
        let mut reader = lock(&self.reader);
        if self.current(&mut reader).is_none() {
            return closed.then(|| ReadChunk::Copied(Bytes::new()));
        }
        let chunk = reader.current.take()?;
        let length = chunk.rest().len();
        self.advance_read(length);
        if !self.is_small(length) {
            return Some(ReadChunk::Held(chunk));
        }
        self.release(length);
        let copy = Bytes::copy_from_slice(chunk.rest());
        match chunk {
            Chunk::Own(bytes, _) => self.keep_idle(&mut reader, bytes),
            Chunk::Given(bytes) | Chunk::Lent(bytes) => {
                drop(reader);
                foreign::run(|| drop(bytes));
            }
        }
        Some(ReadChunk::Copied(copy))
    }

    /// A handle to the rest of the current chunk, which stays unread: `None` if there is none yet, no bytes at the
    /// end.
    pub(crate) fn peek(&self) -> Option<Bytes> {
        let closed = self.was_closed();
        let mut reader = lock(&self.reader);
        match self.current(&mut reader) {
            Some(chunk) => Some(self.lend(chunk)),
            None => closed.then(Bytes::new),
        }
    }

    fn lend(&self, chunk: &mut Chunk) -> Bytes {
        let handle = match chunk {
            Chunk::Given(bytes) | Chunk::Lent(bytes) => return bytes.clone(),
            Chunk::Own(bytes, taken) => Bytes::from_owner(Lent {
                bytes: mem::take(bytes),
                taken: *taken,
                pool: Arc::clone(&self.pool),
            }),
        };
        *chunk = Chunk::Lent(handle.clone());
        handle
    }

    /// Counts `count` bytes of the current chunk as read, or all of it if it is shorter.
    pub(crate) fn consume(&self, count: usize) {
        let mut reader = lock(&self.reader);
        let length = reader.current.as_ref().map_or(0, |c| c.rest().len());
        let mut given = Given::default();
        self.take(&mut reader, count.min(length), &mut |_| {}, &mut given);
        drop(reader);
        drop(given);
    }

    /// Whether there is something to read, or `Some(false)` at the end: `None` if neither yet. The chunk that is
    /// found becomes the reader's, so the writer cannot take it back to append to it.
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

    /// Takes up to `limit` bytes out. Bytes of the caller's that were read to their end go to `given`, as they must not be
    /// dropped while the reader is locked.
    fn take(
        &self,
        reader: &mut Reader,
        limit: usize,
        sink: &mut impl FnMut(&[u8]),
        given: &mut Given,
    ) -> usize {
        let mut left = limit;
        while left > 0 {
            let Some(chunk) = self.current(reader) else {
                break;
            };
            let rest = chunk.rest();
            let (part, later) = rest.split_at(rest.len().min(left));
            let (count, is_read_out) = (part.len(), later.is_empty());
            sink(part);
            left = left.saturating_sub(count);
            chunk.advance(count);
            // First: whoever sees that all was read finds the room that this made.
            self.release(count);
            self.advance_read(count);
            if is_read_out {
                match reader.current.take() {
                    Some(Chunk::Own(bytes, _)) => self.keep_idle(reader, bytes),
                    Some(Chunk::Given(bytes)) => given.push(bytes),
                    Some(Chunk::Lent(_)) | None => {}
                }
            }
        }
        limit.saturating_sub(left)
    }

    /// The current chunk, or the next one if there was none.
    fn current<'a>(&self, reader: &'a mut Reader) -> Option<&'a mut Chunk> {
        if reader.current.is_none() {
            reader.current = Some(self.full.pop().or_else(|| self.take_open(reader))?);
        }
        reader.current.as_mut()
    }

    /// The chunk that is being filled, unless the writer is at it.
    fn take_open(&self, reader: &mut Reader) -> Option<Chunk> {
        let mut writer = try_lock(&self.writer)?;
        // It comes after those that were filled since the last look.
        if let Some(chunk) = self.full.pop() {
            return Some(chunk);
        }
        let idle = mem::take(&mut reader.idle);
        if writer.open.is_empty() {
            let unused = mem::take(&mut writer.open);
            drop(writer);
            self.pool.put(unused);
            self.pool.put(idle);
            return None;
        }
        Some(Chunk::Own(mem::replace(&mut writer.open, idle), 0))
    }

    /// Only the reader moves it, under its lock. Pairs with the load in `has_read_to`.
    fn advance_read(&self, count: usize) {
        let read = self.taken.read.load(Ordering::Relaxed);
        self.taken
            .read
            .store(read.wrapping_add(count as u64), Ordering::Release);
    }

    /// Makes room for `count` bytes that were read.
    pub(crate) fn release(&self, count: usize) {
        // Pairs with the load in `queued`, and with the one in `see_released` by the fence after it.
        self.taken
            .released
            .fetch_add(count as u64, Ordering::Release);
    }

    /// Keeps storage that was read out for the next open chunk.
    fn keep_idle(&self, reader: &mut Reader, mut bytes: Vec<u8>) {
        bytes.clear();
        self.pool.put(mem::replace(&mut reader.idle, bytes));
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
        let swept = self.take(&mut reader, usize::MAX, &mut |_| {}, &mut given);
        self.ends.swept.fetch_add(swept as u64, Ordering::Relaxed);
        self.discard(swept);
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

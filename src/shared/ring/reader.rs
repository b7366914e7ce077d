//! Taking bytes out.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod peer;

use std::mem;
use std::panic::{self, AssertUnwindSafe};

use bytes::Bytes;

use super::Ring;
use super::chunk::Chunk;
use crate::sync::{Ordering, fence, lock, try_lock};

#[derive(Default)]
pub(super) struct Reader {
    /// Never empty.
    current: Option<Chunk>,
    /// Storage that was read out, to be given for the next open chunk; or none.
    idle: Vec<u8>,
}

impl Ring {
    /// Hands up to `limit` bytes to `sink`, in order and piece by piece, and says how many:
    /// `None` if there are none yet, `Some(0)` at the end. `limit` is not zero.
    pub(crate) fn read(&self, limit: usize, sink: impl FnMut(&[u8])) -> Option<usize> {
        self.look(|reader| Some(self.take(reader, limit, sink)).filter(|taken| *taken > 0))
    }

    /// Takes the rest of the current chunk away: `None` if there is none yet, no bytes at the end.
    ///
    /// They count until the handle that `lend` or `hold` makes of them is dropped, which is then to
    /// [`release`](Self::release) them. Few bytes are copied instead, so that whoever keeps them
    /// does not keep a whole chunk. `lend` is otherwise as for [`peek`](Self::peek).
    pub(crate) fn read_bytes(
        &self,
        lend: impl FnOnce(Vec<u8>, usize) -> Bytes,
        hold: impl FnOnce(Bytes) -> Bytes,
    ) -> Option<Bytes> {
        self.look(|reader| {
            let length = self.current(reader)?.rest().len();
            self.advance_read(length);
            Some(match reader.current.take()? {
                chunk if self.is_small(length) => {
                    let copy = Bytes::copy_from_slice(chunk.rest());
                    self.release(length);
                    if let Chunk::Own(bytes, _) = chunk {
                        self.recycle(reader, bytes);
                    }
                    copy
                }
                Chunk::Own(bytes, taken) => lend(bytes, taken),
                Chunk::Lent(bytes) | Chunk::Given(bytes) => hold(bytes),
            })
        })
    }

    /// A handle to the rest of the current chunk, which stays where it is: `None` if there is none
    /// yet, no bytes at the end.
    ///
    /// `lend` makes a handle of the ring's own storage and how much of it has been read; when its
    /// last clone is dropped, the storage is to be [given back](Self::give_back).
    pub(crate) fn peek(&self, lend: impl FnOnce(Vec<u8>, usize) -> Bytes) -> Option<Bytes> {
        self.look(|reader| {
            let chunk = self.current(reader)?;
            if let Chunk::Own(bytes, taken) = chunk {
                *chunk = Chunk::Lent(lend(mem::take(bytes), *taken));
            }
            match chunk {
                Chunk::Lent(bytes) | Chunk::Given(bytes) => Some(bytes.clone()),
                Chunk::Own(..) => None,
            }
        })
    }

    /// Takes `count` bytes of the current chunk as read, or all it has if it has fewer.
    pub(crate) fn consume(&self, count: usize) {
        let mut reader = lock(&self.reader);
        let length = reader.current.as_ref().map_or(0, |s| s.rest().len());
        self.take(&mut reader, count.min(length), |_| {});
    }

    /// Whether there is something to read, or the end: `None` if not yet. What is found comes into
    /// the reader's hands, where the writer cannot take it back to append to it.
    pub(crate) fn is_readable(&self) -> Option<bool> {
        self.look(|reader| {
            self.current(reader)?;
            Some(true)
        })
    }

    /// The end is `T`'s default.
    fn look<T: Default>(&self, find: impl FnOnce(&mut Reader) -> Option<T>) -> Option<T> {
        // Before the look, and pairs with the store in `close`: a look after it misses nothing
        // that was written before the close.
        let closed = self.ends.closed.load(Ordering::Acquire);
        find(&mut lock(&self.reader)).or_else(|| closed.then(T::default))
    }

    fn take(&self, reader: &mut Reader, limit: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let mut left = limit;
        while left > 0 {
            let Some(chunk) = self.current(reader) else {
                break;
            };
            let rest = chunk.rest();
            let (part, later) = rest.split_at(rest.len().min(left));
            let (count, is_read_out) = (part.len(), later.is_empty());
            // It may be the caller's code, and panic: until it returns, nothing has been read.
            sink(part);
            left = left.saturating_sub(count);
            chunk.advance(count);
            // First: who sees that all was read finds the room that it has made.
            self.release(count);
            self.advance_read(count);
            if is_read_out {
                match reader.current.take() {
                    Some(Chunk::Own(bytes, _)) => self.recycle(reader, bytes),
                    Some(Chunk::Given(bytes)) => drop_foreign(bytes),
                    Some(Chunk::Lent(_)) | None => {}
                }
            }
        }
        limit.saturating_sub(left)
    }

    /// The current chunk, which is the next one if there was none.
    fn current<'a>(&self, reader: &'a mut Reader) -> Option<&'a mut Chunk> {
        if reader.current.is_none() {
            reader.current = Some(self.full.pop().or_else(|| self.take_open(reader))?);
            // Only this side adds to it, under the reader's lock. The store pairs with the load in
            // `stats`.
            let chunks = self.taken.chunks.load(Ordering::Relaxed);
            self.taken
                .chunks
                .store(chunks.wrapping_add(1), Ordering::Release);
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
            self.give_back(unused);
            self.give_back(idle);
            return None;
        }
        Some(Chunk::Own(mem::replace(&mut writer.open, idle), 0))
    }

    /// Under the reader's lock, which alone moves it. Pairs with the load in `has_read_to`.
    fn advance_read(&self, count: usize) {
        let read = self.taken.read.load(Ordering::Relaxed);
        self.taken
            .read
            .store(read.wrapping_add(count as u64), Ordering::Release);
    }

    /// Makes room for `count` bytes that were read.
    pub(crate) fn release(&self, count: usize) {
        // Pairs with the load in `queued`, and with that in `see_what_was_read` by the fence after it.
        self.taken
            .released
            .fetch_add(count as u64, Ordering::Release);
    }

    /// Keeps storage that was read out for the next open chunk.
    fn recycle(&self, reader: &mut Reader, mut bytes: Vec<u8>) {
        bytes.clear();
        self.give_back(mem::replace(&mut reader.idle, bytes));
    }

    /// Returns storage to the pool.
    pub(crate) fn give_back(&self, bytes: Vec<u8>) {
        self.pool.give_back(bytes);
    }

    /// Ends the reader's side: what is unread, and what is still written, is discarded.
    pub(crate) fn abandon(&self) {
        self.ends
            .abandoned_at
            .fetch_min(self.taken.read.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release: who sees what the sweep moves also sees these.
        self.ends.abandoned.store(true, Ordering::Release);
        // Pairs with the fence in `with_writer`.
        fence(Ordering::SeqCst);
        self.sweep();
    }

    pub(super) fn sweep(&self) {
        let swept = self.take(&mut lock(&self.reader), usize::MAX, |_| {});
        self.ends.swept.fetch_add(swept as u64, Ordering::Relaxed);
        self.discard(swept);
    }

    /// Whether bytes have been written that were not read: perhaps not to be found yet, for the
    /// writer may be at them.
    pub(crate) fn has_unread(&self) -> bool {
        // Relaxed: only whether a look is worth while.
        self.put.written.load(Ordering::Relaxed) != self.taken.read.load(Ordering::Relaxed)
    }

    /// Whether everything before `position` has been read: `Some(false)` if it never will be.
    pub(crate) fn has_read_to(&self, position: u64) -> Option<bool> {
        // First: whoever sees what a sweep has moved also sees, below, that it was a sweep.
        let is_read = self.taken.read.load(Ordering::Acquire) >= position;
        if self.ends.abandoned.load(Ordering::Acquire) {
            return Some(self.ends.abandoned_at.load(Ordering::Relaxed) >= position);
        }
        is_read.then_some(true)
    }
}

/// Drops bytes that are the caller's, and with them perhaps code of the caller's: a panic there must
/// not reach krun's thread.
fn drop_foreign(bytes: Bytes) {
    let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(bytes)));
}

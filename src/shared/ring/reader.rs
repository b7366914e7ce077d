//! Taking bytes out.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod peer;

use std::mem;
use std::panic::{self, AssertUnwindSafe};

use bytes::Bytes;

use super::Ring;
use super::chunk::{Chunk, Storage};
use crate::sync::{Ordering, fence, lock};

#[derive(Default)]
pub(super) struct Reader {
    /// Never empty.
    current: Option<Storage>,
    /// Taken before its turn; see the module's documentation.
    ahead: Option<Chunk>,
}

impl Ring {
    /// Hands up to `limit` bytes to `sink`, in order and piece by piece, and says how many:
    /// `None` if there are none yet, `Some(0)` at the end. `limit` is not zero.
    pub(crate) fn read(&self, limit: usize, sink: impl FnMut(&[u8])) -> Option<usize> {
        self.look(|reader| Some(self.take(reader, limit, sink)).filter(|taken| *taken > 0))
    }

    /// Takes the rest of the current chunk away: `None` if there is none yet, no bytes at the end.
    ///
    /// They count until the handle that `hold` makes of them is dropped, which is then to
    /// [`release`](Self::release) them. Few bytes are copied instead, so that whoever keeps them
    /// does not keep a whole chunk. `lend` is as for [`peek`](Self::peek).
    pub(crate) fn read_bytes(
        &self,
        lend: impl FnOnce(Vec<u8>, usize) -> Bytes,
        hold: impl FnOnce(Bytes) -> Bytes,
    ) -> Option<Bytes> {
        self.look(|reader| {
            let length = self.current(reader)?.rest().len();
            self.advance_read(length);
            Some(match reader.current.take()? {
                storage if self.is_small(length) => {
                    let copy = Bytes::copy_from_slice(storage.rest());
                    self.release(length);
                    if let Storage::Own(bytes, _) = storage {
                        self.give_back(bytes);
                    }
                    copy
                }
                Storage::Own(bytes, taken) => hold(lend(bytes, taken)),
                Storage::Lent(bytes) | Storage::Given(bytes) => hold(bytes),
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
            let storage = self.current(reader)?;
            if let Storage::Own(bytes, taken) = storage {
                *storage = Storage::Lent(lend(mem::take(bytes), *taken));
            }
            match storage {
                Storage::Lent(bytes) | Storage::Given(bytes) => Some(bytes.clone()),
                Storage::Own(..) => None,
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
        let closed = self.closed.load(Ordering::Acquire);
        find(&mut lock(&self.reader)).or_else(|| closed.then(T::default))
    }

    fn take(&self, reader: &mut Reader, limit: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let mut left = limit;
        while left > 0 {
            let Some(storage) = self.current(reader) else {
                break;
            };
            let rest = storage.rest();
            let (part, later) = rest.split_at(rest.len().min(left));
            let (count, is_read_out) = (part.len(), later.is_empty());
            // It may be the caller's code, and panic: until it returns, nothing has been read.
            sink(part);
            left = left.saturating_sub(count);
            storage.advance(count);
            self.advance_read(count);
            self.release(count);
            if is_read_out {
                match reader.current.take() {
                    Some(Storage::Own(bytes, _)) => self.give_back(bytes),
                    Some(Storage::Given(bytes)) => drop_foreign(bytes),
                    Some(Storage::Lent(_)) | None => {}
                }
            }
        }
        limit.saturating_sub(left)
    }

    /// The current chunk, which is the next one if there was none.
    fn current<'a>(&self, reader: &'a mut Reader) -> Option<&'a mut Storage> {
        if reader.current.is_none() {
            reader.current = Some(self.next_chunk(reader)?.storage);
            // Only this side adds to it, under the reader's lock.
            let chunks = self.chunks.load(Ordering::Relaxed);
            self.chunks.store(chunks.wrapping_add(1), Ordering::Relaxed);
        }
        reader.current.as_mut()
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

    /// Under the reader's lock, which alone moves it.
    fn advance_read(&self, count: usize) {
        let read = self.read.load(Ordering::Relaxed);
        self.read
            .store(read.wrapping_add(count as u64), Ordering::Release);
    }

    /// Makes room for `count` bytes that were read.
    pub(crate) fn release(&self, count: usize) {
        // Pairs with the load in `queued`.
        self.released.fetch_add(count as u64, Ordering::Release);
    }

    /// Returns storage to the ring.
    pub(crate) fn give_back(&self, mut bytes: Vec<u8>) {
        // Appending to what is empty: no old byte is ever shown.
        bytes.clear();
        // There may be more chunks than `slots` after an `Admit::Over`; the rest is freed.
        let _ = self.spare.push(bytes);
    }

    /// Ends the reader's side: what is unread, and what is still written, is discarded.
    pub(crate) fn abandon(&self) {
        self.abandoned_at
            .fetch_min(self.read.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release: who sees what the sweep moves also sees these.
        self.abandoned.store(true, Ordering::Release);
        // Pairs with the fence in `settle`.
        fence(Ordering::SeqCst);
        self.sweep();
    }

    pub(super) fn sweep(&self) {
        let swept = self.take(&mut lock(&self.reader), usize::MAX, |_| {});
        self.swept.fetch_add(swept as u64, Ordering::Relaxed);
        self.discard(swept);
    }

    /// Whether there is room enough to wake a writer for: half the ring, so that under load one
    /// wake is paid for half a ring of bytes; or any that it can use, if all there was has been
    /// read. So a writer that can go on is woken before the reader sleeps.
    pub(crate) fn is_worth_a_wake(&self) -> bool {
        let room = self.room();
        self.has_wanted_room()
            && (room >= self.capacity / 2
                || self.written.load(Ordering::Relaxed) == self.read.load(Ordering::Relaxed))
    }

    /// Whether everything before `position` has been read: `Some(false)` if it never will be.
    pub(crate) fn has_read_to(&self, position: u64) -> Option<bool> {
        // First: whoever sees what a sweep has moved also sees, below, that it was a sweep.
        let is_read = self.read.load(Ordering::Acquire) >= position;
        if self.abandoned.load(Ordering::Acquire) {
            return Some(self.abandoned_at.load(Ordering::Relaxed) >= position);
        }
        is_read.then_some(true)
    }
}

/// Drops bytes that are the caller's, and with them perhaps code of the caller's: a panic there must
/// not reach krun's thread.
fn drop_foreign(bytes: Bytes) {
    let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(bytes)));
}

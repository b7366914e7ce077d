//! Putting bytes in.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod peer;

use std::io::IoSlice;

use bytes::Bytes;

use super::Ring;
use super::chunk::{Chunk, Storage};
use crate::sync::{ArrayQueue, Ordering, fence, lock};

/// How much of a write is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// As much as there is room for.
    Part,
    /// All of it or nothing; of a write larger than the whole ring, a ringful.
    Whole,
    /// All of it, never waiting: up to twice the capacity into the ring. With the first byte that
    /// finds no room the writer's side ends, and what comes from then on is discarded: nothing is
    /// ever read from behind a hole.
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
    /// Copies bytes in and says how many were taken: none only if `sources` hold none.
    pub(crate) fn write(&self, sources: &[IoSlice<'_>], admit: Admit) -> Result<usize, Refused> {
        let length = sources
            .iter()
            .fold(0, |sum: usize, source| sum.saturating_add(source.len()));
        let _writer = lock(&self.writer);
        let taken = self.admit(length, admit)?;
        if taken > 0 {
            self.push(sources, taken);
            self.settle();
        }
        if admit == Admit::Over && taken < length {
            self.discard(length.saturating_sub(taken));
            self.cut_off.store(true, Ordering::Relaxed);
            // Pairs with the load in `look`.
            self.closed.store(true, Ordering::Release);
            return Ok(length);
        }
        Ok(taken)
    }

    /// Takes bytes as they are, from the front of `bytes`, and says how many.
    ///
    /// Few bytes are copied after all: a slot for each would use up the slots.
    pub(crate) fn write_bytes(&self, bytes: &mut Bytes) -> Result<usize, Refused> {
        let _writer = lock(&self.writer);
        let taken = self.admit(bytes.len(), Admit::Part)?;
        if taken == 0 {
            return Ok(0);
        }
        let piece = bytes.split_to(taken);
        if self.is_small(taken) {
            self.push(&[IoSlice::new(&piece)], taken);
        } else {
            let position = self.reserve(taken);
            if let Some(open) = self.open.pop() {
                enqueue(&self.full, open);
            }
            let storage = Storage::Given(piece);
            enqueue(&self.full, Chunk { position, storage });
        }
        self.settle();
        Ok(taken)
    }

    /// How many of `length` bytes may be pushed now. Under the writer's lock.
    fn admit(&self, length: usize, admit: Admit) -> Result<usize, Refused> {
        // Relaxed: `close` also holds the lock.
        if self.closed.load(Ordering::Relaxed) {
            return Err(Refused::Closed);
        }
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Refused::Abandoned);
        }
        let length = length as u64;
        let (wanted, bound) = match admit {
            Admit::Part => (length.min(1), self.capacity),
            Admit::Whole => (length.min(self.capacity), self.capacity),
            Admit::Over => (0, self.capacity.saturating_mul(2)),
        };
        let room = self.room_under(bound);
        if room < wanted {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.want(wanted);
            return Err(Refused::Full);
        }
        // Seldom not zero, so the line stays shared.
        if self.wanted.load(Ordering::Relaxed) != 0 {
            self.want(0);
        }
        // No truncation: `length` came from a `usize`.
        Ok(length.min(room) as usize)
    }

    /// Appends the first `length` bytes of `sources`, which are not none and for which there is
    /// room. Under the writer's lock.
    fn push(&self, sources: &[IoSlice<'_>], length: usize) {
        let mut position = self.reserve(length);
        let mut left = length;
        let mut open = self.open.pop();
        for source in sources {
            let (mut source, _) = source.split_at(source.len().min(left));
            left = left.saturating_sub(source.len());
            while !source.is_empty() {
                let mut chunk = open.take().unwrap_or_else(|| self.fresh_chunk(position));
                let Storage::Own(bytes, _) = &mut chunk.storage else {
                    // Only `fresh_chunk`s are ever open.
                    debug_assert!(false, "an open chunk that is not the ring's own");
                    return;
                };
                let space = self.chunk_size.saturating_sub(bytes.len());
                let (now, later) = source.split_at(space.min(source.len()));
                bytes.extend_from_slice(now);
                position = position.wrapping_add(now.len() as u64);
                source = later;
                if bytes.len() < self.chunk_size {
                    open = Some(chunk);
                } else {
                    enqueue(&self.full, chunk);
                }
            }
        }
        if let Some(open) = open {
            enqueue(&self.open, open);
        }
    }

    /// Moves the end of what is written by `length`, and says where it was. It does so before the
    /// bytes can be read, so that `read` never overtakes it.
    fn reserve(&self, length: usize) -> u64 {
        let position = self.written.load(Ordering::Relaxed);
        self.written
            .store(position.wrapping_add(length as u64), Ordering::Release);
        let queued = self.queued();
        if queued > self.high_water.load(Ordering::Relaxed) {
            self.high_water.store(queued, Ordering::Relaxed);
        }
        position
    }

    fn fresh_chunk(&self, position: u64) -> Chunk {
        let bytes = self
            .spare
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(self.chunk_size));
        Chunk {
            position,
            storage: Storage::Own(bytes, 0),
        }
    }

    /// Sees whether the reader has gone while bytes were pushed.
    fn settle(&self) {
        // Pairs with the fence in `abandon`: either its sweep finds these bytes, or this load
        // finds that the reader has gone.
        fence(Ordering::SeqCst);
        if self.abandoned.load(Ordering::Relaxed) {
            self.sweep();
        }
    }

    /// Ends the writer's side: what is in the ring is still read, then the end.
    pub(crate) fn close(&self) {
        // Under the lock, so that no write is half done.
        let _writer = lock(&self.writer);
        // Pairs with the load in `look`.
        self.closed.store(true, Ordering::Release);
    }

    /// Makes [`has_wanted_room`](Self::has_wanted_room) wait for so much, until the next write
    /// that is taken.
    fn want(&self, room: u64) {
        // Relaxed: the writer looks at the room itself before it sleeps.
        self.wanted.store(room, Ordering::Relaxed);
    }

    /// Whether the last write that was refused would now be taken, or learn that it never will.
    pub(crate) fn has_wanted_room(&self) -> bool {
        let ended = self.closed.load(Ordering::Relaxed) || self.abandoned.load(Ordering::Relaxed);
        let room = if ended { self.capacity } else { self.room() };
        room >= self.wanted.load(Ordering::Relaxed)
    }

    /// Whether a write of some bytes would be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// The position after the last byte written.
    pub(crate) fn end(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }
}

/// Neither queue can be at its end: `open` was emptied by the writer, which alone fills it, and
/// `room` counts the slots of `full`.
fn enqueue(queue: &ArrayQueue<Chunk>, chunk: Chunk) {
    let refused = queue.push(chunk).is_err();
    debug_assert!(!refused, "more chunks than the bound allows");
}

//! Putting bytes in.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod peer;

use std::io::IoSlice;
use std::mem;

use bytes::Bytes;

use super::Ring;
use super::chunk::Chunk;
use crate::sync::{Ordering, fence, lock};

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

#[derive(Default)]
pub(super) struct Writer {
    /// The chunk that is being filled: never a full one, and without storage at first.
    pub(super) open: Vec<u8>,
    /// What was last seen of [`Taken::released`](super::Taken), which only grows.
    released: u64,
    /// Slots that are free in any case: only the writer fills them.
    free_slots: usize,
}

impl Ring {
    /// Copies bytes in and says how many were taken: none only if `sources` hold none.
    ///
    /// **Whatever it answers**, the caller announces it to the reader, who may have looked in
    /// vain because the writer's lock was held. It ends with a sequentially consistent fence, which
    /// does for that too.
    pub(crate) fn write(&self, sources: &[IoSlice<'_>], admit: Admit) -> Result<usize, Refused> {
        let length = sources
            .iter()
            .fold(0, |sum: usize, source| sum.saturating_add(source.len()));
        self.with_writer(|writer| {
            let taken = self.admit(writer, length, admit)?;
            self.push(writer, sources, taken);
            if admit == Admit::Over && taken < length {
                self.discard(length.saturating_sub(taken));
                self.ends.cut_off.store(true, Ordering::Relaxed);
                self.end(writer);
                return Ok(length);
            }
            Ok(taken)
        })
    }

    /// Takes bytes as they are, from the front of `bytes`, and says how many. To be announced as
    /// [`write`](Self::write) is.
    ///
    /// Few bytes are copied after all: a slot for each would use up the slots. What was copied is given back,
    /// to be dropped after the announcement: its drop may be code of the caller's, and panic.
    pub(crate) fn write_bytes(&self, bytes: &mut Bytes) -> (Result<usize, Refused>, Bytes) {
        let mut copied = Bytes::new();
        let written = self.with_writer(|writer| {
            let taken = self.admit(writer, bytes.len(), Admit::Part)?;
            let piece = bytes.split_to(taken);
            if self.is_small(taken) {
                self.push(writer, &[IoSlice::new(&piece)], taken);
                copied = piece;
            } else {
                self.reserve(writer, taken);
                self.enqueue_open(writer);
                self.begin_chunk();
                self.enqueue(writer, Chunk::Given(piece));
            }
            Ok(taken)
        });
        (written, copied)
    }

    /// Ends the writer's side: what is in the ring is still read, then the end. To be announced as
    /// [`write`](Self::write) is.
    pub(crate) fn close(&self) {
        self.with_writer(|writer| self.end(writer));
    }

    fn end(&self, writer: &mut Writer) {
        self.enqueue_open(writer);
        // Pairs with the load in `look`, which then finds all there is in `full`.
        self.ends.closed.store(true, Ordering::Release);
    }

    /// What every use of the writer's side ends with.
    fn with_writer<T>(&self, work: impl FnOnce(&mut Writer) -> T) -> T {
        let result = work(&mut lock(&self.writer));
        // Pairs with the fence in `abandon`: either its sweep finds these bytes, or this load
        // finds that the reader has gone. And with the one in `Gate::arm`: either the look after it
        // finds the lock free, or the caller finds the gate armed. So it comes after the unlocking.
        fence(Ordering::SeqCst);
        if self.ends.abandoned.load(Ordering::Relaxed) {
            self.sweep();
        }
        result
    }

    /// How many of `length` bytes may be pushed now.
    fn admit(&self, writer: &mut Writer, length: usize, admit: Admit) -> Result<usize, Refused> {
        // Relaxed: it is stored under the lock.
        if self.ends.closed.load(Ordering::Relaxed) {
            return Err(Refused::Closed);
        }
        if self.ends.abandoned.load(Ordering::Relaxed) {
            return Err(Refused::Abandoned);
        }
        let length = length as u64;
        let (wanted, bound) = match admit {
            Admit::Part => (length.min(1), self.capacity),
            Admit::Whole => (length.min(self.capacity), self.capacity),
            Admit::Over => (0, self.capacity.saturating_mul(2)),
        };
        let mut room = self.known_room(writer, bound);
        if room < length {
            self.see_what_was_read(writer);
            room = self.known_room(writer, bound);
        }
        if room < wanted {
            self.ends.refused.fetch_add(1, Ordering::Relaxed);
            self.want(wanted);
            return Err(Refused::Full);
        }
        // Seldom not zero, so the line stays shared.
        if self.ends.wanted.load(Ordering::Relaxed) != 0 {
            self.want(0);
        }
        // No truncation: `length` came from a `usize`.
        Ok(length.min(room) as usize)
    }

    fn known_room(&self, writer: &Writer, bound: u64) -> u64 {
        let written = self.put.written.load(Ordering::Relaxed);
        let queued = written.wrapping_sub(writer.released);
        self.room_under(bound, queued, writer.free_slots)
    }

    fn see_what_was_read(&self, writer: &mut Writer) {
        // Relaxed: the fence that a write ends with pairs with `release`. Whoever has found the room that
        // a read has made sees what was before the read.
        writer.released = self.taken.released.load(Ordering::Relaxed);
        writer.free_slots = self.free_slots();
    }

    /// Appends the first `length` bytes of `sources`, for which there is room.
    fn push(&self, writer: &mut Writer, sources: &[IoSlice<'_>], length: usize) {
        self.reserve(writer, length);
        let mut left = length;
        for source in sources {
            let (mut source, _) = source.split_at(source.len().min(left));
            left = left.saturating_sub(source.len());
            while !source.is_empty() {
                if writer.open.is_empty() {
                    self.begin_chunk();
                }
                let open = self.storage(writer);
                let space = self.pool.chunk_size().saturating_sub(open.len());
                let (now, later) = source.split_at(space.min(source.len()));
                open.extend_from_slice(now);
                source = later;
                if open.len() == self.pool.chunk_size() {
                    self.enqueue_open(writer);
                }
            }
        }
    }

    /// The open chunk, to be appended to.
    fn storage<'a>(&self, writer: &'a mut Writer) -> &'a mut Vec<u8> {
        if writer.open.capacity() == 0 {
            writer.open = self.pool.take();
        }
        &mut writer.open
    }

    fn begin_chunk(&self) {
        let chunks = self.put.chunks.load(Ordering::Relaxed);
        // Before the chunk can be taken, so that `taken.chunks` never overtakes it. Relaxed: who takes
        // the chunk, from the queue or under the lock, sees this by that.
        self.put
            .chunks
            .store(chunks.wrapping_add(1), Ordering::Relaxed);
    }

    /// Moves the end of what is written by `length`. It does so before the bytes can be read, so
    /// that `read` never overtakes it: who takes them, from the queue or under the lock, sees this by
    /// that, so it is Relaxed.
    fn reserve(&self, writer: &mut Writer, length: usize) {
        let written = self.put.written.load(Ordering::Relaxed);
        let written = written.wrapping_add(length as u64);
        self.put.written.store(written, Ordering::Relaxed);
        let high_water = self.put.high_water.load(Ordering::Relaxed);
        // With more read since there is less in the ring, so only a new height needs a look.
        if written.wrapping_sub(writer.released) > high_water {
            self.see_what_was_read(writer);
            let queued = written.wrapping_sub(writer.released);
            self.put
                .high_water
                .store(high_water.max(queued), Ordering::Relaxed);
        }
    }

    fn enqueue_open(&self, writer: &mut Writer) {
        if !writer.open.is_empty() {
            let bytes = mem::take(&mut writer.open);
            self.enqueue(writer, Chunk::Own(bytes, 0));
        }
    }

    fn enqueue(&self, writer: &mut Writer, chunk: Chunk) {
        writer.free_slots = writer.free_slots.saturating_sub(1);
        // There is a slot: `room_under` counts them.
        let refused = self.full.push(chunk).is_err();
        debug_assert!(!refused, "more chunks than the bound allows");
    }

    /// Makes [`has_wanted_room`](Self::has_wanted_room) wait for so much, until the next write
    /// that is taken.
    fn want(&self, room: u64) {
        // Relaxed: the writer looks at the room itself before it sleeps.
        self.ends.wanted.store(room, Ordering::Relaxed);
    }

    /// Whether the last write that was refused would now be taken, or learn that it never will.
    pub(crate) fn has_wanted_room(&self) -> bool {
        self.is_wanted(self.room())
    }

    /// Whether there is room enough to wake a writer for: half the ring, so that under load one
    /// wake is paid for half a ring of bytes; or any that it can use, if all there was has been
    /// read. So a writer that can go on is woken before the reader sleeps.
    pub(crate) fn is_worth_a_wake(&self) -> bool {
        let room = self.room();
        self.is_wanted(room)
            && (room >= self.capacity / 2
                || self.put.written.load(Ordering::Relaxed)
                    == self.taken.read.load(Ordering::Relaxed))
    }

    fn is_wanted(&self, room: u64) -> bool {
        let ends = &self.ends;
        let ended = ends.closed.load(Ordering::Relaxed) || ends.abandoned.load(Ordering::Relaxed);
        let room = if ended { self.capacity } else { room };
        room >= ends.wanted.load(Ordering::Relaxed)
    }

    /// Whether a write of some bytes would be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// The position after the last byte written.
    pub(crate) fn end_position(&self) -> u64 {
        // Relaxed: for who has written up to there, and so knows of it.
        self.put.written.load(Ordering::Relaxed)
    }
}

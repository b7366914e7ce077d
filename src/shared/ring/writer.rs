//! The writer's side of a ring: putting bytes in.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::IoSlice;

use bytes::Bytes;

use super::chunk::Open;
use super::{Chunk, Ring};
use crate::sync::{Ordering, fence, lock};
use crate::sys;

/// How much of a write is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admit {
    /// As much as fits.
    Part,
    /// All of it or nothing. Of a write larger than the ring, a ringful.
    Whole,
    /// All of it, for which there is [claimed](Ring::claim) room. The claim, of this many bytes, is used up.
    Claimed(u64),
    /// As much as fits, once no claim is left. Only while the ring is [exclusive](Ring::set_exclusive).
    Exclusive,
    /// All of it, without ever waiting. The ring holds up to twice its capacity; from the first byte that does not
    /// fit, everything is discarded and the writer has ended. So nothing is ever read from behind a gap.
    Quiesced,
}

/// Why a write took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no room now.
    Full,
    /// The writer has ended this direction.
    Closed,
    /// The reader has gone.
    Abandoned,
}

#[derive(Default)]
pub(super) struct Writer {
    /// The chunk that is being filled: neither empty nor full.
    pub(super) open: Option<Open>,
    /// The last value seen of [`Ring::released`], which only grows.
    pub(super) released: u64,
}

impl Ring {
    /// Copies bytes in and returns how many. Returns zero only if `sources` are empty.
    ///
    /// If anything was written, the caller notifies the reader. The call ends with a sequentially consistent fence, so the
    /// caller needs none.
    pub(crate) fn write(&self, sources: &[IoSlice<'_>], admit: Admit) -> Result<usize, Refused> {
        let length = sources
            .iter()
            .fold(0, |sum: usize, source| sum.saturating_add(source.len()));
        self.with_writer(|writer| {
            let taken = self.admit(writer, length, admit)?;
            self.push(writer, sources, taken);
            if admit == Admit::Quiesced && taken < length {
                self.discard(length.saturating_sub(taken));
                self.ends.cut_off.store(true, Ordering::Relaxed);
                self.end(writer);
                return Ok(length);
            }
            Ok(taken)
        })
    }

    /// Takes bytes from the front of `bytes` without a copy and returns how many. Notify the reader as after
    /// [`write`](Self::write).
    ///
    /// A few bytes are copied after all, and so are more once the slots that are kept for full chunks would be
    /// needed. The bytes that were copied are returned, to be dropped once the reader was notified: that may run the
    /// caller's code.
    pub(crate) fn write_bytes(
        &self,
        bytes: &mut Bytes,
        admit: Admit,
    ) -> (Result<usize, Refused>, Bytes) {
        let mut copied = Bytes::new();
        let written = self.with_writer(|writer| {
            let taken = self.admit(writer, bytes.len(), admit)?;
            let piece = bytes.split_to(taken);
            if self.is_small(taken) || !self.has_slots_for_given() {
                self.push(writer, &[IoSlice::new(&piece)], taken);
                copied = piece;
            } else {
                self.count(writer, taken);
                self.seal_open(writer);
                self.enqueue(Chunk::Given(piece));
            }
            Ok(taken)
        });
        (written, copied)
    }

    /// Ends the writer's side: what is in the ring is still read, then the end. Notify the reader as after
    /// [`write`](Self::write).
    pub(crate) fn close(&self) {
        self.with_writer(|writer| self.end(writer));
    }

    /// Ends the writer's side because bytes found no room: what is in the ring is still read, then an error. Notify the
    /// reader as after [`write`](Self::write).
    pub(crate) fn cut_off(&self) {
        self.with_writer(|writer| {
            // Relaxed: it is stored under the lock.
            if !self.ends.closed.load(Ordering::Relaxed) {
                self.ends.cut_off.store(true, Ordering::Relaxed);
                self.end(writer);
            }
        });
    }

    fn end(&self, writer: &mut Writer) {
        self.seal_open(writer);
        // Pairs with the load in `was_closed`: a look after it finds all that was written.
        self.ends.closed.store(true, Ordering::Release);
    }

    /// Every use of the writer's side goes through here.
    fn with_writer<T>(&self, work: impl FnOnce(&mut Writer) -> T) -> T {
        let result = work(&mut lock(&self.writer));
        // Pairs with the fence in `abandon`: either its sweep finds these bytes, or the load below finds that the
        // reader has gone. And pairs with the fence in `Signal::arm`: either the look after it finds these bytes, or
        // the caller finds the signal armed.
        fence(Ordering::SeqCst);
        if self.ends.abandoned.load(Ordering::Relaxed) {
            drop(self.sweep());
        }
        result
    }

    /// How many of `length` bytes may be written now.
    fn admit(&self, writer: &mut Writer, length: usize, admit: Admit) -> Result<usize, Refused> {
        if let Admit::Claimed(claim) = admit {
            self.set_claimed(self.claimed().saturating_sub(claim));
        }
        self.check_ends()?;
        let length = length as u64;
        let (least, bound) = match admit {
            Admit::Part => (length.min(1), self.unclaimed()),
            Admit::Whole => (length.min(self.capacity), self.unclaimed()),
            Admit::Claimed(_) => (length, self.capacity.saturating_sub(self.claimed())),
            Admit::Exclusive if self.claimed() != 0 => return Err(Refused::Full),
            Admit::Exclusive => (length.min(1), self.capacity),
            Admit::Quiesced => (0, self.capacity.saturating_mul(2)),
        };
        let mut room = self.known_room(writer, bound);
        if room < length {
            self.see_released(writer);
            room = self.known_room(writer, bound);
        }
        if room < least {
            self.ends.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::Full);
        }
        // No truncation: `length` came from a `usize`.
        Ok(length.min(room) as usize)
    }

    fn known_room(&self, writer: &Writer, bound: u64) -> u64 {
        let written = self.put.written.load(Ordering::Relaxed);
        bound.saturating_sub(written.wrapping_sub(writer.released))
    }

    fn see_released(&self, writer: &mut Writer) {
        writer.released = self.released();
    }

    /// Appends the first `length` bytes of `sources`, for which there is room.
    fn push(&self, writer: &mut Writer, sources: &[IoSlice<'_>], length: usize) {
        self.count(writer, length);
        let mut left = length;
        for source in sources {
            let (mut source, _) = source.split_at(source.len().min(left));
            left = left.saturating_sub(source.len());
            while !source.is_empty() {
                match writer.open.take() {
                    Some(mut open) => {
                        source = open.append(source);
                        writer.open = Some(open);
                    }
                    None => {
                        self.say_where_writer_runs();
                        let mut open = self.pool.take();
                        source = open.append(source);
                        self.enqueue(open.chunk());
                        writer.open = Some(open);
                    }
                }
                writer.open.take_if(|open| open.is_full());
            }
        }
    }

    /// Counts `length` bytes as written. It does so before they can be read, so that `read` never overtakes
    /// `written`. Relaxed: whoever sees the bytes also sees this.
    fn count(&self, writer: &mut Writer, length: usize) {
        let written = self.put.written.load(Ordering::Relaxed);
        let written = written.wrapping_add(length as u64);
        self.put.written.store(written, Ordering::Relaxed);
        let high_water = self.put.high_water.load(Ordering::Relaxed);
        // Reading since then can only have made it less, so only a new height needs a look.
        if written.wrapping_sub(writer.released) > high_water {
            self.see_released(writer);
            let queued = written.wrapping_sub(writer.released);
            self.put
                .high_water
                .store(high_water.max(queued), Ordering::Relaxed);
        }
    }

    /// Relaxed: it only says whether the reader looks again.
    fn say_where_writer_runs(&self) {
        let core = sys::current_core();
        // Seldom another, so the cache line stays shared.
        if self.ends.writers_core.load(Ordering::Relaxed) != core {
            self.ends.writers_core.store(core, Ordering::Relaxed);
        }
    }

    fn seal_open(&self, writer: &mut Writer) {
        if let Some(open) = writer.open.take() {
            open.seal();
        }
    }

    /// There is always a slot. Of full chunks, at most `chunks` are in the queue, or twice that under
    /// [`Admit::Quiesced`], which is the guest's, who never writes `Given` ones. Every other chunk but the last goes
    /// in only while it [leaves](Self::has_slots_for_given) `chunks` and one more slots free.
    pub(super) fn enqueue(&self, chunk: Chunk) {
        let refused = self.queue.push(chunk).is_err();
        debug_assert!(!refused, "more chunks than there are slots");
    }

    /// Whether a given chunk leaves enough slots for a ring of full chunks. The open chunk has its slot already.
    fn has_slots_for_given(&self) -> bool {
        // Only the reader takes chunks out, so there are at least so many.
        let free = self.queue.capacity().saturating_sub(self.queue.len());
        free >= self.chunks.saturating_add(3)
    }

    fn check_ends(&self) -> Result<(), Refused> {
        // Relaxed: it is stored under the lock, or somebody notifies afterwards.
        if self.ends.closed.load(Ordering::Relaxed) {
            return Err(Refused::Closed);
        }
        if self.ends.abandoned.load(Ordering::Relaxed) {
            return Err(Refused::Abandoned);
        }
        Ok(())
    }

    /// Makes [`has_wanted_room`](Self::has_wanted_room) wait for as much as a write of `length` bytes needs.
    pub(crate) fn want(&self, length: usize) {
        // Relaxed: the writer looks at the room itself before it sleeps.
        let wanted = self.capacity.min(length as u64);
        // Seldom another, so the cache line stays shared.
        if self.ends.wanted.load(Ordering::Relaxed) != wanted {
            self.ends.wanted.store(wanted, Ordering::Relaxed);
        }
    }

    /// Whether there is the room that is wanted or awaited, or nothing will ever be taken.
    pub(crate) fn has_wanted_room(&self) -> bool {
        self.is_wanted(self.room())
    }

    /// Whether room that was given back is of use to a task that waits, or nothing will ever be taken.
    pub(crate) fn has_room_to_offer(&self) -> bool {
        self.has_room()
            || self.check_ends().is_err()
            || (self.awaited() != 0 && self.has_wanted_room())
            || (self.put.exclusive.load(Ordering::Relaxed) && self.claimed() == 0)
    }

    pub(super) fn is_wanted(&self, room: u64) -> bool {
        let ended = self.check_ends().is_err();
        let wanted = self.ends.wanted.load(Ordering::Relaxed);
        // A look without the lock may see only a part of a change. If that hides room, whoever makes the change notifies
        // afterwards.
        let needed = self.claimed().saturating_add(self.awaited());
        ended || room >= needed.saturating_add(wanted)
    }

    /// Whether a write of at least one byte would be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.queued() < self.unclaimed()
    }

    /// Sets room for `length` bytes aside, if there is room. `length` is at most the capacity.
    pub(crate) fn try_claim(&self, length: usize) -> Result<(), Refused> {
        self.with_writer(|writer| {
            self.admit(writer, length, Admit::Whole)?;
            self.set_claimed(self.claimed().saturating_add(length as u64));
            Ok(())
        })
    }

    /// The same, but if there is too little room, no other write gets it from now on: call it again, or
    /// [give up](Self::give_up_claim). Only one caller at a time waits like this.
    pub(crate) fn claim(&self, length: usize) -> Result<(), Refused> {
        self.with_writer(|writer| {
            self.check_ends()?;
            let length = length as u64;
            self.see_released(writer);
            let claimed = self.claimed().saturating_add(length);
            if self.known_room(writer, self.capacity) >= claimed {
                self.await_room(0);
                self.set_claimed(claimed);
                return Ok(());
            }
            if self.awaited() == 0 {
                self.ends.refused.fetch_add(1, Ordering::Relaxed);
            }
            self.await_room(length);
            Err(Refused::Full)
        })
    }

    /// Ends the wait of [`claim`](Self::claim), if there is one.
    pub(crate) fn give_up_claim(&self) -> bool {
        // Relaxed: only the caller has made it wait.
        let waits = self.awaited() != 0;
        if waits {
            self.with_writer(|_| self.await_room(0));
        }
        waits
    }

    /// Gives claimed room back.
    pub(crate) fn unclaim(&self, length: usize) {
        self.with_writer(|_| self.set_claimed(self.claimed().saturating_sub(length as u64)));
    }

    /// Sets aside all room for writes with [`Admit::Exclusive`], or ends that.
    pub(crate) fn set_exclusive(&self, exclusive: bool) {
        self.with_writer(|_| self.put.exclusive.store(exclusive, Ordering::Relaxed));
    }

    /// For the holder of the lock.
    fn set_claimed(&self, claimed: u64) {
        // Pairs with the load in `claimed`: whoever sees a claim also sees that nothing awaits its room any more, and so never
        // counts it twice.
        self.put.claimed.store(claimed, Ordering::Release);
    }

    /// For the holder of the lock.
    fn await_room(&self, length: u64) {
        self.put.awaited.store(length, Ordering::Relaxed);
    }

    pub(super) fn claimed(&self) -> u64 {
        self.put.claimed.load(Ordering::Acquire)
    }

    fn awaited(&self) -> u64 {
        self.put.awaited.load(Ordering::Relaxed)
    }

    /// How full the ring may get by writes without a claim.
    fn unclaimed(&self) -> u64 {
        if self.put.exclusive.load(Ordering::Relaxed) {
            return 0;
        }
        let set_aside = self.claimed().saturating_add(self.awaited());
        self.capacity.saturating_sub(set_aside)
    }

    /// The position after the last byte written.
    pub(crate) fn end_position(&self) -> u64 {
        // Relaxed: the caller has written up to there, and so knows of it.
        self.put.written.load(Ordering::Relaxed)
    }

    /// Whether everything before `position` was read: `Some(false)` if it never will be.
    pub(crate) fn has_read_to(&self, position: u64) -> Option<bool> {
        // First: whoever sees the position that a sweep moved also sees, below, that the reader has gone.
        let is_read = self.taken.read.load(Ordering::Acquire) >= position;
        if self.ends.abandoned.load(Ordering::Acquire) {
            return Some(self.ends.abandoned_at.load(Ordering::Relaxed) >= position);
        }
        is_read.then_some(true)
    }
}

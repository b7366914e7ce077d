//! What a checkpoint takes of a ring, and how a new ring begins with it.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::IoSlice;

use super::reader::Reader;
use super::writer::Writer;
use super::{Admit, Ring};
use crate::sync::{MutexGuard, Ordering, lock};

/// One direction at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RingState {
    /// How many bytes were read since the start: the position of the next one.
    pub(crate) read: u64,
    /// The bytes from there on.
    pub(crate) unread: Vec<u8>,
}

/// Keeps a ring as it is: meanwhile each side's operations wait.
pub(crate) struct Still<'a> {
    ring: &'a Ring,
    // Unlocked in this order. A reader that comes next finds the writer's lock free, so it does not look in vain.
    writer: MutexGuard<'a, Writer>,
    reader: MutexGuard<'a, Reader>,
}

impl Ring {
    pub(crate) fn hold_still(&self) -> Still<'_> {
        // In the order in which a reader locks them.
        let reader = lock(&self.reader);
        Still {
            ring: self,
            writer: lock(&self.writer),
            reader,
        }
    }

    /// Begins a new ring with `state`, before anybody uses it. There are at most twice its capacity of bytes.
    pub(crate) fn restore(&self, state: &RingState) {
        self.put.written.store(state.read, Ordering::Relaxed);
        self.taken.read.store(state.read, Ordering::Relaxed);
        self.taken.released.store(state.read, Ordering::Relaxed);
        lock(&self.writer).released = state.read;
        let written = self.write(&[IoSlice::new(&state.unread)], Admit::Quiesced);
        debug_assert_eq!(written, Ok(state.unread.len()));
    }
}

impl Still<'_> {
    /// Copies what is unread, which stays so.
    pub(crate) fn copy(&self) -> RingState {
        let ring = self.ring;
        // No truncation: the bytes are in memory.
        let mut unread = Vec::with_capacity(ring.unread() as usize);
        if let Some(current) = &self.reader.current {
            unread.extend_from_slice(current.rest());
        }
        // Once round: with both locks, nobody else pushes or pops.
        for _ in 0..ring.full.len() {
            if let Some(chunk) = ring.full.pop() {
                unread.extend_from_slice(chunk.rest());
                ring.enqueue(chunk);
            }
        }
        unread.extend_from_slice(&self.writer.open);
        RingState {
            read: ring.stats().bytes,
            unread,
        }
    }
}

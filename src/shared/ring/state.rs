//! What a checkpoint takes of a ring, and how a new ring begins with it.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::IoSlice;

use super::reader::Reader;
use super::writer::Writer;
use super::{Admit, Chunk, Ring};
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
    reader: MutexGuard<'a, Reader>,
    /// Only kept.
    _writer: MutexGuard<'a, Writer>,
}

impl Ring {
    pub(crate) fn hold_still(&self) -> Still<'_> {
        Still {
            ring: self,
            // First, as in `let_go_of_storage`.
            reader: lock(&self.reader),
            _writer: lock(&self.writer),
        }
    }

    /// Begins a new ring with `state`, before anybody uses it. There are at most twice its capacity of bytes.
    pub(crate) fn restore(&self, state: &RingState) {
        self.put.written.store(state.read, Ordering::Relaxed);
        self.taken.read.store(state.read, Ordering::Relaxed);
        self.taken.copied.store(state.read, Ordering::Relaxed);
        self.taken.slept_at.store(state.read, Ordering::Relaxed);
        lock(&self.writer).released = state.read;
        let written = self.write(&[IoSlice::new(&state.unread)], Admit::Quiesced);
        debug_assert_eq!(written, Ok(state.unread.len()));
    }
}

impl Still<'_> {
    /// Copies what is unread, which stays so.
    pub(crate) fn copy(&mut self) -> RingState {
        let ring = self.ring;
        // No truncation: the bytes are in memory.
        let mut unread = Vec::with_capacity(ring.unread() as usize);
        let mut copy = |chunk: &mut Chunk| {
            chunk.look();
            unread.extend_from_slice(chunk.rest());
        };
        if let Some(current) = &mut self.reader.current {
            copy(current);
        }
        // Once round: with both locks, nobody else pushes or pops.
        for _ in 0..ring.queue.len() {
            if let Some(mut chunk) = ring.queue.pop() {
                copy(&mut chunk);
                ring.enqueue(chunk);
            }
        }
        RingState {
            read: ring.stats().bytes,
            unread,
        }
    }
}

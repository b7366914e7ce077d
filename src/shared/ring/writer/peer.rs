//! Letting bytes be put straight into a chunk.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io;

use bytes::BufMut;
use bytes::buf::Limit;

use super::enqueue;
use crate::shared::ring::Ring;
use crate::shared::ring::chunk::Storage;
use crate::shared::ring::writer::{Admit, Refused};
use crate::sync::Ordering;
use crate::sync::lock;

impl Ring {
    /// Lets `source` append to the open chunk, as much as there is room for, and passes on what it
    /// says.
    ///
    /// The writer's side is locked meanwhile, so `source` must not wait. Until it returns the reader
    /// does not find what the open chunk held before: it is to be woken whatever `source` did.
    pub(crate) fn fill(
        &self,
        source: impl FnOnce(&mut Limit<&mut Vec<u8>>) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, Refused> {
        let _writer = lock(&self.writer);
        let room = self.admit(self.chunk_size, Admit::Part)?;
        let mut chunk = self
            .open
            .pop()
            .unwrap_or_else(|| self.fresh_chunk(self.written.load(Ordering::Relaxed)));
        let Storage::Own(bytes, _) = &mut chunk.storage else {
            // Only `fresh_chunk`s are ever open.
            debug_assert!(false, "an open chunk that is not the ring's own");
            return Err(Refused::Full);
        };
        let before = bytes.len();
        let space = self.chunk_size.saturating_sub(before).min(room);
        let result = source(&mut bytes.limit(space));
        let filled = bytes.len().saturating_sub(before);
        if filled > 0 {
            self.reserve(filled);
        }
        match &mut chunk.storage {
            Storage::Own(bytes, _) if bytes.is_empty() => {
                self.give_back(std::mem::take(bytes));
            }
            Storage::Own(bytes, _) if bytes.len() < self.chunk_size => enqueue(&self.open, chunk),
            _ => enqueue(&self.full, chunk),
        }
        // Also if nothing came: the reader may have gone while the chunk was out of its reach.
        self.settle();
        Ok(result)
    }
}

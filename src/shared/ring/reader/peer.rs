//! Showing bytes to whoever takes them, in place.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io;

use crate::shared::ring::Ring;
use crate::sync::{Ordering, lock};

impl Ring {
    /// Shows the rest of the current chunk to `sink`, which takes it as read by a later
    /// [`consume`](Self::consume): `None` if there is none yet, `Some(Ok(0))` at the end, and
    /// otherwise what `sink` says.
    ///
    /// The reader's side is locked meanwhile, so `sink` must not wait.
    pub(crate) fn show(
        &self,
        sink: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        // Before the look, as in `look`.
        let closed = self.ends.closed.load(Ordering::Acquire);
        match self.current(&mut lock(&self.reader)) {
            Some(chunk) => Some(sink(chunk.rest())),
            None => closed.then_some(Ok(0)),
        }
    }
}

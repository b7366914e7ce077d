//! Chunks that the host has taken away without a copy.

use std::sync::{Arc, Weak};

use super::ConsoleSharedState;
use super::ring::Chunk;

/// A chunk whose bytes count against the capacity until the last handle to it is dropped. It keeps nothing alive but
/// itself.
pub(super) struct Held {
    /// Taken only by `drop`.
    chunk: Option<Chunk>,
    shared: Weak<ConsoleSharedState>,
}

impl Held {
    pub(super) fn new(chunk: Chunk, shared: &Arc<ConsoleSharedState>) -> Self {
        Self {
            chunk: Some(chunk),
            shared: Arc::downgrade(shared),
        }
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.chunk.as_ref().map_or(&[], Chunk::rest)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (Some(chunk), Some(shared)) = (self.chunk.take(), self.shared.upgrade()) else {
            return;
        };
        let count = chunk.rest().len();
        drop(chunk);
        shared.tx_ring.release(count);
        shared.offer_tx_room();
    }
}

//! A piece of the stream, and who its bytes belong to.

use bytes::{Buf, Bytes};

pub(super) enum Chunk {
    /// The ring's own, and how much of it has been read.
    Own(Vec<u8>, usize),
    /// Bytes that were written as they are.
    Given(Bytes),
    /// The ring's own, with a handle to it in the reader's hands: given back by its last handle.
    Lent(Bytes),
}

impl Chunk {
    pub(super) fn rest(&self) -> &[u8] {
        match self {
            Self::Own(bytes, taken) => bytes.get(*taken..).unwrap_or_default(),
            Self::Given(bytes) | Self::Lent(bytes) => bytes,
        }
    }

    /// `count` is at most what `rest` has.
    pub(super) fn advance(&mut self, count: usize) {
        match self {
            Self::Own(_, taken) => *taken = taken.saturating_add(count),
            Self::Given(bytes) | Self::Lent(bytes) => bytes.advance(count),
        }
    }
}

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

#[cfg(all(test, tokio_krun_loom))]
#[allow(clippy::unwrap_used, reason = "no thread of krun's runs models")]
mod models {
    use std::io::IoSlice;

    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::models::{bounded, spawn};
    use crate::shared::ring::Admit;

    /// As the ring's own model of reading, a chunk at a time.
    #[test]
    fn what_is_shown_comes_in_order_and_then_the_end() {
        bounded(2).check(|| {
            let ring = Arc::new(Ring::new(8, 2));
            let writer = spawn(&ring, |ring| {
                for bytes in [&[1][..], &[2, 3]] {
                    let written = ring.write(&[IoSlice::new(bytes)], Admit::Whole);
                    assert_eq!(written, Ok(bytes.len()));
                }
                ring.close();
            });
            let mut shown = Vec::new();
            loop {
                let show = |bytes: &[u8]| {
                    shown.extend_from_slice(bytes);
                    Ok(bytes.len())
                };
                match ring.show(show).map(Result::unwrap) {
                    Some(0) => break,
                    Some(count) => ring.consume(count),
                    None => thread::yield_now(),
                }
            }
            assert_eq!(shown, [1, 2, 3]);
            writer.join().unwrap();
        });
    }
}

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

#[cfg(all(test, tokio_krun_loom))]
#[allow(clippy::unwrap_used, reason = "no thread of krun's runs models")]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::shared::gate::models::{Sleep, bounded};

    /// In place and by copy in turn, with a look between that finds nothing to put in: nothing is lost,
    /// out of order, or slept through.
    #[test]
    fn what_is_filled_in_place_comes_in_order_and_wakes_a_sleeping_reader() {
        bounded(2).check(|| {
            let shared = Arc::new((Ring::new(8, 4), Sleep::new()));
            let writer = thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    let (ring, sleep) = &*shared;
                    for bytes in [&[1][..], &[], &[2]] {
                        let filled = ring.fill(|target| {
                            target.put_slice(bytes);
                            Ok(bytes.len())
                        });
                        assert_eq!(filled.unwrap().unwrap(), bytes.len());
                        sleep.notify_if(|| true);
                    }
                    ring.close();
                    sleep.notify_if(|| true);
                }
            });
            let (ring, sleep) = &*shared;
            let mut read = Vec::new();
            while sleep.until(|| ring.read(8, |bytes| read.extend_from_slice(bytes))) > 0 {}
            assert_eq!(read, [1, 2]);
            writer.join().unwrap();
        });
    }
}

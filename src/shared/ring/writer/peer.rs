//! Letting bytes be put straight into a chunk.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io;
use std::mem;

use bytes::BufMut;
use bytes::buf::Limit;

use super::{Admit, Refused};
use crate::shared::ring::Ring;

impl Ring {
    /// Lets `source` append to the open chunk, as much as there is room for, and passes on what it
    /// says. To be announced as [`write`](Self::write) is, whatever `source` did.
    ///
    /// The writer's side is locked meanwhile, so `source` must not wait.
    pub(crate) fn fill(
        &self,
        source: impl FnOnce(&mut Limit<&mut Vec<u8>>) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, Refused> {
        self.with_writer(|writer| {
            let chunk_size = self.pool.chunk_size();
            let room = self.admit(writer, chunk_size, Admit::Part)?;
            let open = self.storage(writer);
            let before = open.len();
            let space = chunk_size.saturating_sub(before).min(room);
            let result = source(&mut open.limit(space));
            let after = open.len();
            if after > before {
                if before == 0 {
                    self.begin_chunk();
                }
                self.reserve(writer, after.saturating_sub(before));
            }
            if after == chunk_size {
                self.enqueue_open(writer);
            } else if after == 0 {
                self.give_back(mem::take(&mut writer.open));
            }
            Ok(result)
        })
    }
}

#[cfg(all(test, tokio_krun_loom))]
#[allow(clippy::unwrap_used, reason = "no thread of krun's runs models")]
mod models {
    use loom::sync::Arc;

    use super::*;
    use crate::models::{bounded, spawn};
    use crate::shared::gate::models::Sleep;

    /// In place and by copy in turn, with a look between that finds nothing to put in: nothing is lost,
    /// out of order, or slept through.
    #[test]
    fn what_is_filled_in_place_comes_in_order_and_wakes_a_sleeping_reader() {
        bounded(2).check(|| {
            let shared = Arc::new((Ring::new(8, 2), Sleep::new()));
            let writer = spawn(&shared, |(ring, sleep)| {
                for bytes in [&[1][..], &[], &[2]] {
                    let filled = ring.fill(|target| {
                        target.put_slice(bytes);
                        Ok(bytes.len())
                    });
                    assert_eq!(filled.unwrap().unwrap(), bytes.len());
                    sleep.notify_after_fence();
                }
                ring.close();
                sleep.notify_after_fence();
            });
            let (ring, sleep) = &*shared;
            let mut read = Vec::new();
            while sleep.until(|| ring.read(8, |bytes| read.extend_from_slice(bytes))) > 0 {}
            assert_eq!(read, [1, 2]);
            writer.join().unwrap();
        });
    }
}

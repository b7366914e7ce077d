//! Storage for chunks that no ring needs now: the one used last is used first, while it is still in
//! the processor's cache.
//!
//! Rings with chunks of the usual size share one pool, so that a thousand streams take turns with
//! the memory of those that are busy: a ring whose reader has found nothing keeps none. A ring of smaller
//! chunks has a pool of its own, which keeps what the ring has needed.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::{Arc, LazyLock};

use crate::sync::{Mutex, lock};

/// The usual size of a chunk, in bytes: two descriptors of a Linux guest.
pub(crate) const USUAL_CHUNK: usize = 64 * 1024;

/// What the shared pool keeps at most, in bytes; more is freed.
const SHARED_BYTES: usize = 32 * 1024 * 1024;

pub(crate) struct Pool {
    chunk_size: usize,
    /// More chunks than that are freed.
    most: usize,
    /// Each empty, with room for `chunk_size`.
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// For chunks of `chunk_size` bytes; `most` matters if there is no shared pool for them.
    pub(crate) fn for_chunks(chunk_size: usize, most: usize) -> Arc<Self> {
        static SHARED: LazyLock<Arc<Pool>> =
            LazyLock::new(|| Arc::new(Pool::new(USUAL_CHUNK, SHARED_BYTES / USUAL_CHUNK)));
        if chunk_size == USUAL_CHUNK {
            Arc::clone(&SHARED)
        } else {
            Arc::new(Self::new(chunk_size, most))
        }
    }

    fn new(chunk_size: usize, most: usize) -> Self {
        Self {
            chunk_size,
            most,
            free: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    pub(crate) fn take(&self) -> Vec<u8> {
        let free = lock(&self.free).pop();
        free.unwrap_or_else(|| Vec::with_capacity(self.chunk_size))
    }

    /// Takes storage back, or nothing from who had none.
    pub(crate) fn give_back(&self, mut bytes: Vec<u8>) {
        if bytes.capacity() == 0 {
            return;
        }
        // Appending to what is empty: no old byte is ever shown.
        bytes.clear();
        let mut free = lock(&self.free);
        if free.len() < self.most {
            free.push(bytes);
        }
    }
}

#[cfg(all(test, tokio_krun_loom))]
#[allow(clippy::unwrap_used, reason = "no thread of krun's runs models")]
mod models {
    use std::collections::HashSet;
    use std::sync::Mutex as Unseen;

    use super::*;
    use crate::models::{bounded, spawn};

    /// Two rings take storage, fill it and give it back; each also gives back what it never used. None
    /// is out twice or shows old bytes, and no more than allowed is kept.
    #[test]
    fn storage_is_out_once_and_empty_and_kept_up_to_the_bound() {
        bounded(3).check(|| {
            // Where the storage is that is out. loom does not see it, so it orders nothing.
            let out = Unseen::new(HashSet::new());
            let shared = Arc::new((Pool::new(4, 1), out));
            let users = [(); 2].map(|()| {
                spawn(&shared, |(pool, out)| {
                    for _ in 0..2 {
                        let mut bytes = pool.take();
                        assert!(bytes.is_empty() && bytes.capacity() >= 4);
                        let place = bytes.as_ptr() as usize;
                        assert!(out.lock().unwrap().insert(place), "out twice");
                        bytes.push(7);
                        assert!(out.lock().unwrap().remove(&place));
                        pool.give_back(bytes);
                        pool.give_back(Vec::new());
                        assert!(lock(&pool.free).len() <= 1);
                    }
                })
            });
            for user in users {
                user.join().unwrap();
            }
        });
    }
}

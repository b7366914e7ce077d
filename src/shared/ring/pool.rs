//! Storage of chunks that is ready for use.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use super::chunk::{Open, Unused};
use crate::sync::{Mutex, lock};
use crate::sys;

/// The usual size of a chunk, in bytes: two descriptors of a Linux guest.
pub(crate) const USUAL_CHUNK: usize = 64 * 1024;

/// The most bytes that the process's pool keeps. Further storage is freed.
const POOL_BYTES: usize = 32 * 1024 * 1024;

/// The chunk that came back so many chunks ago, 4 MiB, has left the private cache of the core that read it.
const COLD: usize = 64;

/// Storage that nobody uses. Chunks of the usual size share one pool for the process.
///
/// Which chunk a writer gets decides how fast its copy is. If the chunk was last read on the writer's own core, it is
/// still in that core's cache. If another core has read it, its lines must first come from that core's cache, which is
/// slower than from memory that both share. So the writer gets the chunk that was read last if that was on its own
/// core, and else one that came back longer ago. Not much longer: the more chunks take turns, the fewer of their lines are
/// in any cache.
pub(super) struct Pool {
    chunk_size: usize,
    /// The most chunks it keeps.
    most: usize,
    /// A writer on another core gets the chunk that came back so many chunks ago, or new storage. `None`: it gets the
    /// one that has been unused for longest.
    cold: Option<usize>,
    /// In the order in which they came back, each with the core on which it was dropped.
    free: Mutex<VecDeque<(Unused, u64)>>,
}

impl Pool {
    /// `most` is for a pool of other than the usual size.
    pub(super) fn for_chunks(chunk_size: usize, most: usize) -> Arc<Self> {
        static USUAL: LazyLock<Arc<Pool>> = LazyLock::new(|| {
            Arc::new(Pool::new(USUAL_CHUNK, POOL_BYTES / USUAL_CHUNK, Some(COLD)))
        });
        if chunk_size == USUAL_CHUNK {
            Arc::clone(&USUAL)
        } else {
            Arc::new(Self::new(chunk_size, most, None))
        }
    }

    pub(super) fn new(chunk_size: usize, most: usize, cold: Option<usize>) -> Self {
        Self {
            chunk_size,
            most,
            cold,
            free: Mutex::new(VecDeque::new()),
        }
    }

    pub(super) fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    pub(super) fn take(self: &Arc<Self>) -> Open {
        let unused = self.choose(sys::current_core());
        unused
            .and_then(Open::new)
            .unwrap_or_else(|| Open::create(self.chunk_size, Arc::downgrade(self)))
    }

    fn choose(&self, core: u64) -> Option<Unused> {
        let mut free = lock(&self.free);
        let is_hot = free.back().is_some_and(|(_, last)| *last == core);
        let ago = match self.cold {
            _ if is_hot => 1,
            Some(cold) => cold,
            None => free.len(),
        };
        let chosen = free
            .len()
            .checked_sub(ago)
            .and_then(|index| free.remove(index));
        chosen.map(|(storage, _)| storage)
    }

    /// Takes storage back that nobody uses.
    pub(super) fn put(&self, storage: Unused) {
        let core = sys::current_core();
        let mut free = lock(&self.free);
        if free.len() < self.most {
            free.push_back((storage, core));
        }
    }

    #[cfg(all(test, tokio_krun_loom))]
    pub(super) fn unused(&self) -> usize {
        lock(&self.free).len()
    }
}

//! In the steady state nothing is allocated: chunks are used again.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{SMALL, pair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Counting;

thread_local! {
    /// Of this thread: the test harness has its own.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: each call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `alloc` got it from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn bytes_both_ways_allocate_nothing_once_the_rings_have_been_full() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut stream, backend) = pair();
        let mut buffer = vec![7; SMALL];
        let mut round = async |length: usize| {
            assert_eq!(backend.write(&buffer[..length]).unwrap(), length);
            stream.read_exact(&mut buffer[..length]).await.unwrap();
            stream.write_all(&buffer[..length]).await.unwrap();
            assert_eq!(backend.read(&mut buffer[..length]).unwrap(), length);
        };
        // More rounds than tokio's budget for a turn has operations: the runtime allocates when a
        // task first gives way.
        for _ in 0..200 {
            round(SMALL).await;
        }
        let before = ALLOCATIONS.get();
        for length in (0..1000).map(|round| 1 + round * 7919 % SMALL) {
            round(length).await;
        }
        assert_eq!(ALLOCATIONS.get() - before, 0);
    });
}

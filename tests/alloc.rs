//! In the steady state nothing is allocated: chunks are used again. Each test plays krun on its own
//! thread, so what that thread allocates is all there is.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use common::{SMALL, pair};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::Chunks;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

struct Counting;

thread_local! {
    /// Of this thread: the test harness has its own.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator is unsafe to write")]
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

/// What this thread allocates in `measured` rounds, after others.
fn allocations(measured: usize, test: impl AsyncFnOnce(&mut dyn FnMut(usize) -> bool)) -> usize {
    // More rounds than tokio's budget for a turn has operations: the runtime allocates when a
    // task first gives way.
    const WARM_UP: usize = 200;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let (mut before, mut after) = (0, 0);
    let mut goes_on = |round: usize| {
        if round == WARM_UP {
            before = ALLOCATIONS.get();
        }
        // What ends may allocate.
        after = ALLOCATIONS.get();
        round < WARM_UP + measured
    };
    runtime.block_on(test(&mut goes_on));
    after - before
}

#[test]
fn bytes_both_ways_allocate_nothing_once_the_rings_have_been_full() {
    let (mut buffer, mut echo) = (vec![7; SMALL], vec![0; SMALL]);
    let count = allocations(1000, async |goes_on| {
        let (mut stream, backend) = pair();
        for round in 0.. {
            let length = if round < 200 {
                SMALL
            } else {
                1 + round * 7919 % SMALL
            };
            if !goes_on(round) {
                return;
            }
            assert_eq!(backend.write(&buffer[..length]).unwrap(), length);
            stream.read_exact(&mut echo[..length]).await.unwrap();
            stream.write_all(&echo[..length]).await.unwrap();
            assert_eq!(backend.read(&mut buffer[..length]).unwrap(), length);
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn frames_both_ways_allocate_nothing() {
    let payload = Bytes::from(vec![7; 3000]);
    let mut frame = vec![0; 4 + payload.len()];
    let count = allocations(1000, async |goes_on| {
        let (stream, backend) = pair();
        let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
        for round in 0.. {
            if !goes_on(round) {
                return;
            }
            frames.send(payload.clone()).await.unwrap();
            assert_eq!(backend.read(&mut frame).unwrap(), frame.len());
            assert_eq!(backend.write(&frame).unwrap(), frame.len());
            assert_eq!(frames.next().await.unwrap().unwrap(), payload);
        }
    });
    assert_eq!(count, 0);
}

/// `Bytes` with something to do when they are dropped are an allocation; the bytes are none.
#[test]
fn chunks_allocate_nothing_to_the_guest_and_one_handle_each_from_it() {
    const ROUNDS: usize = 1000;
    let item = Bytes::from(vec![7; SMALL / 8]);
    let mut descriptor = vec![0; item.len()];
    let count = allocations(ROUNDS, async |goes_on| {
        let (stream, backend) = pair();
        let mut chunks = Chunks::new(stream);
        for round in 0.. {
            if !goes_on(round) {
                return;
            }
            chunks.send(item.clone()).await.unwrap();
            assert_eq!(backend.read(&mut descriptor).unwrap(), item.len());
            assert_eq!(backend.write(&descriptor).unwrap(), item.len());
            assert_eq!(chunks.next().await.unwrap().unwrap(), item);
        }
    });
    assert_eq!(count, ROUNDS);
}

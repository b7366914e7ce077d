//! In the steady state nothing is allocated, because chunks are reused. Each test plays krun on its own thread, so that
//! thread's allocations are all there are.

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
    /// Per thread, because the test harness allocates too.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator is unsafe to write")]
// SAFETY: each call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller has promised what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `alloc` got it from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts this thread's allocations in `measured` rounds, after some to warm up.
fn allocations(measured: usize, test: impl AsyncFnOnce(&mut dyn FnMut(usize) -> bool)) -> usize {
    // More rounds than tokio's budget has operations: the runtime allocates when a task first
    // yields.
    const WARM_UP: usize = 200;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let (mut before, mut after) = (0, 0);
    let mut starts_round = |round: usize| {
        if round == WARM_UP {
            before = ALLOCATIONS.get();
        }
        // Read in every round, because tearing down after the last one may allocate.
        after = ALLOCATIONS.get();
        round < WARM_UP + measured
    };
    runtime.block_on(test(&mut starts_round));
    after - before
}

#[test]
fn bytes_both_ways_allocate_nothing_once_rings_were_full() {
    let (mut buffer, mut echo) = (vec![7; SMALL], vec![0; SMALL]);
    let count = allocations(1000, async |starts_round| {
        let (mut stream, backend) = pair();
        for round in 0.. {
            // Sometimes the ring is full and begins in the middle of a chunk.
            let length = if round % 2 == 0 {
                SMALL
            } else {
                1 + round * 7919 % SMALL
            };
            if !starts_round(round) {
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
    let count = allocations(1000, async |starts_round| {
        let (stream, backend) = pair();
        let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
        for round in 0.. {
            if !starts_round(round) {
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

/// `Bytes` that run code on drop need an allocation for their handle, but none for the bytes.
#[test]
fn sent_chunks_allocate_nothing_and_received_chunks_one_handle_each() {
    const ROUNDS: usize = 1000;
    let item = Bytes::from(vec![7; SMALL / 8]);
    let mut descriptor = vec![0; item.len()];
    let count = allocations(ROUNDS, async |starts_round| {
        let (stream, backend) = pair();
        let mut chunks = Chunks::new(stream);
        for round in 0.. {
            if !starts_round(round) {
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

//! The ring, checked by loom: every order in which two threads may see its steps.

use std::io::IoSlice;

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::models::{bounded, spawn};
use crate::shared::gate::models::Sleep;

fn write(ring: &Ring, bytes: &[u8]) -> Result<usize, Refused> {
    ring.write(&[IoSlice::new(bytes)], Admit::Whole)
}

/// As krun's TX thread does: sleeps if there is no room, and then there is.
fn write_when_there_is_room(ring: &Ring, room: &Sleep, bytes: &[u8]) {
    if write(ring, bytes) == Err(Refused::Full) {
        room.until(|| ring.has_wanted_room().then_some(()));
        assert_eq!(write(ring, bytes), Ok(bytes.len()));
    }
}

/// Reads until the end, yielding where a real reader would sleep.
fn read_to_end(ring: &Ring, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        assert!(bytes.len() < 20, "more than any of these write");
        match ring.read(limit, |part| bytes.extend_from_slice(part)) {
            Some(0) => return bytes,
            Some(_) => {}
            None => thread::yield_now(),
        }
    }
}

/// Chunks of two bytes, so that full and open chunks are mixed: the reader must not take them
/// out of turn, nor miss one at the end.
#[test]
fn bytes_come_out_in_order_and_then_the_end() {
    bounded(3).check(|| {
        let ring = Arc::new(Ring::new(8, 2));
        let writer = spawn(&ring, |ring| {
            assert_eq!(write(ring, &[1]), Ok(1));
            assert_eq!(write(ring, &[2, 3]), Ok(2));
            ring.close();
        });
        assert_eq!(read_to_end(&ring, 8), [1, 2, 3]);
        writer.join().unwrap();
    });
}

#[test]
fn a_full_ring_takes_more_only_after_a_read() {
    bounded(3).check(|| {
        let shared = Arc::new((Ring::new(2, 1), AtomicBool::new(false)));
        let writer = spawn(&shared, |(ring, reading)| {
            assert_eq!(write(ring, &[1, 2]), Ok(2));
            let mut written = write(ring, &[3]);
            while written == Err(Refused::Full) {
                thread::yield_now();
                written = write(ring, &[3]);
            }
            assert_eq!(written, Ok(1));
            // Whoever finds the room that a read has made also sees what was before the read.
            assert!(reading.load(Ordering::Relaxed), "there was no room");
            ring.close();
        });
        let (ring, reading) = &*shared;
        reading.store(true, Ordering::Relaxed);
        assert_eq!(read_to_end(ring, 1), [1, 2, 3]);
        writer.join().unwrap();
    });
}

/// Ring and gate together, as a task of the host's uses them: it looks in vain while the writer is at
/// the open chunk, and sleeps. The third write, of more than there is room for, takes nothing.
#[test]
fn a_reader_that_meets_a_writer_at_the_open_chunk_is_woken() {
    bounded(3).check(|| {
        let shared = Arc::new((Ring::new(4, 2), Sleep::new()));
        let writer = spawn(&shared, |(ring, data)| {
            for bytes in [&[1][..], &[2, 3], &[0; 4]] {
                let _ = write(ring, bytes);
                data.notify_after_fence();
            }
        });
        let (ring, data) = &*shared;
        let mut bytes = Vec::new();
        while bytes.len() < 3 {
            data.until(|| ring.read(1, |part| bytes.extend_from_slice(part)));
        }
        assert_eq!(bytes, [1, 2, 3]);
        writer.join().unwrap();
    });
}

/// A write that is refused has held the open chunk from the reader as well.
#[test]
fn a_reader_that_meets_a_refused_write_is_woken() {
    loom::model(|| {
        let shared = Arc::new((Ring::new(2, 2), Sleep::new()));
        write(&shared.0, &[1]).unwrap();
        let writer = spawn(&shared, |(ring, data)| {
            let refused = write(ring, &[2, 3]);
            data.notify_after_fence();
            refused
        });
        let (ring, data) = &*shared;
        assert!(data.until(|| ring.read(2, |_| {})) > 0);
        let _ = writer.join().unwrap();
    });
}

/// Whatever the order, each byte is either refused or counted as discarded.
#[test]
fn a_write_that_meets_the_readers_end_is_accounted_for() {
    loom::model(|| {
        let ring = Arc::new(Ring::new(4, 2));
        let writer = spawn(&ring, |ring| write(ring, &[1, 2, 3]));
        ring.abandon();
        match writer.join().unwrap() {
            Ok(written) => {
                assert_eq!(written, 3);
                assert_eq!(ring.stats().discarded, 3);
                assert_eq!(ring.queued(), 0);
            }
            Err(refused) => {
                assert_eq!(refused, Refused::Abandoned);
                assert_eq!(ring.stats().discarded, 0);
            }
        }
    });
}

/// Ring, wanted room and gate together with one byte, in every order, however often the threads are put off.
#[test]
fn a_writer_that_sleeps_on_one_byte_is_woken() {
    loom::model(|| {
        let shared = Arc::new((Ring::new(1, 1), Sleep::new()));
        write(&shared.0, &[1]).unwrap();
        let writer = spawn(&shared, |(ring, room)| {
            write_when_there_is_room(ring, room, &[2])
        });
        let (ring, room) = &*shared;
        assert_eq!(ring.read(1, |part| assert_eq!(part, [1])), Some(1));
        room.notify_if(|| ring.is_worth_a_wake());
        writer.join().unwrap();
        assert_eq!(ring.read(1, |part| assert_eq!(part, [2])), Some(1));
    });
}

/// The same as krun's TX thread and the host use them: the writer sleeps on a full ring of two chunks,
/// and the reader signals only when that is worth it.
#[test]
fn a_writer_that_sleeps_on_a_full_ring_is_woken() {
    bounded(2).check(|| {
        let shared = Arc::new((Ring::new(2, 1), Sleep::new()));
        write(&shared.0, &[1, 2]).unwrap();
        let writer = spawn(&shared, |(ring, room)| {
            write_when_there_is_room(ring, room, &[3, 4])
        });
        let (ring, room) = &*shared;
        let mut bytes = Vec::new();
        for _ in 0..2 {
            ring.read(1, |part| bytes.extend_from_slice(part));
            room.notify_if(|| ring.is_worth_a_wake());
        }
        writer.join().unwrap();
        ring.read(2, |part| bytes.extend_from_slice(part));
        assert_eq!(bytes, [1, 2, 3, 4]);
    });
}

/// The same with the last byte released by another thread, that of the last handle to a chunk.
#[test]
fn a_writer_is_woken_by_a_chunk_that_is_given_back() {
    bounded(2).check(|| {
        let shared = Arc::new((Ring::new(2, 1), Sleep::new()));
        write(&shared.0, &[1, 2]).unwrap();
        let handle = shared
            .0
            .read_bytes(|bytes, _| bytes::Bytes::from(bytes), |bytes| bytes)
            .unwrap();
        assert_eq!(handle, [1][..]);
        let writer = spawn(&shared, |(ring, room)| {
            write_when_there_is_room(ring, room, &[3, 4])
        });
        let holder = spawn(&shared, move |(ring, room)| {
            ring.release(handle.len());
            room.notify_if(|| ring.is_worth_a_wake());
        });
        let (ring, room) = &*shared;
        assert_eq!(ring.read(1, |part| assert_eq!(part, [2])), Some(1));
        room.notify_if(|| ring.is_worth_a_wake());
        writer.join().unwrap();
        holder.join().unwrap();
    });
}

/// To anyone: what was read is not queued any more. It is the other thread that asks: the other way round loom
/// never has the first one see what was read.
#[test]
fn what_was_read_has_made_its_room() {
    loom::model(|| {
        let ring = Arc::new(Ring::new(1, 1));
        write(&ring, &[1]).unwrap();
        let other = spawn(&ring, |ring| {
            if ring.has_read_to(1).is_some() {
                assert_eq!(ring.queued(), 0);
            }
        });
        assert_eq!(ring.read(1, |_| {}), Some(1));
        other.join().unwrap();
    });
}

/// What is counted is never less than nothing.
fn assert_counts(ring: &Ring) {
    assert!(ring.queued() <= 2);
    assert!(ring.stats().chunks_queued <= 2);
}

/// To the reader: what it has read was counted as written before.
#[test]
fn what_is_read_was_counted_as_written() {
    bounded(3).check(|| {
        let ring = Arc::new(Ring::new(2, 1));
        let writer = spawn(&ring, |ring| assert_eq!(write(ring, &[1, 2]), Ok(2)));
        for _ in 0..2 {
            ring.read(1, |_| {});
            assert_counts(&ring);
        }
        writer.join().unwrap();
    });
}

/// To anyone else, from a thread of its own.
#[test]
fn no_more_is_seen_to_be_read_than_written() {
    bounded(2).check(|| {
        let ring = Arc::new(Ring::new(2, 1));
        let reader = spawn(&ring, |ring| {
            for _ in 0..2 {
                ring.read(1, |_| {});
            }
        });
        let other = spawn(&ring, assert_counts);
        assert_eq!(write(&ring, &[1, 2]), Ok(2));
        reader.join().unwrap();
        other.join().unwrap();
    });
}

/// Each round takes a slot for one byte, and another for bytes that fill half a chunk; meanwhile one slot
/// comes free.
#[test]
fn a_writer_of_half_filled_chunks_loses_none() {
    bounded(1).check(|| {
        let ring = Arc::new(Ring::new(24, 8));
        let reader = spawn(&ring, |ring| ring.read(1, |_| {}).unwrap_or(0));
        let mut written = 0;
        for _ in 0..5 {
            written += write(&ring, &[0]).unwrap_or(0);
            let mut given = bytes::Bytes::from_static(&[0; 4]);
            written += ring.write_bytes(&mut given).0.unwrap_or(0);
        }
        ring.close();
        let read = reader.join().unwrap();
        assert_eq!(read + read_to_end(&ring, 24).len(), written);
    });
}

//! The ring, checked by loom: every order in which two threads may see its steps.

use std::collections::HashSet;
use std::io::IoSlice;
use std::sync::Mutex as Unseen;

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::models::{bounded, spawn};
use crate::shared::signal::Signal;
use crate::shared::signal::models::Counted;

fn write(ring: &Ring, bytes: &[u8]) -> Result<usize, Refused> {
    ring.write(&[IoSlice::new(bytes)], Admit::Whole)
}

fn read(ring: &Ring, limit: usize, sink: impl FnMut(&[u8])) -> Option<usize> {
    ring.read(limit, sink).0
}

/// As krun's TX thread does: sleeps if there is no room, and then there is.
fn write_when_there_is_room(ring: &Ring, room: &Signal<Counted>, bytes: &[u8]) {
    if write(ring, bytes) == Err(Refused::Full) {
        ring.want(bytes.len());
        room.until(|| ring.has_wanted_room().then_some(()));
        assert_eq!(write(ring, bytes), Ok(bytes.len()));
    }
}

/// Reads until the end, yielding where a real reader would sleep.
fn read_to_end(ring: &Ring, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        assert!(bytes.len() < 40, "more than any model writes");
        match read(ring, limit, |part| bytes.extend_from_slice(part)) {
            Some(0) => return bytes,
            Some(_) => {}
            None => thread::yield_now(),
        }
    }
}

/// Chunks of two bytes, so that full and open chunks mix. The reader must not take them out of turn, nor miss one at
/// the end.
#[test]
fn bytes_come_out_in_order_then_end() {
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
fn full_ring_takes_more_only_after_read() {
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
            // A writer that finds the room that a read has made also sees what came before the read.
            assert!(reading.load(Ordering::Relaxed), "there was no room");
            ring.close();
        });
        let (ring, reading) = &*shared;
        reading.store(true, Ordering::Relaxed);
        assert_eq!(read_to_end(ring, 1), [1, 2, 3]);
        writer.join().unwrap();
    });
}

/// Ring and signal together, as a task of the host uses them. The reader sleeps whenever it finds nothing, and lets go of
/// the storage before; the writer goes on in the same chunk or begins another. The third write is larger than the room and
/// takes nothing.
#[test]
fn reader_that_lets_go_of_storage_is_woken() {
    bounded(3).check(|| {
        let shared = Arc::new((Ring::new(4, 2), Signal::new(Counted)));
        let writer = spawn(&shared, |(ring, data)| {
            for bytes in [&[1][..], &[2, 3], &[0; 4]] {
                if write(ring, bytes).is_ok() {
                    data.notify_after_fence();
                }
            }
        });
        let (ring, data) = &*shared;
        let mut bytes = Vec::new();
        while bytes.len() < 3 {
            data.until(|| {
                let read = read(ring, 1, |part| bytes.extend_from_slice(part));
                if read.is_none() {
                    ring.let_go_of_storage();
                }
                read
            });
        }
        assert_eq!(bytes, [1, 2, 3]);
        writer.join().unwrap();
    });
}

/// Another thread that has the writer's lock does not keep the reader from what was written.
#[test]
fn reader_does_not_wait_for_writers_lock() {
    loom::model(|| {
        let ring = Arc::new(Ring::new(2, 2));
        write(&ring, &[1]).unwrap();
        let writer = spawn(&ring, |ring| write(ring, &[2, 3]));
        assert_eq!(read(&ring, 1, |part| assert_eq!(part, [1])), Some(1));
        let _ = writer.join().unwrap();
    });
}

/// The reader lets go of a chunk that it has read while the writer seals it and begins another.
#[test]
fn chunk_begun_meanwhile_is_not_let_go() {
    bounded(3).check(|| {
        let ring = Arc::new(Ring::new(8, 4));
        let writer = spawn(&ring, |ring| {
            write(ring, &[1]).unwrap();
            let mut given = bytes::Bytes::from_static(&[2, 3]);
            ring.write_bytes(&mut given, Admit::Part).0.unwrap();
            write(ring, &[4]).unwrap();
            write(ring, &[5]).unwrap();
            ring.close();
        });
        let mut bytes = Vec::new();
        while bytes.len() < 5 {
            let more = read(&ring, 8, |part| bytes.extend_from_slice(part));
            assert_ne!(more, Some(0), "the end came early");
            ring.let_go_of_storage();
            if more.is_none() {
                thread::yield_now();
            }
        }
        assert_eq!(bytes, [1, 2, 3, 4, 5]);
        writer.join().unwrap();
    });
}

/// Whatever the order, each byte is either refused or counted as discarded.
#[test]
fn write_that_meets_abandon_is_accounted_for() {
    // Without a bound, it takes 14 times as long.
    bounded(7).check(|| {
        let ring = Arc::new(Ring::new(4, 2));
        let writer = spawn(&ring, |ring| write(ring, &[1, 2, 3]));
        drop(ring.abandon());
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

/// Ring, wanted room and signal together, checked in every order.
#[test]
fn writer_of_one_byte_ring_is_woken() {
    loom::model(|| {
        let shared = Arc::new((Ring::new(1, 1), Signal::new(Counted)));
        write(&shared.0, &[1]).unwrap();
        let writer = spawn(&shared, |(ring, room)| {
            write_when_there_is_room(ring, room, &[2])
        });
        let (ring, room) = &*shared;
        assert_eq!(read(ring, 1, |part| assert_eq!(part, [1])), Some(1));
        room.notify_if(|| ring.is_worth_waking_writer());
        writer.join().unwrap();
        assert_eq!(read(ring, 1, |part| assert_eq!(part, [2])), Some(1));
    });
}

/// As krun's TX thread and the host use it: the writer sleeps on a full ring of two chunks, and the reader wakes it
/// only when that is worth it.
#[test]
fn writer_of_full_ring_is_woken() {
    bounded(2).check(|| {
        let shared = Arc::new((Ring::new(2, 1), Signal::new(Counted)));
        write(&shared.0, &[1, 2]).unwrap();
        let writer = spawn(&shared, |(ring, room)| {
            write_when_there_is_room(ring, room, &[3, 4])
        });
        let (ring, room) = &*shared;
        let mut bytes = Vec::new();
        for _ in 0..2 {
            read(ring, 1, |part| bytes.extend_from_slice(part));
            room.notify_if(|| ring.is_worth_waking_writer());
        }
        writer.join().unwrap();
        read(ring, 2, |part| bytes.extend_from_slice(part));
        assert_eq!(bytes, [1, 2, 3, 4]);
    });
}

/// The same, with the last byte released by a third thread, that of the last handle to a chunk.
#[test]
fn releasing_held_chunk_wakes_writer() {
    bounded(2).check(|| {
        let shared = Arc::new((Ring::new(2, 1), Signal::new(Counted)));
        write(&shared.0, &[1, 2]).unwrap();
        let Some(ReadChunk::Held(held)) = shared.0.read_chunk() else {
            panic!("a whole chunk is not copied");
        };
        assert_eq!(held.rest(), [1]);
        let writer = spawn(&shared, |(ring, room)| {
            write_when_there_is_room(ring, room, &[3, 4])
        });
        let holder = spawn(&shared, move |(ring, room)| {
            let count = held.rest().len();
            drop(held);
            ring.release(count);
            room.notify_if(|| ring.is_worth_waking_writer());
        });
        let (ring, room) = &*shared;
        assert_eq!(read(ring, 1, |part| assert_eq!(part, [2])), Some(1));
        room.notify_if(|| ring.is_worth_waking_writer());
        writer.join().unwrap();
        holder.join().unwrap();
    });
}

/// A claim that waits is woken once all its room is free, and no sooner.
#[test]
fn claim_that_waits_is_woken() {
    bounded(2).check(|| {
        let shared = Arc::new((Ring::new(2, 1), Signal::new(Counted)));
        write(&shared.0, &[1, 2]).unwrap();
        let claimer = spawn(&shared, |(ring, room)| {
            room.until(|| ring.claim(2).ok());
            let bytes = [IoSlice::new(&[3, 4])];
            assert_eq!(ring.write(&bytes, Admit::Claimed(2)), Ok(2));
        });
        let (ring, room) = &*shared;
        let mut bytes = Vec::new();
        for _ in 0..2 {
            read(ring, 1, |part| bytes.extend_from_slice(part));
            room.notify_if(|| ring.is_worth_waking_writer());
        }
        claimer.join().unwrap();
        read(ring, 2, |part| bytes.extend_from_slice(part));
        assert_eq!(bytes, [1, 2, 3, 4]);
    });
}

/// Room is promised once: to a claim, or to a write without one.
#[test]
fn claimed_room_goes_to_no_other_write() {
    loom::model(|| {
        let ring = Arc::new(Ring::new(2, 1));
        let claimer = spawn(&ring, |ring| {
            let claimed = ring.try_claim(2).is_ok();
            if claimed {
                let bytes = [IoSlice::new(&[1, 2])];
                assert_eq!(ring.write(&bytes, Admit::Claimed(2)), Ok(2));
            }
            claimed
        });
        let written = ring.write(&[IoSlice::new(&[3])], Admit::Part).is_ok();
        assert_ne!(claimer.join().unwrap(), written);
    });
}

/// Neither to a write nor to another claim, whatever room there is.
#[test]
fn awaited_room_goes_to_no_other_write() {
    loom::model(|| {
        let ring = Ring::new(2, 1);
        write(&ring, &[1]).unwrap();
        assert_eq!(ring.claim(2), Err(Refused::Full));
        let part = [IoSlice::new(&[2])];
        assert_eq!(ring.write(&part, Admit::Part), Err(Refused::Full));
        assert_eq!(ring.try_claim(1), Err(Refused::Full));
        assert!(ring.give_up_claim());
        assert_eq!(ring.write(&part, Admit::Part), Ok(1));
    });
}

/// A claim that waits does not take room twice: once as claimed by another write, and once as what that write leaves.
#[test]
fn claim_that_waits_sees_what_another_permit_wrote() {
    bounded(3).check(|| {
        let shared = Arc::new((Ring::new(2, 1), Signal::new(Counted)));
        shared.0.try_claim(1).unwrap();
        let holder = spawn(&shared, |(ring, room)| {
            let bytes = [IoSlice::new(&[1])];
            assert_eq!(ring.write(&bytes, Admit::Claimed(1)), Ok(1));
            room.notify_if_after_fence(|| ring.has_wanted_room());
            while read(ring, 1, |_| {}).is_none() {
                thread::yield_now();
            }
            room.notify_if(|| ring.is_worth_waking_writer());
        });
        let (ring, room) = &*shared;
        room.until(|| ring.claim(2).ok());
        let bytes = [IoSlice::new(&[2, 3])];
        assert_eq!(ring.write(&bytes, Admit::Claimed(2)), Ok(2));
        holder.join().unwrap();
    });
}

/// A claim comes before a write or after it: either way its room is there.
#[test]
fn claim_that_meets_write_gets_all_its_room() {
    bounded(3).check(|| {
        let shared = Arc::new((Ring::new(2, 1), Signal::new(Counted)));
        let other = spawn(&shared, |(ring, room)| {
            if ring.write(&[IoSlice::new(&[1])], Admit::Part).is_ok() {
                while read(ring, 1, |_| {}).is_none() {
                    thread::yield_now();
                }
                room.notify_if(|| ring.is_worth_waking_writer());
            }
        });
        let (ring, room) = &*shared;
        room.until(|| ring.claim(2).ok());
        let bytes = [IoSlice::new(&[2, 3])];
        assert_eq!(ring.write(&bytes, Admit::Claimed(2)), Ok(2));
        other.join().unwrap();
    });
}

/// Three bytes through a ring of two. They take the room that the reader makes, and another write does not.
#[test]
fn nothing_comes_between_pieces_of_long_write() {
    bounded(3).check(|| {
        let ring = Arc::new(Ring::new(2, 1));
        ring.set_exclusive(true);
        let other = spawn(&ring, |ring| {
            let mut bytes = Vec::new();
            read(ring, 1, |part| bytes.extend_from_slice(part));
            let written = ring.write(&[IoSlice::new(&[9])], Admit::Part).is_ok();
            while bytes.len() < 3 {
                if read(ring, 1, |part| bytes.extend_from_slice(part)).is_none() {
                    thread::yield_now();
                }
            }
            assert_eq!(bytes, [1, 2, 3]);
            written
        });
        let mut rest = &[1, 2, 3][..];
        while !rest.is_empty() {
            match ring.write(&[IoSlice::new(rest)], Admit::Exclusive) {
                Ok(written) => rest = &rest[written..],
                Err(refused) => {
                    assert_eq!(refused, Refused::Full);
                    thread::yield_now();
                }
            }
        }
        ring.set_exclusive(false);
        other.join().unwrap();
    });
}

/// It begins once the room that was promised before is used.
#[test]
fn long_write_waits_for_claims() {
    bounded(3).check(|| {
        let shared = Arc::new((Ring::new(2, 1), Signal::new(Counted)));
        shared.0.try_claim(1).unwrap();
        let holder = spawn(&shared, |(ring, room)| {
            let bytes = [IoSlice::new(&[1])];
            assert_eq!(ring.write(&bytes, Admit::Claimed(1)), Ok(1));
            room.notify_if_after_fence(|| ring.has_wanted_room());
        });
        let (ring, room) = &*shared;
        ring.set_exclusive(true);
        let bytes = [IoSlice::new(&[2, 3])];
        assert_eq!(room.until(|| ring.write(&bytes, Admit::Exclusive).ok()), 1);
        holder.join().unwrap();
        let mut bytes = Vec::new();
        read(ring, 2, |part| bytes.extend_from_slice(part));
        assert_eq!(bytes, [1, 2]);
    });
}

/// To anyone: what was read is no longer queued. The other thread asks, because loom never lets the first thread of a
/// model see what another one has read.
#[test]
fn read_position_implies_room() {
    loom::model(|| {
        let ring = Arc::new(Ring::new(1, 1));
        write(&ring, &[1]).unwrap();
        let other = spawn(&ring, |ring| {
            if ring.has_read_to(1).is_some() {
                assert_eq!(ring.queued(), 0);
            }
        });
        assert_eq!(read(&ring, 1, |_| {}), Some(1));
        other.join().unwrap();
    });
}

#[test]
fn reader_never_overtakes_written() {
    bounded(3).check(|| {
        let ring = Arc::new(Ring::new(2, 1));
        let writer = spawn(&ring, |ring| assert_eq!(write(ring, &[1, 2]), Ok(2)));
        for _ in 0..2 {
            read(&ring, 1, |_| {});
            assert!(ring.queued() <= 2);
        }
        writer.join().unwrap();
    });
}

/// The same, seen by a third thread.
#[test]
fn observer_never_sees_more_read_than_written() {
    bounded(2).check(|| {
        let ring = Arc::new(Ring::new(2, 1));
        let reader = spawn(&ring, |ring| {
            for _ in 0..2 {
                read(ring, 1, |_| {});
            }
        });
        let other = spawn(&ring, |ring| assert!(ring.queued() <= 2));
        assert_eq!(write(&ring, &[1, 2]), Ok(2));
        reader.join().unwrap();
        other.join().unwrap();
    });
}

/// Each round writes one byte, and then half a chunk without a copy: two slots for little. The ring takes its whole
/// capacity all the same, and no chunk goes without a slot. Meanwhile one slot comes free.
#[test]
fn half_filled_chunks_always_find_slots() {
    bounded(1).check(|| {
        let ring = Arc::new(Ring::new(24, 8));
        let reader = spawn(&ring, |ring| read(ring, 1, |_| {}).unwrap_or(0));
        let mut written = 0;
        for _ in 0..5 {
            written += write(&ring, &[0]).unwrap_or(0);
            let mut given = bytes::Bytes::from_static(&[0; 4]);
            written += ring.write_bytes(&mut given, Admit::Part).0.unwrap_or(0);
        }
        assert!(written >= 24, "refused at {written}");
        ring.close();
        let read = reader.join().unwrap();
        assert_eq!(read + read_to_end(&ring, 24).len(), written);
    });
}

/// Two rings take storage, fill it and drop it. None is in use twice or shows old bytes, and the pool keeps no more than it
/// may.
#[test]
fn pooled_storage_is_used_once_empty_and_bounded() {
    bounded(3).check(|| {
        // The storage in use. loom does not see it, so it orders nothing.
        let used = Unseen::new(HashSet::new());
        let shared = std::sync::Arc::new((std::sync::Arc::new(Pool::new(4, 1, None)), used));
        let users = [(); 2].map(|()| {
            spawn(&shared, |(pool, used)| {
                for _ in 0..2 {
                    let mut open = pool.take();
                    let mut chunk = open.chunk();
                    chunk.look();
                    assert_eq!(chunk.rest(), []);
                    assert_eq!(open.append(&[7]), []);
                    chunk.look();
                    assert_eq!(chunk.rest(), [7]);
                    let place = chunk.rest().as_ptr() as usize;
                    assert!(used.lock().unwrap().insert(place), "used twice");
                    drop(open);
                    assert_eq!(chunk.rest(), [7]);
                    assert!(used.lock().unwrap().remove(&place));
                    drop(chunk);
                    assert!(pool.unused() <= 1);
                }
            })
        });
        for user in users {
            user.join().unwrap();
        }
    });
}

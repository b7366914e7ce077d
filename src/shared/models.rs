//! Both ends together, checked by loom: a side that sleeps until something happens at the other end is woken for it,
//! and finds it.
//!
//! The wakes are the platform's own, but nobody sleeps on them here: a sleeper waits for the next wake to be counted.
//! If that never comes, loom reports a deadlock.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;
use loom::thread;

use super::*;
use crate::models::{bounded, spawn};
use crate::permit::Permit;
use crate::sync::Kept;

/// Rings of `capacity` bytes, in chunks of an eighth of that.
pub(super) fn ends(capacity: usize) -> Arc<ConsoleSharedState> {
    Arc::new(ConsoleSharedState::new(&Options::new().test_capacity(capacity)).unwrap())
}

/// As every waiting side does: register for the next wake, arm, look, sleep.
pub(super) fn until<W: Wake, T>(signal: &Signal<W>, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        let before = signal.signals();
        signal.arm();
        if let Some(found) = look() {
            return found;
        }
        signal.wait_beyond(before);
    }
}

pub(super) fn host_writes(shared: &ConsoleSharedState, bytes: &[u8]) {
    let written = shared.host_write(&[IoSlice::new(bytes)], Admit::Part);
    assert_eq!(written.unwrap().unwrap(), bytes.len());
}

/// The guest reads what is left before the end of the file, and the end wakes a guest that sleeps.
#[test]
fn hang_up_comes_after_last_byte() {
    bounded(3).check(|| {
        let shared = ends(4);
        let host = spawn(&shared, |shared| {
            host_writes(shared, &[1]);
            shared.host_hang_up();
        });
        let mut received = Vec::new();
        let mut buffer = [0; 4];
        loop {
            let rx_data = &shared.rx_data;
            let read = until(rx_data, || shared.guest_read(&mut buffer));
            if read == 0 {
                break;
            }
            received.extend_from_slice(&buffer[..read]);
        }
        assert_eq!(received, [1]);
        host.join().unwrap();
    });
}

/// The host reads what is left before the end, and the end wakes a host that sleeps.
#[test]
fn guest_end_comes_after_last_byte() {
    bounded(3).check(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_write(&[1]), Some(1));
            drop(shared.guest_end());
        });
        let mut received = Vec::new();
        loop {
            let tx_data = &shared.tx_data;
            let look = || shared.host_read(4, |bytes| received.extend_from_slice(bytes));
            if until(tx_data, look).unwrap() == 0 {
                break;
            }
        }
        assert_eq!(received, [1]);
        guest.join().unwrap();
    });
}

/// Otherwise the write would be accepted and nobody would read it.
#[test]
fn write_fails_after_end_of_file_was_read() {
    bounded(3).check(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| drop(shared.guest_end()));
        let tx_data = &shared.tx_data;
        let read = until(tx_data, || shared.host_read(4, |_| {}));
        assert_eq!(read.unwrap(), 0);
        assert_eq!(shared.host_is_writable(), Some(false));
        let error = shared
            .host_write(&[IoSlice::new(&[1])], Admit::Part)
            .unwrap();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        guest.join().unwrap();
    });
}

fn drained(shared: &ConsoleSharedState, position: u64) -> bool {
    let look = || shared.host_is_drained(position);
    until(&shared.rx_drained, look).is_ok()
}

#[test]
fn drained_is_woken_by_guest_read() {
    bounded(3).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1, 2]);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_read(&mut [0]), Some(1));
            assert_eq!(shared.guest_read(&mut [0]), Some(1));
        });
        assert!(drained(&shared, 2));
        guest.join().unwrap();
    });
}

/// A task that waits for more, and then gives up, does not overwrite the mark of a task that waits for less.
#[test]
fn drained_with_lower_mark_is_woken() {
    bounded(2).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1, 2]);
        let host = spawn(&shared, |shared| {
            shared.rx_drained.arm();
            let _ = shared.host_is_drained(2);
        });
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_read(&mut [0]), Some(1))
        });
        assert!(drained(&shared, 1));
        host.join().unwrap();
        guest.join().unwrap();
    });
}

/// They share one mark, the lower of the two.
#[test]
fn two_drained_waiters_are_both_woken() {
    bounded(2).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1, 2]);
        let host = spawn(&shared, |shared| assert!(drained(shared, 1)));
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_read(&mut [0]), Some(1));
            assert_eq!(shared.guest_read(&mut [0]), Some(1));
        });
        assert!(drained(&shared, 2));
        host.join().unwrap();
        guest.join().unwrap();
    });
}

#[test]
fn drained_fails_when_guest_goes() {
    bounded(3).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1]);
        let guest = spawn(&shared, |shared| drop(shared.guest_end()));
        assert!(!drained(&shared, 1));
        guest.join().unwrap();
    });
}

/// A writer that meets the guest's end discards what is in the ring. That does not count as read.
#[test]
fn drained_does_not_count_discarded_bytes() {
    bounded(3).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1]);
        let guest = spawn(&shared, |shared| drop(shared.guest_end()));
        let host = spawn(&shared, |shared| {
            let _ = shared.host_write(&[IoSlice::new(&[2])], Admit::Part);
        });
        assert!(!drained(&shared, 1));
        guest.join().unwrap();
        host.join().unwrap();
    });
}

/// A guest whose write waits for room.
fn guest_writes(shared: &ConsoleSharedState, bytes: &[u8]) -> usize {
    let tx_room = &shared.tx_room;
    loop {
        if let Some(written) = shared.guest_write(bytes) {
            return written;
        }
        let may_write = || shared.guest_may_write().then_some(());
        until(tx_room, may_write);
    }
}

/// A refused write holds the open chunk from the host, which then sleeps.
#[test]
fn host_reader_that_meets_refused_write_is_woken() {
    bounded(3).check(|| {
        // Chunks of two bytes, so that the first write leaves one open.
        let shared = ends(16);
        assert_eq!(shared.guest_write(&[1]), Some(1));
        let guest = spawn(&shared, |shared| shared.guest_write(&[2; 16]));
        let tx_data = &shared.tx_data;
        let read = until(tx_data, || shared.host_read(1, |_| {}));
        assert_eq!(read.unwrap(), 1);
        let _ = guest.join().unwrap();
    });
}

#[test]
fn quiesce_wakes_waiting_guest_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1, 2]), Some(2));
        let guest = spawn(&shared, |shared| assert_eq!(guest_writes(shared, &[3]), 1));
        shared.set_quiesced(true);
        guest.join().unwrap();
    });
}

#[test]
fn host_that_stops_reading_wakes_guest_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1, 2]), Some(2));
        let guest = spawn(&shared, |shared| assert_eq!(guest_writes(shared, &[3]), 1));
        shared.host_stop_reading();
        guest.join().unwrap();
        // Whatever the order, nothing is left and each byte is counted.
        let stats = shared.stats().tx;
        assert_eq!((stats.queued, stats.bytes, stats.discarded), (0, 0, 3));
    });
}

/// Even while some of what it has read is held: there will be no more room, so a wake is worth it.
#[test]
fn dropping_stream_while_holding_chunk_wakes_guest_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1, 2]), Some(2));
        let held = Kept::new(shared.host_read_bytes().unwrap().unwrap());
        let guest = spawn(&shared, |shared| {
            assert_eq!(guest_writes(shared, &[3, 4]), 2)
        });
        shared.host_stop_reading();
        guest.join().unwrap();
        assert_eq!(*held, [1][..]);
    });
}

/// The host has read everything, but holds so much of it that less than half the ring is free.
#[test]
fn guest_writer_is_woken_by_read_that_empties_ring() {
    bounded(3).check(|| {
        let shared = ends(4);
        assert_eq!(shared.guest_write(&[1, 2, 3, 4]), Some(4));
        let held = Kept::new([(); 3].map(|()| shared.host_read_bytes().unwrap().unwrap()));
        let guest = spawn(&shared, |shared| assert_eq!(guest_writes(shared, &[5]), 1));
        assert_eq!(shared.host_read(1, |_| {}).unwrap().unwrap(), 1);
        guest.join().unwrap();
        drop(held);
    });
}

/// The host stops at half.
#[test]
fn guest_writer_is_woken_once_half_the_ring_is_free() {
    bounded(3).check(|| {
        let shared = ends(4);
        assert_eq!(shared.guest_write(&[1, 2, 3, 4]), Some(4));
        let guest = spawn(&shared, |shared| assert_eq!(guest_writes(shared, &[5]), 1));
        assert_eq!(shared.host_read(2, |_| {}).unwrap().unwrap(), 2);
        guest.join().unwrap();
    });
}

/// A guest waits for the whole ring. The host has read one byte and holds the other.
fn guest_waits_for_what_is_held(take: fn(&Arc<ConsoleSharedState>) -> Bytes) {
    bounded(3).check(move || {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1, 2]), Some(2));
        let held = Kept::new(take(&shared));
        assert_eq!(*held, [1][..]);
        assert_eq!(shared.host_read(1, |_| {}).unwrap().unwrap(), 1);
        let guest = spawn(&shared, |shared| {
            assert_eq!(guest_writes(shared, &[3, 4]), 2)
        });
        drop(held);
        guest.join().unwrap();
    });
}

/// The ring's own storage.
#[test]
fn dropping_held_chunk_wakes_guest_writer() {
    guest_waits_for_what_is_held(|shared| shared.host_read_bytes().unwrap().unwrap());
}

/// A chunk that was peeked at before it was read.
#[test]
fn dropping_held_bytes_wakes_guest_writer() {
    guest_waits_for_what_is_held(|shared| {
        drop(shared.host_peek().unwrap().unwrap());
        shared.host_read_bytes().unwrap().unwrap()
    });
}

/// A host that reads in another task sees the end.
#[test]
fn closing_wakes_host_reader() {
    bounded(3).check(|| {
        let shared = ends(2);
        let reader = spawn(&shared, |shared| {
            let look = || shared.host_read(2, |_| {});
            assert_eq!(until(&shared.tx_data, look).unwrap(), 0);
        });
        shared.host_end();
        reader.join().unwrap();
    });
}

/// Room that is given back is offered to the write that waits.
#[test]
fn dropped_permit_wakes_host_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        shared.host_try_claim(2).unwrap().unwrap();
        let holder = spawn(&shared, |shared| shared.host_unclaim(2));
        assert_eq!(host_waits_to_write(&shared).unwrap(), 1);
        holder.join().unwrap();
    });
}

#[test]
fn claim_that_gives_up_wakes_host_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        host_writes(&shared, &[1]);
        assert!(shared.host_claim(2).is_none());
        let other = spawn(&shared, |shared| shared.host_gives_up_claim());
        assert_eq!(host_waits_to_write(&shared).unwrap(), 1);
        other.join().unwrap();
    });
}

#[test]
fn permit_used_in_part_wakes_host_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        shared.host_try_claim(2).unwrap().unwrap();
        let holder = spawn(&shared, |shared| {
            Permit::of_claimed(shared, 2).write_all(&[1]).unwrap();
        });
        assert_eq!(host_waits_to_write(&shared).unwrap(), 1);
        holder.join().unwrap();
    });
}

/// While the long write goes on, no other one does.
#[test]
fn end_of_long_write_wakes_host_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        shared.host_set_exclusive(true);
        let writer = spawn(&shared, |shared| shared.host_set_exclusive(false));
        assert_eq!(host_waits_to_write(&shared).unwrap(), 1);
        writer.join().unwrap();
    });
}

/// A task whose turn it is waits for room.
fn host_waits_to_claim(shared: &ConsoleSharedState, length: usize) -> io::Result<Permit<'_>> {
    let look = || shared.host_claim(length);
    until(&shared.rx_room, look).map(|()| Permit::of_claimed(shared, length))
}

/// A task gives up while it waits, and the next one waits for less.
#[test]
fn next_claim_is_woken_after_one_that_gave_up() {
    bounded(3).check(|| {
        let shared = ends(2);
        host_writes(&shared, &[1, 2]);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_read(&mut [0]), Some(1))
        });
        shared.rx_room.arm();
        assert!(shared.host_claim(2).is_none());
        shared.host_gives_up_claim();
        host_waits_to_claim(&shared, 1)
            .unwrap()
            .write_all(&[3])
            .unwrap();
        guest.join().unwrap();
        assert_eq!(shared.stats().rx.queued, 2);
    });
}

/// In two tasks of one thread.
#[test]
fn claim_and_write_that_wait_are_both_woken() {
    bounded(3).check(|| {
        let shared = ends(2);
        host_writes(&shared, &[1, 2]);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_read(&mut [0]), Some(1));
            assert_eq!(shared.guest_read(&mut [0]), Some(1));
        });
        let (mut claimed, mut written) = (false, false);
        until(&shared.rx_room, || {
            if !claimed && let Some(result) = shared.host_claim(1) {
                result.unwrap();
                claimed = true;
                Permit::of_claimed(&shared, 1).write_all(&[4]).unwrap();
            }
            if !written {
                let bytes = [IoSlice::new(&[3])];
                shared.host_write(&bytes, Admit::Part)?.unwrap();
                written = true;
            }
            claimed.then_some(())
        });
        guest.join().unwrap();
        assert_eq!(shared.stats().rx.queued, 2);
    });
}

/// It learns that there will be no room.
fn ending_wakes_claim(end: fn(&ConsoleSharedState)) {
    bounded(3).check(move || {
        let shared = ends(2);
        host_writes(&shared, &[1, 2]);
        let other = spawn(&shared, end);
        let claimed = host_waits_to_claim(&shared, 1);
        // Before the end that a look finds, it may find the room that a sweep made. It is of no use then.
        let error = claimed
            .and_then(|permit| permit.write_all(&[3]))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        other.join().unwrap();
    });
}

#[test]
fn closing_wakes_claim() {
    ending_wakes_claim(ConsoleSharedState::host_end);
}

#[test]
fn guest_that_goes_wakes_claim() {
    ending_wakes_claim(|shared| drop(shared.guest_end()));
}

/// Whether the host closes the stream before a guest's write, or during it, or after it.
#[test]
fn closing_leaves_nothing_of_guest_write() {
    bounded(3).check(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_write(&[1, 2]), Some(2))
        });
        shared.host_end();
        guest.join().unwrap();
        let stats = shared.stats().tx;
        assert_eq!((stats.queued, stats.bytes, stats.discarded), (0, 0, 2));
    });
}

#[test]
fn closing_wakes_task_that_waits_for_guest() {
    loom::model(|| {
        let shared = ends(4);
        let other = spawn(&shared, |shared| shared.host_end());
        let look = || shared.host_sees_guest();
        assert!(!until(&shared.tx_data, look));
        other.join().unwrap();
    });
}

/// krun's two threads wait at once: one for room, one for bytes or the end.
#[test]
fn dropped_stream_wakes_guest_writer_and_reader() {
    bounded(2).check(|| {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1, 2]), Some(2));
        let tx = spawn(&shared, |shared| assert_eq!(guest_writes(shared, &[3]), 1));
        let rx = spawn(&shared, |shared| {
            let look = || shared.guest_read(&mut [0]);
            assert_eq!(until(&shared.rx_data, look), 0);
        });
        shared.host_end();
        tx.join().unwrap();
        rx.join().unwrap();
        assert_eq!(shared.stats().tx.discarded, 3);
    });
}

/// A host whose write waits for room.
fn host_waits_to_write(shared: &ConsoleSharedState) -> io::Result<usize> {
    let rx_room = &shared.rx_room;
    let look = || shared.host_write(&[IoSlice::new(&[3])], Admit::Part);
    until(rx_room, look)
}

#[test]
fn guest_read_wakes_host_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        host_writes(&shared, &[1, 2]);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_read(&mut [0]), Some(1))
        });
        assert_eq!(host_waits_to_write(&shared).unwrap(), 1);
        guest.join().unwrap();
    });
}

#[test]
fn guest_that_goes_wakes_host_writer() {
    bounded(3).check(|| {
        let shared = ends(2);
        host_writes(&shared, &[1, 2]);
        let guest = spawn(&shared, |shared| drop(shared.guest_end()));
        // A write may still meet the room that the sweep made. It is discarded.
        match host_waits_to_write(&shared) {
            Ok(written) => assert_eq!(written, 1),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::BrokenPipe),
        }
        guest.join().unwrap();
    });
}

/// One task of the host waits for room, and another ends the writing.
fn ending_wakes_host_writer(end: fn(&ConsoleSharedState)) {
    bounded(3).check(move || {
        let shared = ends(2);
        host_writes(&shared, &[1, 2]);
        let other = spawn(&shared, end);
        let rx_room = &shared.rx_room;
        let look = || shared.host_is_writable();
        assert!(!until(rx_room, look));
        other.join().unwrap();
    });
}

#[test]
fn shutdown_wakes_host_writer() {
    ending_wakes_host_writer(ConsoleSharedState::host_shut_down);
}

#[test]
fn hang_up_wakes_host_writer() {
    ending_wakes_host_writer(ConsoleSharedState::host_hang_up);
}

/// Ending holds the open chunk from the guest, which then sleeps.
#[test]
fn guest_reader_that_meets_shutdown_is_woken() {
    bounded(3).check(|| {
        // Chunks of two bytes, so that the write leaves one open.
        let shared = ends(16);
        host_writes(&shared, &[1]);
        let host = spawn(&shared, |shared| shared.host_shut_down());
        let rx_data = &shared.rx_data;
        let look = || shared.guest_read(&mut [0]);
        assert_eq!(until(rx_data, look), 1);
        host.join().unwrap();
    });
}

/// The same for what a task does that sets room aside.
fn guest_reader_meets(work: fn(&ConsoleSharedState)) {
    bounded(3).check(move || {
        let shared = ends(16);
        host_writes(&shared, &[1]);
        let host = spawn(&shared, work);
        let look = || shared.guest_read(&mut [0]);
        assert_eq!(until(&shared.rx_data, look), 1);
        host.join().unwrap();
    });
}

#[test]
fn guest_reader_that_meets_claim_is_woken() {
    guest_reader_meets(|shared| drop(shared.host_claim(1)));
}

#[test]
fn guest_reader_that_meets_refused_claim_is_woken() {
    guest_reader_meets(|shared| drop(shared.host_try_claim(16)));
}

#[test]
fn guest_reader_that_meets_refused_write_is_woken() {
    guest_reader_meets(|shared| {
        let bytes = [IoSlice::new(&[2; 16])];
        drop(shared.host_write(&bytes, Admit::Whole));
    });
}

#[test]
fn guest_reader_that_meets_long_write_is_woken() {
    guest_reader_meets(|shared| shared.host_set_exclusive(true));
}

/// Reads until an error says that bytes were lost.
fn read_until_cut_off(shared: &ConsoleSharedState) -> Vec<u8> {
    let tx_data = &shared.tx_data;
    let mut received = Vec::new();
    loop {
        let look = || shared.host_read(4, |bytes| received.extend_from_slice(bytes));
        match until(tx_data, look) {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                return received;
            }
        }
    }
}

/// Bytes that are discarded because a quiesced guest must not wait are never lost silently.
#[test]
fn end_after_lost_bytes_is_an_error() {
    bounded(3).check(|| {
        let shared = ends(1);
        shared.set_quiesced(true);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_write(&[1, 2, 3]), Some(3))
        });
        assert_eq!(read_until_cut_off(&shared), [1, 2]);
        guest.join().unwrap();
    });
}

/// The same for a write that has waited for too long.
#[test]
fn end_after_stall_is_an_error() {
    bounded(3).check(|| {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1]), Some(1));
        let guest = spawn(&shared, |shared| shared.guest_stalled());
        assert_eq!(read_until_cut_off(&shared), [1]);
        guest.join().unwrap();
        assert_eq!(shared.guest_write(&[2]), Some(1));
        assert_eq!(shared.stats().tx.discarded, 1);
    });
}

/// However fast the guest goes, it does not look as if it never opened its port.
#[test]
fn guest_that_opened_and_went_counts_as_opened() {
    loom::model(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| {
            shared.mark_guest_opened();
            drop(shared.guest_end());
        });
        assert_ne!(shared.host_sees_guest(), Some(false));
        guest.join().unwrap();
    });
}

#[test]
fn guest_opened_is_woken() {
    loom::model(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| shared.mark_guest_opened());
        let tx_data = &shared.tx_data;
        assert!(until(tx_data, || shared.host_sees_guest()));
        guest.join().unwrap();
    });
}

/// Another task's claim gets its room at that moment, and leaves some.
#[test]
fn look_for_room_that_meets_claim_finds_the_rest() {
    bounded(8).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1, 2, 3, 4]);
        assert!(shared.host_claim(3).is_none());
        assert_eq!(shared.guest_read(&mut [0; 4]), Some(4));
        let other = spawn(&shared, |shared| {
            assert!(until(&shared.rx_room, || shared.host_is_writable()));
        });
        shared.host_claim(3).unwrap().unwrap();
        other.join().unwrap();
    });
}

/// The same, with the guest that makes the room.
#[test]
fn write_is_woken_for_what_a_claim_leaves() {
    bounded(2).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1, 2, 3, 4]);
        assert!(shared.host_claim(3).is_none());
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_read(&mut [0; 4]), Some(4));
        });
        let claimer = spawn(&shared, |shared| {
            while shared.host_claim(3).is_none() {
                thread::yield_now();
            }
        });
        assert_eq!(host_waits_to_write(&shared).unwrap(), 1);
        claimer.join().unwrap();
        guest.join().unwrap();
    });
}

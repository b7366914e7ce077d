//! Both ends together, checked by loom: who sleeps until something happens at the other end is woken
//! for it, and finds it.
//!
//! The wakes are the platform's own, but nobody sleeps on them here: a sleeper waits for the next signal
//! to be counted. If that never comes, loom reports a deadlock.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::models::{bounded, spawn};
use crate::sync::Kept;

/// Rings of so many bytes, in chunks of an eighth of that.
fn ends(capacity: usize) -> Arc<ConsoleSharedState> {
    Arc::new(ConsoleSharedState::new(capacity, Duration::ZERO).unwrap())
}

/// As every waiting side does: be ready for the next signal, arm, look, sleep.
fn until<W: Wake, T>(signal: &Signal<W>, arm: impl Fn(), mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        let before = signal.signals();
        arm();
        if let Some(found) = look() {
            return found;
        }
        signal.wait_beyond(before);
    }
}

fn host_writes(shared: &ConsoleSharedState, bytes: &[u8]) {
    let written = shared.host_write(&[IoSlice::new(bytes)]);
    assert_eq!(written.unwrap().unwrap(), bytes.len());
}

/// What is left comes before the end of the file, and the end wakes a guest that sleeps.
#[test]
fn a_hang_up_comes_after_the_last_byte() {
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
            let read = until(rx_data, || rx_data.arm(), || shared.guest_read(&mut buffer));
            if read == 0 {
                break;
            }
            received.extend_from_slice(&buffer[..read]);
        }
        assert_eq!(received, [1]);
        host.join().unwrap();
    });
}

/// What is left comes before the end, and the end wakes a host that sleeps.
#[test]
fn a_guests_end_comes_after_its_last_byte() {
    bounded(3).check(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_write(&[1]), Some(1));
            shared.guest_end();
        });
        let mut received = Vec::new();
        loop {
            let tx_data = &shared.tx_data;
            let look = || shared.host_read(4, |bytes| received.extend_from_slice(bytes));
            if until(tx_data, || tx_data.arm(), look).unwrap() == 0 {
                break;
            }
        }
        assert_eq!(received, [1]);
        guest.join().unwrap();
    });
}

/// What is written then would be accepted, and read by nobody.
#[test]
fn who_has_read_the_guests_end_can_write_no_more() {
    bounded(3).check(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| shared.guest_end());
        let tx_data = &shared.tx_data;
        let read = until(tx_data, || tx_data.arm(), || shared.host_read(4, |_| {}));
        assert_eq!(read.unwrap(), 0);
        assert_eq!(shared.host_is_writable(), Some(false));
        let error = shared.host_write(&[IoSlice::new(&[1])]).unwrap();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        guest.join().unwrap();
    });
}

fn drained(shared: &ConsoleSharedState, position: u64) -> bool {
    let look = || shared.host_is_drained(position);
    until(&shared.rx_room, || shared.host_waits_for_drain(), look).is_ok()
}

#[test]
fn who_waits_for_the_guest_to_read_is_woken() {
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

/// One who waits for more, and then no longer, does not take the mark of one who waits for less.
#[test]
fn who_waits_for_the_guest_to_read_less_is_woken() {
    bounded(2).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1, 2]);
        let host = spawn(&shared, |shared| {
            shared.host_waits_for_drain();
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

/// They share one mark, the lower of theirs.
#[test]
fn two_who_wait_for_the_guest_to_read_are_both_woken() {
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
fn who_waits_for_a_guest_that_goes_is_told() {
    bounded(3).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1]);
        let guest = spawn(&shared, |shared| shared.guest_end());
        assert!(!drained(&shared, 1));
        guest.join().unwrap();
    });
}

/// A writer that meets the guest's end discards what there is: that is not taken for having been read.
#[test]
fn what_a_writer_discards_was_not_taken() {
    bounded(3).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1]);
        let guest = spawn(&shared, |shared| shared.guest_end());
        let host = spawn(&shared, |shared| {
            let _ = shared.host_write(&[IoSlice::new(&[2])]);
        });
        assert!(!drained(&shared, 1));
        guest.join().unwrap();
        host.join().unwrap();
    });
}

/// A guest whose write waits in a full ring.
fn guest_writes(shared: &ConsoleSharedState, bytes: &[u8]) -> usize {
    let tx_room = &shared.tx_room;
    loop {
        if let Some(written) = shared.guest_write(bytes) {
            return written;
        }
        let may_write = || shared.guest_may_write().then_some(());
        until(tx_room, || tx_room.arm(), may_write);
    }
}

/// A write that is refused has held the open chunk from the host, who sleeps now.
#[test]
fn a_host_that_meets_a_refused_write_is_woken() {
    bounded(3).check(|| {
        // Chunks of two bytes, so that the first write leaves one open.
        let shared = ends(16);
        assert_eq!(shared.guest_write(&[1]), Some(1));
        let guest = spawn(&shared, |shared| shared.guest_write(&[2; 16]));
        let tx_data = &shared.tx_data;
        let read = until(tx_data, || tx_data.arm(), || shared.host_read(1, |_| {}));
        assert_eq!(read.unwrap(), 1);
        let _ = guest.join().unwrap();
    });
}

#[test]
fn quiescing_lets_a_waiting_guest_through() {
    bounded(3).check(|| {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1, 2]), Some(2));
        let guest = spawn(&shared, |shared| assert_eq!(guest_writes(shared, &[3]), 1));
        shared.set_quiesced(true);
        guest.join().unwrap();
    });
}

#[test]
fn a_host_that_goes_lets_a_waiting_guest_through() {
    bounded(3).check(|| {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1, 2]), Some(2));
        let guest = spawn(&shared, |shared| assert_eq!(guest_writes(shared, &[3]), 1));
        shared.host_stop_reading();
        guest.join().unwrap();
        // Whatever the order, nothing is left, and each byte is accounted for.
        let stats = shared.stats().tx;
        assert_eq!((stats.queued, stats.bytes, stats.discarded), (0, 0, 3));
    });
}

/// Also if some of what it has read is still held: all the room there will be is worth a wake.
#[test]
fn a_host_that_goes_with_a_chunk_in_its_hands_lets_a_waiting_guest_through() {
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

/// The host has read all there was, but holds so much of it that less than half the ring is free.
#[test]
fn a_waiting_guest_is_woken_by_the_read_that_leaves_nothing() {
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

/// The host stops there: what is left is not read.
#[test]
fn a_waiting_guest_is_woken_once_half_the_ring_is_free() {
    bounded(3).check(|| {
        let shared = ends(4);
        assert_eq!(shared.guest_write(&[1, 2, 3, 4]), Some(4));
        let guest = spawn(&shared, |shared| assert_eq!(guest_writes(shared, &[5]), 1));
        assert_eq!(shared.host_read(2, |_| {}).unwrap().unwrap(), 2);
        guest.join().unwrap();
    });
}

/// A guest that waits for the whole ring, of which the host has read one byte and holds the other.
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
fn a_waiting_guest_is_woken_by_a_chunk_that_is_dropped() {
    guest_waits_for_what_is_held(|shared| shared.host_read_bytes().unwrap().unwrap());
}

/// A chunk that there was a handle to before it was read.
#[test]
fn a_waiting_guest_is_woken_by_bytes_that_are_dropped() {
    guest_waits_for_what_is_held(|shared| {
        drop(shared.host_peek().unwrap().unwrap());
        shared.host_read_bytes().unwrap().unwrap()
    });
}

/// A host whose write waits in a full ring.
fn host_waits_to_write(shared: &ConsoleSharedState) -> io::Result<usize> {
    let rx_room = &shared.rx_room;
    let look = || shared.host_write(&[IoSlice::new(&[3])]);
    until(rx_room, || rx_room.arm(), look)
}

#[test]
fn a_waiting_host_is_woken_by_a_read() {
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
fn a_guest_that_goes_lets_a_waiting_host_through() {
    bounded(3).check(|| {
        let shared = ends(2);
        host_writes(&shared, &[1, 2]);
        let guest = spawn(&shared, |shared| shared.guest_end());
        // A write may still have met the room that the sweep made, and is discarded.
        match host_waits_to_write(&shared) {
            Ok(written) => assert_eq!(written, 1),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::BrokenPipe),
        }
        guest.join().unwrap();
    });
}

/// A task of the host's waits for room, and another one ends the writing.
fn a_waiting_host_learns_that_there_is_no_more_room(end: fn(&ConsoleSharedState)) {
    bounded(3).check(move || {
        let shared = ends(2);
        host_writes(&shared, &[1, 2]);
        let other = spawn(&shared, end);
        let rx_room = &shared.rx_room;
        let look = || shared.host_is_writable();
        assert!(!until(rx_room, || rx_room.arm(), look));
        other.join().unwrap();
    });
}

#[test]
fn a_shut_down_lets_a_waiting_host_through() {
    a_waiting_host_learns_that_there_is_no_more_room(ConsoleSharedState::host_shut_down);
}

#[test]
fn a_hang_up_lets_a_waiting_host_through() {
    a_waiting_host_learns_that_there_is_no_more_room(ConsoleSharedState::host_hang_up);
}

/// An end has held the open chunk from the guest, who sleeps now.
#[test]
fn a_guest_that_meets_a_shut_down_is_woken() {
    bounded(3).check(|| {
        // Chunks of two bytes, so that the write leaves one open.
        let shared = ends(16);
        host_writes(&shared, &[1]);
        let host = spawn(&shared, |shared| shared.host_shut_down());
        let rx_data = &shared.rx_data;
        let look = || shared.guest_read(&mut [0]);
        assert_eq!(until(rx_data, || rx_data.arm(), look), 1);
        host.join().unwrap();
    });
}

/// Nothing that a guest may not wait with is lost without a word: that end is an error.
#[test]
fn an_end_where_bytes_were_lost_is_never_a_clean_one() {
    bounded(3).check(|| {
        let shared = ends(1);
        shared.set_quiesced(true);
        let guest = spawn(&shared, |shared| {
            assert_eq!(shared.guest_write(&[1, 2, 3]), Some(3))
        });
        let tx_data = &shared.tx_data;
        let mut received = Vec::new();
        let end = loop {
            let look = || shared.host_read(4, |bytes| received.extend_from_slice(bytes));
            match until(tx_data, || tx_data.arm(), look) {
                Ok(0) => panic!("a clean end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(received, [1, 2]);
        guest.join().unwrap();
    });
}

/// The same for a guest that reads into a chunk itself, as Windows' pipe does.
#[test]
fn a_host_that_meets_a_refused_fill_is_woken() {
    bounded(3).check(|| {
        // Chunks of two bytes: four full ones in the host's hands, and an open one with one byte.
        let shared = ends(9);
        assert_eq!(shared.guest_write(&[1; 9]), Some(9));
        let held = Kept::new([(); 4].map(|()| shared.host_read_bytes().unwrap().unwrap()));
        let guest = spawn(&shared, |shared| {
            shared
                .guest_write_from(|_| Ok(0), &mut Vec::new())
                .is_some()
        });
        let tx_data = &shared.tx_data;
        let read = until(tx_data, || tx_data.arm(), || shared.host_read(1, |_| {}));
        assert_eq!(read.unwrap(), 1);
        guest.join().unwrap();
        drop(held);
    });
}

/// However fast it goes, a guest that has opened its port is not taken for one that never did.
#[test]
fn a_guest_that_goes_was_there() {
    loom::model(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| {
            shared.guest_calls();
            shared.guest_end();
        });
        assert_ne!(shared.host_sees_guest(), Some(false));
        guest.join().unwrap();
    });
}

#[test]
fn who_waits_for_the_guest_to_open_is_woken() {
    loom::model(|| {
        let shared = ends(4);
        let guest = spawn(&shared, |shared| shared.guest_calls());
        let tx_data = &shared.tx_data;
        assert!(until(
            tx_data,
            || tx_data.arm(),
            || shared.host_sees_guest()
        ));
        guest.join().unwrap();
    });
}

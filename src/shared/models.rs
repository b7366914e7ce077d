//! Both ends together, checked by loom: who sleeps until something happens at the other end is woken
//! for it, and finds it.
//!
//! The wakes are the platform's own, but nobody sleeps on them here: a sleeper waits for the next signal
//! to be counted. If that never comes, loom reports a deadlock.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use loom::thread;

use super::gate::models::bounded;
use super::*;

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
        let host = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                host_writes(&shared, &[1]);
                shared.host_hang_up();
            }
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
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                assert_eq!(shared.guest_write(&[1]), Some(1));
                shared.guest_end();
            }
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

fn drained(shared: &ConsoleSharedState, position: u64) -> bool {
    let look = || shared.host_is_drained(position);
    until(&shared.rx_room, || shared.host_waits_for_drain(), look).is_ok()
}

#[test]
fn who_waits_for_the_guest_to_read_is_woken() {
    bounded(3).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1, 2]);
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                assert_eq!(shared.guest_read(&mut [0]), Some(1));
                assert_eq!(shared.guest_read(&mut [0]), Some(1));
            }
        });
        assert!(drained(&shared, 2));
        guest.join().unwrap();
    });
}

/// They share one mark, the lower of theirs.
#[test]
fn two_who_wait_for_the_guest_to_read_are_both_woken() {
    bounded(2).check(|| {
        let shared = ends(4);
        host_writes(&shared, &[1, 2]);
        let host = thread::spawn({
            let shared = Arc::clone(&shared);
            move || assert!(drained(&shared, 1))
        });
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                assert_eq!(shared.guest_read(&mut [0]), Some(1));
                assert_eq!(shared.guest_read(&mut [0]), Some(1));
            }
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
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.guest_end()
        });
        assert!(!drained(&shared, 1));
        guest.join().unwrap();
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
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.guest_write(&[2; 16])
        });
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
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || assert_eq!(guest_writes(&shared, &[3]), 1)
        });
        shared.set_quiesced(true);
        guest.join().unwrap();
    });
}

#[test]
fn a_host_that_goes_lets_a_waiting_guest_through() {
    bounded(3).check(|| {
        let shared = ends(2);
        assert_eq!(shared.guest_write(&[1, 2]), Some(2));
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || assert_eq!(guest_writes(&shared, &[3]), 1)
        });
        shared.host_stop_reading();
        guest.join().unwrap();
        // Whatever the order, nothing is left, and each byte is accounted for.
        let stats = shared.stats().tx;
        assert_eq!((stats.queued, stats.bytes, stats.discarded), (0, 0, 3));
    });
}

#[test]
fn who_waits_for_the_guest_to_open_is_woken() {
    loom::model(|| {
        let shared = ends(4);
        let guest = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.guest_calls()
        });
        let tx_data = &shared.tx_data;
        assert!(until(
            tx_data,
            || tx_data.arm(),
            || shared.host_sees_guest()
        ));
        guest.join().unwrap();
    });
}

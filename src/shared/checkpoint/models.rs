//! Capture beside operations that are on their way, checked by loom.

use crate::models::{bounded, spawn};
use crate::shared::models::{ends, host_writes, until};
use crate::shared::{ConsoleSharedState, RingState};

/// What was captured is a piece of the stream, from its position on. Returns where it ends.
fn end_in(stream: &[u8], captured: &RingState) -> usize {
    let (first, length) = (captured.read as usize, captured.unread.len());
    assert_eq!(captured.unread, stream[first..first + length]);
    first + length
}

fn guest_reads(shared: &ConsoleSharedState, expected: &[u8]) {
    let (mut received, mut buffer) = (Vec::new(), [0; 2]);
    while received.len() < expected.len() {
        let read = until(&shared.rx_data, || shared.guest_read(&mut buffer));
        received.extend_from_slice(&buffer[..read]);
    }
    assert_eq!(received, expected);
}

/// Of a write that is on its way, all or nothing is captured, and all of it arrives.
#[test]
fn capture_beside_writes_has_each_or_not() {
    bounded(3).check(|| {
        // A full chunk, and an open one.
        let shared = ends(16);
        let host = spawn(&shared, |shared| {
            host_writes(shared, &[1, 2]);
            host_writes(shared, &[3]);
        });
        let end = end_in(&[1, 2, 3], &shared.capture().unwrap().rx);
        assert_ne!(end, 1);
        guest_reads(&shared, &[1, 2, 3]);
        host.join().unwrap();
    });
}

/// A reader that looks just as the capture ends does not look in vain: nobody would wake it.
#[test]
fn reader_misses_nothing_beside_capture() {
    bounded(3).check(|| {
        // An open chunk.
        let shared = ends(32);
        let guest = spawn(&shared, |shared| guest_reads(shared, &[1, 2]));
        host_writes(&shared, &[1, 2]);
        assert_eq!(end_in(&[1, 2], &shared.capture().unwrap().rx), 2);
        guest.join().unwrap();
    });
}

/// The guest waits for room in a full ring while the host reads and the stream is captured.
#[test]
fn writer_is_woken_for_room_beside_capture() {
    bounded(3).check(|| {
        let shared = ends(4);
        assert_eq!(shared.guest_write(&[1, 2, 3, 4]), Some(4));
        let host = spawn(&shared, |shared| {
            let mut received = Vec::new();
            while received.len() < 5 {
                let look = || shared.host_read(4, |bytes| received.extend_from_slice(bytes));
                until(&shared.tx_data, look).unwrap();
            }
            assert_eq!(received, [1, 2, 3, 4, 5]);
        });
        assert_eq!(end_in(&[1, 2, 3, 4], &shared.capture().unwrap().tx), 4);
        until(&shared.tx_room, || shared.guest_write(&[5]));
        host.join().unwrap();
    });
}

/// Both directions are of one moment: where the answer is, the request has been read.
#[test]
fn capture_never_has_answer_beside_unread_request() {
    bounded(3).check(|| {
        let shared = ends(8);
        assert_eq!(shared.guest_write(&[1]), Some(1));
        let host = spawn(&shared, |shared| {
            assert_eq!(shared.host_read(1, |_| {}).unwrap().unwrap(), 1);
            host_writes(shared, &[2]);
        });
        let state = shared.capture().unwrap();
        assert_eq!(end_in(&[1], &state.tx), 1);
        assert!(state.rx.unread.is_empty() || state.tx.unread.is_empty());
        host.join().unwrap();
        let state = shared.capture().unwrap();
        assert_eq!((state.tx.read, &state.rx.unread[..]), (1, &[2][..]));
    });
}

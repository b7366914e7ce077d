//! Capture beside operations that are on their way, checked by loom.

use crate::models::{bounded, spawn};
use crate::shared::models::{ends, host_writes, until};

/// What is captured is a piece of the stream, from the position on; and what is left goes on, with every wake.
#[test]
fn capture_beside_write_and_read_is_one_moment() {
    bounded(2).check(|| {
        let shared = ends(8);
        let host = spawn(&shared, |shared| {
            host_writes(shared, &[1, 2]);
            host_writes(shared, &[3]);
        });
        let checkpoint = spawn(&shared, |shared| {
            let rx = shared.capture().unwrap().rx;
            let first = rx.read as usize;
            assert_eq!(rx.unread, [1, 2, 3][first..first + rx.unread.len()]);
            // Of each write all or nothing.
            assert_ne!(first + rx.unread.len(), 1);
        });
        let mut received = Vec::new();
        let mut buffer = [0; 2];
        while received.len() < 3 {
            let read = until(&shared.rx_data, || shared.guest_read(&mut buffer));
            received.extend_from_slice(&buffer[..read]);
        }
        assert_eq!(received, [1, 2, 3]);
        host.join().unwrap();
        checkpoint.join().unwrap();
    });
}

/// Both directions are of one moment: where the answer is, the request has been read.
#[test]
fn capture_never_has_answer_beside_unread_request() {
    bounded(3).check(|| {
        let shared = ends(8);
        assert_eq!(shared.guest_write(&[1]), Some(1));
        let host = spawn(&shared, |shared| {
            let read = shared.host_read(1, |_| {});
            // It may find nothing, but not because of the capture.
            assert_eq!(read.unwrap().unwrap(), 1);
            host_writes(shared, &[2]);
        });
        let state = shared.capture().unwrap();
        assert_eq!(state.tx.read + state.tx.unread.len() as u64, 1);
        assert!(state.rx.unread.is_empty() || state.tx.unread.is_empty());
        host.join().unwrap();
        let state = shared.capture().unwrap();
        assert_eq!((state.tx.read, &state.rx.unread[..]), (1, &[2][..]));
    });
}

/// The guest sleeps for room in a full ring. A capture beside the read that makes room takes its wake from nobody.
#[test]
fn writer_is_woken_for_room_beside_capture() {
    bounded(2).check(|| {
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
        let checkpoint = spawn(&shared, |shared| {
            let tx = shared.capture().unwrap().tx;
            let first = tx.read as usize;
            assert_eq!(tx.unread, [1, 2, 3, 4, 5][first..first + tx.unread.len()]);
        });
        until(&shared.tx_room, || shared.guest_write(&[5]));
        host.join().unwrap();
        checkpoint.join().unwrap();
    });
}

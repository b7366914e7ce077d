//! krun's threads, checked by loom. The RX thread polls its descriptor by level, and only the backend drains it.

use std::io::IoSlice;
use std::os::fd::AsFd;

use loom::thread;
use rustix::event::Timespec;

use super::*;
use crate::models::{bounded, spawn};
use crate::options::Options;
use crate::shared::Admit;
use crate::sync::Kept;
use crate::test_util::is_any_readable;

/// Like `poll(2)` without a limit. loom cannot see that sleep, so this waits for the next signal to be counted.
fn wait_until_readable(backend: &AgentConsoleBackend) {
    let rx_data = &backend.shared.rx_data;
    loop {
        let before = rx_data.signals();
        let now = Timespec::default();
        if is_any_readable(&[rx_data.wake().as_fd()], Some(&now)).unwrap() {
            return;
        }
        rx_data.wait_beyond(before);
    }
}

/// Until the end, like `process_rx` of `msb_krun_devices` 0.1.42 with chains of one descriptor.
fn receive(backend: &AgentConsoleBackend) -> Vec<u8> {
    let mut received = Vec::new();
    let mut waits = 0;
    loop {
        let mut descriptor = [0; 2];
        match backend.read(&mut descriptor) {
            Ok(0) => return received,
            Ok(read) => received.extend_from_slice(&descriptor[..read]),
            Err(_) => {
                // Two bytes and an end need fewer.
                waits += 1;
                assert!(waits < 10, "krun's thread spins");
                backend.read_wake_fd();
                wait_until_readable(backend);
            }
        }
    }
}

#[test]
fn rx_thread_is_woken_for_each_byte_and_end() {
    bounded(3).check(|| {
        // Chunks of two bytes, so that the host may be at the very chunk that krun's thread looks for.
        let options = Options::new().test_capacity(16);
        let shared = Arc::new(ConsoleSharedState::new(&options).unwrap());
        let host = spawn(&shared, |shared| {
            for byte in [1, 2] {
                let written = shared.host_write(&[IoSlice::new(&[byte])], Admit::Part);
                assert_eq!(written.unwrap().unwrap(), 1);
            }
            shared.host_hang_up();
        });
        let backend = Kept::new(AgentConsoleBackend::new(shared));
        assert_eq!(receive(&backend), [1, 2]);
        host.join().unwrap();
    });
}

/// Like `process_tx`: try, wait, try again. The host reads everything, byte by byte.
#[test]
fn tx_thread_is_woken_for_room() {
    bounded(3).check(|| {
        let options = Options::new().test_capacity(2);
        let shared = Arc::new(ConsoleSharedState::new(&options).unwrap());
        let backend = Kept::new(AgentConsoleBackend::new(Arc::clone(&shared)));
        assert_eq!(backend.write(&[1, 2]).unwrap(), 2);
        let tx = thread::spawn(move || {
            while backend.write(&[3, 4]).is_err() {
                backend.wait_until_writable();
            }
        });
        for _ in 0..2 {
            assert_eq!(shared.host_read(1, |_| {}).unwrap().unwrap(), 1);
        }
        tx.join().unwrap();
    });
}

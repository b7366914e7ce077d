//! The work of krun's two threads, for the in-process guest.
//!
//! Each function follows the one of the same name in `msb_krun_devices` 0.1.42,
//! `virtio/console/{process_rx,process_tx,port}.rs`, except where it says so.

mod client;
mod console;
mod ring_end;
mod taken;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::virtqueue::Virtqueues;
pub(super) use console::Console;
pub use ring_end::RingEnd;
pub(crate) use taken::Taken;

pub(super) fn process_rx(console: &Console, virtqueues: &Virtqueues, stop: &AtomicBool) {
    loop {
        let mut buffer = loop {
            if stop.load(Ordering::Acquire) {
                return;
            }
            if let Some(buffer) = virtqueues.pop_rx() {
                break buffer;
            }
            virtqueues.signal_rx();
            thread::park();
        };
        let (filled, end) = read_to_desc(console, &mut buffer);
        if filled > 0 {
            buffer.truncate(filled);
            virtqueues.complete_rx(buffer);
        }
        if end {
            // If the end follows right after bytes, krun completes the last descriptor twice. The server of a pipe
            // cannot prevent that.
            virtqueues.close_host();
            return;
        }
        if filled == 0 {
            virtqueues.signal_rx();
            console.wait_until_readable(stop);
        }
    }
}

fn read_to_desc(console: &Console, buffer: &mut [u8]) -> (usize, bool) {
    let mut filled = 0;
    while filled < buffer.len() {
        match console.read(&mut buffer[filled..]) {
            Ok(0) => return (filled, true),
            Ok(read) => filled += read,
            Err(_) => break,
        }
    }
    (filled, false)
}

/// Unlike krun, this completes what it has transmitted only once there is nothing more to transmit and the bridge has
/// taken everything from the pipe. So `Guest::drained` waits for that.
pub(super) fn process_tx(console: &Console, virtqueues: &Virtqueues, stop: &AtomicBool) {
    loop {
        let next = match stop.load(Ordering::Acquire) {
            true => None,
            false => virtqueues.pop_tx(),
        };
        if let Some(descriptor) = next {
            // It fails once the host has hung up. krun then tries again and again. Here it is thrown away, or
            // `Guest::drained` would never end.
            let _ = console.write(&descriptor);
            continue;
        }
        console.wait_until_taken();
        virtqueues.complete_tx();
        if stop.load(Ordering::Acquire) {
            return;
        }
        virtqueues.signal_tx();
        thread::park();
    }
}

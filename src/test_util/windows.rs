//! krun's two worker threads, played for the in-process guest.
//!
//! Each function follows the one of the same name in `msb_krun_devices` 0.1.42,
//! `virtio/console/{process_rx,process_tx,port}.rs`, except where it says so.

mod client;
mod console;
mod ring_end;
mod taken;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::virtqueue::Virtqueues;
use super::worker::Worker;
use crate::port::AgentPort;
pub(super) use console::Console;
pub use ring_end::RingEnd;
pub(crate) use taken::Taken;

pub(super) fn console(port: AgentPort) -> Console {
    Console::new(port.into_bridge())
}

/// Dropping it asks both threads to end and does not wait for them.
pub(super) struct Workers {
    stop: Arc<AtomicBool>,
    console: Arc<Console>,
    rx: Worker,
    tx: Worker,
}

impl Workers {
    pub(super) fn start(console: &Arc<Console>, virtqueues: &Arc<Virtqueues>) -> io::Result<Self> {
        console.open()?;
        let stop = Arc::new(AtomicBool::new(false));
        let worker = |name, work: fn(&Console, &Virtqueues, &AtomicBool)| {
            let (console, virtqueues) = (Arc::clone(console), Arc::clone(virtqueues));
            let stop = Arc::clone(&stop);
            Worker::start(name, move || work(&console, &virtqueues, &stop))
        };
        let rx = worker("krun-rx", process_rx)?;
        let tx = worker("krun-tx", process_tx).inspect_err(|_| {
            stop.store(true, Ordering::Release);
            console.wake_reader();
            rx.unpark();
        })?;
        virtqueues.set_threads(rx.thread(), tx.thread());
        // They may have looked for work before the queues knew them.
        rx.unpark();
        tx.unpark();
        Ok(Self {
            stop,
            console: Arc::clone(console),
            rx,
            tx,
        })
    }

    /// Asks both threads to end, and does not wait for them.
    pub(super) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.console.wake_reader();
        self.tx.unpark();
        self.rx.unpark();
    }

    pub(super) fn have_panicked(&mut self) -> bool {
        self.rx.has_panicked() || self.tx.has_panicked()
    }

    /// Ends both threads and waits for them, in krun's order (`Port::quiesce`).
    pub(super) async fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        self.tx.end().await;
        self.console.wake_reader();
        self.rx.end().await;
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.ask_to_stop();
    }
}

fn process_rx(console: &Console, virtqueues: &Virtqueues, stop: &AtomicBool) {
    loop {
        let mut buffer = loop {
            if stop.load(Ordering::Acquire) {
                return;
            }
            if let Some(buffer) = virtqueues.pop_rx() {
                break buffer;
            }
            virtqueues.signal_used_queue();
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
            virtqueues.signal_used_queue();
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
fn process_tx(console: &Console, virtqueues: &Virtqueues, stop: &AtomicBool) {
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
        virtqueues.signal_used_queue();
        thread::park();
    }
}

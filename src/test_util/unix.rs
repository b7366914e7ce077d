//! The work of krun's two threads, for the in-process guest.
//!
//! Each function follows the one of the same name in `msb_krun_devices` 0.1.42,
//! `virtio/console/{process_rx,process_tx,port}.rs`, call by call. Where a backend that breaks a rule would make krun
//! spin, lose data or hang, the worker here panics.

mod readable;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::inline::{read_to_desc, write_desc_to_output};
use super::virtqueue::Virtqueues;
use crate::port::AgentPort;
use crate::shared::Wake;
use crate::sys::{AgentConsoleBackend, WakePipe};
pub(crate) use readable::is_any_readable;

/// The port as krun's workers hold it.
pub(super) struct Console {
    backend: AgentConsoleBackend,
    /// Ends a wait of the RX worker. Created when the workers first start.
    stop_wake: OnceLock<WakePipe>,
}

impl Console {
    pub(super) fn new(port: AgentPort) -> Self {
        Self {
            backend: port.into_backend(),
            stop_wake: OnceLock::new(),
        }
    }

    /// Called by one thread at a time, before the workers start.
    pub(super) fn open(&self) -> io::Result<()> {
        match self.stop_wake.get() {
            None => {
                let _ = self.stop_wake.set(WakePipe::new()?);
            }
            Some(stop_wake) => stop_wake.drain(),
        }
        Ok(())
    }

    /// The current thread is krun's no more.
    pub(super) fn leave(&self) {
        self.backend.leave();
    }

    pub(super) fn wake_reader(&self) {
        self.stop_wake().signal();
    }

    fn stop_wake(&self) -> &WakePipe {
        self.stop_wake
            .get()
            .expect("the workers start after it is open")
    }
}

pub(super) fn process_rx(console: &Console, virtqueues: &Virtqueues, stop: &AtomicBool) {
    let next = || pop_head_blocking(virtqueues, Virtqueues::pop_rx, Virtqueues::signal_rx, stop);
    while let Some(mut buffer) = next() {
        let (filled, end) = read_to_desc(&console.backend, &mut buffer);
        if filled > 0 {
            buffer.truncate(filled);
            virtqueues.complete_rx(buffer);
        }
        if end {
            assert_eq!(filled, 0, "krun would complete this descriptor twice");
            virtqueues.close_host();
            return;
        }
        if filled == 0 {
            virtqueues.signal_rx();
            wait_until_readable(&console.backend, console.stop_wake());
        }
        if stop.load(Ordering::Acquire) {
            return;
        }
    }
}

fn wait_until_readable(backend: &AgentConsoleBackend, stop_wake: &WakePipe) {
    assert_eq!(
        backend.read_wake_fd(),
        backend.wake_fd().as_raw_fd(),
        "krun would poll a different descriptor than before"
    );
    // Even if a signal ended the wait.
    if let Err(error) = is_any_readable(&[backend.wake_fd(), stop_wake.as_fd()], None) {
        panic!("krun's RX thread would panic: Failed to poll: {error}");
    }
}

pub(super) fn process_tx(console: &Console, virtqueues: &Virtqueues, stop: &AtomicBool) {
    let next = || pop_head_blocking(virtqueues, Virtqueues::pop_tx, Virtqueues::signal_tx, stop);
    while let Some(descriptor) = next() {
        let mut rest = &descriptor[..];
        loop {
            rest = &rest[write_desc_to_output(&console.backend, rest)..];
            if rest.is_empty() {
                break;
            }
            virtqueues.signal_tx();
            console.backend.wait_until_writable();
        }
        virtqueues.complete_tx();
    }
}

fn pop_head_blocking<T>(
    virtqueues: &Virtqueues,
    pop: fn(&Virtqueues) -> Option<T>,
    signal: fn(&Virtqueues),
    stop: &AtomicBool,
) -> Option<T> {
    loop {
        if stop.load(Ordering::Acquire) {
            return None;
        }
        if let Some(descriptor) = pop(virtqueues) {
            return Some(descriptor);
        }
        signal(virtqueues);
        thread::park();
    }
}

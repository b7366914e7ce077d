//! krun's two worker threads, played for the in-process guest.
//!
//! Each function follows the one of the same name in `msb_krun_devices` 0.1.42,
//! `virtio/console/{process_rx,process_tx,port}.rs`, call by call. Where a backend that breaks a rule would make krun
//! spin, lose data or hang, the worker here panics.

mod readable;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::virtqueue::Virtqueues;
use super::worker::Worker;
use crate::port::AgentPort;
use crate::shared::Wake;
use crate::sys::{AgentConsoleBackend, WakePipe};
pub(crate) use readable::is_any_readable;

/// krun's workers hold the backend.
pub(super) type Console = AgentConsoleBackend;

pub(super) fn console(port: AgentPort) -> Console {
    port.into_backend()
}

/// Dropping it asks both threads to end and does not wait for them.
pub(super) struct Workers {
    stop: Arc<AtomicBool>,
    stop_wake: Arc<WakePipe>,
    rx: Worker,
    tx: Worker,
}

impl Workers {
    pub(super) fn start(
        backend: &Arc<AgentConsoleBackend>,
        virtqueues: &Arc<Virtqueues>,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stop_wake = Arc::new(WakePipe::new()?);
        let rx = Worker::start("krun-rx", {
            let (backend, virtqueues) = (Arc::clone(backend), Arc::clone(virtqueues));
            let (stop, stop_wake) = (Arc::clone(&stop), Arc::clone(&stop_wake));
            move || process_rx(&backend, &virtqueues, &stop_wake, &stop)
        })?;
        let tx = Worker::start("krun-tx", {
            let (backend, virtqueues) = (Arc::clone(backend), Arc::clone(virtqueues));
            let stop = Arc::clone(&stop);
            move || process_tx(&backend, &virtqueues, &stop)
        })
        .inspect_err(|_| {
            stop.store(true, Ordering::Release);
            stop_wake.signal();
            rx.unpark();
        })?;
        virtqueues.set_threads(rx.thread(), tx.thread());
        // They may have looked for work before the queues knew them.
        rx.unpark();
        tx.unpark();
        Ok(Self {
            stop,
            stop_wake,
            rx,
            tx,
        })
    }

    /// Asks both threads to end, and does not wait for them.
    pub(super) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.stop_wake.signal();
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
        self.stop_wake.signal();
        self.rx.end().await;
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.ask_to_stop();
    }
}

fn process_rx(
    backend: &AgentConsoleBackend,
    virtqueues: &Virtqueues,
    stop_wake: &WakePipe,
    stop: &AtomicBool,
) {
    loop {
        let Some(mut buffer) = pop_head_blocking(virtqueues, Virtqueues::pop_rx, stop) else {
            return;
        };
        let (filled, end) = read_to_desc(backend, &mut buffer);
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
            virtqueues.signal_used_queue();
            wait_until_readable(backend, stop_wake);
        }
        if stop.load(Ordering::Acquire) {
            return;
        }
    }
}

fn read_to_desc(backend: &AgentConsoleBackend, buffer: &mut [u8]) -> (usize, bool) {
    let mut filled = 0;
    while filled < buffer.len() {
        match backend.read(&mut buffer[filled..]) {
            Ok(0) => return (filled, true),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("krun would log this and try again at once: {error}"),
        }
    }
    (filled, false)
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

fn process_tx(backend: &AgentConsoleBackend, virtqueues: &Virtqueues, stop: &AtomicBool) {
    while let Some(descriptor) = pop_head_blocking(virtqueues, Virtqueues::pop_tx, stop) {
        write_desc_to_output(backend, virtqueues, &descriptor);
        virtqueues.complete_tx();
    }
}

fn write_desc_to_output(
    backend: &AgentConsoleBackend,
    virtqueues: &Virtqueues,
    mut descriptor: &[u8],
) {
    while !descriptor.is_empty() {
        match backend.write(descriptor) {
            Ok(0) => panic!("krun would offer this descriptor again at once"),
            Ok(written) => descriptor = &descriptor[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                virtqueues.signal_used_queue();
                backend.wait_until_writable();
            }
            Err(error) => panic!("krun would log this and try again at once: {error}"),
        }
    }
}

fn pop_head_blocking<T>(
    virtqueues: &Virtqueues,
    pop: fn(&Virtqueues) -> Option<T>,
    stop: &AtomicBool,
) -> Option<T> {
    loop {
        if stop.load(Ordering::Acquire) {
            return None;
        }
        if let Some(descriptor) = pop(virtqueues) {
            return Some(descriptor);
        }
        virtqueues.signal_used_queue();
        thread::park();
    }
}

//! krun's two worker threads, played for the in-process guest.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::console::{self, Console};
use super::virtqueue::Virtqueues;
use super::worker::Worker;
use crate::port::{AgentPort, PortHandle};

pub(super) struct Threads {
    handle: PortHandle,
    virtqueues: Arc<Virtqueues>,
    /// `None` once powered off.
    console: Mutex<Option<Arc<Console>>>,
    workers: Mutex<Run>,
}

/// The state of krun's workers. krun starts them when the guest first opens the port, and after a
/// pause restarts only those that it had stopped.
enum Run {
    Unopened,
    Running(Workers),
    Stopping,
    Stopped,
}

impl Threads {
    pub(super) fn new(port: AgentPort, virtqueues: &Arc<Virtqueues>) -> Self {
        Self {
            handle: port.handle(),
            virtqueues: Arc::clone(virtqueues),
            console: Mutex::new(Some(Arc::new(Console::new(port)))),
            workers: Mutex::new(Run::Unopened),
        }
    }

    fn console(&self) -> MutexGuard<'_, Option<Arc<Console>>> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workers(&self) -> MutexGuard<'_, Run> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the workers if nothing has yet.
    pub(super) fn open(&self) -> io::Result<()> {
        self.start_if(|run| matches!(run, Run::Unopened))
    }

    /// Starts the workers again after [`stop`](Self::stop).
    pub(super) fn start(&self) -> io::Result<()> {
        self.start_if(|run| matches!(run, Run::Stopped))
    }

    fn start_if(&self, is_due: fn(&Run) -> bool) -> io::Result<()> {
        let console = self.console();
        let Some(console) = console.as_ref() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut workers = self.workers();
        if is_due(&workers) {
            *workers = Run::Running(Workers::start(console, &self.virtqueues)?);
        }
        Ok(())
    }

    /// Ends both workers and waits for them. The TX worker may wait for room.
    pub(super) async fn stop(&self) {
        let stopping = {
            let mut workers = self.workers();
            match std::mem::replace(&mut *workers, Run::Stopping) {
                Run::Running(running) => running,
                other => {
                    *workers = other;
                    return;
                }
            }
        };
        stopping.stop().await;
        *self.workers() = Run::Stopped;
    }

    /// Ends the guest's side of the port, whose workers have stopped.
    pub(super) fn end(&self) {
        let console = self.console().take();
        // Without the lock: it ends the stream, and that runs the caller's code.
        drop(console);
    }

    /// Ends both workers, and does not wait for them.
    pub(super) fn ask_to_stop(&self) {
        // First, so that the workers take nothing more from the guest's queues.
        if let Run::Running(workers) = &*self.workers() {
            workers.ask_to_stop();
        }
        // One that waits for room would never end.
        self.handle.quiesce();
    }

    pub(super) fn have_panicked(&self) -> bool {
        match &mut *self.workers() {
            Run::Running(workers) => workers.have_panicked(),
            Run::Unopened | Run::Stopping | Run::Stopped => false,
        }
    }
}

/// Dropping it asks both threads to end and does not wait for them.
struct Workers {
    stop: Arc<AtomicBool>,
    console: Arc<Console>,
    rx: Worker,
    tx: Worker,
}

impl Workers {
    fn start(console: &Arc<Console>, virtqueues: &Arc<Virtqueues>) -> io::Result<Self> {
        console.open()?;
        let stop = Arc::new(AtomicBool::new(false));
        let worker = |name, work: fn(&Console, &Virtqueues, &AtomicBool)| {
            let (console, virtqueues) = (Arc::clone(console), Arc::clone(virtqueues));
            let stop = Arc::clone(&stop);
            Worker::start(name, move || work(&console, &virtqueues, &stop))
        };
        let rx = worker("krun-rx", console::process_rx)?;
        let tx = worker("krun-tx", console::process_tx).inspect_err(|_| {
            stop.store(true, Ordering::Release);
            console.wake_reader();
            rx.unpark();
        })?;
        let (rx_thread, tx_thread) = (rx.thread(), tx.thread());
        virtqueues.set_kicks(
            Arc::new(move || rx_thread.unpark()),
            Arc::new(move || tx_thread.unpark()),
        );
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
    fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.console.wake_reader();
        self.tx.unpark();
        self.rx.unpark();
    }

    fn have_panicked(&mut self) -> bool {
        self.rx.has_panicked() || self.tx.has_panicked()
    }

    /// Ends both threads and waits for them, in krun's order (`Port::quiesce`).
    async fn stop(mut self) {
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

//! krun's two worker threads, played for the in-process guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, mem};

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
    Stopping(Workers),
    Stopped,
}

impl Threads {
    /// With `has_workers`, krun had started its workers and stopped them again.
    pub(super) fn new(port: AgentPort, virtqueues: &Arc<Virtqueues>, has_workers: bool) -> Self {
        Self {
            handle: port.handle(),
            virtqueues: Arc::clone(virtqueues),
            console: Mutex::new(Some(Arc::new(Console::new(port)))),
            workers: Mutex::new(match has_workers {
                true => Run::Stopped,
                false => Run::Unopened,
            }),
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
        let Some(console) = self.console().clone() else {
            return;
        };
        let workers = {
            let mut run = self.workers();
            *run = match mem::replace(&mut *run, Run::Unopened) {
                Run::Running(workers) => Run::Stopping(workers),
                other => other,
            };
            match &*run {
                Run::Stopping(workers) => workers.clone(),
                _ => return,
            }
        };
        // In krun's order (`Port::quiesce`).
        workers.stop.store(true, Ordering::Release);
        workers.tx.end().await;
        // With the lock: if another caller has started new workers, they must not find the wake of the old ones.
        if let Run::Stopping(_) = &*self.workers() {
            console.wake_reader();
        }
        workers.rx.end().await;
        let mut run = self.workers();
        // Another caller may have seen this first, and started them again.
        if matches!(&*run, Run::Stopping(workers) if workers.have_ended()) {
            *run = Run::Stopped;
        }
    }

    /// Whether there were workers that have stopped; `None` if they have not.
    pub(super) fn has_stopped_workers(&self) -> Option<bool> {
        match &*self.workers() {
            Run::Unopened => Some(false),
            Run::Stopped => Some(true),
            Run::Running(_) | Run::Stopping(_) => None,
        }
    }

    /// Ends the guest's side of the port. Its workers have stopped, or nobody waits for them any more.
    pub(super) fn end(&self) {
        self.ask_to_stop();
        let console = self.console().take();
        // Without the lock: it ends the stream, and that runs the caller's code.
        drop(console);
    }

    /// Ends both workers, and does not wait for them.
    pub(super) fn ask_to_stop(&self) {
        let console = self.console().clone();
        // First, so that the workers take nothing more from the guest's queues.
        if let (Some(console), Run::Running(workers) | Run::Stopping(workers)) =
            (&console, &*self.workers())
        {
            workers.ask_to_stop(console);
        }
        // One that waits for room would never end.
        self.handle.quiesce();
    }

    pub(super) fn have_panicked(&self) -> bool {
        match &*self.workers() {
            Run::Running(workers) | Run::Stopping(workers) => workers.have_panicked(),
            Run::Unopened | Run::Stopped => false,
        }
    }
}

/// Both threads. They hold the console until they end.
#[derive(Clone)]
struct Workers {
    stop: Arc<AtomicBool>,
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
            Worker::start(name, move || {
                work(&console, &virtqueues, &stop);
                // Before the thread says that it has ended.
                console.leave();
            })
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
        Ok(Self { stop, rx, tx })
    }

    /// Asks both threads to end, and does not wait for them.
    fn ask_to_stop(&self, console: &Console) {
        self.stop.store(true, Ordering::Release);
        console.wake_reader();
        self.tx.unpark();
        self.rx.unpark();
    }

    fn have_ended(&self) -> bool {
        self.rx.has_ended() && self.tx.has_ended()
    }

    fn have_panicked(&self) -> bool {
        self.rx.has_panicked() || self.tx.has_panicked()
    }
}

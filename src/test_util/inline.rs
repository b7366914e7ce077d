//! krun's two workers without threads: whoever has something for a worker runs it, until it has nothing left to do.
//!
//! Each function follows the one of the same name in `msb_krun_devices` 0.1.42,
//! `virtio/console/{process_rx,process_tx,port}.rs`. Where krun's thread would go to sleep, the function returns; and what
//! would wake the thread calls it again:
//!
//! | krun's thread sleeps | what runs the worker |
//! | --- | --- |
//! | until the guest has added a descriptor | the driver, on the thread of the agent's task |
//! | until the descriptor of `rx_data` is readable | the signal `rx_data`, on the thread of the host's task |
//! | until `tx_room` is signalled | the signal `tx_room`, on the same |
//! | for [`Options::stall_timeout`](crate::Options::stall_timeout) | a timer of tokio's; a thread, if the runtime has none, or has gone, or never was |

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use std::{mem, thread};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::PANICKED;
use super::virtqueue::{Kick, Virtqueues};
use crate::foreign;
use crate::port::AgentPort;
use crate::shared::{ConsoleSharedState, Worker};

#[cfg(windows)]
use super::windows::RingEnd as End;
/// krun's end of the port. On Windows the guest's end of the rings: a pipe could not do without threads.
#[cfg(unix)]
use crate::sys::AgentConsoleBackend as End;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both workers of one port.
pub(super) struct Inline {
    shared: Arc<ConsoleSharedState>,
    virtqueues: Arc<Virtqueues>,
    state: Mutex<State>,
    stop: AtomicBool,
    rx: Turns,
    tx: Turns,
    /// What the TX worker could not write for want of room. Only the TX worker uses it.
    unwritten: Mutex<Vec<u8>>,
    stall: Mutex<Option<Stall>>,
    /// Where the guest was booted.
    runtime: Option<Handle>,
}

struct State {
    run: Run,
    /// Counts for both workers while they run.
    worker: Option<Worker>,
    /// `None` once powered off.
    end: Option<Arc<End>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Run {
    Unopened,
    Running,
    Stopping,
    Stopped,
}

impl Inline {
    /// With `has_workers`, krun had started its workers and stopped them again.
    pub(super) fn new(
        port: AgentPort,
        virtqueues: &Arc<Virtqueues>,
        has_workers: bool,
    ) -> Arc<Self> {
        #[cfg(unix)]
        let end = port.into_backend().without_threads();
        #[cfg(windows)]
        let end = End::new(port);
        let shared = end.shared();
        let inline = Arc::new(Self {
            shared: Arc::clone(&shared),
            virtqueues: Arc::clone(virtqueues),
            state: Mutex::new(State {
                run: match has_workers {
                    true => Run::Stopped,
                    false => Run::Unopened,
                },
                worker: None,
                end: Some(Arc::new(end)),
            }),
            stop: AtomicBool::new(false),
            rx: Turns::default(),
            tx: Turns::default(),
            unwritten: Mutex::default(),
            stall: Mutex::default(),
            runtime: Handle::try_current().ok(),
        });
        // Weak: the guest ends with its owner, and not with the stream.
        let (rx, tx) = (inline.kick(Self::run_rx), inline.kick(Self::run_tx));
        virtqueues.set_kicks(Arc::clone(&rx), Arc::clone(&tx));
        shared.rx_data.act_in_place(move || rx());
        shared.tx_room.act_in_place(move || tx());
        inline
    }

    fn kick(self: &Arc<Self>, run: fn(&Arc<Self>)) -> Kick {
        let inline = Arc::downgrade(self);
        Arc::new(move || {
            if let Some(inline) = inline.upgrade() {
                run(&inline);
            }
        })
    }

    /// Starts the workers if nothing has yet.
    pub(super) fn open(self: &Arc<Self>) -> io::Result<()> {
        self.start_from(Run::Unopened)
    }

    /// Starts the workers again after [`stop`](Self::stop).
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        self.start_from(Run::Stopped)
    }

    fn start_from(self: &Arc<Self>, from: Run) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.end.is_none() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if state.run == from {
            state.run = Run::Running;
            state.worker = Some(self.shared.workers.add());
            self.stop.store(false, Ordering::Release);
            self.rx.start();
            self.tx.start();
            drop(state);
            self.run_rx();
            self.run_tx();
        }
        Ok(())
    }

    /// Ends both workers and waits for them, in krun's order (`Port::quiesce`). The TX worker may wait for room.
    pub(super) async fn stop(self: &Arc<Self>) {
        {
            let mut state = lock(&self.state);
            match state.run {
                Run::Unopened | Run::Stopped => return,
                Run::Running | Run::Stopping => state.run = Run::Stopping,
            }
        }
        self.stop.store(true, Ordering::Release);
        self.run_tx();
        self.tx.ended().await;
        self.run_rx();
        self.rx.ended().await;
        let mut state = lock(&self.state);
        // Another caller may have seen this first, and started them again.
        if state.run == Run::Stopping {
            state.run = Run::Stopped;
            state.worker = None;
        }
    }

    /// Whether there were workers that have stopped; `None` if they have not.
    pub(super) fn has_stopped_workers(&self) -> Option<bool> {
        match lock(&self.state).run {
            Run::Unopened => Some(false),
            Run::Stopped => Some(true),
            Run::Running | Run::Stopping => None,
        }
    }

    /// Ends the guest's side of the port. Its workers have stopped, or nobody waits for them any more.
    pub(super) fn end(&self) {
        self.ask_to_stop();
        let end = lock(&self.state).end.take();
        // Without the lock: it ends the stream, and that runs the caller's code.
        drop(end);
    }

    /// Ends both workers, and does not wait for them.
    pub(super) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.rx.end();
        self.tx.end();
        let stall = lock(&self.stall).take();
        drop(stall);
    }

    pub(super) fn have_panicked(&self) -> bool {
        self.rx.state().panicked || self.tx.state().panicked
    }

    fn run_rx(self: &Arc<Self>) {
        self.rx.take_turn(|| self.with_end(Self::process_rx));
    }

    fn run_tx(self: &Arc<Self>) {
        self.tx.take_turn(|| self.with_end(Self::process_tx));
    }

    fn with_end(self: &Arc<Self>, process: fn(&Arc<Self>, &End) -> Turn) -> Turn {
        let end = lock(&self.state).end.clone();
        match end {
            Some(end) => process(self, &end),
            None => Turn::Ended,
        }
    }

    fn process_rx(self: &Arc<Self>, end: &End) -> Turn {
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Turn::Ended;
            }
            let Some(mut buffer) = self.virtqueues.pop_rx() else {
                self.virtqueues.signal_rx();
                return Turn::Waits;
            };
            let (filled, is_end) = read_to_desc(end, &mut buffer);
            if filled > 0 {
                buffer.truncate(filled);
                self.virtqueues.complete_rx(buffer);
            }
            if is_end {
                #[cfg(unix)]
                assert_eq!(filled, 0, "krun would complete this descriptor twice");
                self.virtqueues.close_host();
                return Turn::Ended;
            }
            if filled == 0 {
                self.virtqueues.signal_rx();
                // krun asks for the descriptor, and polls it.
                #[cfg(unix)]
                end.read_wake_fd();
                return Turn::Waits;
            }
        }
    }

    fn process_tx(self: &Arc<Self>, end: &End) -> Turn {
        let mut descriptor = mem::take(&mut *lock(&self.unwritten));
        loop {
            if !descriptor.is_empty() {
                if !self.is_writable() {
                    *lock(&self.unwritten) = descriptor;
                    return Turn::Waits;
                }
            } else if self.stop.load(Ordering::Acquire) {
                return Turn::Ended;
            } else if let Some(next) = self.virtqueues.pop_tx() {
                descriptor = next;
            } else {
                self.virtqueues.signal_tx();
                return Turn::Waits;
            }
            let written = write_desc_to_output(end, &descriptor);
            descriptor.drain(..written);
            if descriptor.is_empty() {
                self.virtqueues.complete_tx();
            } else {
                self.virtqueues.signal_tx();
            }
        }
    }

    /// What `wait_until_writable` waits for. The stall timeout runs for as long as this is not so.
    fn is_writable(self: &Arc<Self>) -> bool {
        let may_write = || self.shared.guest_may_write().then_some(());
        let is_writable = self.shared.tx_room.look_or_arm(may_write).is_some();
        let mut stall = lock(&self.stall);
        let last = match is_writable {
            true => stall.take(),
            false => {
                if stall.is_none() {
                    *stall = Stall::begin(self);
                }
                None
            }
        };
        drop(stall);
        drop(last);
        is_writable
    }
}

pub(super) fn read_to_desc(end: &End, buffer: &mut [u8]) -> (usize, bool) {
    let mut filled = 0;
    while filled < buffer.len() {
        match end.read(&mut buffer[filled..]) {
            Ok(0) => return (filled, true),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("krun would log this and try again at once: {error}"),
        }
    }
    (filled, false)
}

/// Returns how much was written: all, unless there is no room.
pub(super) fn write_desc_to_output(end: &End, descriptor: &[u8]) -> usize {
    let mut written = 0;
    while written < descriptor.len() {
        match end.write(&descriptor[written..]) {
            Ok(0) => panic!("krun would offer this descriptor again at once"),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("krun would log this and try again at once: {error}"),
        }
    }
    written
}

/// How a worker leaves its turn.
enum Turn {
    /// It has nothing to do, and will be called.
    Waits,
    Ended,
}

/// Whose turn it is to be a worker. At most one thread at a time is.
#[derive(Default)]
struct Turns {
    state: Mutex<TurnState>,
    ended: Notify,
}

#[derive(Default)]
struct TurnState {
    /// The worker has started and not ended.
    runs: bool,
    /// A thread is the worker now.
    busy: bool,
    /// There may be something to do since that thread last looked.
    again: bool,
    panicked: bool,
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, TurnState> {
        lock(&self.state)
    }

    fn start(&self) {
        self.state().runs = true;
    }

    fn end(&self) {
        self.state().runs = false;
        self.ended.notify_waiters();
    }

    /// Works until nothing is left to do. If a thread is at it, that thread goes on instead: it may be this one, as work
    /// runs the caller's wakers.
    fn take_turn(&self, work: impl Fn() -> Turn) {
        {
            let mut state = self.state();
            state.again = true;
            if !state.runs || std::mem::replace(&mut state.busy, true) {
                return;
            }
        }
        while self.has_more_to_do() {
            let mut turn = None;
            // The thread is the host's or the agent's, and not the worker's, whose end a test asks for.
            foreign::run(|| turn = Some(work()));
            if !matches!(turn, Some(Turn::Waits)) {
                let mut state = self.state();
                state.runs = false;
                state.panicked |= turn.is_none();
            }
        }
    }

    fn has_more_to_do(&self) -> bool {
        let mut state = self.state();
        let more = std::mem::take(&mut state.again) && state.runs;
        state.busy = more;
        let has_ended = !state.runs;
        drop(state);
        if has_ended {
            self.ended.notify_waiters();
        }
        more
    }

    /// Waits until the worker has ended.
    async fn ended(&self) {
        loop {
            // Before the look, so that no end after it is missed.
            let ended = self.ended.notified();
            if !self.state().runs {
                break;
            }
            foreign::guarded(ended).await;
        }
        assert!(!self.state().panicked, "{PANICKED}");
    }
}

/// Waits for [`Options::stall_timeout`](crate::Options::stall_timeout), again and again, until it is dropped.
struct Stall {
    /// Closing it ends the wait.
    wanted: Option<mpsc::Sender<()>>,
    task: Option<AbortHandle>,
}

impl Stall {
    /// `None` if a write may wait for ever.
    fn begin(inline: &Arc<Inline>) -> Option<Self> {
        let limit = inline.shared.stall_timeout()?;
        let (wanted, until) = mpsc::channel();
        let wait = OnTimer(Some(Wait {
            inline: Arc::downgrade(inline),
            limit,
            progress: inline.shared.host_progress(),
            until,
        }));
        let task = match &inline.runtime {
            Some(runtime) => Some(runtime.spawn(wait.run()).abort_handle()),
            None => {
                drop(wait);
                None
            }
        };
        Some(Self {
            wanted: Some(wanted),
            task,
        })
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        // First, so that no thread takes over from the task.
        drop(self.wanted.take());
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

struct Wait {
    inline: Weak<Inline>,
    limit: Duration,
    progress: u64,
    until: mpsc::Receiver<()>,
}

impl Wait {
    /// Returns `true` if there is nothing more to wait for.
    fn has_stalled(&mut self) -> bool {
        let Some(inline) = self.inline.upgrade() else {
            return true;
        };
        if inline.shared.guest_ends_if_stalled(self.progress) {
            inline.run_tx();
            return true;
        }
        self.progress = inline.shared.host_progress();
        false
    }

    fn run_blocking(mut self) {
        while self.until.recv_timeout(self.limit) == Err(RecvTimeoutError::Timeout) {
            if self.has_stalled() {
                return;
            }
        }
    }
}

/// A wait with the runtime's timer. If there is none, or if the runtime goes, this is dropped, and a thread waits instead.
struct OnTimer(Option<Wait>);

impl OnTimer {
    async fn run(mut self) {
        while let Some(wait) = &mut self.0 {
            let limit = wait.limit;
            tokio::time::sleep(limit).await;
            if self.0.as_mut().is_some_and(Wait::has_stalled) {
                self.0 = None;
            }
        }
    }
}

impl Drop for OnTimer {
    fn drop(&mut self) {
        if let Some(wait) = self.0.take()
            && wait.until.try_recv() == Err(TryRecvError::Empty)
        {
            // No panic: it may be dropped by one.
            let _ = thread::Builder::new().spawn(|| wait.run_blocking());
        }
    }
}

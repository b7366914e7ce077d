//! krun's end of the port on Linux and macOS, called from krun's RX and TX threads.
//!
//! The numbers in the comments are those of the rules in [`AgentConsoleBackend`]'s documentation.
//! A panic here would poison krun's locks for good, so no path may panic.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[cfg(all(test, tokio_krun_loom))]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "krun's threads do not run models"
)]
mod models;

use std::io;
#[cfg(any(test, feature = "test-util"))]
use std::os::fd::{AsFd, BorrowedFd};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::WakePipe;
use crate::error::Error;
use crate::shared::ConsoleSharedState;

/// How long the answer to an empty write takes; see rule 8.
const EMPTY_WRITE: Duration = Duration::from_millis(100);

/// There are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortOptions {}

/// krun's end of the port: an [`msb_krun::ConsolePortBackend`] over the same rings as the
/// [`AgentStream`](crate::AgentStream).
///
/// Most programs never see it: [`AgentPort::attach`] gives it to krun. It is public, and has the trait's methods as its
/// own, for VMMs that add their ports in another way and for tests that play krun.
///
/// Dropping it ends the guest's side for good: the stream reads what is left and then the end of the file, and its
/// writes fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe).
///
/// # What krun's threads demand, and how it is met
///
/// From `msb_krun_devices` 0.1.42, `virtio/console/{process_rx,process_tx,port}.rs`.
///
/// 1. `read` returns `Ok(0)` only once the host has hung up and every byte was read, because krun then ends the port.
///    For an empty buffer it returns `WouldBlock`.
/// 2. After data, `read` returns `Ok(0)` only once krun has waited. Before that, krun may still be at the same chain of
///    descriptors, which it would complete twice.
/// 3. `read` returns nothing but `Ok(n)` and `WouldBlock`: krun logs any other error and tries again at once.
/// 4. `read` never blocks: krun holds back the guest's interrupt until `WouldBlock`.
/// 5. `read_wake_fd` returns the same open descriptor for as long as the backend lives.
/// 6. `read` may be called with nothing queued.
/// 7. `write` takes the whole slice or returns `WouldBlock`. It takes a slice larger than the ring, which no Linux guest
///    sends, in ringfuls; krun continues with the rest. Once the host reads no more, it accepts, discards and counts
///    everything.
/// 8. `write(&[])` queues nothing. No driver sends an empty descriptor. If a guest does, krun offers the same one again
///    and again, and between tries looks whether the port is to stop. So `write` returns `Ok(0)`, but only after 100 ms.
///    No guest that keeps to virtio causes this wait.
/// 9. `wait_until_writable` sleeps until half the ring is free, or less once everything was read; or until the host has
///    read nothing for [`Options::stall_timeout`](crate::Options::stall_timeout), if there is one.
/// 10. [`PortHandle::quiesce`](crate::PortHandle::quiesce) releases a `write` that waits: krun joins the thread that waits
///     in it, and does not tell the backend. So does the stall timeout.
/// 11. No method panics.
/// 12. What the host writes before the guest has opened its port is kept.
/// 13. You cannot detect that the guest closed its port: krun only logs it.
/// 14. Nothing is lost when krun ends its threads and starts new ones on the same backend.
/// 15. A checkpoint waits for the threads that have called, see [`leave`](Self::leave).
///
/// You may call the methods from any thread, but they are made for krun: one thread at a time reads, and one writes and
/// waits.
///
/// [`msb_krun::ConsolePortBackend`]: https://docs.rs/msb_krun/0.1/msb_krun/backends/console/trait.ConsolePortBackend.html
/// [`AgentPort::attach`]: struct.AgentPort.html#method.attach
///
/// # Examples
///
/// ```
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::AgentStream;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let backend = port.into_backend();
///
/// // krun's part: it finds this in the guest's virtqueue, and then ends the VM.
/// assert_eq!(backend.write(b"from the guest")?, 14);
/// drop(backend);
///
/// let mut received = String::new();
/// stream.read_to_string(&mut received).await?;
/// assert_eq!(received, "from the guest");
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the backend ends the stream"]
pub struct AgentConsoleBackend {
    shared: Arc<ConsoleSharedState>,
    /// Whether a thread that calls is one of krun's workers.
    callers_are_workers: bool,
    /// Whether a `read` has returned data since krun last waited. Only the RX thread uses it.
    gave_data: AtomicBool,
    /// Whether the signals so far were taken since krun last waited. Only the RX thread uses it.
    took_signals: AtomicBool,
}

impl AgentConsoleBackend {
    pub(crate) fn new(shared: Arc<ConsoleSharedState>) -> Self {
        Self {
            shared,
            callers_are_workers: true,
            gave_data: AtomicBool::new(false),
            took_signals: AtomicBool::new(false),
        }
    }

    pub(crate) fn create(shared: &Arc<ConsoleSharedState>, _: &PortOptions) -> Result<Self, Error> {
        Ok(Self::new(Arc::clone(shared)))
    }

    #[cfg(feature = "msb_krun")]
    pub(crate) fn attach(
        self,
        console: msb_krun::ConsoleBuilder,
        name: &str,
        options: msb_krun::ConsolePortOptions,
    ) -> msb_krun::ConsoleBuilder {
        console.custom_with_options(name, Box::new(self), options)
    }

    /// What ends the guest's side from elsewhere.
    pub(crate) fn end_handle(&self) -> GuestEnd {
        GuestEnd(Arc::downgrade(&self.shared))
    }

    /// Copies bytes for the guest into `buf`, as many as there are. krun's RX thread calls this.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there are none now, or if `buf` is empty.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let backend = port.into_backend();
    /// let mut buf = [0; 4096];
    /// stream.write_all(b"request").await?;
    /// assert_eq!(backend.read(&mut buf)?, 7);
    /// assert_eq!(backend.read(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
    ///
    /// stream.hang_up();
    /// backend.read_wake_fd(); // krun waits for more
    /// assert_eq!(backend.read(&mut buf)?, 0);
    /// # Ok(()) }
    /// ```
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.enter();
        if buf.is_empty() {
            // Rule 1. And rule 3: the descriptor must not stay readable, or krun would come back at once with the
            // same empty buffer.
            self.prepare_to_wait();
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = self.shared.guest_read(buf).or_else(|| {
            let mut look = self.shared.guest_looks_again();
            while !self.shared.guest_may_read() && look.again() {}
            self.prepare_to_wait();
            self.shared.guest_read(buf)
        });
        match read {
            Some(0) if self.gave_data.load(Ordering::Relaxed) => {
                // Rule 2. krun waits next, and must be back at once.
                self.shared.rx_data.wake_self();
                Err(io::ErrorKind::WouldBlock.into())
            }
            Some(0) => Ok(0),
            Some(read) => {
                self.gave_data.store(true, Ordering::Relaxed);
                Ok(read)
            }
            None => {
                self.shared.guest_stops_looking();
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    /// Each call of a worker's begins with this.
    fn enter(&self) {
        if self.callers_are_workers {
            self.shared.workers.enter();
        }
        self.shared.mark_guest_opened();
    }

    /// Says that the current thread is at the port no more, until it calls again.
    ///
    /// A [checkpoint](crate::PortHandle::checkpoint) is possible only once all threads that have called
    /// [`read`](Self::read) or [`write`](Self::write) are gone. krun's end with each checkpoint, and a thread that ends counts
    /// no more. A VMM whose threads live on says so with this call.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, Error};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let handle = port.handle();
    /// # let backend = port.into_backend();
    /// // This thread plays krun, and does not end.
    /// backend.write(b"from the guest")?;
    /// let checkpoint = handle.checkpoint();
    /// assert!(matches!(checkpoint.capture(), Err(Error::NotAtRest)));
    ///
    /// backend.leave();
    /// let state = checkpoint.capture()?;
    /// assert_eq!(state.stats().tx.queued, 14);
    /// # Ok(()) }
    /// ```
    pub fn leave(&self) {
        self.shared.workers.leave();
    }

    /// For workers that are no threads: who plays them counts them.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn without_threads(mut self) -> Self {
        self.callers_are_workers = false;
        self
    }

    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn shared(&self) -> Arc<ConsoleSharedState> {
        Arc::clone(&self.shared)
    }

    /// [`read_wake_fd`](Self::read_wake_fd), while it is borrowed.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.rx_data.wake().as_fd()
    }

    /// Takes every signal so far and asks for the next one. The caller then looks once more.
    ///
    /// krun comes here twice before it waits if a descriptor was filled in part. The second time there is nothing to do
    /// unless there was a signal since. A signal that was on its way the first time ends the wait at once, and is taken
    /// then.
    fn prepare_to_wait(&self) {
        let rx_data = &self.shared.rx_data;
        // The first half keeps krun from spinning on a signal that was on its way. The second half only saves a turn:
        // after a signal in between, the wait would end at once.
        if !(self.took_signals.load(Ordering::Relaxed) && rx_data.is_armed()) {
            rx_data.drain(WakePipe::drain);
            rx_data.arm();
            self.took_signals.store(true, Ordering::Relaxed);
        }
    }

    /// Copies the guest's bytes out of `buf`. krun's TX thread calls this.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room for them.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::Options;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = Options::new().capacity(32 * 1024).create()?;
    /// let backend = port.into_backend();
    /// assert_eq!(backend.write(&[1; 30_000])?, 30_000);
    /// // All of it or nothing: krun keeps a descriptor that does not fit.
    /// assert_eq!(backend.write(&[2; 3_000]).unwrap_err().kind(), ErrorKind::WouldBlock);
    ///
    /// stream.read_exact(&mut [0; 30_000]).await?;
    /// assert_eq!(backend.write(&[2; 3_000])?, 3_000);
    /// # Ok(()) }
    /// ```
    pub fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.enter();
        if buf.is_empty() {
            thread::sleep(EMPTY_WRITE);
            return Ok(0);
        }
        self.shared
            .guest_write(buf)
            .ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// The descriptor that is readable when [`read`](Self::read) is worth a call.
    ///
    /// krun asks for it before each wait. So the call also means that a chain of descriptors has ended (rule 2), and with
    /// [`busy_poll`](crate::Options::busy_poll) it spins first if there were bytes since the last wait.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::AgentStream;
    /// use std::os::fd::BorrowedFd;
    ///
    /// use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let backend = port.into_backend();
    /// let mut buf = [0; 4096];
    /// assert_eq!(backend.read(&mut buf).unwrap_err().kind(), ErrorKind::WouldBlock);
    /// stream.write_all(b"request").await?;
    ///
    /// // SAFETY: the descriptor is the backend's, which outlives this.
    /// let wake = unsafe { BorrowedFd::borrow_raw(backend.read_wake_fd()) };
    /// poll(&mut [PollFd::new(&wake, PollFlags::IN)], None)?;
    /// assert_eq!(backend.read(&mut buf)?, 7);
    /// # Ok(()) }
    /// ```
    pub fn read_wake_fd(&self) -> RawFd {
        let host_was_active = self.gave_data.load(Ordering::Relaxed);
        self.gave_data.store(false, Ordering::Relaxed);
        self.took_signals.store(false, Ordering::Relaxed);
        if host_was_active {
            let mut look = self.shared.look_again();
            while !self.shared.guest_may_read() && look.again() {}
        }
        self.shared.rx_data.wake().as_raw_fd()
    }

    /// Blocks until [`write`](Self::write) is worth another call.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::{io, thread};
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::Options;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = Options::new().capacity(32 * 1024).create()?;
    /// # let backend = port.into_backend();
    /// // As krun's TX thread does.
    /// let krun = thread::spawn(move || {
    ///     for _ in 0..100 {
    ///         while backend.write(&[0; 4096]).is_err() {
    ///             backend.wait_until_writable();
    ///         }
    ///     }
    /// });
    /// stream.read_exact(&mut vec![0; 100 * 4096]).await?;
    /// krun.join().unwrap();
    /// # Ok(()) }
    /// ```
    pub fn wait_until_writable(&self) {
        let mut look = self.shared.look_again();
        while !self.shared.guest_may_write() {
            if !look.again() {
                return self.sleep_until_writable();
            }
        }
    }

    fn sleep_until_writable(&self) {
        let may_write = || self.shared.guest_may_write().then_some(());
        // Later than any clock can say is never.
        let stall_timeout = self.shared.stall_timeout();
        let deadline = || stall_timeout.and_then(|limit| Instant::now().checked_add(limit));
        let (mut until, mut progress) = (deadline(), self.shared.host_progress());
        while self.shared.tx_room.look_or_arm(may_write).is_none() {
            if self.shared.tx_room.wake().wait(until) {
                continue;
            }
            if self.shared.guest_ends_if_stalled(progress) {
                return;
            }
            (until, progress) = (deadline(), self.shared.host_progress());
        }
    }
}

#[cfg(feature = "msb_krun")]
impl msb_krun::ConsolePortBackend for AgentConsoleBackend {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read(buf)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.write(buf)
    }

    fn read_wake_fd(&self) -> RawFd {
        self.read_wake_fd()
    }

    fn wait_until_writable(&self) {
        self.wait_until_writable();
    }
}

impl Drop for AgentConsoleBackend {
    fn drop(&mut self) {
        let unread = self.shared.guest_end();
        self.shared.report_guest_end();
        drop(unread);
    }
}

/// Ends the guest's side for the exit hook. It keeps nothing of the port alive.
#[derive(Debug)]
pub(crate) struct GuestEnd(Weak<ConsoleSharedState>);

impl GuestEnd {
    /// The host reads what is left and then the end. Returns what is left to do, which runs the caller's code.
    pub(crate) fn end(&self) -> impl FnOnce() + Send + use<> {
        let shared = self.0.upgrade();
        let unread = shared.as_ref().map(|shared| shared.guest_end());
        move || {
            if let Some(shared) = shared {
                shared.report_exit();
            }
            drop(unread);
        }
    }

    pub(crate) fn wait_until_host_stops_reading(&self, limit: Duration) {
        if let Some(shared) = self.0.upgrade() {
            shared.wait_until_host_stops_reading(limit);
        }
    }
}

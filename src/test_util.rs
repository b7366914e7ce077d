//! A guest without a VM: test your host program, your agent or both in one process.
//!
//! This tests an agent that answers each line:
//!
//! ```
//! use futures::{SinkExt, StreamExt};
//! use tokio_krun::{AgentStream, test_util::Guest};
//! use tokio_util::codec::{Framed, LinesCodec};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (stream, port) = AgentStream::pair()?;
//! let guest = Guest::boot(port);
//! let mut agent = Framed::new(guest.open()?, LinesCodec::new());
//! tokio::spawn(async move {
//!     while let Some(Ok(line)) = agent.next().await {
//!         agent.send(line.to_uppercase()).await.unwrap();
//!     }
//! });
//!
//! let mut host = Framed::new(stream, LinesCodec::new());
//! host.send("hello").await?;
//! assert_eq!(host.next().await.unwrap()?, "HELLO");
//! # Ok(()) }
//! ```
//!
//! # How close it is to a VM
//!
//! [`Guest`] plays the VM. Two threads call the port's backend in the same order as krun's workers
//! (`msb_krun_devices` 0.1.42, `virtio/console/{process_rx,process_tx,port}.rs`). The RX thread waits
//! in `poll(2)` on the wake descriptor. Each direction has a queue of 32 descriptors: 4 KiB each
//! towards the guest, and up to 32 KiB each from it.
//!
//! [`GuestPort`] plays the file that the agent opens in the guest. It behaves like Linux's
//! `virtio_console`.
//!
//! Three things differ from a VM:
//!
//! - There is only this one port.
//! - Timing is that of two threads, not of a VM.
//! - [`Guest::power_off`] does not end the process.

mod port;
#[cfg(unix)]
mod unix;
mod virtqueue;
#[cfg(windows)]
mod windows;
mod worker;

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::{fmt, io, thread};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::port::{AgentPort, PortHandle};
#[allow(unused_imports, reason = "`VirtioPort` is to use them")]
pub(crate) use port::{Port, open_in_process};
#[cfg(all(test, unix))]
pub(crate) use unix::is_any_readable;
#[cfg(unix)]
use unix::{Console, Workers, console};
use virtqueue::Virtqueues;
#[cfg(windows)]
pub use windows::RingEnd;
#[cfg(windows)]
pub(crate) use windows::Taken;
#[cfg(windows)]
use windows::{Console, Workers, console};

/// An in-process guest with one port. It replaces the VM in your tests.
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::AgentStream;
/// use tokio_krun::test_util::Guest;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let guest = Guest::boot(port); // instead of building a VM
/// let mut agent = guest.open()?; // as the agent does
///
/// stream.write_all(b"hello").await?;
/// let mut received = [0; 5];
/// agent.read_exact(&mut received).await?;
/// assert_eq!(&received, b"hello");
/// # Ok(()) }
/// ```
///
/// The guest runs until you drop both it and the [`GuestPort`] that it opened. Then it ends at once, like
/// a VM whose process was killed. The host reads what had reached it, and then end of file. So keep
/// the guest until your test has read what it wants. Dropping only the `GuestPort`, as an agent's task
/// does when it ends, closes the port and nothing else.
///
/// # Panics
///
/// If the port breaks a rule that krun's threads rely on, a worker panics. Waiting for that worker, or
/// dropping the guest, then panics too.
///
/// # Examples
///
/// A restarted agent finds the port as the last one left it:
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::AgentStream;
/// use tokio_krun::test_util::Guest;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let guest = Guest::boot(port);
/// for run in [1, 2] {
///     let mut agent = guest.open()?;
///     agent.write_u8(run).await?;
///     assert_eq!(stream.read_u8().await?, run);
/// }
/// # Ok(()) }
/// ```
pub struct Guest {
    machine: Arc<Machine>,
}

impl fmt::Debug for Guest {
    /// Takes no lock, because the formatter may run the caller's code.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").finish_non_exhaustive()
    }
}

impl Guest {
    /// Starts a guest with `port`.
    ///
    /// Nothing calls the port until the guest [opens](Self::open) its end.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::AgentStream;
    /// use tokio_krun::test_util::Guest;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// assert!(!stream.has_guest_opened());
    /// # Ok(()) }
    /// ```
    pub fn boot(port: AgentPort) -> Self {
        let handle = port.handle();
        Self {
            machine: Arc::new(Machine {
                handle,
                console: Mutex::new(Some(Arc::new(console(port)))),
                workers: Mutex::new(Run::Unopened),
                virtqueues: Arc::new(Virtqueues::new()),
            }),
        }
    }

    /// Opens the port in the guest. The first call starts krun's workers.
    ///
    /// What the host wrote before the first call is delivered. What it writes while the port is closed
    /// again is lost, as in a VM.
    ///
    /// # Errors
    ///
    /// - [`ResourceBusy`](io::ErrorKind::ResourceBusy) if the port is already open.
    /// - [`NotConnected`](io::ErrorKind::NotConnected) after [`power_off`](Self::power_off).
    /// - The system's error if it refuses a thread or a descriptor.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use tokio_krun::AgentStream;
    /// use tokio_krun::test_util::Guest;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// let agent = guest.open()?;
    /// stream.guest_opened().await?;
    /// assert_eq!(guest.open().unwrap_err().kind(), ErrorKind::ResourceBusy);
    /// # drop(agent);
    /// # Ok(()) }
    /// ```
    pub fn open(&self) -> io::Result<GuestPort> {
        let console = self.machine.console();
        let Some(console) = console.as_ref() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if !self.machine.virtqueues.open() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let port = GuestPort {
            machine: Arc::clone(&self.machine),
        };
        let mut workers = self.machine.workers();
        if matches!(*workers, Run::Unopened) {
            *workers = Run::Running(Workers::start(console, &self.machine.virtqueues)?);
        }
        Ok(port)
    }

    /// Waits until the host's end has taken everything that the guest wrote.
    ///
    /// By then it is in the stream's ring, or was discarded because nobody will read it. On Windows
    /// it is also discarded after a hang-up, which closes the pipe. A Linux guest has no such call.
    ///
    /// This may wait forever: if the ring is full and the host does not read, or if the workers are
    /// stopped and you do not [start them again](Self::start_workers).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use tokio_krun::AgentStream;
    /// use tokio_krun::test_util::Guest;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// guest.open()?.write_all(b"last words").await?;
    /// // Powering off loses what is still in the virtqueue, as in a VM.
    /// guest.drained().await;
    /// guest.power_off().await;
    ///
    /// let mut heard = String::new();
    /// stream.read_to_string(&mut heard).await?;
    /// assert_eq!(heard, "last words");
    /// # Ok(()) }
    /// ```
    pub async fn drained(&self) {
        self.machine.virtqueues.drained().await;
    }

    /// Pauses the guest's vCPUs, like `VmControl::pause` in a VM: the agent's reads and writes wait. krun's workers go on with
    /// what the guest has queued.
    ///
    /// # Examples
    ///
    /// A checkpoint of a VM whose host does not read meanwhile. The order matters: see [`PortHandle::quiesce`].
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = Options::new().capacity(1024 * 1024).create()?;
    /// let handle = port.handle();
    /// let guest = Guest::boot(port);
    /// let mut agent = guest.open()?;
    /// agent.write_all(&[7; 1024 * 1024]).await?; // as much as fits
    /// guest.drained().await;
    /// agent.write_all(&[7; 512 * 1024]).await?; // and more
    ///
    /// guest.pause();
    /// handle.quiesce();
    /// guest.stop_workers().await; // as krun does to capture its devices
    ///
    /// guest.start_workers()?;
    /// handle.resume();
    /// guest.resume();
    /// stream.read_exact(&mut vec![0; 1536 * 1024]).await?;
    /// # Ok(()) }
    /// ```
    pub fn pause(&self) {
        self.machine.virtqueues.set_paused(true);
    }

    /// Ends [`pause`](Self::pause).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// let mut agent = guest.open()?;
    /// guest.pause();
    /// stream.write_all(b"meanwhile").await?;
    /// guest.resume();
    /// let mut received = [0; 9];
    /// agent.read_exact(&mut received).await?;
    /// assert_eq!(&received, b"meanwhile");
    /// # Ok(()) }
    /// ```
    pub fn resume(&self) {
        self.machine.virtqueues.set_paused(false);
    }

    /// Stops krun's workers, as krun does before a checkpoint. Each first finishes its current
    /// descriptor.
    ///
    /// If the TX worker waits for room, this waits too, as krun does, until the host reads or
    /// [quiesces](PortHandle::quiesce) the port.
    ///
    /// It does nothing if the guest has not opened its port yet, or if the workers are already stopped.
    ///
    /// # Panics
    ///
    /// If the port broke a rule that krun's threads rely on.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe. If you drop it while it waits, the workers still end, but the guest stays
    /// between running and stopped: [`start_workers`](Self::start_workers) then does nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use tokio_krun::AgentStream;
    /// use tokio_krun::test_util::Guest;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// let mut agent = guest.open()?;
    /// guest.stop_workers().await;
    /// stream.write_all(b"meanwhile").await?;
    /// guest.start_workers()?;
    /// let mut received = [0; 9];
    /// agent.read_exact(&mut received).await?;
    /// assert_eq!(&received, b"meanwhile");
    /// # Ok(()) }
    /// ```
    pub async fn stop_workers(&self) {
        let stopping = {
            let mut workers = self.machine.workers();
            match std::mem::replace(&mut *workers, Run::Stopping) {
                Run::Running(running) => running,
                other => {
                    *workers = other;
                    return;
                }
            }
        };
        stopping.stop().await;
        *self.machine.workers() = Run::Paused;
    }

    /// Starts the workers again on the same port, if you have [stopped](Self::stop_workers) them.
    ///
    /// # Errors
    ///
    /// - [`NotConnected`](io::ErrorKind::NotConnected) after [`power_off`](Self::power_off).
    /// - The system's error if it refuses a thread or a descriptor.
    ///
    /// # Examples
    ///
    /// See [`stop_workers`](Self::stop_workers).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (_stream, port) = tokio_krun::AgentStream::pair()?;
    /// # let guest = tokio_krun::test_util::Guest::boot(port);
    /// guest.stop_workers().await;
    /// guest.start_workers()?;
    /// # Ok(()) }
    /// ```
    pub fn start_workers(&self) -> io::Result<()> {
        let console = self.machine.console();
        let Some(console) = console.as_ref() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut workers = self.machine.workers();
        if matches!(*workers, Run::Paused) {
            *workers = Run::Running(Workers::start(console, &self.machine.virtqueues)?);
        }
        Ok(())
    }

    /// Powers the guest off.
    ///
    /// The workers stop as with [`stop_workers`](Self::stop_workers), and what is left in the virtqueues
    /// is lost. The host reads what had reached it, and then end of file. If your test needs the agent's
    /// last words, wait for [`drained`](Self::drained) first.
    ///
    /// As in a VM, this waits while the TX worker waits for room. So it does not return while you keep a
    /// full stream and do not read it. Read the stream, drop it, or [quiesce](PortHandle::quiesce) the port.
    /// You can also drop the guest, which powers it off without waiting.
    ///
    /// # Panics
    ///
    /// If the port broke a rule that krun's threads rely on.
    ///
    /// # Cancel safety
    ///
    /// If you drop it while it waits, the guest is dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::AsyncReadExt;
    /// use tokio_krun::AgentStream;
    /// use tokio_krun::test_util::Guest;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// let agent = guest.open()?;
    /// guest.power_off().await;
    /// assert_eq!(stream.read(&mut [0; 8]).await?, 0);
    /// # drop(agent);
    /// # Ok(()) }
    /// ```
    pub async fn power_off(self) {
        self.stop_workers().await;
        self.machine.virtqueues.power_off();
        // Dropped without the lock, as this ends the stream and runs the caller's code.
        let console = self.machine.console().take();
        drop(console);
    }
}

struct Machine {
    handle: PortHandle,
    /// `None` once powered off.
    console: Mutex<Option<Arc<Console>>>,
    workers: Mutex<Run>,
    virtqueues: Arc<Virtqueues>,
}

/// The state of krun's workers. krun starts them when the guest first opens the port, and after a
/// pause restarts only those that it had stopped.
enum Run {
    Unopened,
    Running(Workers),
    Stopping,
    Paused,
}

impl Machine {
    fn console(&self) -> MutexGuard<'_, Option<Arc<Console>>> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workers(&self) -> MutexGuard<'_, Run> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // First, so that the workers take nothing more from the guest's queues.
        if let Run::Running(workers) = &*self.workers() {
            workers.ask_to_stop();
        }
        // Nobody waits for the workers. One that waits for room would never end.
        self.handle.quiesce();
        if let Run::Running(workers) = &mut *self.workers() {
            // A test must not pass if a worker has found a fault in the port.
            assert!(
                thread::panicking() || !workers.have_panicked(),
                "a worker of the guest panicked: see its message above"
            );
        }
    }
}

/// The guest's end of the port, as the agent opens it in `/dev`.
///
/// Dropping it closes the port in the guest. The host does not notice, and you can
/// [open](Guest::open) the port again.
///
/// - A write completes when it is in the virtqueue, which holds 32 descriptors. Further writes wait.
/// - `flush` and `shutdown` return at once, as with the agent's [`VirtioPort`]. If your test needs to
///   know that the host's end has taken everything, wait for [`Guest::drained`].
/// - Once the host has hung up, reads return what is left and then end of file, and writes fail with
///   [`BrokenPipe`](io::ErrorKind::BrokenPipe), as with [`VirtioPort`]. A blocking write in a Linux
///   guest would never return.
///
/// It needs no tokio runtime: `futures::executor::block_on` works too.
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::AgentStream;
/// use tokio_krun::test_util::{Guest, GuestPort};
///
/// async fn echo(mut port: GuestPort) -> std::io::Result<()> {
///     let mut buffer = [0; 1024];
///     loop {
///         match port.read(&mut buffer).await? {
///             0 => return Ok(()), // the host has hung up
///             read => port.write_all(&buffer[..read]).await?,
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let guest = Guest::boot(port);
/// let agent = tokio::spawn(echo(guest.open()?));
/// stream.write_all(b"hello").await?;
/// let mut answer = [0; 5];
/// stream.read_exact(&mut answer).await?;
/// assert_eq!(&answer, b"hello");
/// stream.hang_up();
/// agent.await??;
/// # Ok(()) }
/// ```
///
/// [`VirtioPort`]: https://docs.rs/tokio-krun/latest/tokio_krun/agent/struct.VirtioPort.html
pub struct GuestPort {
    machine: Arc<Machine>,
}

impl fmt::Debug for GuestPort {
    /// Takes no lock, because the formatter may run the caller's code.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestPort").finish_non_exhaustive()
    }
}

impl AsyncRead for GuestPort {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.machine.virtqueues.poll_read(cx, buf).map(Ok)
    }
}

impl AsyncWrite for GuestPort {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.machine.virtqueues.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for GuestPort {
    fn drop(&mut self) {
        self.machine.virtqueues.close();
    }
}

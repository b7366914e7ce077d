//! A guest without a VM, for tests: krun's part and the agent's side of the port, in this process.
//!
//! [`Guest`] stands for the VM. It calls the port's backend from two threads as krun's workers do
//! (`msb_krun_devices` 0.1.42, `virtio/console/{process_rx,process_tx,port}.rs`): the same order of
//! calls, `poll(2)` on the wake descriptor, a queue of 32 descriptors each way, 4 KiB each towards
//! the guest and up to 32 KiB from it. [`GuestPort`] stands for the file that the agent opens in
//! the guest, and behaves as Linux' `virtio_console` does.
//!
//! What differs from a VM: nothing is emulated but this one port; times are those of two threads;
//! and [`Guest::power_off`] does not end the process.
//!
//! # Examples
//!
//! An agent that answers each line, tested without a VM:
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

mod virtqueue;
mod worker;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::port::{AgentPort, PortHandle};
#[allow(
    unused_imports,
    unreachable_pub,
    reason = "on some platforms there are none"
)]
pub use crate::sys::guest_exports::*;
use crate::sys::{Console, Workers};
pub(crate) use virtqueue::Virtqueues;
pub(crate) use worker::Worker;

/// A running VM with one port.
///
/// A port that breaks a rule that krun's threads rely on makes a worker panic; so does then whatever
/// waits for that worker, or drops the guest.
///
/// The VM runs as long as this or a [`GuestPort`] of it lives; when the last of them is dropped it
/// is gone at once, as a VM whose process was killed, and the host reads what had reached it and
/// then the end of the file. So a test keeps this until it has read what it wants: an agent's task
/// that ends closes its port, and no more than that.
///
/// # Examples
///
/// An agent that is started again finds the port as it left it:
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
#[derive(Debug)]
pub struct Guest {
    machine: Arc<Machine>,
}

impl Guest {
    /// Starts a VM with `port`. Nothing is called on the port before the guest
    /// [opens](Self::open) its end.
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
                console: Mutex::new(Some(Arc::new(Console::plug(port.into_krun_end())))),
                workers: Mutex::new(Run::Unopened),
                virtqueues: Arc::new(Virtqueues::new()),
            }),
        }
    }

    /// Opens the port in the guest. The first time starts krun's workers.
    ///
    /// What the host wrote before the first time is delivered; what it writes while the port is
    /// closed again is lost, as in a VM.
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if it is open, and
    /// [`NotConnected`](io::ErrorKind::NotConnected) after [`power_off`](Self::power_off).
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

    /// Waits until the host's end has taken all that the guest wrote: it is in the stream's ring, or
    /// thrown away if nobody reads there (on Windows also after a hang-up, which closes the pipe). No call in a
    /// Linux guest does that.
    ///
    /// It waits for ever where that never comes: for a host that does not read, or for a guest that
    /// nobody [resumes](Self::start_workers).
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
    /// // Powering off loses what the virtqueue still has, as a real guest's does.
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

    /// Stops krun's workers as it does before a checkpoint: each after the descriptor it is at.
    ///
    /// Like krun's, this waits for a transmission that finds no room, until the host reads or
    /// [quiesces](PortHandle::quiesce) the port.
    ///
    /// Does nothing if the guest has not opened its port yet, or is paused.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: dropped while it waits, the workers go on ending, and the guest stays
    /// between running and paused, from where [`resume`](Self::start_workers) does nothing.
    ///
    /// # Panics
    ///
    /// If the port broke one of the rules that krun's threads rely on.
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

    /// Starts the workers again on the same port, if the guest is [paused](Self::stop_workers).
    ///
    /// # Errors
    ///
    /// If a thread or a descriptor is refused; [`NotConnected`](io::ErrorKind::NotConnected) after
    /// [`power_off`](Self::power_off).
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

    /// Powers the guest off: the workers stop as with [`stop_workers`](Self::stop_workers), what is left in the
    /// virtqueues is lost, and the host reads what had reached it and then the end of the file.
    ///
    /// A test in which the agent's last words are to be heard waits for [`drained`](Self::drained) before it.
    ///
    /// As with `stop_workers`, and with a real VM, a transmission that finds no room is waited for: so this does not return
    /// while a full stream is kept and not read. Read it or drop it, [quiesce](PortHandle::quiesce) the port,
    /// or drop the guest, which powers it off without a wait.
    ///
    /// # Cancel safety
    ///
    /// Dropped while it waits, the guest is dropped.
    ///
    /// # Panics
    ///
    /// If the port broke one of the rules that krun's threads rely on.
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
        self.machine.console().take();
    }
}

#[derive(Debug)]
struct Machine {
    handle: PortHandle,
    /// Gone with the power.
    console: Mutex<Option<Arc<Console>>>,
    workers: Mutex<Run>,
    virtqueues: Arc<Virtqueues>,
}

/// Where krun's workers are. It starts them when the guest first opens the port, and restarts after
/// a pause only those it had stopped.
#[derive(Debug)]
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
        // Dropping the workers lets them go; one that waits for room must not be left behind.
        self.handle.quiesce();
        if let Run::Running(workers) = &mut *self.workers() {
            // A test must not pass with a worker that found the port at fault.
            assert!(
                thread::panicking() || !workers.have_panicked(),
                "a worker of the guest has panicked"
            );
        }
    }
}

/// The guest's end of the port: the file that an agent opens in `/dev`.
///
/// Dropping it closes the port in the guest, which the host does not see; the guest may
/// [open](Guest::open) it again.
///
/// - A write is complete when it is in the virtqueue. At most 32 descriptors fit; more wait.
/// - `flush` and `shutdown` are done at once, as with the agent's [`VirtioPort`]; a test that has to
///   know that the host's end has taken it all waits for [`Guest::drained`].
/// - Once the host has hung up, reads give what is left and then the end of the file, and writes
///   fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe), as with the agent's [`VirtioPort`]. (A blocking
///   write in a Linux guest never returns then.)
///
/// It needs no runtime: `futures::executor::block_on` drives it as well.
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
#[derive(Debug)]
pub struct GuestPort {
    machine: Arc<Machine>,
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

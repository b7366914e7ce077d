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
//! use tokio_krun::{AgentStream, guest::Guest};
//! use tokio_util::codec::{Framed, LinesCodec};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (stream, port) = AgentStream::new()?;
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

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::port::{AgentPort, PortHandle};
use crate::sys::{AgentConsoleBackend, Workers};
pub(crate) use virtqueue::Virtqueues;

/// A running VM with one port.
///
/// The VM runs as long as this or a [`GuestPort`] of it lives; when the last of them is dropped it
/// is gone at once, as a VM whose process was killed, and the host reads what had reached it and
/// then the end of the file.
#[derive(Debug)]
pub struct Guest {
    machine: Arc<Machine>,
}

impl Guest {
    /// Starts a VM with `port`. Nothing is called on the port before the guest
    /// [opens](Self::open) its end.
    pub fn boot(port: AgentPort) -> Self {
        let handle = port.handle();
        Self {
            machine: Arc::new(Machine {
                handle,
                backend: Mutex::new(Some(Arc::new(port.into_backend()))),
                workers: Mutex::new(None),
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
    pub fn open(&self) -> io::Result<GuestPort> {
        let backend = self.machine.backend();
        let Some(backend) = backend.as_ref() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if !self.machine.virtqueues.open() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let mut workers = self.machine.workers();
        if workers.is_none() {
            *workers = Some(Workers::start(backend, &self.machine.virtqueues)?);
        }
        Ok(GuestPort {
            machine: Arc::clone(&self.machine),
        })
    }

    /// Stops krun's workers as it does before a checkpoint: each after the descriptor it is at.
    ///
    /// Like krun's, this waits for a transmission that finds no room, until the host reads or
    /// [quiesces](PortHandle::quiesce) the port.
    ///
    /// # Cancel safety
    ///
    /// Dropped while it waits, the workers stop all the same, and [`resume`](Self::resume) waits
    /// for nothing: do not resume then.
    ///
    /// # Panics
    ///
    /// If the port broke one of the rules that krun's threads rely on.
    pub async fn pause(&self) {
        let workers = self.machine.workers().take();
        if let Some(workers) = workers {
            workers.stop().await;
        }
    }

    /// Starts the workers again on the same port.
    ///
    /// # Errors
    ///
    /// If a thread or a descriptor is refused; [`NotConnected`](io::ErrorKind::NotConnected) after
    /// [`power_off`](Self::power_off).
    pub fn resume(&self) -> io::Result<()> {
        let backend = self.machine.backend();
        let Some(backend) = backend.as_ref() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut workers = self.machine.workers();
        if workers.is_none() {
            *workers = Some(Workers::start(backend, &self.machine.virtqueues)?);
        }
        Ok(())
    }

    /// Powers the guest off: the workers stop as with [`pause`](Self::pause), what is left in the
    /// virtqueues is lost, and the host reads what had reached it and then the end of the file.
    ///
    /// # Panics
    ///
    /// If the port broke one of the rules that krun's threads rely on.
    pub async fn power_off(self) {
        self.pause().await;
        self.machine.virtqueues.power_off();
        self.machine.backend().take();
    }
}

#[derive(Debug)]
struct Machine {
    handle: PortHandle,
    /// Gone with the power.
    backend: Mutex<Option<Arc<AgentConsoleBackend>>>,
    /// Running from the first opening of the port, but while paused.
    workers: Mutex<Option<Workers>>,
    virtqueues: Arc<Virtqueues>,
}

impl Machine {
    fn backend(&self) -> MutexGuard<'_, Option<Arc<AgentConsoleBackend>>> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workers(&self) -> MutexGuard<'_, Option<Workers>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Dropping the workers lets them go; one that waits for room must not be left behind.
        self.handle.quiesce();
    }
}

/// The guest's end of the port: the file that an agent opens in `/dev`.
///
/// Dropping it closes the port in the guest, which the host does not see; the guest may
/// [open](Guest::open) it again.
///
/// - A write is complete when it is in the virtqueue. At most 32 descriptors fit; more wait.
/// - [`flush`] waits until the host's end has taken them all. No
///   call in a Linux guest does that.
/// - Once the host has hung up, reads give what is left and then the end of the file, and writes
///   never complete, as blocking writes in a Linux guest.
///
/// It needs no runtime: `futures::executor::block_on` drives it as well.
///
/// [`flush`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.flush
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

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.machine.virtqueues.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl Drop for GuestPort {
    fn drop(&mut self) {
        self.machine.virtqueues.close();
    }
}

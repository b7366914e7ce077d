//! A guest without a VM: test your host program, your agent or both in one process.
//!
//! This tests an agent that answers each line. It is the agent that runs in the VM: it opens its port by name, and reads and
//! writes a [`VirtioPort`].
//!
//! ```
//! use futures::{SinkExt, StreamExt};
//! use tokio_krun::agent::VirtioPort;
//! use tokio_krun::{AgentStream, test_util::Guest};
//! use tokio_util::codec::{Framed, LinesCodec};
//!
//! async fn agent() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     let port = VirtioPort::open("agent").await?;
//!     let mut lines = Framed::new(port, LinesCodec::new());
//!     while let Some(line) = lines.next().await {
//!         lines.send(line?.to_uppercase()).await?;
//!     }
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let (stream, port) = AgentStream::pair()?;
//! let guest = Guest::boot(port); // instead of building a VM
//! let agent = tokio::spawn(guest.run(agent()));
//!
//! let mut host = Framed::new(stream, LinesCodec::new());
//! host.send("hello").await?;
//! assert_eq!(host.next().await.unwrap()?, "HELLO");
//! drop(host); // hangs up
//! agent.await??;
//! # Ok(()) }
//! ```
//!
//! # How close it is to a VM
//!
//! [`Guest`] plays the VM. It calls the port's backend as krun's two workers do (`msb_krun_devices` 0.1.42,
//! `virtio/console/{process_rx,process_tx,port}.rs`): the same calls in the same order. Each direction has a queue of 32
//! descriptors: 4 KiB each towards the guest, and up to 32 KiB each from it. A worker interrupts the guest when it finds
//! nothing more to do, and not sooner.
//!
//! The [`VirtioPort`] that it opens plays the file that the agent opens in the guest. It behaves as with Linux's
//! `virtio_console`:
//!
//! - A write completes when it is in the virtqueue. If your test needs to know that the host's end has taken everything, wait
//!   for [`Guest::drained`].
//! - Once the host has hung up, reads return what is left and then end of file, and writes fail with
//!   [`BrokenPipe`](std::io::ErrorKind::BrokenPipe).
//! - Dropping it closes the port in the guest. The host does not notice, and the port can be opened again.
//!
//! It needs no tokio runtime: `futures::executor::block_on` works too. An agent without any async code has
//! [`Guest::open_blocking`].
//!
//! These things differ from a VM:
//!
//! - Time: see below.
//! - [`Guest::power_off`] does not end the process.
//! - On Windows there is no pipe, unless the guest has [threads](#threads). So the guest behaves as it does on Linux: the host's
//!   writes wait for it, and a hang-up takes effect at once.
//!
//! # Time
//!
//! The guest has no threads. On one thread, a call of the agent's that gives krun something to do also does krun's work, before
//! it returns; and so does a call of the host's. For example, when the agent's write has completed, its bytes are in the host's
//! stream, if that has room. So a test on one thread runs the same way each time. With several threads, another one may be at
//! krun's work, and then does yours too, a moment later.
//!
//! It also means that tokio's paused clock works, as nothing happens behind its back: a timeout elapses only if neither side has
//! anything left to do.
//!
//! ```
//! use std::time::Duration;
//!
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::time::timeout;
//! use tokio_krun::{AgentStream, test_util::Guest};
//!
//! # /*
//! #[tokio::test(start_paused = true)]
//! # */
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! async fn gives_up_after_an_hour() {
//!     let (mut stream, port) = AgentStream::pair().unwrap();
//!     let guest = Guest::boot(port);
//!     let mut agent = guest.open().unwrap();
//!
//!     let hour = Duration::from_secs(3600);
//!     agent.write_u8(1).await.unwrap();
//!     assert_eq!(timeout(hour, stream.read_u8()).await.unwrap().unwrap(), 1);
//!     timeout(hour, stream.read_u8()).await.unwrap_err(); // takes no time
//! }
//! # gives_up_after_an_hour();
//! ```
//!
//! `start_paused` needs tokio's feature `test-util`. Two things do not go with a paused clock:
//!
//! - An agent that has a thread of its own, such as one with a [`BlockingPort`]. The clock does not know that this thread is at
//!   work, so a timeout may elapse although the answer is on its way.
//! - A sleep while an exit hook runs. tokio's clock stands still until the hook has ended, so a sleep or timeout ends only after
//!   it. If the hook waits for you, as [`exit_hook`](crate::AgentPort::exit_hook) does, drop the stream without sleeping first.
//!
//! [`Options::stall_timeout`](crate::Options::stall_timeout) takes its time from tokio's clock as well, in the runtime in which
//! you boot the guest. If that runtime has no timer (`tokio::runtime::Builder::enable_time`), or has gone, or if you boot the
//! guest outside a runtime, a thread waits instead.
//!
//! # Threads
//!
//! With [`GuestBuilder::threads`], two threads call each port, and wait as krun's do: the RX thread in `poll(2)` on the wake
//! descriptor. On Windows they use the pipe. Choose it to test how your host program copes with krun's timing, or to test a
//! backend of your own. tokio's paused clock does not wait for these threads, so do not pause it then.
//!
//! [`VirtioPort`]: crate::agent::VirtioPort

mod blocking;
mod builder;
mod inline;
mod machine;
mod park;
mod port;
mod state;
mod threads;
#[cfg(unix)]
mod unix;
mod virtqueue;
#[cfg(windows)]
mod windows;
mod worker;

use std::future::Future;
use std::sync::Arc;
use std::{fmt, io};

use crate::agent::VirtioPort;
use crate::port::AgentPort;
pub use blocking::BlockingPort;
pub use builder::GuestBuilder;
use machine::Machine;
pub(crate) use machine::open_in_process;
pub(crate) use port::Port;
pub use state::GuestState;
#[cfg(unix)]
use unix as console;
#[cfg(all(test, unix))]
pub(crate) use unix::is_any_readable;
#[cfg(windows)]
use windows as console;
#[cfg(windows)]
pub use windows::RingEnd;
#[cfg(windows)]
pub(crate) use windows::Taken;

const PANICKED: &str = "a worker of the guest panicked: see its message above";

/// An in-process guest. It replaces the VM in your tests.
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
/// The guest runs until you drop both it and the agent's [ports](VirtioPort), wherever those are: for example in a task that runs
/// the agent. Then it ends at once, like a VM whose process was killed. The host reads what had reached it, and then end of file.
/// So keep the guest until your test has read what it wants. To end it while the agent holds a port, use
/// [`power_off`](Self::power_off). Dropping only the `VirtioPort`, as an agent's task does when it ends, closes the port and
/// nothing else.
///
/// A guest may have [several ports](Self::builder). [`open`](Self::open) and [`open_blocking`](Self::open_blocking) open the
/// first. The methods that take no name otherwise act on all of them, as krun does: one after another, in the order in which you
/// added them.
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
    /// Starts a guest with the port `agent`.
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
        Self::builder().port("agent", port).boot()
    }

    /// Returns a builder for a guest with several ports, with exit hooks, or with krun's threads.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (control, control_port) = AgentStream::pair()?;
    /// let (logs, logs_port) = AgentStream::pair()?;
    /// let guest = Guest::builder()
    ///     .port("control", control_port)
    ///     .port("logs", logs_port)
    ///     .boot();
    /// # Ok(()) }
    /// ```
    pub fn builder() -> GuestBuilder {
        GuestBuilder::new()
    }

    /// Runs an agent that opens its ports itself: in `agent`, [`VirtioPort::open`] finds the ports of this guest.
    ///
    /// As in a VM, `open` waits for a port that the guest does not have.
    ///
    /// Only `agent` itself is in the guest, and not the tasks that it spawns. Let it open its ports first, and pass them to
    /// its tasks.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops `agent`, as if the agent were killed: its ports close, and the guest runs on.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// async fn agent() -> std::io::Result<()> {
    ///     let mut port = VirtioPort::open("agent").await?;
    ///     port.write_all(b"ready").await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// guest.run(agent()).await?;
    /// let mut greeting = [0; 5];
    /// stream.read_exact(&mut greeting).await?;
    /// assert_eq!(&greeting, b"ready");
    /// # Ok(()) }
    /// ```
    pub fn run<F: Future>(&self, agent: F) -> impl Future<Output = F::Output> + use<F> {
        machine::scope(&self.machine, agent)
    }

    /// Opens the guest's first port, or its only one. The first call starts krun's workers.
    ///
    /// What the host wrote before the first call is delivered. What it writes while the port is closed
    /// again is lost, as in a VM.
    ///
    /// # Errors
    ///
    /// - [`ResourceBusy`](io::ErrorKind::ResourceBusy) if the port is already open.
    /// - [`NotFound`](io::ErrorKind::NotFound) if the guest has no port.
    /// - The system's error if it refuses a thread or a descriptor, which only [threads](GuestBuilder::threads) need.
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
    pub fn open(&self) -> io::Result<VirtioPort> {
        self.open_first().map(VirtioPort::in_process)
    }

    /// Opens the guest's port called `name`: otherwise equivalent to [`open`](Self::open).
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// let agent = guest.open_port("agent")?;
    /// assert_eq!(guest.open_port("logs").unwrap_err().kind(), ErrorKind::NotFound);
    /// # Ok(()) }
    /// ```
    pub fn open_port(&self, name: &str) -> io::Result<VirtioPort> {
        self.open_named(name).map(VirtioPort::in_process)
    }

    /// Opens the guest's first port for an agent without async code.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Write;
    /// use std::thread;
    ///
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// let mut port = guest.open_blocking()?;
    /// let agent = thread::spawn(move || port.write_all(b"ready"));
    /// let mut greeting = [0; 5];
    /// stream.read_exact(&mut greeting).await?;
    /// assert_eq!(&greeting, b"ready");
    /// agent.join().unwrap()?;
    /// # Ok(()) }
    /// ```
    pub fn open_blocking(&self) -> io::Result<BlockingPort> {
        self.open_first().map(BlockingPort::new)
    }

    /// Opens the guest's port called `name` for an agent without async code.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// let guest = Guest::builder().port("logs", port).boot();
    /// let port = guest.open_port_blocking("logs")?;
    /// # Ok(()) }
    /// ```
    pub fn open_port_blocking(&self, name: &str) -> io::Result<BlockingPort> {
        self.open_named(name).map(BlockingPort::new)
    }

    fn open_first(&self) -> io::Result<Port> {
        match self.machine.devices().first() {
            Some(device) => device.open(&self.machine),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the guest has no port",
            )),
        }
    }

    fn open_named(&self, name: &str) -> io::Result<Port> {
        match self.machine.device(name) {
            Some(device) => device.open(&self.machine),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the guest has no port {name:?}"),
            )),
        }
    }

    /// Waits until the host's end has taken everything that the guest wrote.
    ///
    /// By then it is in the stream's ring, or was discarded because nobody will read it. On Windows with
    /// [threads](GuestBuilder::threads), it is also discarded after a hang-up, which closes the pipe. A Linux guest has no such
    /// call.
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
        for device in self.machine.devices() {
            device.virtqueues.drained().await;
        }
    }

    /// Pauses the guest's vCPUs, like `VmControl::pause` in a VM: the agent's reads and writes wait. krun's workers go on with
    /// what the guest has queued.
    ///
    /// # Examples
    ///
    /// A pause with its devices, of a VM whose host does not read meanwhile. The order matters: see
    /// [`PortHandle::quiesce`](crate::PortHandle::quiesce). For a checkpoint, see [`GuestState`].
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
        self.set_paused(true);
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
        self.set_paused(false);
    }

    fn set_paused(&self, paused: bool) {
        for device in self.machine.devices() {
            device.virtqueues.set_paused(paused);
        }
    }

    /// Stops krun's workers, as krun does before a checkpoint. Each first finishes its current
    /// descriptor. The agent runs on until you [pause](Self::pause) it.
    ///
    /// If the TX worker waits for room, this waits too, as krun does, until the host reads or
    /// [quiesces](crate::PortHandle::quiesce) the port. You may call it several times at once: each call waits.
    ///
    /// It does nothing for a port that the guest has not opened yet, or if the workers are already stopped.
    ///
    /// # Panics
    ///
    /// If the port broke a rule that krun's threads rely on.
    ///
    /// # Cancel safety
    ///
    /// If you drop it while it waits, the guest stays between running and stopped:
    /// [`start_workers`](Self::start_workers) then does nothing. Call this again to wait until the workers have stopped.
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
        self.machine.stop().await;
    }

    /// Starts the workers again on the same port, if you have [stopped](Self::stop_workers) them.
    ///
    /// # Errors
    ///
    /// The system's error if it refuses a thread or a descriptor, which only [threads](GuestBuilder::threads) need.
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
        self.machine.start()
    }

    /// Powers the guest off.
    ///
    /// From the first poll on, the agent opens no more ports: [`VirtioPort::open`] fails with
    /// [`NotConnected`](io::ErrorKind::NotConnected). Then, as in a VM:
    ///
    /// 1. krun's workers stop, as with [`stop_workers`](Self::stop_workers). What is left in the virtqueues is lost. If your
    ///    test needs the agent's last words, wait for [`drained`](Self::drained) first.
    /// 2. The [exit hooks](GuestBuilder::on_exit) run, one after another. They may block: they have a thread of their own. A
    ///    [paused clock](crate::test_util#time) stands still meanwhile.
    /// 3. Where krun would end the process, the ports end. The host reads what had reached it, and then end of file.
    ///
    /// As in a VM, this waits while the TX worker waits for room. So it does not return while you keep a
    /// full stream and do not read it. Read the stream, drop it, or [quiesce](crate::PortHandle::quiesce) the port.
    /// To end the guest without waiting, drop it and the agent's ports.
    ///
    /// # Panics
    ///
    /// If the port broke a rule that krun's threads rely on, or if an exit hook panicked. The other hooks have run then.
    ///
    /// # Cancel safety
    ///
    /// If you drop it while it waits, the ports end at once, even those that the agent holds, as if the VM's process were killed.
    /// If the hooks had begun, they run on; otherwise they do not run.
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
        self.machine.power_off().await;
    }
}

//! How large the rings are, and what dropping the stream means.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::error::Error;
use crate::port::AgentPort;
use crate::shared::ConsoleSharedState;
use crate::stream::AgentStream;
use crate::sys::PortOptions;

/// Options for an [`AgentStream`] and its [`AgentPort`].
///
/// # Examples
///
/// ```
/// use tokio_krun::Options;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (stream, port) = Options::new().capacity(256 * 1024).create()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "options do nothing until `create` is called"]
pub struct Options {
    pub(crate) capacity: usize,
    pub(crate) hang_up_on_drop: bool,
    pub(crate) busy_poll: Duration,
    pub(crate) port: PortOptions,
}

impl Options {
    /// The least capacity, in bytes: one descriptor of a Linux guest.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::{Error, Options};
    ///
    /// let error = Options::new().capacity(1024).create().unwrap_err();
    /// assert!(matches!(error, Error::Capacity { least: Options::MIN_CAPACITY, .. }));
    /// ```
    pub const MIN_CAPACITY: usize = 32 * 1024;
    /// The greatest capacity, in bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// let configured = 64 * 1024 * 1024 * 1024;
    /// let options = Options::new().capacity(configured.min(Options::MAX_CAPACITY));
    /// ```
    pub const MAX_CAPACITY: usize = 1024 * 1024 * 1024;
    /// The default capacity, in bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// // What 64 agents may leave unread, at the most.
    /// assert_eq!(64 * Options::DEFAULT_CAPACITY, 256 * 1024 * 1024);
    /// ```
    pub const DEFAULT_CAPACITY: usize = 4 * 1024 * 1024;

    /// The longest [`busy_poll`](Self::busy_poll).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tokio_krun::Options;
    ///
    /// let longest = Options::new().busy_poll(Options::MAX_BUSY_POLL);
    /// assert_eq!(Options::new().busy_poll(Duration::from_secs(1)), longest);
    /// ```
    pub const MAX_BUSY_POLL: Duration = Duration::from_millis(1);

    /// The defaults: 4 MiB each way, hanging up when dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let options = Options::new().capacity(1024 * 1024); // the same for each VM
    /// let (first, first_port) = options.create()?;
    /// let (second, second_port) = options.create()?;
    /// # Ok(()) }
    /// ```
    pub fn new() -> Self {
        Self {
            capacity: Self::DEFAULT_CAPACITY,
            hang_up_on_drop: true,
            busy_poll: Duration::ZERO,
            port: PortOptions::default(),
        }
    }

    /// How many bytes each direction holds, from [`MIN_CAPACITY`](Self::MIN_CAPACITY) to
    /// [`MAX_CAPACITY`](Self::MAX_CAPACITY). The default is 4 MiB.
    ///
    /// When a direction is full its writer waits. A larger capacity has each side wait, and be
    /// woken, less often; one beyond the processor's caches costs more than that saves. Measured on
    /// two cores of a virtual machine with 1 MiB of L2 each, as a part of what 4 MiB carries (lowest
    /// and highest of three loads on three kinds of runtime; `benches/README.md`):
    ///
    /// | capacity | both sides on one core | a core each |
    /// | --- | --- | --- |
    /// | 64 KiB | 0.23 to 0.34 | 0.03 to 0.10 |
    /// | 256 KiB | 0.56 to 0.69 | 0.10 to 0.48 |
    /// | 1 MiB | 0.87 to 0.92 | 0.47 to 1.00 |
    /// | 2 MiB | 0.93 to 0.98 | 0.86 to 1.03 |
    /// | 8 MiB | 0.89 to 1.02 | 0.99 to 1.08 |
    /// | 16 MiB | 0.44 to 0.85 | 0.83 to 1.05 |
    ///
    /// It is a bound, not an allocation. Memory comes in chunks of 64 KiB (an eighth of the capacity,
    /// if that is less) when there are bytes for it, and a direction whose reader has found nothing keeps none;
    /// but a stream of less than 512 KiB has chunks of its own, and keeps what it has needed until it is dropped.
    /// Whatever the guest sends, also one byte at a time, a direction's chunks take at most its
    /// capacity and four chunks more; twice the capacity while it is
    /// [quiesced](crate::PortHandle::quiesce), or while the host holds what it has read as
    /// [`Chunks`](crate::Chunks#reading). About 200 bytes for each chunk of the capacity come on
    /// top, and up to 32 MiB of chunks that the process keeps for the next bytes of any stream.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = Options::new().capacity(64 * 1024).create()?;
    /// let mut written = 0;
    /// while let Ok(bytes) = stream.try_write(&[0; 1000]) {
    ///     written += bytes;
    /// }
    /// assert_eq!(written, 64 * 1024); // nobody reads yet
    /// # Ok(()) }
    /// ```
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// Whether dropping the stream hangs up, so that the guest reads what was written and then the
    /// end of the file. The default is `true`.
    ///
    /// With `false` the guest is told nothing: it may go on writing, which is discarded. That
    /// spares an agent that writes to its port in blocking mode: on this device a hang-up also
    /// blocks the guest's writes, for ever (Linux' `virtio_console` waits for a host that is
    /// connected).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = Options::new().hang_up_on_drop(false).create()?;
    /// let guest = Guest::boot(port);
    /// let mut agent = guest.open()?;
    ///
    /// drop(stream);
    /// agent.write_all(b"still here").await?; // after a hang-up this would wait for ever
    /// guest.drained().await; // discarded
    /// # Ok(()) }
    /// ```
    pub fn hang_up_on_drop(mut self, hang_up: bool) -> Self {
        self.hang_up_on_drop = hang_up;
        self
    }

    /// For how long a side that finds nothing to do goes on looking before it sleeps. The default is
    /// zero: it sleeps at once. More than [`MAX_BUSY_POLL`](Self::MAX_BUSY_POLL) is taken for that.
    ///
    /// A wake across cores takes tens of microseconds in a virtual machine, and a side that is
    /// looking needs none: with 20 µs and a core each, a round trip of 64 bytes took 1.1 µs in place
    /// of 46, and a stream of 4 KiB descriptors from the guest was 1.4 to 1.9 times as fast. The price
    /// is the thread's time: it spins for so long each time it runs out of work, krun's threads as
    /// well as the runtime's, whose other tasks wait meanwhile. Worth it where latency matters and
    /// there is a core for each; on a shared core it only holds the other side up (the round trip took
    /// 67 µs in place of 5, and streams were 1.2 to 1.5 times slower).
    ///
    /// The host's side spins in each way of reading, writing and waiting; krun's before it waits.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// // Requests and answers all the time, and a core to spare for them.
    /// let (stream, port) = Options::new().busy_poll(Duration::from_micros(20)).create()?;
    /// # Ok(()) }
    /// ```
    pub fn busy_poll(mut self, spin: Duration) -> Self {
        self.busy_poll = spin.min(Self::MAX_BUSY_POLL);
        self
    }

    /// Makes a stream and the port that is its other end.
    ///
    /// # Errors
    ///
    /// - [`Error::Capacity`] if the capacity is out of its bounds.
    /// - [`Error::NoRuntime`] outside a tokio runtime.
    /// - [`Error::PipeInUse`] on Windows, if the pipe's name was chosen and is taken.
    /// - [`Error::Os`] if the system gives no descriptor or pipe; nothing is left behind.
    ///
    /// # Panics
    ///
    /// If the current runtime has no I/O driver (`tokio::runtime::Builder::enable_io`).
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::{Error, Options};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let options = Options::new().capacity(1024 * 1024);
    /// let error = options.create().unwrap_err();
    /// assert!(matches!(error, Error::NoRuntime)); // not here
    ///
    /// let runtime = tokio::runtime::Runtime::new()?;
    /// let (stream, port) = runtime.block_on(async { options.create() })?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn create(&self) -> Result<(AgentStream, AgentPort), Error> {
        self.validate()?;
        if Handle::try_current().is_err() {
            return Err(Error::NoRuntime);
        }
        let shared = ConsoleSharedState::new(self.capacity, self.busy_poll).map_err(Error::Os)?;
        let shared = Arc::new(shared);
        let stream =
            AgentStream::register(Arc::clone(&shared), self.hang_up_on_drop).map_err(Error::Os)?;
        Ok((stream, AgentPort::create(shared, &self.port)?))
    }

    /// The same on a runtime of the caller's, from wherever it is called.
    ///
    /// # Errors
    ///
    /// Those of [`create`](Self::create), but for [`Error::NoRuntime`].
    ///
    /// # Panics
    ///
    /// If the runtime has no I/O driver.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{Options, test_util::Guest};
    /// use tokio::runtime::Runtime;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let runtime = Runtime::new()?;
    /// // On the thread that builds the VM, where there is no runtime.
    /// let (mut stream, port) = Options::new().create_on(runtime.handle())?;
    /// let asks = runtime.spawn(async move { stream.write_all(b"hello").await });
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// # runtime.block_on(agent.read_exact(&mut [0; 5]))?;
    /// runtime.block_on(asks)??;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn create_on(&self, runtime: &Handle) -> Result<(AgentStream, AgentPort), Error> {
        let _entered = runtime.enter();
        self.create()
    }

    fn validate(&self) -> Result<(), Error> {
        if !(Self::MIN_CAPACITY..=Self::MAX_CAPACITY).contains(&self.capacity) {
            return Err(Error::Capacity {
                capacity: self.capacity,
                least: Self::MIN_CAPACITY,
                most: Self::MAX_CAPACITY,
            });
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

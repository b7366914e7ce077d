//! Options for a stream and its port: the size of the rings, and how the two ends behave.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::error::Error;
use crate::port::AgentPort;
use crate::shared::ConsoleSharedState;
use crate::stream::AgentStream;
use crate::sys::PortOptions;

/// The upper limit of [`Options::busy_poll`].
const MAX_BUSY_POLL: Duration = Duration::from_millis(1);

/// Options for an [`AgentStream`] and the [`AgentPort`] at its other end.
///
/// | option | default |
/// | --- | --- |
/// | [`capacity`](Self::capacity) | 4 MiB in each direction |
/// | [`hang_up_on_drop`](Self::hang_up_on_drop) | `true` |
/// | [`stall_timeout`](Self::stall_timeout) | none: the guest's writes wait for room as long as it takes |
/// | [`busy_poll`](Self::busy_poll) | zero |
/// | [`label`](Self::label) | none |
/// | `pipe_name` (only on Windows) | a random name |
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
#[derive(Clone, Debug)]
#[must_use = "options do nothing until `create` is called"]
pub struct Options {
    pub(crate) capacity: usize,
    least_capacity: usize,
    pub(crate) hang_up_on_drop: bool,
    pub(crate) stall_timeout: Option<Duration>,
    pub(crate) busy_poll: Duration,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) port: PortOptions,
}

impl Options {
    /// The smallest [`capacity`](Self::capacity): 32 KiB, one descriptor of a Linux guest.
    pub const MIN_CAPACITY: usize = 32 * 1024;
    /// The largest [`capacity`](Self::capacity): 1 GiB.
    pub const MAX_CAPACITY: usize = 1024 * 1024 * 1024;
    /// The default [`capacity`](Self::capacity): 4 MiB.
    pub const DEFAULT_CAPACITY: usize = 4 * 1024 * 1024;

    /// Creates options with the [defaults](Self).
    ///
    /// # Examples
    ///
    /// Use the same options for several ports of your VM:
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let options = Options::new().capacity(1024 * 1024);
    /// let (control, control_port) = options.create()?;
    /// let (logs, logs_port) = options.create()?;
    /// # Ok(()) }
    /// ```
    pub fn new() -> Self {
        Self {
            capacity: Self::DEFAULT_CAPACITY,
            least_capacity: Self::MIN_CAPACITY,
            hang_up_on_drop: true,
            stall_timeout: None,
            busy_poll: Duration::ZERO,
            label: None,
            port: PortOptions::default(),
        }
    }

    /// Sets how many bytes each direction holds, from [`MIN_CAPACITY`](Self::MIN_CAPACITY) to
    /// [`MAX_CAPACITY`](Self::MAX_CAPACITY). The default is 4 MiB.
    ///
    /// When a direction is full, its writer waits.
    ///
    /// # Speed
    ///
    /// With a larger capacity, each side waits and is woken less often. With a smaller one, the bytes stay in
    /// a cache, which pays where both sides share a core. The table gives the throughput relative to 4 MiB,
    /// measured on two cores of a virtual machine with 2 MiB of L2 cache each. Each range spans three loads on
    /// three kinds of runtime (see `benches/README.md`).
    ///
    /// | capacity | threads not pinned | both sides on one core | a core each |
    /// | --- | --- | --- | --- |
    /// | 64 KiB | 0.04 to 0.07 | 0.78 to 1.01 | 0.04 to 0.08 |
    /// | 256 KiB | 0.21 to 0.41 | 1.22 to 1.34 | 0.21 to 0.27 |
    /// | 1 MiB | 0.66 to 0.83 | 1.49 to 1.59 | 0.63 to 0.73 |
    /// | 2 MiB | 0.71 to 0.80 | 1.16 to 1.18 | 0.71 to 0.78 |
    /// | 8 MiB | 0.91 to 1.07 | 0.91 to 0.96 | 1.01 to 1.07 |
    /// | 16 MiB | 1.01 to 1.10 | 0.89 to 0.94 | 1.01 to 1.07 |
    ///
    /// # Memory
    ///
    /// The capacity is a bound, not an allocation. A ring takes chunks of 64 KiB (or an eighth of the
    /// capacity, if that is less) from a pool as bytes arrive. It returns each as soon as it was read,
    /// and the last one before its reader sleeps. Below a capacity of 512 KiB, each ring has a pool of
    /// its own, and the stream keeps that memory until it is dropped.
    ///
    /// However the guest slices its writes, even into single bytes, a direction uses at most its
    /// capacity plus four chunks. Count the capacity twice while the port is
    /// [quiesced](crate::PortHandle::quiesce), or while you hold [`Chunks`](crate::Chunks#reading)
    /// that you have read.
    ///
    /// Towards the guest, count half the capacity more if you write `Bytes` of half a chunk or more and small pieces in turn:
    /// each such `Bytes` ends the chunk before it, however empty that is.
    ///
    /// Add about 200 bytes for each chunk that fits into the capacity. The process also keeps up to
    /// 32 MiB of free chunks, which all its streams share. While the guest's side and the host's run on
    /// different cores, it keeps at least 4 MiB: a chunk that another core has just read is slow to
    /// write to, so it waits until it has left that core's cache.
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
        self.least_capacity = Self::MIN_CAPACITY;
        self
    }

    /// Sets a capacity below [`MIN_CAPACITY`](Self::MIN_CAPACITY), from 1 byte up, for a test that wants to see backpressure
    /// after few bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, _port) = Options::new().test_capacity(4).create()?;
    /// assert_eq!(stream.try_write(b"request")?, 4);
    /// # Ok(()) }
    /// ```
    #[cfg(any(test, feature = "test-util"))]
    #[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
    pub fn test_capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self.least_capacity = 1;
        self
    }

    /// Sets whether dropping the stream hangs up: the guest then reads what was written, followed by
    /// end of file. The default is `true`.
    ///
    /// With `false`, the guest does not notice that you dropped the stream. It can go on writing, and
    /// its bytes are discarded. Choose this for an agent that writes to its port in blocking mode.
    /// After a hang-up, a blocking write never returns, because Linux's `virtio_console` waits for a
    /// connected host.
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
    /// agent.write_all(b"still here").await?; // would fail after a hang-up
    /// guest.drained().await; // discarded
    /// # Ok(()) }
    /// ```
    pub fn hang_up_on_drop(mut self, hang_up: bool) -> Self {
        self.hang_up_on_drop = hang_up;
        self
    }

    /// Sets how long a write by the guest may wait for room while you read nothing. By default, it waits as long as it
    /// takes.
    ///
    /// Set it to bound the end of the VM. When the guest powers off, krun joins its TX thread before it runs
    /// any exit observer of yours, such as the port's [exit hook](AgentPort::exit_hook)
    /// (`msb_krun_vmm` 0.1.42, `lib.rs`, `notify_exit_observers`). If that thread waits for room because you keep
    /// the stream without reading it, the join does not return, the hook never runs, and the process does not end.
    ///
    /// Once you have read nothing for this time, the thread stops waiting. You read what is in the stream, and then
    /// [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof). The guest's writes from then on are discarded and
    /// [counted](crate::RingStats::discarded). The limit ends the stream while the VM runs, too. So choose a time that is
    /// longer than you ever pause reading.
    ///
    /// On Windows the stream's runtime needs a timer (`tokio::runtime::Builder::enable_time`).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use std::time::Duration;
    ///
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = Options::new()
    ///     .capacity(32 * 1024)
    ///     .stall_timeout(Duration::from_millis(10))
    ///     .create()?;
    /// let guest = Guest::boot(port);
    /// // More than the stream and the guest's queue hold, and nobody reads.
    /// guest.open()?.write_all(&[7; 2 * 1024 * 1024]).await?;
    /// guest.power_off().await; // without the timeout this would wait for the stream to be read
    ///
    /// let mut received = Vec::new();
    /// let error = stream.read_to_end(&mut received).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    /// assert!(received.len() >= 32 * 1024);
    /// # Ok(()) }
    /// ```
    pub fn stall_timeout(mut self, limit: Duration) -> Self {
        self.stall_timeout = Some(limit);
        self
    }

    /// Sets how long a side with nothing to do keeps looking for work before it sleeps, at most 1 ms.
    /// The default is zero: it sleeps at once.
    ///
    /// A longer time is cut to 1 ms.
    ///
    /// In a virtual machine, waking a thread on another core takes tens of microseconds. A side that
    /// still looks needs no wake. With 20 µs and a core for each side, a round trip of 64 bytes took
    /// 1.1 µs instead of 46 on one machine, and 21 instead of 71 on another. A stream under load gains
    /// nothing.
    ///
    /// The price is CPU time. A thread that runs out of work just after the other side was active spins for
    /// this long. That holds for krun's threads and for the runtime's, whose other tasks wait meanwhile. It
    /// does not spin for a side that is idle, and a thread that has just spun in vain does not spin for
    /// another stream right after.
    ///
    /// Use it where latency matters and each side has its own core. On a shared core, it only delays
    /// the other side: the round trip took 44 µs instead of 2.5, and streams were up to 1.2 times slower.
    ///
    /// The host's side spins in every kind of read, write and wait. krun's side spins before it waits.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// // For constant requests and answers, with a core to spare for them.
    /// let (stream, port) = Options::new().busy_poll(Duration::from_micros(20)).create()?;
    /// # Ok(()) }
    /// ```
    pub fn busy_poll(mut self, spin: Duration) -> Self {
        self.busy_poll = spin.min(MAX_BUSY_POLL);
        self
    }

    /// Sets a word of yours for the stream, such as the VM's name. By default it has none.
    ///
    /// With the feature `tracing`, each event of the stream has it as the field `label`, also the events from krun's
    /// threads, which are in no span of yours. `Debug` shows it for the stream, its halves, its port and its handle.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = Options::new().label("vm-17/agent").create()?;
    /// assert!(format!("{stream:?}").contains("vm-17/agent"));
    /// # Ok(()) }
    /// ```
    pub fn label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the name of the pipe that krun opens, such as `\\.\pipe\my-agent`. Only on Windows.
    ///
    /// By default each pipe has a random name of its own. That is better: a process that knows the name can keep krun
    /// from opening the pipe, though it cannot read from it.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let name = r"\\.\pipe\my-agent"; // from the VM's configuration
    /// let (stream, port) = Options::new().pipe_name(name).create()?;
    /// assert_eq!(port.into_bridge().pipe_name(), name);
    /// # Ok(()) }
    /// ```
    #[cfg(windows)]
    pub fn pipe_name(mut self, name: impl Into<String>) -> Self {
        self.port.pipe_name = Some(name.into());
        self
    }

    /// Creates a stream and the port at its other end.
    ///
    /// # Errors
    ///
    /// - [`Error::Capacity`] if the capacity is too small or too large.
    /// - [`Error::NoRuntime`] outside a tokio runtime, [`Error::NoIoDriver`] inside one that cannot wait for I/O, and
    ///   [`Error::RuntimeGone`] if it is shutting down.
    /// - [`Error::NoTimer`] on Windows, if you set a [`stall_timeout`](Self::stall_timeout) and the runtime has no timer.
    /// - [`Error::PipeInUse`] on Windows, if you chose a pipe name that is already in use.
    /// - [`Error::Os`] if the system refuses a descriptor or a pipe.
    ///
    /// An error leaves nothing behind.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_krun::{Error, Options};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let options = Options::new().capacity(1024 * 1024);
    /// let error = options.create().unwrap_err();
    /// assert!(matches!(error, Error::NoRuntime));
    ///
    /// let runtime = tokio::runtime::Runtime::new()?;
    /// let (stream, port) = runtime.block_on(async { options.create() })?;
    /// # Ok(()) }
    /// ```
    pub fn create(&self) -> Result<(AgentStream, AgentPort), Error> {
        self.create_with(|_| {})
    }

    /// `prepare` comes before anybody uses the rings.
    pub(crate) fn create_with(
        &self,
        prepare: impl FnOnce(&ConsoleSharedState),
    ) -> Result<(AgentStream, AgentPort), Error> {
        self.validate()?;
        if Handle::try_current().is_err() {
            return Err(Error::NoRuntime);
        }
        let shared = Arc::new(ConsoleSharedState::new(self).map_err(Error::Os)?);
        prepare(&shared);
        // tokio has no way to ask for an I/O driver. It panics here without one, and for no other reason.
        panic::catch_unwind(AssertUnwindSafe(|| {
            let stream = AgentStream::register(Arc::clone(&shared));
            Ok((
                stream.map_err(registration_failed)?,
                AgentPort::create(shared, &self.port)?,
            ))
        }))
        .unwrap_or(Err(Error::NoIoDriver))
    }

    /// Creates a stream and its port on `runtime`. Call it from any thread.
    ///
    /// # Errors
    ///
    /// The same as [`create`](Self::create), except [`Error::NoRuntime`].
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
    /// // On the thread that builds the VM, outside the runtime.
    /// let (mut stream, port) = Options::new().create_on(runtime.handle())?;
    /// let request = runtime.spawn(async move { stream.write_all(b"hello").await });
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// # runtime.block_on(agent.read_exact(&mut [0; 5]))?;
    /// runtime.block_on(request)??;
    /// # Ok(()) }
    /// ```
    pub fn create_on(&self, runtime: &Handle) -> Result<(AgentStream, AgentPort), Error> {
        let _entered = runtime.enter();
        self.create()
    }

    fn validate(&self) -> Result<(), Error> {
        if !(self.least_capacity..=Self::MAX_CAPACITY).contains(&self.capacity) {
            return Err(Error::Capacity {
                capacity: self.capacity,
                least: self.least_capacity,
                most: Self::MAX_CAPACITY,
            });
        }
        Ok(())
    }
}

fn registration_failed(error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::Os(error),
        // tokio's only error of its own.
        None => Error::RuntimeGone,
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

//! The port as the program that builds the VM holds it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::shared::ConsoleSharedState;
use crate::stats::Stats;
use crate::sys::{GuestEnd, KrunEnd, PortOptions};

/// The other end of an [`AgentStream`](crate::AgentStream), to be attached to a VM.
///
/// It belongs to the program until it is attached, and to the VM from then on. Dropped before
/// that, or with a VM that was never entered, it ends the stream: reads give the end of the file
/// and writes fail with [`BrokenPipe`](std::io::ErrorKind::BrokenPipe).
///
/// # Signals
///
/// On Unix krun's RX thread waits in `poll(2)` and panics if a signal's handler interrupts it (`msb_krun_devices` 0.1.42,
/// `virtio/console/port_io.rs`): the host's bytes then no longer reach the guest. A signal to the process is
/// given to its main thread as long as that does not block it, so a usual program is safe. One that blocks signals
/// there, or sends them to threads, blocks them (`pthread_sigmask(3)`) also on the thread that builds and enters the
/// VM: krun's threads inherit that.
///
/// # Examples
///
/// ```
/// # use std::io::ErrorKind;
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::AgentStream;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// drop(port); // as when the VM could not be built
///
/// assert_eq!(stream.read(&mut [0; 64]).await?, 0);
/// let error = stream.write_all(b"request").await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::BrokenPipe);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the port ends the stream"]
pub struct AgentPort {
    shared: Arc<ConsoleSharedState>,
    krun_end: KrunEnd,
}

impl AgentPort {
    #[track_caller]
    pub(crate) fn create(
        shared: Arc<ConsoleSharedState>,
        options: &PortOptions,
    ) -> Result<Self, Error> {
        Ok(Self {
            krun_end: KrunEnd::create(&shared, options)?,
            shared,
        })
    }

    pub(crate) fn into_krun_end(self) -> KrunEnd {
        self.krun_end
    }

    /// Adds the port to a VM's console under `name`, which the guest finds in
    /// `/sys/class/virtio-ports/*/name`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use msb_krun::VmBuilder;
    /// use tokio_krun::AgentStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let vm = VmBuilder::new()
    ///     .console(|console| port.attach(console, "agent"))
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "msb_krun")]
    #[cfg_attr(docsrs, doc(cfg(feature = "msb_krun")))]
    pub fn attach(self, console: msb_krun::ConsoleBuilder, name: &str) -> msb_krun::ConsoleBuilder {
        self.attach_with_options(console, name, msb_krun::ConsolePortOptions::new())
    }

    /// The same with options for krun's port, such as how many descriptors the guest may queue.
    ///
    /// krun checks the options when the VM is built.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use msb_krun::{ConsolePortOptions, VmBuilder};
    /// use tokio_krun::AgentStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let options = ConsolePortOptions::new().queue_size(256); // descriptors each way; krun's default is 32
    /// let vm = VmBuilder::new()
    ///     .console(|console| port.attach_with_options(console, "agent", options))
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "msb_krun")]
    #[cfg_attr(docsrs, doc(cfg(feature = "msb_krun")))]
    pub fn attach_with_options(
        self,
        console: msb_krun::ConsoleBuilder,
        name: &str,
        options: msb_krun::ConsolePortOptions,
    ) -> msb_krun::ConsoleBuilder {
        self.krun_end.attach(console, name, options)
    }

    /// A handle to the port that outlives its being attached.
    ///
    /// # Examples
    ///
    /// ```
    /// # use futures::StreamExt;
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # use tokio_util::codec::{FramedRead, LinesCodec};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let handle = port.handle(); // before the VM has the port, and the codec the stream
    /// let guest = Guest::boot(port);
    /// let mut lines = FramedRead::new(stream, LinesCodec::new());
    ///
    /// let mut agent = guest.open()?;
    /// agent.write_all(b"hello\n").await?;
    /// assert_eq!(lines.next().await.unwrap()?, "hello");
    /// assert_eq!(handle.stats().tx.bytes, 6);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn handle(&self) -> PortHandle {
        PortHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// The port's part in the end of the VM, for
    /// [`VmBuilder::on_exit`].
    ///
    /// When the guest powers off, or [`ExitHandle::trigger`] is called, krun runs its exit observers and then ends the process with `_exit`: whatever the
    /// host has not read by then is lost. This observer makes the stream end (reads give what is
    /// left and then the end of the file, writes fail with
    /// [`BrokenPipe`](std::io::ErrorKind::BrokenPipe)), and then holds the VM's last step back
    /// until the stream (or its [reading half](crate::OwnedReadHalf)) is **dropped**, or for `limit`
    /// if it is not. So a host that reads to the
    /// end, handles what it read and then drops its stream misses nothing.
    ///
    /// A VM with several ports has one hook for them all: [`exit_hook_for`](Self::exit_hook_for).
    /// Observers run in the order they were added, on the thread that runs the VM; a host that is
    /// to do more than that before the process ends can wait for it in an observer of its own,
    /// added after this one.
    ///
    /// krun keeps its VM locked while observers run: a call of [`VmControl`] waits
    /// for them. Made on a thread that the stream's task needs, such as a worker of its runtime, it
    /// would hold both up until `limit` is over; `spawn_blocking` is the place for it.
    ///
    /// # What it cannot save
    ///
    /// Bytes that the guest had queued in its device and krun had not yet handed over (with krun's
    /// default queue up to 32 descriptors of 32 KiB). A guest whose last words matter waits for
    /// an answer to them before it powers off.
    ///
    /// [`VmBuilder::on_exit`]: https://docs.rs/msb_krun/0.1/msb_krun/api/builder/struct.VmBuilder.html#method.on_exit
    /// [`ExitHandle::trigger`]: https://docs.rs/msb_krun/0.1/msb_krun/api/exit_handle/struct.ExitHandle.html#method.trigger
    /// [`VmControl`]: https://docs.rs/msb_krun/0.1/msb_krun/api/vm/struct.VmControl.html
    ///
    /// # Examples
    ///
    #[cfg_attr(feature = "msb_krun", doc = "```no_run")]
    #[cfg_attr(not(feature = "msb_krun"), doc = "```ignore")]
    /// use std::time::Duration;
    ///
    /// use msb_krun::VmBuilder;
    /// use tokio_krun::AgentStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let vm = VmBuilder::new()
    ///     .on_exit(port.exit_hook(Duration::from_secs(10)))
    ///     .console(|console| port.attach(console, "agent"))
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    #[must_use = "the hook does nothing until `VmBuilder::on_exit` has it"]
    pub fn exit_hook(&self, limit: Duration) -> impl Fn(i32) + Send + Sync + use<> + 'static {
        exit_hook_for(vec![self.krun_end.guest_end()], limit)
    }

    /// One [exit hook](Self::exit_hook) for several ports of a VM: all their streams end at once,
    /// and `limit` is for all of them together.
    ///
    /// A hook for each would run one after another: the second stream would not end before the
    /// first was dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # use tokio::io::AsyncReadExt;
    /// use tokio_krun::{AgentPort, AgentStream};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut control, control_port) = AgentStream::pair()?;
    /// let (mut logs, logs_port) = AgentStream::pair()?;
    /// let ports = [&control_port, &logs_port];
    /// let hook = AgentPort::exit_hook_for(ports, Duration::from_secs(10));
    ///
    /// // krun's part. With a VM: `.on_exit(hook)`, and both ports attached.
    /// let exit = tokio::task::spawn_blocking(move || hook(0));
    /// assert_eq!(logs.read(&mut [0; 64]).await?, 0);
    /// assert_eq!(control.read(&mut [0; 64]).await?, 0);
    /// drop((control, logs)); // all is read: the VM may end
    /// exit.await?;
    /// # Ok(()) }
    /// ```
    #[must_use = "the hook does nothing until `VmBuilder::on_exit` has it"]
    pub fn exit_hook_for<'a>(
        ports: impl IntoIterator<Item = &'a Self>,
        limit: Duration,
    ) -> impl Fn(i32) + Send + Sync + 'static {
        let ports = ports.into_iter().map(|port| port.krun_end.guest_end());
        exit_hook_for(ports.collect(), limit)
    }
}

fn exit_hook_for(ports: Vec<GuestEnd>, limit: Duration) -> impl Fn(i32) + Send + Sync + 'static {
    move |_exit_code| {
        let began = Instant::now();
        for port in &ports {
            port.guest_end();
        }
        for port in &ports {
            port.wait_until_host_stops_reading(limit.saturating_sub(began.elapsed()));
        }
    }
}

/// Reaches a port after it was attached.
///
/// Handles are cheap to clone and keep nothing of the VM alive.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncWriteExt;
/// # use tokio_krun::{AgentStream, PortHandle};
/// /// A line for a page of metrics.
/// fn metric(vm: &str, port: &PortHandle) -> String {
///     format!("agent_unread_bytes{{vm=\"{vm}\"}} {}", port.stats().rx.queued)
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let handle = port.handle();
/// stream.write_all(b"hello").await?; // the VM has not started yet
/// assert_eq!(metric("web", &handle), "agent_unread_bytes{vm=\"web\"} 5");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct PortHandle {
    shared: Arc<ConsoleSharedState>,
}

impl PortHandle {
    /// Lets the guest's writes through from now on, also one that is waiting in a full ring: to be
    /// called before the VM's devices are stopped by a host that may not be reading.
    ///
    /// krun stops a port by joining the thread that carries the guest's bytes, and does not tell
    /// the port. While that thread waits for room, as the host does not read, the VM therefore neither
    /// ends (also not by [`ExitHandle::trigger`]) nor comes to rest
    /// for a checkpoint. Dropping the stream has the same effect, for good.
    ///
    /// While it is quiesced, what the guest writes is taken up to twice the
    /// [capacity](crate::Options::capacity). What comes from the first byte on that finds no room is
    /// discarded and [counted](crate::RingStats::discarded), also after [`resume`](Self::resume):
    /// the stream reads up to there, and then fails with
    /// [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof). A VM whose vCPUs are paused first has at most what is left in
    /// its queue to write: with krun's default queue of 32 descriptors and the default capacity of
    /// 4 MiB, a Linux guest's bytes all find room, and nothing is lost.
    ///
    /// [`ExitHandle::trigger`]: https://docs.rs/msb_krun/0.1/msb_krun/api/exit_handle/struct.ExitHandle.html#method.trigger
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = Options::new().capacity(32 * 1024).create()?;
    /// let handle = port.handle();
    /// let guest = Guest::boot(port);
    /// // More than there is room for, and nobody reads: krun's thread waits with the rest.
    /// guest.open()?.write_all(&[0; 48 * 1024]).await?;
    ///
    /// handle.quiesce();
    /// guest.stop_workers().await; // without that it would never come to rest
    /// assert_eq!(stream.stats().tx.discarded, 0);
    /// # Ok(()) }
    /// ```
    pub fn quiesce(&self) {
        self.shared.set_quiesced(true);
    }

    /// Ends [`quiesce`](Self::quiesce): the guest's writes wait for room again.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = Options::new().capacity(32 * 1024).create()?;
    /// # let handle = port.handle();
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// # agent.write_all(&[0; 48 * 1024]).await?;
    /// // A checkpoint, of a VM whose host does not read meanwhile.
    /// handle.quiesce();
    /// guest.stop_workers().await;
    /// guest.start_workers()?;
    /// handle.resume();
    /// // All that was on its way is still there.
    /// stream.read_exact(&mut vec![0; 48 * 1024]).await?;
    /// # Ok(()) }
    /// ```
    pub fn resume(&self) {
        self.shared.set_quiesced(false);
    }

    /// What the rings have done so far.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let handle = port.handle();
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// agent.write_all(&[0; 20_000]).await?;
    /// stream.read_exact(&mut [0; 20_000]).await?;
    /// // Is the capacity well chosen?
    /// let tx = handle.stats().tx;
    /// assert_eq!(tx.full, 0); // the agent never had to wait
    /// assert!(tx.high_water <= 20_000); // and was never close to that
    /// # Ok(()) }
    /// ```
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

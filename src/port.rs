//! The port: the end of the stream that you attach to the VM.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use std::{fmt, thread};

use crate::error::Error;
use crate::shared::{ConsoleSharedState, GuestGone};
use crate::stats::Stats;
use crate::sys::{GuestEnd, KrunEnd, PortOptions};

/// The other end of an [`AgentStream`](crate::AgentStream), which you attach to your VM.
///
/// You own the port until you attach it; from then on the VM does. If you drop it before that, or if
/// you drop a VM that was never entered, the stream ends: reads return end of file and writes fail
/// with [`BrokenPipe`](std::io::ErrorKind::BrokenPipe). On Windows, a VM that was never entered does
/// not end the stream, because krun holds no more than the name of a pipe.
///
/// # Signals
///
/// On Unix, krun's RX thread waits in `poll(2)` and panics if a signal handler interrupts it
/// (`msb_krun_devices` 0.1.42, `virtio/console/port_io.rs`). From then on, the host's bytes no longer
/// reach the guest.
///
/// The system delivers a signal for the process to its main thread unless that thread blocks it, so
/// most programs are safe. If yours blocks signals on its main thread, or sends signals to single
/// threads, block them with `pthread_sigmask(3)` on the thread that builds and enters the VM as well.
/// krun's threads inherit that mask.
///
/// # Examples
///
/// ```
/// # use std::io::ErrorKind;
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::AgentStream;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// drop(port); // for example, because the VM failed to build
///
/// assert_eq!(stream.read(&mut [0; 64]).await?, 0);
/// let error = stream.write_all(b"request").await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::BrokenPipe);
/// # Ok(()) }
/// ```
#[must_use = "dropping the port ends the stream"]
pub struct AgentPort {
    shared: Arc<ConsoleSharedState>,
    krun_end: KrunEnd,
}

impl fmt::Debug for AgentPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentPort")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl AgentPort {
    /// The longest name of a port: 4088 bytes, a page of the guest without the 8 bytes that come before the name.
    pub const MAX_NAME_LEN: usize = 4096 - 8;

    pub(crate) fn create(
        shared: Arc<ConsoleSharedState>,
        options: &PortOptions,
    ) -> Result<Self, Error> {
        Ok(Self {
            krun_end: KrunEnd::create(&shared, options)?,
            shared,
        })
    }

    /// Adds the port to the VM's console under `name`.
    ///
    /// The guest finds the name in `/sys/class/virtio-ports/*/name`.
    ///
    /// # Names
    ///
    /// Best is a word of letters, digits, `.`, `-` and `_`, which also suits a guest where udev makes a link
    /// `/dev/virtio-ports/NAME`. Any other character works, too, except a NUL. The limits:
    ///
    /// | a name must be | checked | otherwise |
    /// | --- | --- | --- |
    /// | not empty | yes | krun does not send it, so the guest's port has no name |
    /// | at most [4088 bytes](Self::MAX_NAME_LEN) long | yes | krun overwrites the guest's memory behind the page that Linux has for the name |
    /// | without a NUL | yes | Linux cuts it off there |
    /// | different from all others of the VM | no | [`VirtioPort::open`] opens one of the two ports, and the other's stream waits forever |
    /// | one of at most 15 | no | from the 16th on, the guest's ports have no names, because krun sends no more than fits into the first buffers of the guest's control queue |
    ///
    /// The last two are not checked because krun does not show which other ports the console has. The names `krun-stdin`,
    /// `krun-stdout` and `krun-stderr` are krun's own.
    ///
    /// The sources are `msb_krun_devices` 0.1.42 (`virtio/console/device.rs`: `process_control_rx`, `process_control_tx`;
    /// `event_handler.rs`: `process`) and Linux (`drivers/char/virtio_console.c`: `fill_queue`,
    /// `handle_control_message`). Each row was tried in a VM.
    ///
    /// [`VirtioPort::open`]: https://docs.rs/tokio-krun/latest/tokio_krun/agent/struct.VirtioPort.html#method.open
    ///
    /// # Panics
    ///
    /// If the name is empty, longer than [`MAX_NAME_LEN`](Self::MAX_NAME_LEN), or contains a NUL. Check a name
    /// that you take from outside.
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
    #[track_caller]
    pub fn attach(self, console: msb_krun::ConsoleBuilder, name: &str) -> msb_krun::ConsoleBuilder {
        self.attach_with_options(console, name, msb_krun::ConsolePortOptions::new())
    }

    /// Does the same as [`attach`](Self::attach), with options for krun's port.
    ///
    /// One of them is how many descriptors the guest may queue. krun checks the options when you build
    /// the VM.
    ///
    /// # Panics
    ///
    /// If the guest could not find the port by this name: see [`attach`](Self::attach).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use msb_krun::{ConsolePortOptions, VmBuilder};
    /// use tokio_krun::AgentStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// // Descriptors in each direction; krun's default is 32.
    /// let options = ConsolePortOptions::new().queue_size(256);
    /// let vm = VmBuilder::new()
    ///     .console(|console| port.attach_with_options(console, "agent", options))
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "msb_krun")]
    #[cfg_attr(docsrs, doc(cfg(feature = "msb_krun")))]
    #[track_caller]
    pub fn attach_with_options(
        self,
        console: msb_krun::ConsoleBuilder,
        name: &str,
        options: msb_krun::ConsolePortOptions,
    ) -> msb_krun::ConsoleBuilder {
        assert_name(name);
        self.shared.trace().attached(name);
        self.krun_end.attach(console, name, options)
    }

    /// Returns krun's end alone, for a VM that adds its ports in another way than `attach`, or for a backend of your own
    /// around it. On Linux and macOS.
    ///
    /// Nothing then checks the port's [name](struct.AgentPort.html#method.attach).
    ///
    /// # Examples
    ///
    #[cfg_attr(feature = "msb_krun", doc = "```no_run")]
    #[cfg_attr(not(feature = "msb_krun"), doc = "```ignore")]
    /// use std::{io, os::fd::RawFd};
    ///
    /// use msb_krun::{ConsolePortBackend, VmBuilder};
    /// use tokio_krun::{AgentConsoleBackend, AgentStream};
    ///
    /// /// Notes what the guest sends.
    /// #[derive(Debug)]
    /// struct Noted(AgentConsoleBackend);
    ///
    /// impl ConsolePortBackend for Noted {
    ///     fn write(&self, buf: &[u8]) -> io::Result<usize> {
    ///         self.0.write(buf).inspect(|taken| eprintln!("the guest sends {taken} bytes"))
    ///     }
    ///     // The other methods delegate.
    /// #     fn read(&self, buf: &mut [u8]) -> io::Result<usize> { self.0.read(buf) }
    /// #     fn read_wake_fd(&self) -> RawFd { self.0.read_wake_fd() }
    /// #     fn wait_until_writable(&self) { self.0.wait_until_writable() }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let backend = Box::new(Noted(port.into_backend()));
    /// let vm = VmBuilder::new()
    ///     .console(|console| console.custom("agent", backend))
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    #[cfg(unix)]
    #[must_use = "dropping the backend ends the stream"]
    pub fn into_backend(self) -> crate::AgentConsoleBackend {
        self.krun_end
    }

    /// Returns krun's end alone, for a VM that adds its ports in another way than `attach`. On Windows.
    ///
    /// Nothing then checks the port's [name](struct.AgentPort.html#method.attach).
    ///
    /// # Examples
    ///
    #[cfg_attr(feature = "msb_krun", doc = "```no_run")]
    #[cfg_attr(not(feature = "msb_krun"), doc = "```ignore")]
    /// use msb_krun::VmBuilder;
    /// use tokio_krun::AgentStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let bridge = port.into_bridge();
    /// eprintln!("the agent's pipe is {}", bridge.pipe_name());
    /// let vm = VmBuilder::new()
    ///     .console(|console| console.named_pipe("agent", bridge.into_pipe_name()))
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    #[cfg(windows)]
    #[must_use = "dropping the bridge ends the stream"]
    pub fn into_bridge(self) -> crate::AgentConsolePipeBridge {
        self.krun_end
    }

    /// Returns a handle to the port that you keep after attaching it.
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
    /// let handle = port.handle(); // before the VM takes the port
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
            shared: Arc::downgrade(&self.shared),
            guest_gone: self.shared.guest_gone(),
            last_stats: self.shared.last_stats(),
            capacity: self.shared.capacity(),
        }
    }

    /// Returns this port's exit hook, for [`VmBuilder::on_exit`]: it lets you read the guest's last
    /// bytes before krun ends the process.
    ///
    /// When the guest powers off, or when you call [`ExitHandle::trigger`], krun runs its exit observers
    /// and then ends the process with `_exit`. What you have not read by then is lost. The hook is an
    /// observer that does two things:
    ///
    /// 1. It ends the stream. Reads return what is left and then end of file; writes fail with
    ///    [`BrokenPipe`](std::io::ErrorKind::BrokenPipe).
    /// 2. It keeps the process alive until you **drop** the stream or its [read half](crate::OwnedReadHalf), or
    ///    [close](crate::AgentStream::close) it. It waits for `limit` at most.
    ///
    /// So read to the end, handle what you read, and then drop the stream. If several tasks share it, close
    /// it instead. A stream that you keep makes
    /// the exit take all of `limit`. With the feature `tracing`, an event says which stream is waited for,
    /// and a warning says if it was not dropped in time.
    ///
    /// With a limit of [`Duration::ZERO`] the hook does not wait: it ends the stream, and your tasks have
    /// only the moment until krun ends the process. With [`Duration::MAX`] it waits as long as it takes.
    ///
    /// If your VM has several ports, use one hook for all of them:
    /// [`exit_hook_for`](Self::exit_hook_for).
    ///
    /// Observers run on the thread that runs the VM, in the order in which you add them. If you have
    /// more to do before the process ends, wait for it in a second observer that you add after this one.
    ///
    /// krun keeps its VM locked while observers run, so a call to [`VmControl`] waits for them. On a
    /// thread that the stream's task needs, such as a worker of its runtime, the call would hold up the
    /// task and the hook until `limit` is over. Make such calls in `spawn_blocking`.
    ///
    /// # What the hook cannot save
    ///
    /// Bytes that the guest has queued in its device and that krun has not handed over yet are lost.
    /// With krun's default queue, these are up to 32 descriptors of 32 KiB. If the guest's last words
    /// matter, let it wait for an answer to them before it powers off.
    ///
    /// # What the hook does not bound
    ///
    /// The hook does not by itself bound the end of the VM, because `limit` begins only when krun runs
    /// the hook. krun first joins its TX thread: its console is an exit observer too, and it comes
    /// before yours (`msb_krun_vmm` 0.1.42, `lib.rs`, `notify_exit_observers`; `msb_krun_devices`
    /// 0.1.42, `console/device.rs`, `on_vmm_exit`, and `console/port.rs`, `quiesce`).
    ///
    /// While the ring is full, that thread waits for room. If you keep the stream then and do not read
    /// it, the hook never runs and the process never ends. So go on reading, or set
    /// [`Options::stall_timeout`](crate::Options::stall_timeout), which bounds that wait.
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
    ///
    /// End of file does not mean that the agent has failed. An observer before the hook notes how the VM ended:
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # use tokio::io::AsyncReadExt;
    /// use tokio::sync::watch;
    /// use tokio_krun::AgentStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let (exit, mut exit_code) = watch::channel(None);
    /// let note = move |code| {
    ///     exit.send_replace(Some(code));
    /// };
    /// let hook = port.exit_hook(Duration::from_secs(10));
    ///
    /// // Stands in for krun. With a VM, call `.on_exit(note).on_exit(hook)`.
    /// let observers = tokio::task::spawn_blocking(move || {
    ///     note(0);
    ///     hook(0);
    /// });
    /// let mut last_words = String::new();
    /// stream.read_to_string(&mut last_words).await?; // to end of file
    /// // An error here, instead of a code: the VM was dropped and never ran.
    /// let code = *exit_code.wait_for(Option::is_some).await?;
    /// assert_eq!(code, Some(0)); // powered off, as it should
    /// drop(stream); // all is handled, so krun may end the process
    /// observers.await?;
    /// # Ok(()) }
    /// ```
    #[must_use = "the hook does nothing until `VmBuilder::on_exit` has it"]
    pub fn exit_hook(&self, limit: Duration) -> impl Fn(i32) + Send + Sync + use<> + 'static {
        exit_hook_for(vec![self.krun_end.end_handle()], limit)
    }

    /// Returns one [exit hook](Self::exit_hook) for several ports of your VM.
    ///
    /// All their streams end at once, and share one `limit`. Separate hooks would run one after another,
    /// so the second stream would not end before you dropped or closed the first.
    ///
    /// krun joins the TX threads of all ports before it runs the hook. So one full stream that you do not
    /// read holds up the end of all of them, unless it has a
    /// [`stall_timeout`](crate::Options::stall_timeout).
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
    /// // Stands in for krun. With a VM, call `.on_exit(hook)` and attach both ports.
    /// let exit = tokio::task::spawn_blocking(move || hook(0));
    /// assert_eq!(logs.read(&mut [0; 64]).await?, 0);
    /// assert_eq!(control.read(&mut [0; 64]).await?, 0);
    /// drop((control, logs)); // everything is read, so the VM may end
    /// exit.await?;
    /// # Ok(()) }
    /// ```
    #[must_use = "the hook does nothing until `VmBuilder::on_exit` has it"]
    pub fn exit_hook_for<'a>(
        ports: impl IntoIterator<Item = &'a Self>,
        limit: Duration,
    ) -> impl Fn(i32) + Send + Sync + 'static {
        let ports = ports.into_iter().map(|port| port.krun_end.end_handle());
        exit_hook_for(ports.collect(), limit)
    }
}

/// What [`AgentPort::attach`] checks.
#[cfg(any(test, feature = "msb_krun", feature = "test-util"))]
#[track_caller]
pub(crate) fn assert_name(name: &str) {
    assert!(
        !name.is_empty(),
        "the port's name is empty, and krun sends the guest no empty name"
    );
    assert!(
        name.len() <= AgentPort::MAX_NAME_LEN,
        "the port's name has {} bytes, and the guest takes at most {}",
        name.len(),
        AgentPort::MAX_NAME_LEN
    );
    assert!(
        !name.contains('\0'),
        "the port's name contains a NUL, where the guest would cut it off: {name:?}"
    );
}

fn exit_hook_for(ports: Vec<GuestEnd>, limit: Duration) -> impl Fn(i32) + Send + Sync + 'static {
    move |_exit_code| {
        let began = Instant::now();
        // The rest runs the caller's code, which may take any time. So another thread runs it, once all ports have ended.
        // (If no thread can start, the tasks in `closed()` are not woken, and krun ends the process.)
        let rest: Vec<_> = ports.iter().map(GuestEnd::end).collect();
        let _ = thread::Builder::new().spawn(|| rest.into_iter().for_each(|rest| rest()));
        for port in &ports {
            port.wait_until_host_stops_reading(limit.saturating_sub(began.elapsed()));
        }
    }
}

/// A handle to a port, which you keep after attaching it.
///
/// Use it to [read its counters](Self::stats), and to [let the guest's writes through](Self::quiesce)
/// before the VM's devices stop. Handles are cheap to clone and keep nothing of the VM alive.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncWriteExt;
/// # use tokio_krun::{AgentStream, PortHandle};
/// /// A line for a metrics page.
/// fn metric(port: &PortHandle) -> String {
///     format!("agent_unread_bytes {}", port.stats().rx.queued)
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let handle = port.handle();
/// stream.write_all(b"hello").await?; // the VM has not started yet
/// assert_eq!(metric(&handle), "agent_unread_bytes 5");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PortHandle {
    shared: Weak<ConsoleSharedState>,
    guest_gone: GuestGone,
    /// Set once `shared` is gone.
    last_stats: Arc<OnceLock<Stats>>,
    capacity: usize,
}

impl fmt::Debug for PortHandle {
    /// Takes no lock, because the formatter may run the caller's code.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("PortHandle");
        if let Some(shared) = self.shared.upgrade() {
            shared.trace().fields(&mut f);
        }
        f.field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl PortHandle {
    /// `None` once both ends are gone.
    pub(crate) fn shared(&self) -> Option<Arc<ConsoleSharedState>> {
        self.shared.upgrade()
    }

    /// Stops the guest's writes from waiting for room, including one that already waits in a full ring.
    ///
    /// Call it before krun stops the VM's devices, if you may not be reading at that time. For a checkpoint of a VM, call
    /// [`checkpoint`](Self::checkpoint) instead, which also ends it.
    ///
    /// krun stops a port by joining the thread that carries the guest's bytes, without notice to the
    /// port. If you do not read and that thread waits for room, the VM neither ends nor comes to rest
    /// for a checkpoint. Even [`ExitHandle::trigger`] does not end it. Two more things let the writes
    /// through, both for good: you drop or close the stream, or the
    /// [`stall_timeout`](crate::Options::stall_timeout) passes.
    ///
    /// A quiesced port accepts the guest's bytes up to twice the [capacity](crate::Options::capacity).
    /// From the first byte that finds no room, everything is discarded and
    /// [counted](crate::RingStats::discarded), even after [`resume`](Self::resume). The stream reads up
    /// to that byte and then fails with [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof).
    ///
    /// # Losing nothing
    ///
    /// Only this order is safe:
    ///
    /// | step | with krun | in tests |
    /// | --- | --- | --- |
    /// | 1. pause the vCPUs | [`VmControl::pause`] | `Guest::pause` |
    /// | 2. let the writes through | `quiesce` | `quiesce` |
    /// | 3. stop the devices | the captures of `VmControl` | `Guest::stop_workers` |
    /// | 4. start the devices | `VmControl::resume` | `Guest::start_workers` |
    /// | 5. let the writes wait again | [`resume`](Self::resume) | `resume` |
    /// | 6. resume the vCPUs | `VmControl::resume` | `Guest::resume` |
    ///
    /// `VmControl::resume` takes steps 4 and 6 in one call. So call `resume` right before it, while the
    /// devices are still stopped and nothing is written.
    ///
    /// Once the vCPUs are paused, only the content of the guest's queue is still to come: at most
    /// [`queue_size`] descriptors, of 32 KiB each for Linux. As a quiesced ring holds twice its
    /// capacity, even a full one has room for its capacity once more. So all of it fits if the capacity
    /// is at least `queue_size` times 32 KiB: 1 MiB for krun's default of 32, and 8 MiB for
    /// `queue_size(256)`.
    ///
    /// While the vCPUs run, no capacity is enough: nothing makes the guest's writes wait.
    ///
    /// [`ExitHandle::trigger`]: https://docs.rs/msb_krun/0.1/msb_krun/api/exit_handle/struct.ExitHandle.html#method.trigger
    /// [`VmControl::pause`]: https://docs.rs/msb_krun/0.1/msb_krun/api/vm/struct.VmControl.html#method.pause
    /// [`queue_size`]: struct.AgentPort.html#method.attach_with_options
    ///
    /// # Examples
    ///
    /// A checkpoint of a VM whose host does not read meanwhile:
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = Options::new().capacity(1024 * 1024).create()?;
    /// let handle = port.handle();
    /// let guest = Guest::boot(port);
    /// let mut agent = guest.open()?;
    /// // The ring is full, and nobody reads: krun's thread waits with the rest.
    /// agent.write_all(&[7; 1024 * 1024]).await?;
    /// guest.drained().await;
    /// agent.write_all(&[7; 512 * 1024]).await?;
    ///
    /// guest.pause();
    /// handle.quiesce();
    /// guest.stop_workers().await; // would wait forever without `quiesce`
    /// assert_eq!(stream.stats().tx.discarded, 0);
    ///
    /// guest.start_workers()?;
    /// handle.resume();
    /// guest.resume();
    /// # Ok(()) }
    /// ```
    pub fn quiesce(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.set_quiesced(true);
        }
    }

    /// Ends [`quiesce`](Self::quiesce): the guest's writes wait for room again.
    ///
    /// Call it before the vCPUs run again: see [the order](#losing-nothing). If the ring
    /// holds more than its capacity by then, the guest's next write waits until you have read enough.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = Options::new().capacity(1024 * 1024).create()?;
    /// # let handle = port.handle();
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// # agent.write_all(&[7; 1024 * 1024]).await?;
    /// # guest.drained().await;
    /// # agent.write_all(&[7; 512 * 1024]).await?;
    /// // A checkpoint, while the host does not read.
    /// guest.pause();
    /// handle.quiesce();
    /// guest.stop_workers().await;
    /// // The VM is at rest.
    /// guest.start_workers()?;
    /// handle.resume();
    /// guest.resume();
    /// // Nothing was lost.
    /// stream.read_exact(&mut vec![0; 1536 * 1024]).await?;
    /// # Ok(()) }
    /// ```
    pub fn resume(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.set_quiesced(false);
        }
    }

    /// Closes the stream, whoever owns it: see [`AgentStream::close`](crate::AgentStream::close).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let handle = port.handle();
    /// # let guest = Guest::boot(port);
    /// let reader = tokio::spawn(async move { stream.read(&mut [0; 64]).await });
    /// // For example, at a deadline.
    /// handle.close();
    /// assert_eq!(reader.await??, 0); // end of file
    /// # Ok(()) }
    /// ```
    pub fn close(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.host_end();
        }
    }

    /// Returns how many bytes each direction holds: [`Options::capacity`](crate::Options::capacity).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, Options};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (_stream, port) = AgentStream::pair()?;
    /// assert_eq!(port.handle().capacity(), Options::DEFAULT_CAPACITY);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the counters of both directions.
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
    /// // Is the capacity large enough?
    /// let tx = handle.stats().tx;
    /// assert_eq!(tx.full, 0); // the agent never had to wait
    /// assert!(tx.high_water <= 20_000); // and was never close to it
    /// # Ok(()) }
    /// ```
    pub fn stats(&self) -> Stats {
        match self.shared.upgrade() {
            Some(shared) => shared.stats(),
            // The thread that drops the rings sets it right after.
            None => *self.last_stats.wait(),
        }
    }

    /// Waits until the guest has gone: it has powered off, or its VM or port was dropped.
    ///
    /// The stream may still have bytes to read. Any number of tasks may wait, on any runtime.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let handle = port.handle();
    /// let guest = Guest::boot(port);
    /// let watcher = tokio::spawn(async move { handle.closed().await });
    /// guest.power_off().await;
    /// watcher.await?;
    /// # Ok(()) }
    /// ```
    pub async fn closed(&self) {
        self.guest_gone.clone().wait().await;
    }
}

//! krun's end of the port on Windows: the server of the pipe that krun opens.

mod carrier;
#[cfg(feature = "test-util")]
mod taken;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{PortOptions, pipe};
use crate::error::Error;
use crate::port::AgentPort;
use crate::shared::ConsoleSharedState;
use carrier::Carrier;
#[cfg(feature = "test-util")]
pub(super) use taken::Taken;

/// krun's end of the port: the server of a named pipe, and a task that carries bytes between it and
/// the same rings as the [`AgentStream`](crate::AgentStream).
///
/// Most programs never see it: [`AgentPort::attach`] gives the pipe's name to krun, which opens the pipe
/// when the VM starts, as its client and in this same process. It is public for VMMs that add
/// their ports in another way ([`into_pipe_name`](Self::into_pipe_name)) and for tests that play
/// krun's part.
///
/// The pipe exists from when the stream is created, so krun always finds it. The task runs on the
/// runtime that the stream was created in, which must live as long as the VM: a runtime that shuts
/// down ends the port.
///
/// Dropping the bridge ends the guest's side for good: the stream reads what is in its ring and then the
/// end of the file, its writes fail with [`BrokenPipe`](std::io::ErrorKind::BrokenPipe), and krun
/// finds the pipe closed.
///
/// # Who may connect
///
/// The pipe's name has 128 random bits, unless [`Options::pipe_name`](crate::Options::pipe_name)
/// gives another. It is the first and only instance of that name, takes no client from another
/// machine, and lets in the current user alone. A client that is not this process is turned away,
/// and the bridge waits on for krun.
///
/// # How it waits
///
/// Without a timer, and without looking again and again: for the pipe by tokio's readiness, for the
/// rings by their wakes. While the guest's bytes find no room the pipe is not read, so krun's thread
/// waits in its write once the pipe is full.
///
/// # What is bounded
///
/// The rings, as everywhere. Beside them each direction has the pipe's own buffer of 64 KiB; a read
/// under way, of up to 64 KiB; and a write under way, of up to 64 KiB, whose bytes count against
/// the ring's bound until the pipe has taken them. Not bounded is krun: it reads its end of the pipe into
/// a queue without limit, whether or not the guest reads. So on Windows a guest that does not
/// read does not make the stream's writes wait, and [`drained`](crate::AgentStream::drained) says
/// that krun has, or may have, the bytes, and not that the guest's device has.
///
/// # Ends
///
/// Those of the table at [`AgentStream`](crate::AgentStream#ends), with what follows from krun's side of a
/// pipe (read from `msb_krun_devices` 0.1.42, `virtio/console/port_io.rs`).
///
/// - krun opens the pipe when the VM starts and does not say when the guest opens its port. So
///   [`guest_opened`](crate::AgentStream::guest_opened) is ready when krun has opened the pipe.
/// - A pipe's end is an end for both directions. At a hang-up the bridge first writes what the host
///   had written, then reads what the guest had written until then, and then closes the pipe. (If the
///   stream is full and nobody reads it, it closes only once there is room, or the stream is dropped.)
///   After that the stream reads the end of the file.
/// - krun's thread tries a write that fails again and again, without a pause. A guest that is still
///   writing at the hang-up, before it reads the end of the file, therefore costs a CPU until its VM
///   ends. Where an agent may be writing, let it finish first, or use
///   [`hang_up_on_drop(false)`](crate::Options::hang_up_on_drop): then the pipe stays, and what comes
///   is read, discarded and counted.
/// - What the host writes right before a hang-up may be lost in krun: its thread finds its queue empty,
///   then the last bytes and the pipe's end come in, then it looks whether the pipe has ended, and never
///   comes back for the bytes. Where the last words to a guest matter, let it answer them first.
/// - A guest that sends an empty descriptor, which no driver does, ends its port: to the reader of a
///   pipe this is the end of the file.
/// - krun holds no more than the pipe's name. If the port was attached and the VM then never starts,
///   the stream is not told, and the bridge waits for krun for as long as its runtime lives.
///
/// [`AgentPort::attach`]: struct.AgentPort.html#method.attach
///
/// # Examples
///
/// ```
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::windows::named_pipe::ClientOptions;
/// use tokio_krun::AgentStream;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let bridge = port.into_bridge();
///
/// // krun's part.
/// let mut krun = ClientOptions::new().open(bridge.pipe_name())?;
/// krun.write_all(b"from the guest").await?;
///
/// let mut received = [0; 14];
/// stream.read_exact(&mut received).await?;
/// assert_eq!(&received, b"from the guest");
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the bridge ends the stream"]
pub struct AgentConsolePipeBridge {
    name: String,
    end: GuestEnd,
    /// None once the task is to live on by itself.
    task: Option<AbortHandle>,
    #[cfg(feature = "test-util")]
    taken: Arc<Taken>,
}

impl AgentConsolePipeBridge {
    /// Creates the pipe, and spawns the task on the current runtime.
    #[track_caller]
    pub(crate) fn create(
        shared: &Arc<ConsoleSharedState>,
        options: &PortOptions,
    ) -> Result<Self, Error> {
        let name = match &options.pipe_name {
            Some(name) => name.clone(),
            None => pipe::random_name()?,
        };
        let carrier = Carrier::new(pipe::create(&name)?, Arc::clone(shared));
        #[cfg(feature = "test-util")]
        let taken = carrier.taken();
        let (say, ending) = watch::channel(false);
        Ok(Self {
            name,
            end: GuestEnd {
                shared: Arc::clone(shared),
                ending: Arc::new(say),
            },
            task: Some(tokio::spawn(carrier.run(ending)).abort_handle()),
            #[cfg(feature = "test-util")]
            taken,
        })
    }

    /// The pipe's name, for krun to open.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let bridge = port.into_bridge();
    /// eprintln!("the agent's pipe is {}", bridge.pipe_name());
    /// assert!(bridge.pipe_name().starts_with(r"\\.\pipe\"));
    /// # Ok(()) }
    /// ```
    pub fn pipe_name(&self) -> &str {
        &self.name
    }

    /// Leaves the bridge to itself, for krun to open the pipe of this name: it ends with krun's end of
    /// the pipe, or with the stream's hang-up.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::AgentStream;
    /// use tokio::net::windows::named_pipe::ClientOptions;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let name = port.into_bridge().into_pipe_name();
    ///
    /// // krun's part, of which nothing but the name is known here.
    /// let mut krun = ClientOptions::new().open(&name)?;
    /// krun.write_all(b"last words").await?;
    /// drop(krun);
    ///
    /// let mut received = String::new();
    /// stream.read_to_string(&mut received).await?;
    /// assert_eq!(received, "last words");
    /// # Ok(()) }
    /// ```
    pub fn into_pipe_name(mut self) -> String {
        self.task = None;
        std::mem::take(&mut self.name)
    }

    #[cfg(feature = "msb_krun")]
    pub(crate) fn attach(
        self,
        console: msb_krun::ConsoleBuilder,
        name: &str,
        options: msb_krun::ConsolePortOptions,
    ) -> msb_krun::ConsoleBuilder {
        console.named_pipe_with_options(name, self.into_pipe_name(), options)
    }

    pub(crate) fn guest_end(&self) -> GuestEnd {
        self.end.clone()
    }

    #[cfg(feature = "test-util")]
    pub(super) fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.taken)
    }
}

impl Drop for AgentConsolePipeBridge {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            self.end.shared.guest_end();
            task.abort();
        }
    }
}

/// On Windows.
impl AgentPort {
    /// krun's end alone, for a VM that adds its ports in another way than
    /// [`attach`](#method.attach).
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
    #[must_use = "dropping the bridge ends the stream"]
    pub fn into_bridge(self) -> AgentConsolePipeBridge {
        self.into_krun_end()
    }
}

/// Says that the guest has ended: krun writes no more.
#[derive(Clone, Debug)]
pub(crate) struct GuestEnd {
    shared: Arc<ConsoleSharedState>,
    ending: Arc<watch::Sender<bool>>,
}

impl GuestEnd {
    /// The host reads what is left, here also what is left in the pipe, and then the end.
    pub(crate) fn guest_end(&self) {
        self.shared.guest_stop_reading();
        self.ending.send_replace(true);
    }

    pub(crate) fn wait_until_host_stops_reading(&self, limit: Duration) {
        self.shared.wait_until_host_stops_reading(limit);
    }

    #[cfg(feature = "test-util")]
    pub(super) fn shared(&self) -> &ConsoleSharedState {
        &self.shared
    }
}

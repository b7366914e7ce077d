//! krun's end of the port on Windows: the server of the pipe that krun opens.

mod carrier;

use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fmt, panic};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::pipe;
use crate::error::Error;
use crate::shared::ConsoleSharedState;
#[cfg(feature = "test-util")]
use crate::test_util::Taken;
use carrier::Carrier;

/// The options that only Windows has.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortOptions {
    /// By default a random name.
    pub(crate) pipe_name: Option<String>,
}

/// krun's end of the port: the server of a named pipe, and a task that carries bytes between it and the same rings as the
/// [`AgentStream`](crate::AgentStream).
///
/// Most programs never see it: [`AgentPort::attach`] gives the pipe's name to krun. krun opens the pipe when the VM starts,
/// as its client and in this same process. The bridge is public for VMMs that add their ports in another way
/// ([`into_pipe_name`](Self::into_pipe_name)) and for tests that play krun.
///
/// The pipe exists from the moment the stream is created, so krun finds it. The task runs on the runtime in which
/// the stream was created. That runtime must live as long as the VM: when it shuts down, the port ends.
///
/// Dropping the bridge ends the guest's side for good: the stream reads what is in its ring and then the end of the file,
/// its writes fail with [`BrokenPipe`](std::io::ErrorKind::BrokenPipe), and krun finds the pipe closed.
///
/// # Who may connect
///
/// The pipe's name has 128 random bits, unless [`Options::pipe_name`](crate::Options::pipe_name) sets another. The pipe is
/// the first and only instance of that name, takes no client from another machine, and admits only the current user. The
/// bridge turns away a client that is not this process, and goes on waiting for krun.
///
/// # How it waits
///
/// Without polling: for the pipe by tokio's readiness, for the rings by their wakes. Two waits have a time limit: the quiet
/// time at a hang-up (see below) and [`Options::stall_timeout`](crate::Options::stall_timeout). While the guest's
/// bytes find no room the bridge does not read from the pipe, so krun's thread blocks in its write once the pipe is full.
///
/// # What is bounded
///
/// The rings, as everywhere. In addition each direction has the pipe's own buffer of 64 KiB, a read or write of up to
/// 32 KiB that is under way, and once krun has connected a buffer of 32 KiB for that. krun itself is not bounded: it reads
/// its end of the pipe into a queue without limit, whether or not the guest reads. So on Windows a guest that does not read
/// does not make the stream's writes wait, and [`drained`](crate::AgentStream::drained) means that the bytes are on their
/// way to krun, not that the guest's device has them.
///
/// # Ends
///
/// Those of the table at [`AgentStream`](crate::AgentStream#ends), and what follows from krun's side of a pipe
/// (`msb_krun_devices` 0.1.42, `virtio/console/port_io.rs`):
///
/// - krun opens the pipe when the VM starts and does not report when the guest opens its port. So
///   [`guest_opened`](crate::AgentStream::guest_opened) returns once krun has opened the pipe.
/// - A pipe ends in both directions at once, and krun's thread retries a failed write again and again, without a pause: a
///   pipe that closes while the guest writes would cost a CPU until the VM ends. So at a hang-up the bridge first writes what
///   the host had written, then reads until the guest has written nothing for half a second, and then closes the pipe. If
///   you have dropped the stream, what it reads is discarded and counted. If the stream is full and nobody reads it, the
///   bridge waits until there is room or the stream is dropped. After that the stream reads the end of the file.
/// - A guest that never stops writing puts off its end of file for as long. If it pauses and then writes again at the very
///   moment when the pipe closes, before krun has told it, krun's thread does spin. Where that matters, let the agent finish
///   first, or use [`hang_up_on_drop(false)`](crate::Options::hang_up_on_drop).
/// - What the host writes right before a hang-up may get lost in krun. krun's thread finds its queue empty, then the last
///   bytes and the pipe's end arrive, then the thread looks whether the pipe has ended, and it never comes back for the
///   bytes. Where the last words to a guest matter, let the guest answer them first.
/// - A guest that sends an empty descriptor, which no driver does, ends its port: the reader of a pipe takes it for the end
///   of the file.
/// - krun holds only the pipe's name. If you attach the port and the VM then never starts, the stream does not notice. The
///   bridge waits for krun until you drop the stream; and longer if you have written something, which it keeps for the guest.
///   A stream that you drop without having written takes the pipe with it: krun, which opens the pipe when the VM is built,
///   then finds none.
/// - While the stream is full and you do not read, the bridge does not see that krun's end has closed. So
///   [`closed`](crate::AgentStream::closed) may wait until you read.
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
#[must_use = "dropping the bridge ends the stream"]
pub struct AgentConsolePipeBridge {
    name: String,
    shared: Arc<ConsoleSharedState>,
    /// Tells the task that the guest has ended.
    ending: Arc<watch::Sender<bool>>,
    /// `None` once the task is to live on by itself.
    task: Option<AbortHandle>,
    #[cfg(feature = "test-util")]
    taken: Arc<Taken>,
}

impl fmt::Debug for AgentConsolePipeBridge {
    /// Takes no lock, because the formatter may run the caller's code.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConsolePipeBridge")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl AgentConsolePipeBridge {
    /// Creates the pipe, and spawns the task on the current runtime.
    pub(crate) fn create(
        shared: &Arc<ConsoleSharedState>,
        options: &PortOptions,
    ) -> Result<Self, Error> {
        if shared.stall_timeout().is_some() && !has_timer() {
            return Err(Error::NoTimer);
        }
        let name = match &options.pipe_name {
            Some(name) => name.clone(),
            None => pipe::random_name()?,
        };
        let carrier = Carrier::new(pipe::create(&name)?, Arc::clone(shared));
        #[cfg(feature = "test-util")]
        let taken = carrier.taken();
        let (end, ending) = watch::channel(false);
        Ok(Self {
            name,
            shared: Arc::clone(shared),
            ending: Arc::new(end),
            task: Some(tokio::spawn(carrier.run(ending)).abort_handle()),
            #[cfg(feature = "test-util")]
            taken,
        })
    }

    /// Returns the pipe's name, for krun to open.
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

    /// Returns the pipe's name, and leaves the bridge to itself until krun opens the pipe. It ends with krun's end of the
    /// pipe, or with the stream's hang-up.
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
    /// // krun's part: it knows nothing but the name.
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

    /// What ends the guest's side from elsewhere.
    pub(crate) fn end_handle(&self) -> GuestEnd {
        GuestEnd {
            shared: Arc::downgrade(&self.shared),
            ending: Arc::clone(&self.ending),
        }
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn shared(&self) -> Arc<ConsoleSharedState> {
        Arc::clone(&self.shared)
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.taken)
    }
}

/// Whether the current runtime has a timer. tokio has no way to ask: it panics if not.
fn has_timer() -> bool {
    panic::catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok()
}

impl Drop for AgentConsolePipeBridge {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            let unread = self.shared.guest_end();
            task.abort();
            self.shared.report_guest_end();
            drop(unread);
        }
    }
}

/// Ends the guest's side for the exit hook. It keeps nothing of the port alive.
pub(crate) struct GuestEnd {
    shared: Weak<ConsoleSharedState>,
    ending: Arc<watch::Sender<bool>>,
}

impl GuestEnd {
    /// The host reads what is left, in the pipe too, and then the end. Returns what is left to do, which runs the caller's
    /// code.
    pub(crate) fn end(&self) -> impl FnOnce() + Send + use<> {
        let shared = self.shared.upgrade();
        let end = || {
            self.ending.send_replace(true);
        };
        let unread = shared.as_ref().map(|shared| shared.guest_stop_reading(end));
        move || {
            if let Some(shared) = shared {
                shared.report_exit();
            }
            drop(unread);
        }
    }

    pub(crate) fn wait_until_host_stops_reading(&self, limit: Duration) {
        if let Some(shared) = self.shared.upgrade() {
            shared.wait_until_host_stops_reading(limit);
        }
    }
}

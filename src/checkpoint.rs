//! Checkpoints: capture a stream while its guest is at rest, and go on with it in another process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Error;
use crate::options::Options;
use crate::port::{AgentPort, PortHandle};
use crate::shared::ConsoleSharedState;
use crate::state::StreamState;
use crate::stream::AgentStream;

const NOT_CAPTURED: usize = usize::MAX;

/// A port during a checkpoint: the guest's writes do not wait, so that krun can stop the port.
///
/// Get it from [`PortHandle::checkpoint`], which [quiesces](PortHandle::quiesce) the port. Dropping it is
/// [`resume`](PortHandle::resume), on every way out of your function.
///
/// # Order
///
/// Nothing is lost or doubled if you keep to this order. `docs/checkpoint.md` of this crate has it as a program, with
/// the restore.
///
/// | step | with krun | in tests |
/// | --- | --- | --- |
/// | 1. let your own tasks rest (see below) | | |
/// | 2. pause the vCPUs | `VmControl::pause` | `Guest::pause` |
/// | 3. let the guest's writes through | [`checkpoint`](PortHandle::checkpoint) | the same |
/// | 4. stop the devices | `VmControl::capture_virtio_device_state` | `Guest::stop_workers`, `Guest::capture` |
/// | 5. capture the stream | [`capture`](Self::capture) | the same |
/// | 6. save the rest of the VM | `VmControl::capture_execution_state`, `VmControl::capture_memory` | |
/// | 7. let the guest's writes wait again | [`resume`](Self::resume) | the same |
/// | 8. start devices and vCPUs | `VmControl::resume` | `Guest::start_workers`, `Guest::resume` |
///
/// If step 5 comes too early, one of 5 and 7 fails, and nothing is lost. Throw away what you have captured.
///
/// # What stays yours
///
/// A state has what is between you and the guest, and nothing that you hold. So let your tasks rest before you capture, and
/// save what they hold:
///
/// - What you have read and not handled. [`Framed`](https://docs.rs/tokio-util/0.7/tokio_util/codec/struct.Framed.html) has such
///   bytes in its read buffer, and what it has not sent yet in its write buffer: see `docs/checkpoint.md`.
/// - The rest of a write that waits for room, such as of a `write_all` that you drop. Its beginning is in the state.
/// - [Permits](crate::Permit): reserve again.
///
/// A task that goes on meanwhile does no harm to the stream. But what it does may be in the state or not. The state's
/// [`stats`](StreamState::stats) tell.
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
/// agent.write_all(b"half a frame").await?;
///
/// guest.pause();
/// let checkpoint = handle.checkpoint();
/// guest.stop_workers().await;
/// let state = checkpoint.capture()?;
/// checkpoint.resume()?;
/// guest.start_workers()?;
/// guest.resume();
///
/// let (mut restored, port) = Options::new().restore(&state)?;
/// for stream in [&mut stream, &mut restored] {
///     let mut received = [0; 12];
///     stream.read_exact(&mut received).await?;
///     assert_eq!(&received, b"half a frame");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping it ends the checkpoint: the guest's writes wait for room again"]
pub struct Checkpoint {
    port: PortHandle,
    /// How many workers the port had had when it was last captured, or `NOT_CAPTURED`.
    workers: AtomicUsize,
}

impl Checkpoint {
    /// Copies out what is between host and guest. The stream stays as it is.
    ///
    /// Both directions are captured at one moment. Reads and writes wait for as long as the copy takes.
    ///
    /// # Errors
    ///
    /// Whatever the error, nothing has changed.
    ///
    /// - [`Error::NotAtRest`] if a thread of krun's is still at the port: krun has not stopped its devices. A thread that has
    ///   slept since it started is not noticed before [`resume`](Self::resume).
    /// - [`Error::CutOff`] if bytes of the guest's found no room and were discarded.
    /// - [`Error::GuestGone`] if the guest, its VM or the port has gone.
    /// - [`Error::InPipe`] on Windows, once krun has opened its pipe. krun reads the pipe into a queue of its own (`named_pipe`
    ///   of `msb_krun_devices` 0.1.42, `virtio/console/port_io.rs`), and nobody can tell how much of that the guest has. The
    ///   in-process guest without threads can be captured there too.
    ///
    /// # Examples
    ///
    /// See [`Checkpoint`].
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, Error, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (_stream, port) = AgentStream::pair()?;
    /// # let handle = port.handle();
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// # agent.write_all(b"hello").await?;
    /// guest.pause();
    /// let checkpoint = handle.checkpoint();
    /// assert!(matches!(checkpoint.capture(), Err(Error::NotAtRest)));
    /// guest.stop_workers().await;
    /// let state = checkpoint.capture()?;
    /// # Ok(()) }
    /// ```
    pub fn capture(&self) -> Result<StreamState, Error> {
        let shared = self.port.shared().ok_or(Error::GuestGone)?;
        // First, so that one that comes meanwhile counts as one that came afterwards.
        let workers = shared.workers.so_far();
        let state = shared.capture()?;
        self.workers.store(workers, Ordering::Relaxed);
        Ok(StreamState(state))
    }

    /// Ends the checkpoint: the guest's writes wait for room again.
    ///
    /// Dropping it does the same, but does not tell you that what you have captured is of no use.
    ///
    /// # Errors
    ///
    /// [`Error::NotAtRest`] if a thread of krun's has called since the last [`capture`](Self::capture): krun had not stopped its
    /// devices after all. The stream is as it should be, but the state that you have captured does not fit that of the
    /// devices. Throw both away.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, Error, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (_stream, port) = AgentStream::pair()?;
    /// # let handle = port.handle();
    /// # let guest = Guest::boot(port);
    /// # let _agent = guest.open()?;
    /// # guest.pause();
    /// # guest.stop_workers().await;
    /// let checkpoint = handle.checkpoint();
    /// let state = checkpoint.capture()?;
    /// guest.start_workers()?; // too early
    /// assert!(matches!(checkpoint.resume(), Err(Error::NotAtRest)));
    /// # Ok(()) }
    /// ```
    pub fn resume(self) -> Result<(), Error> {
        let captured = self.workers.load(Ordering::Relaxed);
        let has_new = |shared: Arc<ConsoleSharedState>| {
            let workers = &shared.workers;
            captured != NOT_CAPTURED && workers.so_far() != captured
                || workers.have_come_since_last_capture()
        };
        match self.port.shared().is_some_and(has_new) {
            true => Err(Error::NotAtRest),
            false => Ok(()),
        }
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        if let Some(shared) = self.port.shared() {
            shared.end_checkpoint();
        }
    }
}

/// Checkpoints.
impl PortHandle {
    /// Begins a checkpoint: [quiesces](Self::quiesce) the port until you drop what it returns.
    ///
    /// Call it while the vCPUs are paused, and before krun stops the VM's devices: see [the order](Checkpoint#order). With
    /// several ports, begin with all of them first, as krun stops them together.
    ///
    /// # Examples
    ///
    #[cfg_attr(feature = "msb_krun", doc = "```no_run")]
    #[cfg_attr(not(feature = "msb_krun"), doc = "```ignore")]
    /// use std::io;
    ///
    /// use tokio_krun::{Checkpoint, PortHandle, StreamState};
    ///
    /// /// The streams of all ports. The VM is paused, and resumed afterwards.
    /// fn capture(ports: &[PortHandle], stop_devices: impl FnOnce()) -> io::Result<Vec<StreamState>> {
    ///     let checkpoints: Vec<Checkpoint> = ports.iter().map(PortHandle::checkpoint).collect();
    ///     stop_devices(); // such as `VmControl::capture_virtio_device_state` of the console
    ///     let states = checkpoints.iter().map(Checkpoint::capture);
    ///     Ok(states.collect::<Result<_, _>>()?)
    /// }
    /// ```
    pub fn checkpoint(&self) -> Checkpoint {
        if let Some(shared) = self.shared() {
            shared.begin_checkpoint();
        }
        Checkpoint {
            port: self.clone(),
            workers: AtomicUsize::new(NOT_CAPTURED),
        }
    }
}

impl AgentStream {
    /// Captures the stream and ends it: a checkpoint after which this process does not go on.
    ///
    /// As you own the whole stream, no task of yours can read or write what is not in the state. The stream is then closed as
    /// by [`close`](Self::close). So do not resume the VM: its guest would see that.
    ///
    /// Call it where [the order](crate::Checkpoint#order) has `capture`. Use the state only if [`Checkpoint::resume`] then
    /// succeeds: it tells you if one of krun's threads has called meanwhile, whose bytes are not in the state.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::capture`]. You get the stream back, and nothing has changed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let handle = port.handle();
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// # agent.write_all(b"hello").await?;
    /// guest.pause();
    /// let checkpoint = handle.checkpoint();
    /// guest.stop_workers().await;
    /// let state = stream.into_state().map_err(|(_stream, error)| error)?;
    /// checkpoint.resume()?;
    ///
    /// let (mut stream, port) = Options::new().restore(&state)?;
    /// let mut received = [0; 5];
    /// stream.read_exact(&mut received).await?;
    /// assert_eq!(&received, b"hello");
    /// # Ok(()) }
    /// ```
    pub fn into_state(self) -> Result<StreamState, (Self, Error)> {
        match self.host().capture_last() {
            Ok(state) => Ok(StreamState(state)),
            Err(error) => Err((self, error)),
        }
    }
}

impl Options {
    /// Creates a stream and its port from a captured one: in this process or another, and as often as you like.
    ///
    /// The stream's reader goes on with the very next byte, and the guest receives exactly what it had not. The guest counts as
    /// having opened its port if it had, as krun restarts its threads without another open. What the captured stream had
    /// ended is ended: its writing, its reading, or all of it. A write that the guest had not taken counts for
    /// [`drained`](AgentStream::drained).
    ///
    /// In [`stats`](AgentStream::stats), `bytes` goes on from the captured stream's. The other totals begin anew.
    ///
    /// The capacity may differ from that of the captured stream. The other options are as for [`create`](Self::create).
    ///
    /// # Errors
    ///
    /// - [`Error::StateTooLarge`] if the [capacity](Self::capacity) is too small for the bytes that are there.
    /// - Those of [`create`](Self::create).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// use tokio_krun::Options;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let handle = port.handle();
    /// stream.write_all(b"hello").await?;
    /// let state = handle.checkpoint().capture()?; // the VM has not started yet
    ///
    /// let (stream, port) = Options::new().capacity(state.capacity()).restore(&state)?;
    /// let guest = Guest::boot(port);
    /// let mut received = [0; 5];
    /// guest.open()?.read_exact(&mut received).await?;
    /// assert_eq!(&received, b"hello");
    /// stream.drained().await?;
    /// # Ok(()) }
    /// ```
    pub fn restore(&self, state: &StreamState) -> Result<(AgentStream, AgentPort), Error> {
        let (capacity, needs) = (self.capacity, state.0.least_capacity());
        if capacity < needs {
            return Err(Error::StateTooLarge { needs, capacity });
        }
        self.create_with(|shared| shared.restore(&state.0))
    }
}

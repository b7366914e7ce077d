//! What a checkpoint of the guest saves.

use std::fmt;
use std::io;

use super::virtqueue::Queues;
use super::{Guest, GuestBuilder};

/// A captured in-process guest: what krun saves of its console, and what is in the guest's memory. Get it from
/// [`Guest::capture`].
///
/// Restore it as often as you like, in this process, each time with restored streams.
///
/// # Examples
///
/// A checkpoint with bytes on their way in both directions:
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::test_util::Guest;
/// use tokio_krun::{AgentStream, Options};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let handle = port.handle();
/// let guest = Guest::boot(port);
/// let mut agent = guest.open()?;
/// stream.write_all(b"to the guest").await?;
/// agent.write_all(b"to the host").await?;
///
/// guest.pause();
/// let checkpoint = handle.checkpoint();
/// guest.stop_workers().await;
/// let (guest_state, state) = (guest.capture()?, checkpoint.capture()?);
/// drop((checkpoint, guest, agent, stream)); // as if this process ended
///
/// let (mut stream, port) = Options::new().restore(&state)?;
/// let guest = Guest::builder().port("agent", port).restore(&guest_state).boot();
/// let mut agent = guest.open()?; // the agent has its port open, and does not notice
/// guest.start_workers()?;
/// guest.resume();
/// let (mut to_host, mut to_guest) = ([0; 11], [0; 12]);
/// stream.read_exact(&mut to_host).await?;
/// agent.read_exact(&mut to_guest).await?;
/// assert_eq!((&to_host, &to_guest), (b"to the host", b"to the guest"));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct GuestState(Vec<PortState>);

/// One port and its two virtqueues.
#[derive(Clone)]
pub(super) struct PortState {
    pub(super) name: String,
    /// krun has started its workers once, and starts them again.
    pub(super) has_workers: bool,
    pub(super) queues: Queues,
}

impl fmt::Debug for GuestState {
    /// Without payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.0.iter().map(|port| &port.name);
        f.debug_list().entries(ports).finish()
    }
}

impl GuestState {
    /// As krun does, this refuses other ports than those that the guest had.
    #[track_caller]
    pub(super) fn check_ports(&self, names: &[&str]) {
        assert!(
            self.0.iter().map(|port| &port.name).eq(names),
            "the guest's ports are {names:?}, and those of its state {self:?}"
        );
    }

    /// The ports were checked.
    pub(super) fn port(&self, index: usize) -> &PortState {
        &self.0[index]
    }
}

impl Guest {
    /// Captures the guest's ports with their virtqueues, as `VmControl::capture_virtio_device_state` and
    /// `VmControl::capture_memory` do. The guest stays as it is.
    ///
    /// The agent is not part of it: it is code of your test's. Nor are the streams: see [`Checkpoint`](crate::Checkpoint), also
    /// for the order.
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) unless you have [paused](Self::pause) the guest and
    /// [stopped its workers](Self::stop_workers).
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (_stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let agent = guest.open()?;
    /// guest.pause();
    /// assert_eq!(guest.capture().unwrap_err().kind(), ErrorKind::ResourceBusy);
    /// guest.stop_workers().await;
    /// let state = guest.capture()?;
    /// # Ok(()) }
    /// ```
    pub fn capture(&self) -> io::Result<GuestState> {
        let ports = self.machine.devices().iter().map(|device| device.capture());
        let ports = ports.collect::<Option<_>>().map(GuestState);
        ports.ok_or_else(|| {
            let message = "the guest is not at rest: pause it and stop its workers first";
            io::Error::new(io::ErrorKind::ResourceBusy, message)
        })
    }
}

impl GuestBuilder {
    /// Lets the guest begin with `state`, as `Vm::add_virtio_device_restore` and `Vm::set_memory_restore` do.
    ///
    /// It needs the same ports in the same order. Their streams are those that you have [restored](crate::Options::restore).
    /// [`boot`](Self::boot) panics if they are other ports.
    ///
    /// The guest begins [paused](Guest::pause), as with `Vm::set_start_paused`, and with its workers stopped. A port that the
    /// agent had open is still open: the first [`open`](Guest::open) gives it back to your agent. Then call
    /// [`Guest::start_workers`] and [`Guest::resume`].
    ///
    /// # Examples
    ///
    /// See [`GuestState`].
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, Options, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let handle = port.handle();
    /// # let guest = Guest::boot(port);
    /// # let agent = guest.open()?;
    /// # guest.pause();
    /// # guest.stop_workers().await;
    /// # let (guest_state, state) = (guest.capture()?, handle.checkpoint().capture()?);
    /// let (stream, port) = Options::new().restore(&state)?;
    /// let guest = Guest::builder().port("agent", port).restore(&guest_state).boot();
    /// assert!(stream.has_guest_opened());
    /// # Ok(()) }
    /// ```
    pub fn restore(mut self, state: &GuestState) -> Self {
        self.state = Some(state.clone());
        self
    }
}

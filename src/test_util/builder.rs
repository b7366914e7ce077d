//! What a guest is made of.

use std::fmt;
use std::sync::Arc;

use super::machine::{Device, ExitHook, Machine};
use super::{Guest, GuestState};
use crate::port::{self, AgentPort};

/// As many names fit into the first buffers of the guest's control queue. krun sends no more.
const MAX_PORTS: usize = 15;

/// Builds a [`Guest`] with several ports, with exit hooks, or with krun's threads. Get it from [`Guest::builder`].
///
/// [`on_exit`](Self::on_exit) has the name and the meaning of that of `msb_krun::VmBuilder`.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::test_util::Guest;
/// use tokio_krun::{AgentPort, AgentStream};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut control, control_port) = AgentStream::pair()?;
/// let (mut logs, logs_port) = AgentStream::pair()?;
/// let guest = Guest::builder()
///     .on_exit(AgentPort::exit_hook_for([&control_port, &logs_port], Duration::from_secs(10)))
///     .port("control", control_port)
///     .port("logs", logs_port)
///     .boot();
///
/// guest.open_port("logs")?.write_all(b"started").await?;
/// // As in a VM, this waits until you have dropped both streams.
/// let off = tokio::spawn(guest.power_off());
/// let mut heard = String::new();
/// logs.read_to_string(&mut heard).await?;
/// assert_eq!(heard, "started");
/// assert_eq!(control.read(&mut [0; 8]).await?, 0);
/// drop((control, logs));
/// off.await?;
/// # Ok(()) }
/// ```
#[must_use = "a builder does nothing until `boot` is called"]
pub struct GuestBuilder {
    ports: Vec<(String, AgentPort)>,
    on_exit: Vec<ExitHook>,
    has_threads: bool,
    pub(super) state: Option<GuestState>,
}

impl fmt::Debug for GuestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.ports.iter().map(|(name, _)| name);
        f.debug_struct("GuestBuilder")
            .field("ports", &ports.collect::<Vec<_>>())
            .field("on_exit", &self.on_exit.len())
            .field("threads", &self.has_threads)
            .field("state", &self.state)
            .finish()
    }
}

impl GuestBuilder {
    pub(super) fn new() -> Self {
        Self {
            ports: Vec::new(),
            on_exit: Vec::new(),
            has_threads: false,
            state: None,
        }
    }

    /// Adds a port, as [`AgentPort::attach`] does. [`boot`](Self::boot) checks the name.
    ///
    /// [`AgentPort::attach`]: https://docs.rs/tokio-krun/latest/tokio_krun/struct.AgentPort.html#method.attach
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (control, control_port) = AgentStream::pair()?;
    /// let (logs, logs_port) = AgentStream::pair()?;
    /// let guest = Guest::builder().port("control", control_port).port("logs", logs_port).boot();
    /// let control_agent = guest.open()?; // the first one
    /// let logs_agent = guest.open_port("logs")?;
    /// # Ok(()) }
    /// ```
    pub fn port(mut self, name: impl Into<String>, port: AgentPort) -> Self {
        self.ports.push((name.into(), port));
        self
    }

    /// Adds a hook for [`Guest::power_off`], as `VmBuilder::on_exit` does: for example that of
    /// [`AgentPort::exit_hook`](crate::AgentPort::exit_hook).
    ///
    /// The hooks run in the order in which you add them, after krun's workers have stopped, and with the exit code 0.
    /// Their limits are real time, even while tokio's clock is paused. That clock stands still while a hook runs, so a sleep or
    /// timeout ends only after it. If the hook waits until you drop the stream, drop it without sleeping first.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let guest = Guest::builder()
    ///     .on_exit(port.exit_hook(Duration::from_secs(10)))
    ///     .on_exit(|code| assert_eq!(code, 0))
    ///     .port("agent", port)
    ///     .boot();
    /// let off = tokio::spawn(guest.power_off());
    /// assert_eq!(stream.read(&mut [0; 8]).await?, 0); // the first hook has ended the stream
    /// drop(stream); // and waits for this
    /// off.await?;
    /// # Ok(()) }
    /// ```
    pub fn on_exit(mut self, hook: impl Fn(i32) + Send + 'static) -> Self {
        self.on_exit.push(Box::new(hook));
        self
    }

    /// Sets whether two threads call each port, as krun's do. The default is `false`: see
    /// [the module's documentation](super#threads).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// let guest = Guest::builder().port("agent", port).threads(true).boot();
    /// guest.open()?.write_u8(7).await?;
    /// assert_eq!(stream.read_u8().await?, 7);
    /// # Ok(()) }
    /// ```
    pub fn threads(mut self, threads: bool) -> Self {
        self.has_threads = threads;
        self
    }

    /// Starts the guest.
    ///
    /// Nothing calls a port until the guest opens its end.
    ///
    /// # Panics
    ///
    /// If the agent could not find a port by its name in a VM:
    ///
    /// - [`AgentPort::attach`] would refuse the name. It must not be empty, contain a NUL, or have more than
    ///   [`MAX_NAME_LEN`](AgentPort::MAX_NAME_LEN) bytes.
    /// - Two ports have the same name. krun would let them through, and the agent could open only one of them.
    /// - There are more than 15 ports. From the 16th on, none would have a name.
    ///
    /// Also if the ports are not those of the state that is [restored](Self::restore).
    ///
    /// [`AgentPort::attach`]: https://docs.rs/tokio-krun/latest/tokio_krun/struct.AgentPort.html#method.attach
    ///
    /// # Examples
    ///
    /// See [`port`](Self::port).
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// let guest = Guest::builder().port("agent", port).boot();
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn boot(self) -> Guest {
        let count = self.ports.len();
        assert!(
            count <= MAX_PORTS,
            "the guest has {count} ports, and krun names at most {MAX_PORTS}"
        );
        for (index, (name, _)) in self.ports.iter().enumerate() {
            port::assert_name(name);
            let is_first = self.ports.iter().position(|(other, _)| other == name) == Some(index);
            assert!(is_first, "two ports have the name {name:?}");
        }
        if let Some(state) = &self.state {
            let names: Vec<_> = self.ports.iter().map(|(name, _)| name.as_str()).collect();
            state.check_ports(&names);
        }
        let devices = self
            .ports
            .into_iter()
            .enumerate()
            .map(|(index, (name, port))| {
                let state = self.state.as_ref().map(|state| state.port(index));
                Device::new(name, port, self.has_threads, state)
            });
        let devices = devices.collect();
        Guest {
            machine: Arc::new(Machine::new(devices, self.on_exit)),
        }
    }
}

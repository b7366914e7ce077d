//! How large the rings are, and what dropping the stream means.

use std::sync::Arc;

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
    pub(crate) slots: usize,
    pub(crate) hang_up_on_drop: bool,
    pub(crate) port: PortOptions,
}

impl Options {
    /// The least capacity, in bytes: one descriptor of a Linux guest.
    pub const MIN_CAPACITY: usize = 32 * 1024;
    /// The greatest capacity, in bytes.
    pub const MAX_CAPACITY: usize = 1024 * 1024 * 1024;
    /// The least size of a chunk, in bytes.
    const MIN_CHUNK: usize = 512;
    /// The greatest number of slots.
    pub const MAX_SLOTS: usize = 1024;

    /// The defaults: 1 MiB each way, in 32 slots, hanging up when dropped.
    pub fn new() -> Self {
        Self {
            capacity: 1024 * 1024,
            slots: 32,
            hang_up_on_drop: true,
            port: PortOptions::default(),
        }
    }

    /// How many bytes each direction holds, from [`MIN_CAPACITY`](Self::MIN_CAPACITY) to
    /// [`MAX_CAPACITY`](Self::MAX_CAPACITY). The default is 1 MiB.
    ///
    /// When a direction is full its writer waits. Chunks are allocated when they are first needed,
    /// and kept for the next bytes. Whatever the guest sends, also one byte at a time, a direction's
    /// chunks take at most its capacity and five chunks more; twice the capacity while it is
    /// [quiesced](crate::PortHandle::quiesce). The slots' own memory comes on top, see
    /// [`slots`](Self::slots).
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// Into how many chunks a direction's capacity is cut, from 2 to
    /// [`MAX_SLOTS`](Self::MAX_SLOTS), and at most one for each 512 bytes. The slots of a direction
    /// are allocated at once, about 200 bytes each. The default is 32, which makes a chunk 32 KiB at the default capacity: as much as a Linux guest
    /// sends in one descriptor.
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }

    /// Whether dropping the stream hangs up, so that the guest reads what was written and then the
    /// end of the file. The default is `true`.
    ///
    /// With `false` the guest is told nothing: it may go on writing, which is discarded. That
    /// spares an agent that writes to its port in blocking mode: on this device a hang-up also
    /// blocks the guest's writes, for ever (Linux' `virtio_console` waits for a host that is
    /// connected).
    pub fn hang_up_on_drop(mut self, hang_up: bool) -> Self {
        self.hang_up_on_drop = hang_up;
        self
    }

    /// Makes a stream and the port that is its other end.
    ///
    /// # Errors
    ///
    /// - [`Error::Capacity`] and [`Error::Slots`] if an option is out of its bounds.
    /// - [`Error::NoRuntime`] outside a tokio runtime.
    /// - [`Error::PipeInUse`] on Windows, if the pipe's name was chosen and is taken.
    /// - [`Error::Os`] if the system gives no descriptor or pipe; nothing is left behind.
    ///
    /// # Panics
    ///
    /// If the current runtime has no I/O driver (`tokio::runtime::Builder::enable_io`).
    #[track_caller]
    pub fn create(&self) -> Result<(AgentStream, AgentPort), Error> {
        self.validate()?;
        if Handle::try_current().is_err() {
            return Err(Error::NoRuntime);
        }
        let shared = Arc::new(ConsoleSharedState::new(self.capacity, self.slots)?);
        let stream = AgentStream::register(Arc::clone(&shared), self.hang_up_on_drop)?;
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
        let most = Self::MAX_SLOTS.min(self.capacity / Self::MIN_CHUNK);
        if !(2..=most).contains(&self.slots) {
            return Err(Error::Slots {
                slots: self.slots,
                most,
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

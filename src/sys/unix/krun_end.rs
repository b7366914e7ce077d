//! krun's end as the rest of the crate handles it: the backend.

use std::sync::Arc;

use super::AgentConsoleBackend;
use crate::error::Error;
use crate::port::AgentPort;
use crate::shared::ConsoleSharedState;

pub(crate) type KrunEnd = AgentConsoleBackend;

/// There are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortOptions {}

/// The rings end when the guest does.
pub(crate) type GuestEnd = Arc<ConsoleSharedState>;

/// krun's workers hold the backend.
#[cfg(feature = "test-util")]
pub(crate) type Console = AgentConsoleBackend;

impl AgentConsoleBackend {
    pub(crate) fn create(shared: &Arc<ConsoleSharedState>, _: &PortOptions) -> Result<Self, Error> {
        Ok(Self::new(Arc::clone(shared)))
    }

    pub(crate) fn guest_end(&self) -> GuestEnd {
        Arc::clone(&self.shared)
    }

    #[cfg(feature = "msb_krun")]
    pub(crate) fn attach(
        self,
        console: msb_krun::ConsoleBuilder,
        name: &str,
        options: msb_krun::ConsolePortOptions,
    ) -> msb_krun::ConsoleBuilder {
        console.custom_with_options(name, Box::new(self), options)
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn plug(end: KrunEnd) -> Console {
        end
    }
}

/// On Linux and macOS.
impl AgentPort {
    /// krun's end alone, for a VM that adds its ports in another way than
    /// [`attach`](#method.attach), or for a backend of your own around it.
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
    /// /// The port, with a note of what the guest sends.
    /// #[derive(Debug)]
    /// struct Noted(AgentConsoleBackend);
    ///
    /// impl ConsolePortBackend for Noted {
    ///     fn write(&self, buf: &[u8]) -> io::Result<usize> {
    ///         self.0.write(buf).inspect(|taken| eprintln!("the guest sends {taken} bytes"))
    ///     }
    ///     // The others as they are.
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
    #[must_use = "dropping the backend ends the stream"]
    pub fn into_backend(self) -> AgentConsoleBackend {
        self.into_krun_end()
    }
}

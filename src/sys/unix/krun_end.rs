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
    /// [`attach`](Self::attach), or for a backend of your own around it.
    #[must_use = "dropping the backend ends the stream"]
    pub fn into_backend(self) -> AgentConsoleBackend {
        self.into_krun_end()
    }
}

//! Windows: krun opens a named pipe as its client, in this same process, and tokio carries the bytes
//! between that pipe and the rings.
//!
//! Both sides are tasks, so each of the four signals is a [`TaskWake`].
//!
//! | signal | who waits | for what |
//! | --- | --- | --- |
//! | `TxData`, `RxRoom` | the host's tasks | the guest's bytes, room for the host's |
//! | `TxRoom`, `RxData` | the bridge's task | room for the guest's bytes, the host's bytes |

mod bridge;
#[cfg(feature = "test-util")]
mod client;
#[cfg(feature = "test-util")]
mod console;
mod host_wait;
mod options;
mod pipe;
#[cfg(feature = "test-util")]
mod ring_end;
mod task_wake;
#[cfg(feature = "test-util")]
mod workers;

pub(crate) use bridge::{AgentConsolePipeBridge as KrunEnd, GuestEnd};
#[cfg(feature = "test-util")]
pub(crate) use console::Console;
pub(crate) use host_wait::HostWait;
pub(crate) use options::PortOptions;
use task_wake::TaskWake;
#[cfg(feature = "test-util")]
pub(crate) use workers::Workers;

/// What the crate exports here and nowhere else.
pub(crate) mod exports {
    pub use super::bridge::AgentConsolePipeBridge;
}

/// What the module `guest` exports here and nowhere else.
#[cfg(feature = "test-util")]
pub(crate) mod guest_exports {
    pub use super::ring_end::RingEnd;
}

pub(crate) type TxData = TaskWake;
pub(crate) type TxRoom = TaskWake;
pub(crate) type RxData = TaskWake;
pub(crate) type RxRoom = TaskWake;

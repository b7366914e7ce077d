//! Windows: krun opens a named pipe as its client, in this same process, and a task carries bytes between that pipe and
//! the rings.
//!
//! Both sides are tasks, so each of the four wakes is a [`TaskWake`].
//!
//! | signal | who waits | for what |
//! | --- | --- | --- |
//! | `TxData`, `RxRoom` | the host's tasks | the guest's bytes, room for the host's bytes |
//! | `TxRoom`, `RxData` | the bridge's task | room for the guest's bytes, the host's bytes |

mod bridge;
mod pipe;
mod wake;

use super::TaskWake;
pub use bridge::AgentConsolePipeBridge;
pub(crate) use bridge::{AgentConsolePipeBridge as KrunEnd, GuestEnd, PortOptions};
pub(crate) use wake::HostWait;
#[cfg(feature = "test-util")]
pub(crate) use wake::until;
#[cfg(not(feature = "test-util"))]
use wake::until;

pub(crate) type TxData = TaskWake;
pub(crate) type TxRoom = TaskWake;
pub(crate) type RxData = TaskWake;
pub(crate) type RxRoom = TaskWake;

/// Not asked here: both sides are tasks, most often of the same runtime.
pub(crate) fn current_core() -> u64 {
    0
}

//! Linux and macOS: krun calls a backend of ours from its two worker threads.
//!
//! | signal | who waits | for what |
//! | --- | --- | --- |
//! | `TxData` | the host's tasks | a [`WakePipe`] registered with tokio |
//! | `TxRoom` | krun's TX thread, in `wait_until_writable` | a [`ThreadWake`]: no descriptor is needed |
//! | `RxData` | krun's RX thread, in `poll(2)` | a [`WakePipe`] |
//! | `RxRoom` | the host's tasks | a [`WakePipe`] registered with tokio |

mod backend;
mod host_wait;
mod krun_end;
#[cfg(any(test, feature = "test-util"))]
mod readable;
mod thread_wake;
mod wake_pipe;
#[cfg(feature = "test-util")]
mod workers;

use backend::AgentConsoleBackend;
pub(crate) use host_wait::HostWait;
#[cfg(feature = "test-util")]
pub(crate) use krun_end::Console;
pub(crate) use krun_end::{GuestEnd, KrunEnd, PortOptions};
use thread_wake::ThreadWake;
use wake_pipe::WakePipe;
#[cfg(feature = "test-util")]
pub(crate) use workers::Workers;

/// What the crate exports here and nowhere else.
pub(crate) mod exports {
    pub use super::backend::AgentConsoleBackend;
}

/// What the module `guest` exports here and nowhere else.
#[cfg(feature = "test-util")]
pub(crate) mod guest_exports {}

pub(crate) type TxData = WakePipe;
pub(crate) type TxRoom = ThreadWake;
pub(crate) type RxData = WakePipe;
pub(crate) type RxRoom = WakePipe;

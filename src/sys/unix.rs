//! Linux and macOS: krun calls a backend of ours from its two worker threads.
//!
//! | signal | who waits | on what |
//! | --- | --- | --- |
//! | `TxData` | the host's tasks | a [`WakePipe`] registered with tokio |
//! | `TxRoom` | krun's TX thread, in `wait_until_writable` | a [`ThreadWake`]: no descriptor is needed |
//! | `RxData` | krun's RX thread, in `poll(2)` | a [`WakePipe`] |
//! | `RxRoom` | the host's tasks | a [`WakePipe`] registered with tokio |

mod backend;
mod wake;

pub use backend::AgentConsoleBackend;
pub(crate) use backend::{AgentConsoleBackend as KrunEnd, GuestEnd, PortOptions};
pub(crate) use wake::HostWait;
#[cfg(any(test, feature = "test-util"))]
pub(crate) use wake::WakePipe;
#[cfg(not(any(test, feature = "test-util")))]
use wake::WakePipe;

pub(crate) type TxData = WakePipe;
pub(crate) type TxRoom = wake::ThreadWake;
pub(crate) type RxData = WakePipe;
pub(crate) type RxRoom = WakePipe;

/// The core that the caller runs on.
#[cfg(all(target_os = "linux", not(miri), not(all(test, tokio_krun_loom))))]
pub(crate) fn current_core() -> u64 {
    nix::sched::sched_getcpu().map_or(0, |core| core as u64)
}

/// Always the same, as the system does not say. Models must repeat, and Miri has no cores.
#[cfg(not(all(target_os = "linux", not(miri), not(all(test, tokio_krun_loom)))))]
pub(crate) fn current_core() -> u64 {
    0
}

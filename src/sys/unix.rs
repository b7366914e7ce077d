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
mod thread_wake;
mod wake_pipe;
#[cfg(feature = "test-util")]
mod workers;

pub use backend::AgentConsoleBackend;
pub(crate) use host_wait::HostWait;
use thread_wake::ThreadWake;
use wake_pipe::WakePipe;
#[cfg(feature = "test-util")]
pub(crate) use workers::Workers;

pub(crate) type TxData = WakePipe;
pub(crate) type TxRoom = ThreadWake;
pub(crate) type RxData = WakePipe;
pub(crate) type RxRoom = WakePipe;

//! The platform seam: what the signals are made of, how a task waits for one, and krun's end.
//!
//! Each platform gives the types `TxData`, `TxRoom`, `RxData` and `RxRoom` (each a
//! [`Wake`](crate::shared::Wake)), `HostWait` (a task's wait for one of them), and
//! `AgentConsoleBackend`.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub use unix::*;

#[cfg(not(unix))]
compile_error!("tokio-krun supports Linux and macOS; Windows is planned");

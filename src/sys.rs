//! The platform seam: what each side sleeps on, and krun's end of the port.
//!
//! Each platform provides
//!
//! - `TxData`, `TxRoom`, `RxData` and `RxRoom`: a [`Wake`](crate::shared::Wake) for each signal;
//! - `HostWait`: how a task waits for `TxData` or `RxRoom`;
//! - `KrunEnd`: krun's end of the port, made from `PortOptions`, the options that only this platform has;
//! - `current_core`: where the caller runs, if the system says so;
//! - `GuestEnd`: ends the guest's side for the exit hook.

#[cfg(any(windows, test, feature = "test-util"))]
mod tasks;
#[cfg(any(windows, test, feature = "test-util"))]
pub(crate) use tasks::TaskWake;

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub use unix::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::*;

#[cfg(not(any(unix, windows)))]
compile_error!("tokio-krun supports Linux, macOS and Windows");

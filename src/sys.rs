//! The platform seam: what the signals are made of, how a task waits for one, and krun's end.
//!
//! Each platform gives
//!
//! - the types `TxData`, `TxRoom`, `RxData` and `RxRoom` (each a [`Wake`](crate::shared::Wake)), and
//!   `HostWait` (a task's wait for one of them);
//! - `KrunEnd`, krun's end of the port, made with the `PortOptions` that are the platform's own, and
//!   `GuestEnd`, which ends the guest's side from elsewhere;
//! - `Console` and `Workers`, krun's part for the in-process guest;
//! - `exports` and `guest_exports`, what the crate and its module `guest` show on this platform only.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(crate) use unix::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::*;

#[cfg(not(any(unix, windows)))]
compile_error!("tokio-krun supports Linux, macOS and Windows");

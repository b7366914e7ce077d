//! What the bench programs share: the transports that are compared, the limits they are held
//! against, the work they do, how it is measured, and where their threads run.

#![allow(dead_code)] // each program uses its own part

pub(crate) mod limit;
pub(crate) mod meter;
pub(crate) mod place;
pub(crate) mod transport;
pub(crate) mod vmm;
pub(crate) mod work;

/// Why the benches are for Linux: they pin threads, and drive sockets and eventfds as krun does
/// there.
#[cfg(not(target_os = "linux"))]
compile_error!("the benches run on Linux only");

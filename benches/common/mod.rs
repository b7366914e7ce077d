//! Shared by the bench programs: the transports, the machine's limits, the work, the measuring, and
//! the placement of threads.

#![allow(dead_code)] // each program uses a part of it

pub(crate) mod limit;
pub(crate) mod meter;
pub(crate) mod place;
pub(crate) mod transport;
pub(crate) mod vmm;
pub(crate) mod work;

/// The benches need Linux: they pin threads, and they drive sockets and eventfds as krun does there.
#[cfg(not(target_os = "linux"))]
compile_error!("the benches run on Linux only");

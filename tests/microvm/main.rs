//! See `host.rs`.

#[cfg(target_os = "linux")] // the rig boots VMs there only
#[path = "host.rs"]
mod host;

#[cfg(target_os = "linux")]
use host::main;

#[cfg(not(target_os = "linux"))]
fn main() {}

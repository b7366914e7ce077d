//! The tests are in `host.rs`.

#[cfg(target_os = "linux")] // the rig boots VMs on Linux only
#[path = "host.rs"]
mod host;

#[cfg(target_os = "linux")]
use host::main;

#[cfg(not(target_os = "linux"))]
fn main() {}

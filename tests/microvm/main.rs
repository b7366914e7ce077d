//! See `host.rs`.

#[cfg(unix)] // no VM can start under Wine
#[path = "host.rs"]
mod host;

#[cfg(unix)]
use host::main;

#[cfg(not(unix))]
fn main() {}

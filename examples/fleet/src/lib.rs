//! A service with many VMs. `README.md` says what it shows; this is its order of reading:
//!
//! - [`protocol`]: what an agent is asked, and what it answers, in frames
//! - [`agent`]: the guest's side
//! - [`link`]: one agent as its callers see it: one request at a time, a bounded queue, time limits
//! - [`vm`]: the process of one VM
//! - [`supervisor`]: starts the processes, restarts what dies, shuts down in order
//! - [`table`]: the live table
//! - [`nats`]: the agents as a service on many machines
//! - [`load`], [`measure`]: requests whose counts must add up, and the curves

#![cfg(unix)]

pub mod agent;
pub mod link;
pub mod load;
pub mod measure;
pub mod nats;
pub mod protocol;
pub mod supervisor;
pub mod table;
pub mod vm;

/// For errors that only their words matter of.
pub type Result<T = (), E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

//! A whole relay between clients and the agent, under the loads that a relay meets: see `relay.rs`.
//!
//! The clock stands still, so a limit passes only where a test lets it.

// Miri knows no sockets.
#![cfg(not(miri))]

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod load;
mod relay;
mod rig;
mod turns;

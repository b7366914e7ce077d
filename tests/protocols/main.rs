//! The usual protocols for agents, with their usual libraries, between a host and the in-process guest.

#[path = "../common/mod.rs"]
mod common;

mod cbor;
mod ends;
mod grpc;
mod http;
mod json_lines;
mod mux;
mod tarpc;
#[cfg(target_os = "linux")]
mod tls;
#[cfg(unix)]
mod ttrpc;
mod websocket;

use common::SMALL;
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Options};

/// The host's end, the VM, and the agent's end. The rings are small enough to be full now and then.
fn vm() -> (AgentStream, Guest, VirtioPort) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let guest = Guest::boot(port);
    let agent = guest.open().unwrap();
    (stream, guest, agent)
}

//! The protocols that people run over an agent's channel, with the libraries that they use, between a host
//! and the in-process guest.

#[path = "../common/mod.rs"]
mod common;

mod cbor;
mod grpc;
mod http;
mod json_lines;
mod mux;
mod tarpc;
#[cfg(unix)]
mod ttrpc;

use common::SMALL;
use tokio_krun::guest::{Guest, GuestPort};
use tokio_krun::{AgentStream, Options};

/// A host's end and its agent's, with rings small enough to be full now and then.
fn vm() -> (AgentStream, GuestPort) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    (stream, Guest::boot(port).open().unwrap())
}

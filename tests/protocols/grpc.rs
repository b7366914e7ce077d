//! gRPC with tonic: calls that stream both ways, with the server in the guest or on the host.
//! `tests/microvm/protocols.rs` runs the same service and client in a VM.

mod client;
#[path = "../microvm/agent/src/grpc.rs"]
mod service;

use client::{call_all, connect};
use service::serve;

use crate::common::watchdog;
use crate::vm;

#[tokio::test]
async fn grpc_streams_both_ways_with_server_in_guest() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let server = tokio::spawn(serve(agent));
        call_all(connect(stream).await).await;
        // The client's stream was dropped, which hung up.
        server.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn grpc_streams_both_ways_with_server_on_host() {
    watchdog(async {
        let (stream, guest, agent) = vm();
        let server = tokio::spawn(serve(stream));
        call_all(connect(agent).await).await;
        // The host cannot detect that the agent closed its port, but it does detect that the guest powered off.
        guest.power_off().await;
        server.await.unwrap().unwrap();
    })
    .await;
}

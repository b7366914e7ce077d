//! gRPC with tonic: calls that stream both ways, with the server in the guest and on the host. The same service and
//! client meet in a VM, in `tests/microvm/protocols.rs`.

mod client;
#[path = "../microvm/agent/src/grpc.rs"]
mod service;

use client::{call_all, connect};
use service::serve;

use crate::common::watchdog;
use crate::vm;

#[tokio::test]
async fn grpc_streams_both_ways_to_a_server_in_the_guest() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let server = tokio::spawn(serve(agent));
        call_all(connect(stream).await).await;
        // The client has gone, and hung up.
        server.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn grpc_streams_both_ways_to_a_server_on_the_host() {
    watchdog(async {
        let (stream, guest, agent) = vm();
        let server = tokio::spawn(serve(stream));
        call_all(connect(agent).await).await;
        // The host does not see that the agent has closed its port, but that the guest has gone.
        guest.power_off().await;
        server.await.unwrap().unwrap();
    })
    .await;
}

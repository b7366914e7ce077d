//! gRPC with tonic: calls that stream both ways, with the server in the guest or on the host.
//! `tests/microvm/protocols.rs` runs the same service and client in a VM.

mod client;
#[path = "../microvm/agent/src/grpc.rs"]
mod service;

use client::{call_all, connect};
use service::serve;

use crate::common::watchdog;
use crate::ends::Vm;
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
        // The client was dropped, which says goodbye.
        server.await.unwrap().unwrap();
        guest.power_off().await;
    })
    .await;
}

#[tokio::test]
async fn grpc_server_on_host_ends_only_after_goodbye_of_client() {
    watchdog(async {
        let (stream, mut agent, vm) = Vm::boot();
        let server = tokio::spawn(serve(stream));
        // The agent ends without a word, as if it was killed, when the task ends that carries its bytes.
        let (client, mut carried) = tokio::io::duplex(1024);
        let carrier =
            tokio::spawn(
                async move { tokio::io::copy_bidirectional(&mut agent, &mut carried).await },
            );
        let channel = connect(client).await;
        call_all(channel.clone()).await;
        carrier.abort();
        assert!(vm.makes_wait_forever(&server).await);
        vm.guest.power_off().await;
        server.await.unwrap().unwrap();
        drop(channel);
    })
    .await;
}

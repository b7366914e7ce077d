//! Runs protocols against an agent that uses the crate's `tokio_krun::agent::VirtioPort`
//! (`agent/src/protocols.rs`).

#[path = "../protocols/grpc/client.rs"]
mod client;
#[path = "agent/src/grpc.rs"]
#[expect(dead_code, reason = "only the guest runs the server")]
mod service;

use std::future::poll_fn;

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, SinkExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio_krun::{AgentStream, Options};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode};

use super::pattern::FROM_HOST;
use super::scenarios::{MIB, Scenario, generate};
use super::vm::Vm;

pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("cbor_messages_are_answered", || Box::pin(cbor())),
    ("hang_up_fails_pending_agent_write", || {
        Box::pin(hang_up_on_writer())
    }),
    ("grpc_streams_both_ways", || Box::pin(grpc())),
    ("yamux_carries_64_streams_over_one_port", || Box::pin(mux())),
];

async fn cbor() {
    let (stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot("cbor", port);
    let mut frames = Framed::new(stream, LengthDelimitedCodec::new());
    for count in [0, 1, 10, 1_000, 50_000_i64] {
        let numbers: Vec<i64> = (0..count).map(|number| number * 1_000_003).collect();
        let mut bytes = Vec::new();
        ciborium::into_writer(&numbers, &mut bytes).unwrap();
        frames.send(Bytes::from(bytes)).await.unwrap();
        let frame = frames.next().await.unwrap().unwrap();
        let reply: Vec<i64> = ciborium::from_reader(&frame[..]).unwrap();
        assert_eq!(reply, [count, numbers.iter().sum()]);
    }
    // The agent fails its scenario unless its writes now fail.
    frames.get_mut().hang_up();
    assert!(frames.next().await.is_none());
    drop(frames);
    vm.ended().await;
}

async fn hang_up_on_writer() {
    let (mut stream, port) = Options::new().capacity(64 * 1024).create().unwrap();
    let mut vm = Vm::boot("writer", port);
    stream.read_exact(&mut vec![0; MIB]).await.unwrap();
    // The ring is full and the host does not read, so the agent's write waits or soon will.
    vm.calls.tx_waits.notified().await;
    stream.hang_up();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(
        MIB + rest.len() < 64 * MIB,
        "the agent wrote everything, so the hang-up did not end its write"
    );
    drop(stream);
    vm.ended().await;
}

async fn grpc() {
    let (stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot("grpc", port);
    client::call_all(client::connect(stream).await).await;
    // The client dropped its stream, which ends the agent's server.
    vm.ended().await;
}

async fn mux() {
    const STREAMS: usize = 64;
    let (stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot("mux", port);
    let mut connection = Connection::new(stream.compat(), Config::default(), Mode::Client);
    let mut users = Vec::new();
    for number in 0..STREAMS {
        let stream = poll_fn(|cx| connection.poll_new_outbound(cx))
            .await
            .unwrap();
        users.push(async move {
            let sent = generate(FROM_HOST + number as u64, 10_000 + 500 * number);
            let (mut read, mut write) = futures::AsyncReadExt::split(stream);
            let send = async {
                write.write_all(&sent).await.unwrap();
                write.close().await.unwrap();
            };
            let mut received = Vec::new();
            let (_, read) = futures::join!(send, read.read_to_end(&mut received));
            read.unwrap();
            assert!(received == sent, "stream {number}");
        });
    }
    tokio::select! {
        end = poll_fn(|cx| connection.poll_next_inbound(cx)) => panic!("{:?}", end.map(|end| end.map(drop))),
        _ = futures::future::join_all(users) => {}
    }
    // This ends the agent too.
    poll_fn(|cx| connection.poll_close(cx)).await.unwrap();
    drop(connection);
    vm.ended().await;
}

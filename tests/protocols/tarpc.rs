//! tarpc with JSON, over `serde_transport`.

use std::time::Duration;

use futures::StreamExt;
use tarpc::client::RpcError;
use tarpc::context::{self, Context};
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Json;
use tarpc::tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::common::watchdog;
use crate::ends::Vm;
use crate::vm;

#[tarpc::service]
trait Agent {
    async fn length(text: String) -> usize;
    async fn repeat(text: String, times: usize) -> String;
}

#[derive(Clone)]
struct InGuest;

impl Agent for InGuest {
    async fn length(self, _: Context, text: String) -> usize {
        text.len()
    }

    async fn repeat(self, _: Context, text: String, times: usize) -> String {
        text.repeat(times)
    }
}

fn frames<T: AsyncRead + AsyncWrite>(io: T) -> Framed<T, LengthDelimitedCodec> {
    Framed::new(io, LengthDelimitedCodec::new())
}

#[tokio::test]
async fn concurrent_tarpc_calls_succeed() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let transport = tarpc::serde_transport::new(frames(agent), Json::default());
        let server = tokio::spawn(
            BaseChannel::with_defaults(transport)
                .execute(InGuest.serve())
                .for_each(async |answer| {
                    tokio::spawn(answer);
                }),
        );
        let transport = tarpc::serde_transport::new(frames(stream), Json::default());
        let client = AgentClient::new(tarpc::client::Config::default(), transport).spawn();
        let calls: Vec<_> = (0..50)
            .map(|times| {
                let client = client.clone();
                // tarpc's default deadline is ten seconds, which could fail this test on a slow machine.
                let mut context = context::current();
                context.deadline += Duration::from_secs(3600);
                tokio::spawn(async move {
                    let text = client.repeat(context, "ab".into(), 100 * times).await;
                    let text = text.unwrap();
                    let length = client.length(context, text).await;
                    assert_eq!(length.unwrap(), 200 * times);
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
        // When the client ends, so does the server.
        drop(client);
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn tarpc_server_on_host_waits_forever_after_client_has_ended() {
    watchdog(async {
        let (stream, agent, vm) = Vm::boot();
        let transport = tarpc::serde_transport::new(frames(stream), Json::default());
        let server = BaseChannel::with_defaults(transport).execute(InGuest.serve());
        let server = tokio::spawn(server.for_each(async |answer| answer.await));
        let transport = tarpc::serde_transport::new(frames(agent), Json::default());
        let client = AgentClient::new(tarpc::client::Config::default(), transport).spawn();
        let length = client.length(context::current(), "four".into()).await;
        assert_eq!(length.unwrap(), 4);
        drop(client);
        assert!(vm.makes_wait_forever(&server).await);
        vm.guest.power_off().await;
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn tarpc_call_to_agent_that_has_ended_ends_at_its_deadline() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        drop(agent);
        let transport = tarpc::serde_transport::new(frames(stream), Json::default());
        let client = AgentClient::new(tarpc::client::Config::default(), transport).spawn();
        // The clock goes on at once to the next deadline.
        tokio::time::pause();
        let length = client.length(context::current(), "four".into()).await;
        assert!(
            matches!(length, Err(RpcError::DeadlineExceeded)),
            "{length:?}"
        );
    })
    .await;
}

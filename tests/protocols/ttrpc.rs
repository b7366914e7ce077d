//! ttrpc, the protocol of Kata's agent, whose sockets must be `Sync`.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_krun::AgentStream;
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Client, MethodHandler, Server, Service, TtrpcContext};
use ttrpc::{Request, Response};

use crate::common::{pattern, watchdog};
use crate::ends::Vm;
use crate::vm;

struct Reverse;

#[async_trait]
impl MethodHandler for Reverse {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        response.payload = request.payload.into_iter().rev().collect();
        Ok(response)
    }
}

/// Serves the other end of `io` in the background.
async fn serve<T>(io: T) -> Server
where
    T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static,
{
    let methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> =
        HashMap::from([("Reverse".to_owned(), Box::new(Reverse) as _)]);
    let service = Service {
        methods,
        streams: HashMap::new(),
    };
    let mut server = Server::new()
        .add_listener(Listener::new(
            stream::iter([Ok(io)]).chain(stream::pending()),
        ))
        .register_service(HashMap::from([("agent.Agent".to_owned(), service)]));
    server.start().await.unwrap();
    server
}

#[tokio::test]
async fn concurrent_ttrpc_calls_succeed() {
    fn is_sync<T: Sync>() {}
    is_sync::<AgentStream>();
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let mut server = serve(agent).await;
        let client = Arc::new(Client::new(Socket::new(stream)));
        let calls: Vec<_> = (0..30)
            .map(|call| {
                let client = Arc::clone(&client);
                tokio::spawn(async move {
                    let mut payload = pattern(1_000 * call);
                    let mut request = Request::new();
                    request.service = "agent.Agent".to_owned();
                    request.method = "Reverse".to_owned();
                    request.payload = payload.clone();
                    let response = client.request(request).await.unwrap();
                    payload.reverse();
                    assert!(response.payload == payload, "call {call}");
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
        let unknown = client.request(Request::new()).await.unwrap_err();
        assert!(matches!(unknown, ttrpc::Error::RpcStatus(_)), "{unknown}");
        drop(client);
        server.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn ttrpc_call_to_agent_that_has_ended_waits_forever_without_timeout() {
    watchdog(async {
        let (stream, agent, vm) = Vm::boot();
        drop(agent);
        let client = Client::new(Socket::new(stream));
        let mut limited = Request::new();
        limited.timeout_nano = 1;
        client.request(limited).await.unwrap_err();
        let call = tokio::spawn(async move { client.request(Request::new()).await });
        assert!(vm.makes_wait_forever(&call).await);
        vm.guest.power_off().await;
        call.await.unwrap().unwrap_err();
    })
    .await;
}

#[tokio::test]
async fn ttrpc_server_on_host_keeps_its_stream_after_client_has_ended() {
    watchdog(async {
        let (stream, agent, vm) = Vm::boot();
        let mut server = serve(stream).await;
        let client = Client::new(Socket::new(agent));
        client.request(Request::new()).await.unwrap_err();
        drop(client);
        assert!(!vm.has_host_ended().await);
        server.shutdown().await.unwrap();
        assert!(vm.has_host_ended().await);
    })
    .await;
}

//! Websockets with tokio-tungstenite, with the server in the guest or on the host, and how they end.

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::common::{pattern, watchdog};
use crate::ends::Vm;

/// Sends back every message, until the client has closed the websocket.
async fn echo(io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut socket = accept_async(io).await.unwrap();
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            Message::Close(_) => {}
            message => socket.send(message).await.unwrap(),
        }
    }
}

async fn exchange<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let (mut socket, _) = client_async("ws://agent/", io).await.unwrap();
    for length in [0, 1, 5_000, 100_000] {
        let message = Message::Binary(pattern(length).into());
        socket.send(message.clone()).await.unwrap();
        assert!(
            socket.next().await.unwrap().unwrap() == message,
            "{length} bytes"
        );
    }
    socket
}

#[tokio::test]
async fn client_on_host_waits_forever_for_server_in_guest_to_close_its_port() {
    watchdog(async {
        let (stream, agent, vm) = Vm::boot();
        let agent = tokio::spawn(echo(agent));
        let mut socket = exchange(stream).await;
        socket.close(None).await.unwrap();
        // The server ends by itself.
        agent.await.unwrap();
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
        let end = tokio::spawn(async move { socket.next().await.is_none() });
        assert!(vm.makes_wait_forever(&end).await);
    })
    .await;
}

#[tokio::test]
async fn client_on_host_that_is_closed_by_server_in_guest_waits_forever_too() {
    watchdog(async {
        let (stream, agent, vm) = Vm::boot();
        let agent = tokio::spawn(async move {
            let mut socket = accept_async(agent).await.unwrap();
            socket.close(None).await.unwrap();
            while let Some(message) = socket.next().await {
                message.unwrap();
            }
        });
        let (mut socket, _) = client_async("ws://agent/", stream).await.unwrap();
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
        let end = tokio::spawn(async move { socket.next().await.is_none() });
        agent.await.unwrap();
        assert!(vm.makes_wait_forever(&end).await);
    })
    .await;
}

#[tokio::test]
async fn both_ends_end_by_themselves_if_server_is_on_host() {
    watchdog(async {
        let (stream, agent, _vm) = Vm::boot();
        let host = tokio::spawn(echo(stream));
        let mut socket = exchange(agent).await;
        socket.close(None).await.unwrap();
        while let Some(message) = socket.next().await {
            assert!(matches!(message, Ok(Message::Close(_))));
        }
        host.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn server_on_host_waits_forever_for_client_that_ends_without_close() {
    watchdog(async {
        let (stream, agent, vm) = Vm::boot();
        let host = tokio::spawn(echo(stream));
        drop(exchange(agent).await);
        assert!(vm.makes_wait_forever(&host).await);
    })
    .await;
}

#[tokio::test]
async fn client_in_guest_fails_if_host_ends_without_close() {
    watchdog(async {
        let (stream, agent, _vm) = Vm::boot();
        let host = tokio::spawn(async { drop(accept_async(stream).await.unwrap()) });
        let (mut socket, _) = client_async("ws://host/", agent).await.unwrap();
        let reset = ProtocolError::ResetWithoutClosingHandshake;
        assert!(matches!(socket.next().await, Some(Err(Error::Protocol(error))) if error == reset));
        host.await.unwrap();
    })
    .await;
}

//! 64 yamux streams over one `AgentStream`, through `tokio_util::compat`.

use std::future::poll_fn;

use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode, Stream};

use crate::common::{pattern, watchdog};
use crate::ends::Vm;
use crate::vm;

const STREAMS: usize = 64;

/// Opens the streams, and drives their connection until the other side ends it.
async fn client(
    io: impl AsyncRead + AsyncWrite + Unpin,
    opened: tokio::sync::mpsc::Sender<Stream>,
) {
    let mut connection = Connection::new(io.compat(), Config::default(), Mode::Client);
    for _ in 0..STREAMS {
        let stream = poll_fn(|cx| connection.poll_new_outbound(cx))
            .await
            .unwrap();
        opened.send(stream).await.unwrap();
    }
    drop(opened);
    // This poll drives all streams, and ends when the other side does.
    match poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        None | Some(Err(yamux::ConnectionError::Closed)) => {}
        Some(Ok(_)) => panic!("the other side opened a stream"),
        Some(Err(error)) => panic!("{error}"),
    }
}

/// Sends back the bytes of each stream.
async fn echo(
    io: impl AsyncRead + AsyncWrite + Unpin,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) {
    let mut connection = Connection::new(io.compat(), Config::default(), Mode::Server);
    loop {
        tokio::select! {
            inbound = poll_fn(|cx| connection.poll_next_inbound(cx)) => {
                let stream = inbound.unwrap().unwrap();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    futures::io::copy(&mut read, &mut write).await.unwrap();
                    write.close().await.unwrap();
                });
            }
            _ = &mut stop => break,
        }
    }
    poll_fn(|cx| connection.poll_close(cx)).await.unwrap();
}

#[tokio::test]
async fn sixty_four_yamux_streams_share_one_port() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(echo(agent, stopped));
        let (opened, mut streams) = tokio::sync::mpsc::channel(STREAMS);
        let client = tokio::spawn(client(stream, opened));
        let mut users = Vec::new();
        while let Some(stream) = streams.recv().await {
            let sent = pattern(10_000 + 1_000 * users.len());
            users.push(tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let expected = sent.clone();
                let sender = tokio::spawn(async move {
                    write.write_all(&sent).await.unwrap();
                    write.close().await.unwrap();
                });
                let mut received = Vec::new();
                read.read_to_end(&mut received).await.unwrap();
                assert!(received == expected);
                sender.await.unwrap();
            }));
        }
        assert_eq!(users.len(), STREAMS);
        for user in users {
            user.await.unwrap();
        }
        stop.send(()).unwrap();
        server.await.unwrap();
        client.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn yamux_on_host_ends_only_if_agent_closes_its_connection() {
    watchdog(async {
        for closes in [true, false] {
            let (stream, agent, vm) = Vm::boot();
            let host = tokio::spawn(async {
                let mut host = Connection::new(stream.compat(), Config::default(), Mode::Server);
                poll_fn(|cx| host.poll_next_inbound(cx)).await.is_none()
            });
            let mut agent = Connection::new(agent.compat(), Config::default(), Mode::Client);
            if closes {
                poll_fn(|cx| agent.poll_close(cx)).await.unwrap();
                assert!(host.await.unwrap());
            } else {
                drop(agent);
                assert!(vm.makes_wait_forever(&host).await);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn yamux_in_guest_ends_when_host_drops_its_connection() {
    watchdog(async {
        let (stream, _guest, agent) = vm();
        let mut agent = Connection::new(agent.compat(), Config::default(), Mode::Server);
        drop(Connection::new(
            stream.compat(),
            Config::default(),
            Mode::Client,
        ));
        // It fails if it finds out by a write.
        let inbound = poll_fn(|cx| agent.poll_next_inbound(cx)).await;
        assert!(matches!(inbound, None | Some(Err(_))));
    })
    .await;
}

//! The agent inside the guest: echoes each stream.

use std::future::poll_fn;
use std::io;

use futures::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_krun::test_util::Guest;
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Connection, ConnectionError, Mode, Stream};

/// Returns how many streams ended early, because the client vanished or the relay dropped it.
pub async fn run(guest: Guest) -> io::Result<usize> {
    let port = guest.open()?;
    let mut connection = Connection::new(port.compat(), super::channel::config(), Mode::Server);
    let mut streams = JoinSet::new();
    let mut cut = 0;
    while let Some(stream) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        match stream {
            Ok(stream) => drop(streams.spawn(echo(stream))),
            // The host hung up before the agent had sent everything, such as an answer to a ping.
            Err(ConnectionError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(io::Error::other(error)),
        }
        while let Some(ended) = streams.try_join_next() {
            cut += usize::from(ended?.is_err());
        }
    }
    drop(connection);
    while let Some(ended) = streams.join_next().await {
        cut += usize::from(ended?.is_err());
    }
    guest.power_off().await;
    Ok(cut)
}

async fn echo(stream: Stream) -> io::Result<()> {
    let (mut read, mut write) = stream.split();
    futures::io::copy(&mut read, &mut write).await?;
    write.close().await
}

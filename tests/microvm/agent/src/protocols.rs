//! Protocols on tokio, over the crate's `VirtioPort`.

use std::future::poll_fn;
use std::io;

use ciborium::value::Value;
use futures::{AsyncReadExt, AsyncWriteExt, SinkExt, StreamExt};
use tokio::io::AsyncWriteExt as _;
use tokio_krun::agent::VirtioPort;
use tokio_util::bytes::Bytes;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, ConnectionError, Mode};

use crate::port::AGENT;
use crate::{Log, grpc};

/// Reads arrays of integers in CBOR. Answers each with another array: how many integers there were,
/// and their sum. Ends at end of file, after which a write must fail.
pub async fn cbor() -> io::Result<()> {
    let port = VirtioPort::open(AGENT).await?;
    let mut frames = Framed::new(port, LengthDelimitedCodec::new());
    while let Some(frame) = frames.next().await {
        let numbers: Vec<i64> = ciborium::from_reader(&frame?[..]).map_err(io::Error::other)?;
        let reply = [numbers.len() as i64, numbers.iter().sum()].map(Value::from);
        let mut bytes = Vec::new();
        ciborium::into_writer(&Value::Array(reply.into()), &mut bytes).map_err(io::Error::other)?;
        frames.send(Bytes::from(bytes)).await?;
    }
    // End of file arrives a moment before the hang-up, which ends this loop.
    let mut port = frames.into_inner();
    loop {
        match port.write(b"nobody hears this").await {
            Ok(_) => {}
            Err(error) => return expect_broken_pipe(Err(error)),
        }
    }
}

/// Writes until the host hangs up. The hang-up must also end a write that waits for room.
pub async fn writer(log: &mut Log) -> io::Result<()> {
    let mut port = VirtioPort::open(AGENT).await?;
    let written = port.write_all(&vec![7; 64 * 1024 * 1024]).await;
    log.say(format_args!("the write ended: {written:?}"));
    expect_broken_pipe(written)
}

fn expect_broken_pipe(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other(
            "the write succeeded although the host hung up",
        )),
    }
}

/// Serves gRPC until the host's client is gone.
pub async fn grpc() -> io::Result<()> {
    let port = VirtioPort::open(AGENT).await?;
    grpc::serve(port).await.map_err(io::Error::other)
}

/// Echoes on any number of streams.
pub async fn mux() -> io::Result<()> {
    let port = VirtioPort::open(AGENT).await?;
    let mut connection = Connection::new(port.compat(), Config::default(), Mode::Server);
    while let Some(stream) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        let stream = match stream {
            Ok(stream) => stream,
            // The host hung up before the agent could send, for example, an answer to a ping.
            Err(ConnectionError::Io(e)) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(e) => return Err(io::Error::other(e)),
        };
        tokio::spawn(async move {
            let (mut read, mut write) = AsyncReadExt::split(stream);
            futures::io::copy(&mut read, &mut write).await?;
            write.close().await
        });
    }
    Ok(())
}

//! Independent streams over one channel, with yamux. Each has its own backpressure and its own end. The example prints the
//! lines of three streams as they arrive, mixed.
//!
//! `cargo run --example mux`
//!
//! The example `relay` does the same for clients in other processes.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::time::Duration;

use futures::io::BufReader;
use futures::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, StreamExt, TryStreamExt, stream};
use tokio_krun::AgentStream;
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode, Stream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (stream, port) = AgentStream::pair()?;
    // With a VM: `VmBuilder::console(|console| port.attach(console, "agent"))`.
    let guest = Guest::boot(port);
    let agent = tokio::spawn(agent(guest.open()?));

    let mut connection = Connection::new(stream.compat(), Config::default(), Mode::Client);
    let mut calls = Vec::new();
    for name in ["build", "test", "deploy"] {
        let stream = poll_fn(|cx| connection.poll_new_outbound(cx)).await?;
        calls.push(tokio::spawn(call(stream, name)));
    }
    // Polling the connection moves the bytes of all its streams.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = tokio::spawn(async move {
        tokio::select! {
            // Ready only when the agent hangs up: it opens no streams.
            _ = poll_fn(|cx| connection.poll_next_inbound(cx)) => {}
            _ = &mut stopped => {}
        }
        poll_fn(|cx| connection.poll_close(cx)).await
    });
    for call in calls {
        call.await??;
    }
    drop(stop);
    driver.await??;
    agent.await??;
    Ok(())
}

/// Sends a name and prints each line of the answer when it arrives, to the end of the stream.
async fn call(mut stream: Stream, name: &str) -> io::Result<()> {
    let id = stream.id();
    stream.write_all(name.as_bytes()).await?;
    stream.close().await?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.try_next().await? {
        println!("stream {id}: {line}");
    }
    println!("stream {id} has ended");
    Ok(())
}

/// The agent inside the guest.
async fn agent(port: VirtioPort) -> Result<(), yamux::ConnectionError> {
    let mut connection = Connection::new(port.compat(), Config::default(), Mode::Server);
    stream::poll_fn(|cx| connection.poll_next_inbound(cx))
        .for_each_concurrent(None, async |stream| {
            let answered = match stream {
                Ok(stream) => answer(stream).await,
                Err(error) => Err(io::Error::other(error)),
            };
            if let Err(error) = answered {
                eprintln!("a stream failed: {error}");
            }
        })
        .await;
    Ok(())
}

async fn answer(mut stream: Stream) -> io::Result<()> {
    let mut name = String::new();
    // The peer may send anything, so read no more than this.
    let mut start = AsyncReadExt::take(&mut stream, 100);
    start.read_to_string(&mut name).await?;
    // Stands for work that takes longer for some names.
    let work = Duration::from_millis(10 * name.len() as u64);
    for step in 1..=3 {
        tokio::time::sleep(work).await;
        stream
            .write_all(format!("{name}: step {step}\n").as_bytes())
            .await?;
    }
    stream.close().await
}

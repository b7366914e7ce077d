//! An agent that echoes, and clients that check it.

use std::fmt::Write;
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;

use futures::AsyncWriteExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_krun::test_util::Guest;
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Connection, ConnectionError, Mode};

use super::{Result, channel, local};

const CLIENTS: usize = 24;
/// In bytes, of a message.
const LONGEST: usize = 20_000;

/// Echoes each stream until the relay closes the channel.
pub async fn agent(guest: Guest) -> io::Result<()> {
    let mut connection = Connection::new(guest.open()?.compat(), channel::config(), Mode::Server);
    let mut streams = JoinSet::new();
    while let Some(stream) = poll_fn(|cx| connection.poll_next_inbound(cx)).await {
        match stream {
            Ok(stream) => drop(streams.spawn(async {
                let (read, mut write) = futures::AsyncReadExt::split(stream);
                futures::io::copy(read, &mut write).await?;
                write.close().await
            })),
            // The host hung up before the agent had sent everything, such as an answer to a ping.
            Err(ConnectionError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(io::Error::other(error)),
        }
        while streams.try_join_next().is_some() {} // a stream whose client vanished fails
    }
    Ok(())
}

/// Runs all clients at once. Returns a table of what they did.
pub async fn clients(address: PathBuf, rounds: usize) -> Result<String> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} round trips")?;
    let bar = ProgressBar::new((CLIENTS * rounds) as u64).with_style(style);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(talk(client, rounds, address.clone(), bar.clone()));
    }
    let mut bytes = 0;
    while let Some(client) = clients.join_next().await {
        bytes += client??;
    }
    let took = bar.elapsed();
    bar.finish_and_clear();

    let mut table = String::new();
    writeln!(table, "{:24}{:>12}", "clients at once", CLIENTS)?;
    writeln!(table, "{:24}{:>12}", "round trips of each", rounds)?;
    writeln!(
        table,
        "{:24}{:>8.1} MiB",
        "echoed and checked",
        bytes as f64 / 1024.0 / 1024.0
    )?;
    writeln!(table, "{:24}{:>10.2} s", "took", took.as_secs_f64())?;
    Ok(table)
}

/// Sends messages of different lengths and checks each echo. Returns how many bytes that were.
async fn talk(
    client: usize,
    rounds: usize,
    address: PathBuf,
    bar: ProgressBar,
) -> io::Result<usize> {
    let (mut read, mut write) = tokio::io::split(local::connect(&address).await?);
    let mut bytes = 0;
    for round in 0..rounds {
        let length = (client * 7919 + round * 104_729) % LONGEST;
        // The period is a prime, so lost or swapped parts show.
        let sent: Vec<u8> = (0..length)
            .map(|at| ((at + client + round) % 251) as u8)
            .collect();
        let mut received = vec![0; length];
        tokio::try_join!(write.write_all(&sent), read.read_exact(&mut received))?;
        if received != sent {
            return Err(io::Error::other("the echo differs"));
        }
        bytes += length;
        bar.inc(1);
    }
    if local::HALF_CLOSES {
        write.shutdown().await?;
        if read.read(&mut [0]).await? != 0 {
            return Err(io::Error::other("more came back than was sent"));
        }
    }
    Ok(bytes)
}

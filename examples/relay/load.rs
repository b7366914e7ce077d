//! Clients that all talk at once, and check what they get.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::{CLIENTS, local};

const LONGEST: usize = 20_000;

/// Says how the clients fared; an error if one got something else than it sent, or was starved.
pub async fn run(
    address: local::Address,
    rounds: usize,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let done: Arc<[AtomicUsize]> = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(talk(client, rounds, address.clone(), Arc::clone(&done)));
    }
    // When the first is done, how far is the last?
    let first = clients.join_next().await.ok_or("no clients")??;
    let mut bytes = first?;
    let last = done.iter().map(|done| done.load(Ordering::Relaxed)).min();
    let last = last.unwrap_or_default();
    while let Some(sent) = clients.join_next().await {
        bytes += sent??;
    }
    if last < rounds / 4 {
        return Err(format!("starved: {last} of {rounds} rounds when another was done").into());
    }
    Ok(format!(
        "{CLIENTS} clients, {rounds} rounds each, {bytes} bytes there and back; when the first was done, the last \
         had done {last}"
    ))
}

/// Sends, and reads the same; each round another length.
async fn talk(
    client: usize,
    rounds: usize,
    address: local::Address,
    done: Arc<[AtomicUsize]>,
) -> io::Result<usize> {
    let (mut read, mut write) = tokio::io::split(local::connect(&address).await?);
    let mut bytes = 0;
    for round in 0..rounds {
        let length = (client * 7919 + round * 104_729) % LONGEST;
        let sent: Vec<u8> = (0..length)
            .map(|at| (at * 31 + client + round) as u8)
            .collect();
        let mut received = vec![0; length];
        tokio::try_join!(write.write_all(&sent), read.read_exact(&mut received))?;
        if received != sent {
            return Err(io::Error::other(format!(
                "client {client}, round {round}: not what was sent"
            )));
        }
        bytes += length;
        done[client].fetch_add(1, Ordering::Relaxed);
    }
    if local::HALF_CLOSES {
        write.shutdown().await?;
        if read.read(&mut [0]).await? != 0 {
            return Err(io::Error::other("something after the end"));
        }
    }
    Ok(bytes)
}

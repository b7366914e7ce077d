//! The load: clients that all talk at once and check every byte, and others that behave badly.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Result, channel, local};

/// The talking clients start once all of these are dropped.
type Ready = mpsc::Sender<()>;

const STALLING: usize = 4;
const TALKING: usize = 140;
/// One in this many talking clients vanishes.
const VANISHING: usize = 10;

/// In bytes, of a message.
const MAX_LENGTH: usize = 20_000;
const WINDOW: usize = yamux::DEFAULT_CREDIT as usize;

/// Returns a report. Fails if a client receives other bytes than it sent, or is starved.
pub async fn run(address: PathBuf, rounds: usize, stop: oneshot::Sender<()>) -> Result<String> {
    // Clients are starved if none finishes within this time. The limit is no measure of speed.
    let patience = Duration::from_secs(60 + rounds as u64);
    // These clients connect before the others and stay connected.
    let (ready, mut all_ready) = mpsc::channel(1);
    let mut staying = JoinSet::new();
    for client in 0..STALLING {
        staying.spawn(stall(client, address.clone(), ready.clone()));
    }
    staying.spawn(idle(address.clone(), ready));
    timeout(patience, all_ready.recv()).await?;

    let done: Arc<[AtomicUsize]> = (0..TALKING).map(|_| AtomicUsize::new(0)).collect();
    let mut clients = JoinSet::new();
    for client in 0..TALKING {
        clients.spawn(talk(client, rounds, address.clone(), Arc::clone(&done)));
    }
    let (mut bytes, mut slowest) = (0, None);
    while let Some(client) = timeout(patience, clients.join_next()).await? {
        bytes += client??;
        // When the fastest client is done, how far is the slowest? Clients that still wait in the
        // backlog have done no round and do not count.
        let done = done.iter().map(|done| done.load(Ordering::Relaxed));
        if slowest.is_none() && done.clone().max() == Some(rounds) {
            let served = done.filter(|&done| done > 0);
            slowest = served.clone().min();
            // The relay accepted this many at once. In 100 rounds of one client, each has had a turn.
            if rounds >= 100 && served.count() < channel::CLIENTS - STALLING - 1 {
                return Err("a client is starved".into());
            }
        }
    }
    if staying.try_join_next().is_some() {
        return Err("the relay closed a stalled or idle connection".into());
    }

    drop(stop);
    let mut full = None;
    while local::ENDS_WRITES
        && let Some(sent) = timeout(patience, staying.join_next()).await?
    {
        full = full.max(Some(sent??));
    }
    Ok(format!(
        "clients that talk: {TALKING}, {rounds} rounds each; one in {VANISHING} vanishes\n\
         bytes echoed: {bytes}\n\
         rounds of the slowest client when the fastest was done: {}\n\
         clients that never read: {STALLING}; each could write at most {} bytes",
        slowest.unwrap_or(0),
        full.map_or("(not known)".into(), |full| full.to_string()),
    ))
}

fn message(seed: usize, from: usize, length: usize) -> Vec<u8> {
    // The period is a prime, so lost or swapped parts show.
    let bytes = (from..from + length).map(|at| ((at + seed) % 251) as u8);
    bytes.collect()
}

fn check(client: usize, ok: bool) -> io::Result<()> {
    let error = || io::Error::other(format!("client {client} received other bytes than it sent"));
    ok.then_some(()).ok_or_else(error)
}

/// Sends messages of different lengths and checks each echo. A client that vanishes does so halfway,
/// while an echo is on its way.
async fn talk(
    client: usize,
    rounds: usize,
    address: PathBuf,
    done: Arc<[AtomicUsize]>,
) -> io::Result<usize> {
    let (mut read, mut write) = tokio::io::split(local::connect(&address).await?);
    let mut bytes = 0;
    for round in 0..rounds {
        if client % VANISHING == 1 && round == rounds / 2 {
            write.write_all(&message(client, 0, WINDOW)).await?;
            return Ok(bytes);
        }
        let length = (client * 7919 + round * 104_729) % MAX_LENGTH;
        let sent = message(client + round, 0, length);
        let mut received = vec![0; length];
        tokio::try_join!(write.write_all(&sent), read.read_exact(&mut received))?;
        check(client, received == sent)?;
        bytes += length;
        done[client].fetch_add(1, Ordering::Relaxed);
    }
    if local::HALF_CLOSES {
        write.shutdown().await?;
        check(client, read.read(&mut [0]).await? == 0)?;
    }
    Ok(bytes)
}

/// Writes without reading until the relay closes the connection. Returns how much it could write.
async fn stall(client: usize, address: PathBuf, ready: Ready) -> io::Result<usize> {
    let mut stream = local::connect(&address).await?;
    // This much always fits on the way, whatever the system's own buffers hold.
    stream.write_all(&message(client, 0, WINDOW)).await?;
    drop(ready);
    let mut sent = WINDOW;
    while let Ok(more) = stream.write(&message(client, sent, MAX_LENGTH)).await {
        sent += more;
        if sent > 16 * WINDOW {
            return Err(io::Error::other(
                "unread bytes are buffered without a bound",
            ));
        }
    }
    // Reads what arrived before the end. The end may be an error.
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received).await;
    check(client, received == message(client, 0, received.len()))?;
    Ok(sent)
}

/// Sends nothing, and waits until the relay closes the connection.
async fn idle(address: PathBuf, ready: Ready) -> io::Result<usize> {
    let mut stream = local::connect(&address).await?;
    drop(ready);
    // The end may be an error.
    let read = stream.read(&mut [0]).await.unwrap_or(0);
    check(0, read == 0).map(|()| 0)
}

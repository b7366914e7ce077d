//! Clients that all talk at once, and check what they get, among others that behave badly.

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

/// The others begin when the last of these is dropped.
type Begin = mpsc::Sender<()>;

const STALLING: usize = 4;
const TALKING: usize = 140;
/// One in so many of those that talk vanishes.
const VANISHING: usize = 10;

const LONGEST: usize = 20_000;
const WINDOW: usize = yamux::DEFAULT_CREDIT as usize;

/// Says how the clients fared; an error if one got something else than it sent, or was starved.
pub async fn run(address: PathBuf, rounds: usize, stop: oneshot::Sender<()>) -> Result<String> {
    // If in this time none has come to its end, they are starved. It says nothing about how fast they are.
    let patience = Duration::from_secs(60 + rounds as u64);
    // These are there before the others, and all the time.
    let (begin, mut begun) = mpsc::channel(1);
    let mut held = JoinSet::new();
    for client in 0..STALLING {
        held.spawn(stall(client, address.clone(), begin.clone()));
    }
    held.spawn(idle(address.clone(), begin));
    timeout(patience, begun.recv()).await?;

    let done: Arc<[AtomicUsize]> = (0..TALKING).map(|_| AtomicUsize::new(0)).collect();
    let mut clients = JoinSet::new();
    for client in 0..TALKING {
        clients.spawn(talk(client, rounds, address.clone(), Arc::clone(&done)));
    }
    let (mut bytes, mut last) = (0, None);
    while let Some(client) = timeout(patience, clients.join_next()).await? {
        bytes += client??;
        // When the first is done, how far is the last? Those that wait to be accepted have done none.
        let done = done.iter().map(|done| done.load(Ordering::Relaxed));
        if last.is_none() && done.clone().max() == Some(rounds) {
            let served = done.filter(|&done| done > 0);
            last = served.clone().min();
            // So many were let in at once, and each has its turn long before another one has had so many.
            if rounds >= 100 && served.count() < channel::CLIENTS - STALLING - 1 {
                return Err("a client is starved".into());
            }
        }
    }
    if held.try_join_next().is_some() {
        return Err("a client that was to stay has ended".into());
    }

    drop(stop);
    let mut full = None;
    while local::ENDS_WRITES
        && let Some(sent) = timeout(patience, held.join_next()).await?
    {
        full = full.max(Some(sent??));
    }
    Ok(format!(
        "{TALKING} clients, {rounds} rounds, {bytes} bytes there and back; when the first was done, the last had done \
         {}; one in {VANISHING} vanished; {STALLING} more never read, and could write {} bytes at most",
        last.unwrap_or(0),
        full.map_or("(not known)".into(), |full| full.to_string()),
    ))
}

fn message(seed: usize, from: usize, length: usize) -> Vec<u8> {
    // A prime, so that parts that are lost or change places are noticed.
    let bytes = (from..from + length).map(|at| ((at + seed) % 251) as u8);
    bytes.collect()
}

fn check(client: usize, ok: bool) -> io::Result<()> {
    let error = || io::Error::other(format!("client {client}: not what was sent"));
    ok.then_some(()).ok_or_else(error)
}

/// Sends, and reads the same; each round another length. One that vanishes goes in the middle, its answer on the way.
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
        let length = (client * 7919 + round * 104_729) % LONGEST;
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

/// Writes and never reads, until the relay ends it. Says how much it could write.
async fn stall(client: usize, address: PathBuf, begin: Begin) -> io::Result<usize> {
    let mut stream = local::connect(&address).await?;
    // That much there is room for on the way, whatever the system's own buffers are.
    stream.write_all(&message(client, 0, WINDOW)).await?;
    drop(begin);
    let mut sent = WINDOW;
    while let Ok(more) = stream.write(&message(client, sent, LONGEST)).await {
        sent += more;
        if sent > 16 * WINDOW {
            return Err(io::Error::other("it is kept somewhere, without a bound"));
        }
    }
    // What had come until then; it may end with an error.
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received).await;
    check(client, received == message(client, 0, received.len()))?;
    Ok(sent)
}

/// Is content with its connection, until the relay ends it.
async fn idle(address: PathBuf, begin: Begin) -> io::Result<usize> {
    let mut stream = local::connect(&address).await?;
    drop(begin);
    // The end may be an error.
    let read = stream.read(&mut [0]).await.unwrap_or(0);
    check(0, read == 0).map(|()| 0)
}

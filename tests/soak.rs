//! Random operations of hosts and guests at the same time, on several streams, each byte checked where it
//! comes out. `tests/model.rs` knows each outcome but has one thread; here krun's threads, the hosts'
//! tasks and the pauses of the VM meet as they happen to.
//!
//! `SOAK_OPERATIONS` is how many there are in all, `SOAK_SEED` repeats the choices of a run (not how the
//! threads meet).

mod common;

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use common::{SMALL, cancelled_at, deadline_unless_it_moves, many};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_krun::test_util::{Guest, GuestPort};
use tokio_krun::{Chunks, Options, OwnedReadHalf, OwnedWriteHalf};

/// The longest read or write.
const LONGEST: usize = 3 * SMALL;

/// What both directions carry: bytes known by their position.
struct Source {
    /// A period, and the beginning of the next.
    bytes: Vec<u8>,
}

impl Source {
    /// Shares no factor with any chunk's or descriptor's size.
    const PERIOD: usize = 65_521;

    fn new() -> Self {
        let period = common::pattern(Self::PERIOD);
        let bytes = period.iter().cycle().take(Self::PERIOD + LONGEST);
        Self {
            bytes: bytes.copied().collect(),
        }
    }

    fn at(&self, position: u64, length: usize) -> &[u8] {
        &self.bytes[(position % Self::PERIOD as u64) as usize..][..length]
    }
}

/// How far one end of a direction is.
struct Place {
    source: Arc<Source>,
    position: u64,
    checksum: crc32fast::Hasher,
    random: fastrand::Rng,
    operations: Arc<Operations>,
}

impl Place {
    /// Mostly short ones, and each kind of edge now and then.
    fn length(&mut self) -> usize {
        match self.random.u8(..) {
            0..160 => self.random.usize(1..100),
            160..220 => self.random.usize(1..5_000),
            220..240 => self.random.usize(4_090..4_100),
            240..252 => self.random.usize(1..40_000),
            _ => self.random.usize(SMALL - 1..=LONGEST),
        }
    }

    fn next(&mut self) -> &[u8] {
        let length = self.length();
        self.source.at(self.position, length)
    }

    fn passes(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(LONGEST) {
            assert!(
                bytes == self.source.at(self.position, bytes.len()),
                "not what was sent, from byte {}",
                self.position
            );
            self.position += bytes.len() as u64;
            self.checksum.update(bytes);
        }
    }

    fn sent(&mut self, length: usize) {
        let source = Arc::clone(&self.source);
        self.passes(source.at(self.position, length));
    }

    fn end(self) -> (u64, u32) {
        (self.position, self.checksum.finalize())
    }
}

struct Operations {
    done: AtomicU64,
    limit: u64,
}

impl Operations {
    fn one_more(&self) -> bool {
        self.done.fetch_add(1, Ordering::Relaxed) < self.limit
    }
}

/// Reads to the end of the file, and returns what came.
async fn host_reads(mut half: OwnedReadHalf, mut place: Place) -> (u64, u32) {
    let mut buffer = vec![0; LONGEST];
    let mut held: Vec<(u64, Bytes)> = Vec::new();
    loop {
        place.operations.one_more();
        let length = place.length();
        let kind = place.random.u8(..8);
        let polls = place.random.usize(1..3);
        if polls > 1 || kind > 5 {
            // It may wait, and what is held may be all the room there is.
            for (position, chunk) in held.drain(..) {
                assert!(
                    chunk == place.source.at(position, chunk.len()),
                    "a held chunk has changed"
                );
            }
        }
        match kind {
            0 => {
                if let Ok(read) = half.try_read(&mut buffer[..length]) {
                    place.passes(&buffer[..read]);
                }
            }
            1 => {
                let mut read = BytesMut::with_capacity(length);
                if let Some(Ok(0)) = cancelled_at(polls, half.read_buf(&mut read)).await {
                    break;
                }
                place.passes(&read);
            }
            2 => {
                let (first, second) = buffer[..length].split_at_mut(length / 3);
                let mut slices = [first, second].map(IoSliceMut::new);
                if let Ok(read) = half.try_read_vectored(&mut slices) {
                    place.passes(&buffer[..read]);
                }
            }
            3 => {
                let shown = cancelled_at(polls, half.fill_buf()).await;
                let shown = shown.map_or(0, |shown| {
                    let shown = shown.unwrap();
                    let taken = shown.len().min(length);
                    place.passes(&shown[..taken]);
                    taken
                });
                half.consume(shown);
            }
            4 => {
                let mut chunks = Chunks::new(&mut half);
                if let Some(Some(chunk)) = cancelled_at(polls, chunks.next()).await {
                    let chunk = chunk.unwrap();
                    place.passes(&chunk);
                    held.push((place.position - chunk.len() as u64, chunk));
                }
            }
            5 => tokio::task::yield_now().await,
            _ => {
                let read = half.read(&mut buffer[..length]).await.unwrap();
                if read == 0 {
                    break;
                }
                place.passes(&buffer[..read]);
            }
        }
    }
    place.end()
}

/// Writes while there are operations left.
async fn host_writes(mut half: OwnedWriteHalf, mut place: Place) -> (OwnedWriteHalf, (u64, u32)) {
    while place.operations.one_more() {
        let polls = place.random.usize(1..3);
        let kind = place.random.u8(..8);
        let bytes = place.next();
        let written = match kind {
            0 => half.try_write(bytes).unwrap_or(0),
            1 => cancelled_at(polls, half.write(bytes))
                .await
                .map_or(0, Result::unwrap),
            2 => {
                let (first, second) = bytes.split_at(bytes.len() / 3);
                let slices = [first, second].map(IoSlice::new);
                half.write_vectored(&slices).await.unwrap()
            }
            3 => {
                let item = Bytes::copy_from_slice(bytes);
                Chunks::new(&mut half).send(item).await.unwrap();
                bytes.len()
            }
            4 => {
                let _drained = cancelled_at(polls, half.drained()).await;
                0
            }
            5 => {
                tokio::task::yield_now().await;
                0
            }
            _ => half.write(bytes).await.unwrap(),
        };
        place.sent(written);
    }
    (half, place.end())
}

async fn guest_reads(mut port: ReadHalf<GuestPort>, mut place: Place) -> (u64, u32) {
    let mut buffer = vec![0; LONGEST];
    loop {
        place.operations.one_more();
        let length = place.length();
        match cancelled_at(place.random.usize(1..9), port.read(&mut buffer[..length])).await {
            Some(Ok(0)) => return place.end(),
            Some(read) => place.passes(&buffer[..read.unwrap()]),
            None => {}
        }
    }
}

async fn guest_writes(mut port: WriteHalf<GuestPort>, mut place: Place) -> (u64, u32) {
    while place.operations.one_more() {
        let polls = place.random.usize(1..9);
        let written = cancelled_at(polls, port.write(place.next())).await;
        place.sent(written.map_or(0, Result::unwrap));
    }
    place.end()
}

/// One VM with its host, until there are no operations left.
async fn lane(
    lane: u64,
    seed: u64,
    source: Arc<Source>,
    operations: Arc<Operations>,
) -> (u64, u32) {
    let capacity = if lane.is_multiple_of(2) {
        SMALL
    } else {
        1 << 20
    };
    let (stream, port) = Options::new().capacity(capacity).create().unwrap();
    let handle = port.handle();
    let guest = Guest::boot(port);
    let (guest_read, guest_write) = tokio::io::split(guest.open().unwrap());
    let (host_read, host_write) = stream.into_split();
    let place = |end: u64| Place {
        source: Arc::clone(&source),
        position: 1_000 * lane + end % 2,
        checksum: crc32fast::Hasher::new(),
        random: fastrand::Rng::with_seed(seed ^ (lane << 8 | end)),
        operations: Arc::clone(&operations),
    };
    // Ends 0 and 2 are one direction, 1 and 3 the other.
    let host_reads = tokio::spawn(host_reads(host_read, place(0)));
    let host_writes = tokio::spawn(host_writes(host_write, place(1)));
    let guest_writes = tokio::spawn(guest_writes(guest_write, place(2)));
    let guest_reads = tokio::spawn(guest_reads(guest_read, place(3)));
    let mut random = fastrand::Rng::with_seed(seed ^ lane);
    let mut pauses = 0;
    while !(host_writes.is_finished() && guest_writes.is_finished()) {
        if random.u8(..) < 8 {
            guest.stop_workers().await;
            pauses += 1;
            for _ in 0..random.u8(..) {
                tokio::task::yield_now().await;
            }
            guest.start_workers().unwrap();
        }
        tokio::task::yield_now().await;
    }
    let to_host = guest_writes.await.unwrap();
    let (mut host_write, to_guest) = host_writes.await.unwrap();
    // Before the hang-up, which on Windows ends both directions.
    guest.drained().await;
    host_write.hang_up();
    assert_eq!(guest_reads.await.unwrap(), to_guest, "{lane}: to the guest");
    guest.power_off().await;
    assert_eq!(host_reads.await.unwrap(), to_host, "{lane}: to the host");
    let stats = handle.stats();
    assert!(stats.tx.high_water <= capacity as u64 && stats.rx.high_water <= capacity as u64);
    assert_eq!((stats.tx.queued, stats.rx.queued), (0, 0));
    (stats.tx.bytes + stats.rx.bytes, pauses)
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_of_hosts_and_guests_lose_nothing() {
    let limit = from_environment("SOAK_OPERATIONS");
    let seed = from_environment("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    let operations = Arc::new(Operations {
        done: AtomicU64::new(0),
        limit: limit.unwrap_or(many(200_000) as u64),
    });
    let source = Arc::new(Source::new());
    println!("SOAK_SEED={seed}");
    let _deadline = deadline_unless_it_moves(format!("the soak with SOAK_SEED={seed}"), {
        let operations = Arc::clone(&operations);
        move || operations.done.load(Ordering::Relaxed)
    });
    let lanes: Vec<_> = (0..4)
        .map(|number| lane(number, seed, Arc::clone(&source), Arc::clone(&operations)))
        .map(tokio::spawn)
        .collect();
    let (mut bytes, mut pauses) = (0, 0);
    for lane in lanes {
        let lane = lane.await.unwrap();
        bytes += lane.0;
        pauses += lane.1;
    }
    let done = operations.done.load(Ordering::Relaxed);
    println!("{done} operations, {bytes} bytes, {pauses} pauses");
}

//! Hosts and guests run random operations on several streams at the same time. Each byte is checked where it arrives.
//! `tests/model.rs` predicts every outcome, but on one thread. Here krun's threads, the hosts' tasks and the VM's
//! pauses interleave freely.
//!
//! `SOAK_OPERATIONS` sets the number of operations in all. `SOAK_SEED` repeats a run's random choices, but not the
//! order of its threads.

mod common;

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use common::{SMALL, cancelled_at, deadline_unless_it_moves, many};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::Guest;
use tokio_krun::{Chunks, Options, OwnedReadHalf, OwnedWriteHalf};

/// The longest read or write.
const LONGEST: usize = 3 * SMALL;

/// The bytes that both directions carry, known by their position.
struct Source {
    /// One period, and enough of the next for the longest operation.
    bytes: Vec<u8>,
}

impl Source {
    /// Shares no factor with the size of any chunk or descriptor.
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

/// How far one end of a direction has come.
struct Progress {
    source: Arc<Source>,
    position: u64,
    checksum: crc32fast::Hasher,
    random: fastrand::Rng,
    operations: Arc<Operations>,
}

impl Progress {
    /// A random length: mostly short, and now and then near a limit.
    fn length(&mut self) -> usize {
        match self.random.u8(..) {
            0..160 => self.random.usize(1..100),
            160..220 => self.random.usize(1..5_000),
            220..240 => self.random.usize(4_090..4_100),
            240..252 => self.random.usize(1..40_000),
            _ => self.random.usize(SMALL - 1..=LONGEST),
        }
    }

    /// The next bytes to send.
    fn next(&mut self) -> &[u8] {
        let length = self.length();
        self.source.at(self.position, length)
    }

    /// Checks that these are the next bytes, and moves past them.
    fn check(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(LONGEST) {
            assert!(
                bytes == self.source.at(self.position, bytes.len()),
                "wrong bytes from position {} on",
                self.position
            );
            self.position += bytes.len() as u64;
            self.checksum.update(bytes);
        }
    }

    /// Moves past bytes that were sent.
    fn advance(&mut self, length: usize) {
        let source = Arc::clone(&self.source);
        self.check(source.at(self.position, length));
    }

    /// The position and the checksum of all bytes before it.
    fn finish(self) -> (u64, u32) {
        (self.position, self.checksum.finalize())
    }
}

struct Operations {
    done: AtomicU64,
    limit: u64,
}

impl Operations {
    /// Counts an operation. Returns false once the limit is reached.
    fn one_more(&self) -> bool {
        self.done.fetch_add(1, Ordering::Relaxed) < self.limit
    }
}

/// Reads until end of file.
async fn host_reads(mut half: OwnedReadHalf, mut progress: Progress) -> (u64, u32) {
    let mut buffer = vec![0; LONGEST];
    let mut held: Vec<(u64, Bytes)> = Vec::new();
    loop {
        progress.operations.one_more();
        let length = progress.length();
        let kind = progress.random.u8(..8);
        let polls = progress.random.usize(1..3);
        if polls > 1 || kind > 5 {
            // This operation may wait, and the held chunks may take up all the room, so drop them.
            for (position, chunk) in held.drain(..) {
                assert!(
                    chunk == progress.source.at(position, chunk.len()),
                    "a held chunk has changed"
                );
            }
        }
        match kind {
            0 => {
                if let Ok(read) = half.try_read(&mut buffer[..length]) {
                    progress.check(&buffer[..read]);
                }
            }
            1 => {
                let mut read = BytesMut::with_capacity(length);
                if let Some(Ok(0)) = cancelled_at(polls, half.read_buf(&mut read)).await {
                    break;
                }
                progress.check(&read);
            }
            2 => {
                let (first, second) = buffer[..length].split_at_mut(length / 3);
                let mut slices = [first, second].map(IoSliceMut::new);
                if let Ok(read) = half.try_read_vectored(&mut slices) {
                    progress.check(&buffer[..read]);
                }
            }
            3 => {
                let shown = cancelled_at(polls, half.fill_buf()).await;
                let shown = shown.map_or(0, |shown| {
                    let shown = shown.unwrap();
                    let taken = shown.len().min(length);
                    progress.check(&shown[..taken]);
                    taken
                });
                half.consume(shown);
            }
            4 => {
                let mut chunks = Chunks::new(&mut half);
                if let Some(Some(chunk)) = cancelled_at(polls, chunks.next()).await {
                    let chunk = chunk.unwrap();
                    progress.check(&chunk);
                    held.push((progress.position - chunk.len() as u64, chunk));
                }
            }
            5 => tokio::task::yield_now().await,
            _ => {
                let read = half.read(&mut buffer[..length]).await.unwrap();
                if read == 0 {
                    break;
                }
                progress.check(&buffer[..read]);
            }
        }
    }
    progress.finish()
}

/// Writes until no operations are left.
async fn host_writes(
    mut half: OwnedWriteHalf,
    mut progress: Progress,
) -> (OwnedWriteHalf, (u64, u32)) {
    while progress.operations.one_more() {
        let polls = progress.random.usize(1..3);
        let kind = progress.random.u8(..8);
        let bytes = progress.next();
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
        progress.advance(written);
    }
    (half, progress.finish())
}

async fn guest_reads(mut port: ReadHalf<VirtioPort>, mut progress: Progress) -> (u64, u32) {
    let mut buffer = vec![0; LONGEST];
    loop {
        progress.operations.one_more();
        let length = progress.length();
        match cancelled_at(
            progress.random.usize(1..9),
            port.read(&mut buffer[..length]),
        )
        .await
        {
            Some(Ok(0)) => return progress.finish(),
            Some(read) => progress.check(&buffer[..read.unwrap()]),
            None => {}
        }
    }
}

async fn guest_writes(mut port: WriteHalf<VirtioPort>, mut progress: Progress) -> (u64, u32) {
    while progress.operations.one_more() {
        let polls = progress.random.usize(1..9);
        let written = cancelled_at(polls, port.write(progress.next())).await;
        progress.advance(written.map_or(0, Result::unwrap));
    }
    progress.finish()
}

/// Runs one VM with its host until no operations are left. Returns the number of bytes and of pauses.
async fn run_vm(
    number: u64,
    seed: u64,
    source: Arc<Source>,
    operations: Arc<Operations>,
) -> (u64, u32) {
    let capacity = if number.is_multiple_of(2) {
        SMALL
    } else {
        1 << 20
    };
    let (stream, port) = Options::new().capacity(capacity).create().unwrap();
    let handle = port.handle();
    // Of each capacity, one VM has threads, and one does their work on those of both ends.
    let guest = Guest::builder()
        .port("agent", port)
        .threads(number < 2)
        .boot();
    let (guest_read, guest_write) = tokio::io::split(guest.open().unwrap());
    let (host_read, host_write) = stream.into_split();
    let progress = |end: u64| Progress {
        source: Arc::clone(&source),
        position: 1_000 * number + end % 2,
        checksum: crc32fast::Hasher::new(),
        random: fastrand::Rng::with_seed(seed ^ (number << 8 | end)),
        operations: Arc::clone(&operations),
    };
    // Ends 0 and 2 share one direction, ends 1 and 3 the other.
    let host_reads = tokio::spawn(host_reads(host_read, progress(0)));
    let host_writes = tokio::spawn(host_writes(host_write, progress(1)));
    let guest_writes = tokio::spawn(guest_writes(guest_write, progress(2)));
    let guest_reads = tokio::spawn(guest_reads(guest_read, progress(3)));
    let mut random = fastrand::Rng::with_seed(seed ^ number);
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
    let (host_write, to_guest) = host_writes.await.unwrap();
    // Wait for this before the hang-up, which ends both directions on Windows.
    guest.drained().await;
    host_write.hang_up();
    assert_eq!(
        guest_reads.await.unwrap(),
        to_guest,
        "VM {number}, to the guest"
    );
    guest.power_off().await;
    assert_eq!(
        host_reads.await.unwrap(),
        to_host,
        "VM {number}, to the host"
    );
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
            .unwrap_or_else(|_| panic!("{name}={value} is not a number")),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_on_both_sides_lose_nothing() {
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
    let vms: Vec<_> = (0..4)
        .map(|number| run_vm(number, seed, Arc::clone(&source), Arc::clone(&operations)))
        .map(tokio::spawn)
        .collect();
    let (mut bytes, mut pauses) = (0, 0);
    for vm in vms {
        let (vm_bytes, vm_pauses) = vm.await.unwrap();
        bytes += vm_bytes;
        pauses += vm_pauses;
    }
    let done = operations.done.load(Ordering::Relaxed);
    println!("{done} operations, {bytes} bytes, {pauses} pauses");
}

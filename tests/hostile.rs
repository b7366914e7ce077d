//! A guest that means harm. Whatever it does, the host's memory stays within the bound that
//! `Options::capacity` documents, nobody spins, nobody panics, and other streams are served.
//!
//! Memory is counted by the allocator, for the whole process; so one test runs at a time.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::{Backend, SMALL, asleep, backend, is_would_block, watchdog};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio_krun::guest::Guest;
use tokio_krun::{AgentStream, Options};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec, LinesCodec, LinesCodecError};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe to write")]
// SAFETY: each call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `alloc` got it from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What is allocated besides the rings: the test's own buffers, threads and tasks, the stream that is served
/// meanwhile, and the runtimes of the tests that wait for their turn. What is held back is many times that.
const BESIDES: usize = 512 * 1024;

/// The most that was allocated at once from here on, beyond what is now.
struct Growth(usize);

impl Growth {
    fn begin() -> Self {
        let live = LIVE.load(Ordering::Relaxed);
        PEAK.store(live, Ordering::Relaxed);
        Self(live)
    }

    fn peak(&self) -> usize {
        PEAK.load(Ordering::Relaxed) - self.0
    }

    /// As `Options::capacity` says of one direction: the capacity and four chunks; and the slots,
    /// which both directions have from the beginning.
    fn assert_within_bound_of(&self, capacity: usize) {
        let chunk = (capacity / 8).min(64 * 1024);
        let slots = 2 * 200 * (capacity / chunk);
        let bound = capacity + 4 * chunk + slots + BESIDES;
        let peak = self.peak();
        assert!(peak <= bound, "{peak} bytes, more than {bound}");
    }
}

/// A stream that is served whatever goes on elsewhere.
async fn assert_served() {
    let (mut stream, port) = AgentStream::new().unwrap();
    let guest = Guest::boot(port);
    let mut agent = guest.open().unwrap();
    for _ in 0..10 {
        stream.write_all(b"are you there?").await.unwrap();
        let mut question = [0; 14];
        agent.read_exact(&mut question).await.unwrap();
        agent.write_all(b"yes").await.unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"yes");
    }
}

/// Writes as krun's TX thread does: waits for room, and never for anything else.
fn transmit(backend: &Backend, bytes: &[u8]) -> u32 {
    let mut waits = 0;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = backend.write(rest);
        if is_would_block(&written) {
            waits += 1;
            backend.wait_until_writable();
        } else {
            rest = &rest[written.unwrap()..];
        }
    }
    waits
}

#[tokio::test]
async fn a_million_descriptors_of_one_byte_take_no_more_than_their_bytes() {
    let _one = ONE_AT_A_TIME.lock().await;
    watchdog(async {
        const DESCRIPTORS: usize = 1_000_000;
        for capacity in [SMALL, 4 << 20] {
            let growth = Growth::begin();
            let (mut stream, port) = Options::new().capacity(capacity).create().unwrap();
            let handle = port.handle();
            let backend = backend(port);
            let guest = thread::spawn(move || {
                let waits: u32 = (0..DESCRIPTORS)
                    .map(|number| transmit(&backend, &[number as u8]))
                    .sum();
                // The stream outlives the guest.
                (backend, waits)
            });
            let mut buffer = vec![0; 8192];
            let mut received = 0;
            while received < DESCRIPTORS {
                let read = stream.read(&mut buffer).await.unwrap();
                let expected = (received..).map(|number| number as u8);
                assert!(buffer[..read].iter().copied().eq(expected.take(read)));
                received += read;
            }
            let (_backend, waits) = tokio::task::spawn_blocking(|| guest.join().unwrap())
                .await
                .unwrap();
            growth.assert_within_bound_of(capacity);
            let stats = handle.stats().tx;
            assert!(stats.high_water <= capacity as u64);
            // Nobody looked more often than there was something to wait for.
            assert_eq!(stats.full, u64::from(waits));
            assert!(stats.room_wakes >= u64::from(waits) / 2);
        }
    })
    .await;
}

#[tokio::test]
async fn a_flood_that_nobody_reads_sleeps_within_the_bound() {
    let _one = ONE_AT_A_TIME.lock().await;
    watchdog(async {
        for capacity in [SMALL, 4 << 20] {
            let growth = Growth::begin();
            let (stream, port) = Options::new().capacity(capacity).create().unwrap();
            let handle = port.handle();
            let backend = backend(port);
            let descriptor = vec![0xf1; 32 * 1024];
            // Ends when the host has gone: what it writes then is discarded.
            let flood = asleep(move || {
                let descriptors = 3 * (4 << 20) / descriptor.len();
                (0..descriptors)
                    .map(|_| transmit(&backend, &descriptor))
                    .sum::<u32>()
            });
            assert_served().await;
            let stats = handle.stats().tx;
            // One look in vain, and then sleep.
            assert_eq!((stats.full, stats.room_wakes), (1, 0));
            assert_eq!(stats.queued, capacity as u64);
            growth.assert_within_bound_of(capacity);
            drop(stream);
            let waits = tokio::task::spawn_blocking(|| flood.join().unwrap()).await;
            assert_eq!(waits.unwrap(), 1);
            assert_eq!(handle.stats().tx.discarded, 3 * (4 << 20));
            assert_eq!(handle.stats().tx.queued, 0);
        }
    })
    .await;
}

/// On Windows krun itself reads, and keeps what the guest does not take, without a bound.
#[cfg(unix)]
#[tokio::test]
async fn a_guest_that_opens_and_never_reads_makes_the_host_wait_within_the_bound() {
    let _one = ONE_AT_A_TIME.lock().await;
    watchdog(async {
        for capacity in [SMALL, 4 << 20] {
            let growth = Growth::begin();
            let (mut stream, port) = Options::new().capacity(capacity).create().unwrap();
            let handle = port.handle();
            let guest = Guest::boot(port);
            let _agent = guest.open().unwrap();
            let writer = tokio::spawn(async move {
                static PIECE: [u8; 1 << 20] = [0x3c; 1 << 20];
                let mut written = Ok(());
                for _ in 0..64 {
                    written = written.and(stream.write_all(&PIECE).await);
                }
                (stream, written)
            });
            while handle.stats().rx.full == 0 {
                tokio::task::yield_now().await;
            }
            assert_served().await;
            assert!(!writer.is_finished());
            assert!(handle.stats().rx.queued <= capacity as u64);
            // And what the in-process guest's kernel holds.
            growth.assert_within_bound_of(capacity + 32 * 4096);
            guest.power_off().await;
            let (_stream, written) = writer.await.unwrap();
            assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        }
    })
    .await;
}

#[tokio::test]
async fn an_end_in_the_middle_of_a_frame_is_an_error_and_not_a_short_frame() {
    let _one = ONE_AT_A_TIME.lock().await;
    watchdog(async {
        let (stream, backend) = common::pair();
        let mut frames = FramedRead::new(stream, LengthDelimitedCodec::new());
        backend.write(&[0, 0, 0, 2, b'o', b'k']).unwrap();
        backend.write(&[0, 0, 3, 232, b'c', b'u', b't']).unwrap();
        drop(backend);
        assert_eq!(frames.next().await.unwrap().unwrap(), b"ok"[..]);
        assert!(frames.next().await.unwrap().is_err());
        assert!(frames.next().await.is_none());
    })
    .await;
}

/// The length is the guest's to say, the memory the host's to give.
#[tokio::test]
async fn a_frame_that_claims_to_be_huge_is_an_error_before_it_is_memory() {
    let _one = ONE_AT_A_TIME.lock().await;
    watchdog(async {
        let growth = Growth::begin();
        for length in [8 * 1024 * 1024 + 1, i32::MAX as u32, u32::MAX] {
            let (stream, backend) = common::pair();
            let mut frames = FramedRead::new(stream, LengthDelimitedCodec::new());
            backend.write(&length.to_be_bytes()).unwrap();
            assert!(frames.next().await.unwrap().is_err(), "{length}");
        }
        assert!(growth.peak() < BESIDES);

        let (stream, backend) = common::pair();
        let mut lines = FramedRead::new(stream, LinesCodec::new_with_max_length(100));
        backend.write(&[b'x'; 10_000]).unwrap();
        let error = lines.next().await.unwrap().unwrap_err();
        assert!(matches!(error, LinesCodecError::MaxLineLengthExceeded));
    })
    .await;
}

/// Each in a way of its own, all in one process, and one that behaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hostile_guests_at_once_do_not_starve_a_fifth() {
    let _one = ONE_AT_A_TIME.lock().await;
    watchdog(async {
        let growth = Growth::begin();
        let (dribbled, dribbling) = common::pair();
        let dribbler = thread::spawn(move || {
            (0..100_000_u32).for_each(|number| {
                transmit(&dribbling, &[number as u8]);
            });
        });
        let (flooded, flooding) = common::pair();
        let flooder = asleep(move || transmit(&flooding, &[0; 64 * SMALL]));
        let (mut ignored, deaf) = common::pair();
        let (garbage, babbling) = common::pair();
        let babbler = thread::spawn(move || transmit(&babbling, &common::pattern(8 * SMALL)));

        let deaf_writer = tokio::spawn(async move { ignored.write_all(&[0; 2 * SMALL]).await });
        let babble = tokio::spawn(async move {
            let mut frames = FramedRead::new(garbage, LengthDelimitedCodec::new());
            // Until the first that makes no sense; dropping the stream then discards the rest.
            while let Some(Ok(_)) = frames.next().await {}
        });
        let dribble = tokio::spawn(async move {
            let mut dribbled = dribbled;
            let mut received = 0;
            let mut buffer = [0; 1000];
            while received < 100_000 {
                received += dribbled.read(&mut buffer).await.unwrap();
            }
            received
        });
        for _ in 0..5 {
            assert_served().await;
        }
        assert_eq!(dribble.await.unwrap(), 100_000);
        babble.await.unwrap();
        assert!(!flooder.is_finished() && !deaf_writer.is_finished());
        // Ten small rings, and the one at a time that is served.
        assert!(growth.peak() < 10 * 2 * SMALL + 5 * (1 << 20) + BESIDES);
        drop((flooded, deaf));
        assert!(deaf_writer.await.unwrap().is_err());
        tokio::task::spawn_blocking(move || {
            dribbler.join().unwrap();
            flooder.join().unwrap();
            babbler.join().unwrap();
        })
        .await
        .unwrap();
    })
    .await;
}

/// On Windows an empty descriptor is none of ours: krun's pipe carries no empty write.
#[cfg(unix)]
#[tokio::test]
async fn empty_descriptors_are_no_bytes_no_spin_and_no_matter_to_other_streams() {
    let _one = ONE_AT_A_TIME.lock().await;
    watchdog(async {
        let (mut stream, backend) = common::pair();
        let guest = thread::spawn(move || {
            for _ in 0..5 {
                assert_eq!(backend.write(&[]).unwrap(), 0);
            }
            backend.write(b"x").unwrap();
            backend
        });
        assert_served().await;
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        assert_eq!(stream.stats().tx.bytes, 1);
        drop(guest.join().unwrap());
    })
    .await;
}

/// What a chunk held before is nobody's to see: not in a read, not in a handle, not in what is made of
/// a handle, and not in the guest's descriptor.
#[tokio::test]
async fn recycled_chunks_show_no_old_byte() {
    const SECRET: u8 = 0xa5;
    let _one = ONE_AT_A_TIME.lock().await;
    watchdog(async {
        // With chunks of its own, and with those of the pool that all streams share.
        for capacity in [SMALL, 4 << 20] {
            let (mut stream, port) = Options::new().capacity(capacity).create().unwrap();
            let backend = backend(port);
            let secret = vec![SECRET; capacity];
            for _ in 0..2 {
                assert_eq!(backend.write(&secret).unwrap(), capacity);
                stream.read_exact(&mut vec![0; capacity]).await.unwrap();
                stream.write_all(&secret).await.unwrap();
                assert_eq!(backend.read(&mut vec![0; capacity]).unwrap(), capacity);
            }
            // Another stream may get what this one has used.
            let (mut other, port) = Options::new().capacity(capacity).create().unwrap();
            let other_backend = common::backend(port);
            for (stream, backend) in [(&mut stream, &backend), (&mut other, &other_backend)] {
                let mut shown = Vec::new();
                for length in [1, 7, 100, 3000, 40_000_usize.min(capacity / 2)] {
                    backend.write(&vec![1; length]).unwrap();
                    let mut chunks = tokio_krun::Chunks::new(&mut *stream);
                    let mut left = length;
                    while left > 0 {
                        let chunk = chunks.next().await.unwrap().unwrap();
                        left -= chunk.len();
                        // Mutable, with whatever capacity that has.
                        let mut bytes = bytes::BytesMut::from(chunk);
                        bytes.resize(bytes.len() + 100, 0);
                        shown.extend_from_slice(&bytes);
                    }
                    chunks.send(vec![1; length].into()).await.unwrap();
                    // A descriptor with room for more than there is.
                    let mut descriptor = vec![2; length + 5000];
                    let read = backend.read(&mut descriptor).unwrap();
                    assert!(descriptor[read..].iter().all(|&byte| byte == 2));
                    shown.extend_from_slice(&descriptor[..read]);
                    backend.read(&mut descriptor).unwrap_err();
                }
                assert!(shown.iter().all(|&byte| byte == 1 || byte == 0));
            }
        }
    })
    .await;
}

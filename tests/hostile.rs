//! A guest that means harm. Whatever it does, the host's memory stays within the bound that
//! `Options::capacity` documents, nobody spins, nobody panics, and other streams are served.
//!
//! The allocator counts for the whole process, and all streams with chunks of the usual size share one pool; so
//! each test has a process of its own, in which nothing is pooled before it begins.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use common::{Backend, SMALL, asleep, backend, counted, is_alone, is_would_block, watchdog};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Chunks, Options};
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

/// What a thread, a task and a test's own strings take. Small enough that the least ring shows if it
/// holds twice its capacity, which is four of its chunks, 16 KiB, beyond the bound.
const BESIDES: usize = 8 * 1024;

/// What a pipe of Windows takes from the beginning.
const PIPE: usize = if cfg!(windows) { 4 * 1024 } else { 0 };

/// One with chunks of its own, and one with those of the pool that all streams share: only one of these in a
/// process, or the second would find chunks that are already counted.
const CAPACITIES: [usize; 2] = [SMALL, 1 << 20];

fn chunk_of(capacity: usize) -> usize {
    capacity.div_ceil(8).min(64 * 1024)
}

/// As `Options::capacity` says of the chunks of one direction.
fn bound(capacity: usize) -> usize {
    capacity + 4 * chunk_of(capacity)
}

/// What is allocated from here on, beyond what is now.
struct Growth(usize);

impl Growth {
    fn begin() -> Self {
        let live = LIVE.load(Ordering::Relaxed);
        PEAK.store(live, Ordering::Relaxed);
        Self(live)
    }

    /// The most at once.
    fn peak(&self) -> usize {
        PEAK.load(Ordering::Relaxed) - self.0
    }

    #[track_caller]
    fn assert_within(&self, bound: usize) {
        let (peak, bound) = (self.peak(), bound + BESIDES);
        assert!(peak <= bound, "{peak} bytes, more than {bound}");
    }

    /// That nothing is left of it. Tokio lets go of a descriptor at its driver's next turn.
    async fn assert_over(&self) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let left = LIVE.load(Ordering::Relaxed).saturating_sub(self.0);
        assert!(left <= BESIDES, "{left} bytes are left behind");
    }
}

/// A stream, the guest's end of it, and what they take before the first byte: their slots.
fn idle_pair(capacity: usize) -> (AgentStream, Backend) {
    let growth = Growth::begin();
    let (stream, port) = Options::new().capacity(capacity).create().unwrap();
    let backend = backend(port);
    growth.assert_within(2 * 200 * capacity.div_ceil(chunk_of(capacity)) + PIPE);
    (stream, backend)
}

/// A stream that is served whatever goes on elsewhere. It leaves nothing to the pool that all share.
async fn assert_served() {
    let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
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
    guest.power_off().await;
}

/// The most that [`assert_served`] allocates, with nothing hostile about.
async fn served_alone() -> usize {
    let mut most = 0;
    // The first has what the process allocates once.
    for _ in 0..5 {
        let growth = Growth::begin();
        assert_served().await;
        most = most.max(growth.peak());
    }
    most
}

/// Writes as krun's TX thread does: waits for room, and never for anything else. How often it waited.
fn transmit(backend: &Backend, bytes: &[u8]) -> usize {
    let mut waits = 0;
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut written = backend.write(rest);
        if is_would_block(&written) {
            backend.wait_until_writable();
            waits += 1;
            written = backend.write(rest);
            // Nobody else writes, so the room that ended the wait is still there.
            assert!(!is_would_block(&written), "a wait that ends in vain");
        }
        rest = &rest[written.unwrap()..];
    }
    waits
}

#[tokio::test]
async fn a_million_descriptors_of_one_byte_take_no_more_than_their_bytes() {
    const DESCRIPTORS: usize = 1_500_000;
    if !is_alone("a_million_descriptors_of_one_byte_take_no_more_than_their_bytes") {
        return;
    }
    watchdog(async {
        let served = served_alone().await;
        for capacity in CAPACITIES {
            let (mut stream, backend) = idle_pair(capacity);
            let mut buffer = vec![0; 8192];
            let growth = Growth::begin();
            let guest = thread::spawn(move || {
                let transmit = |number| transmit(&backend, &[number as u8]);
                let waits: usize = (0..DESCRIPTORS).map(transmit).sum();
                // The stream outlives the guest.
                (backend, waits)
            });
            while stream.stats().tx.full == 0 {
                tokio::task::yield_now().await;
            }
            growth.assert_within(bound(capacity));
            assert_eq!(stream.stats().tx.queued, capacity as u64);
            assert_served().await;
            assert_eq!(stream.stats().tx.queued, capacity as u64);

            let host = tokio::spawn(async move {
                let (mut received, mut reads, vain) = (0, 0, AtomicU64::new(0));
                while received < DESCRIPTORS {
                    let read = counted(&vain, stream.read(&mut buffer)).await.unwrap();
                    let expected = (received..).map(|number| number as u8);
                    assert!(buffer[..read].iter().copied().eq(expected.take(read)));
                    received += read;
                    reads += 1;
                }
                (stream, reads, vain.into_inner())
            });
            let mut rounds = 0;
            while !host.is_finished() || rounds == 0 {
                assert_served().await;
                rounds += 1;
            }
            let (stream, reads, vain) = host.await.unwrap();
            let (_backend, waits) = tokio::task::spawn_blocking(|| guest.join().unwrap())
                .await
                .unwrap();
            growth.assert_within(bound(capacity) + served);
            let stats = stream.stats().tx;
            assert!(stats.high_water <= capacity as u64);
            // Each of the guest's calls was taken, or was refused and followed by a wait that a read has ended.
            assert_eq!(stats.full, waits as u64);
            assert!(waits <= reads, "{waits} waits, {reads} reads");
            // The host's task was polled when it was woken, and when its turn was over: after 128 reads.
            let turns = reads as u64 / 100;
            let woken = stats.data_wakes + turns + 1;
            assert!(vain <= woken, "{vain} polls in vain, woken {woken} times");
        }
    })
    .await;
}

#[tokio::test]
async fn a_flood_that_nobody_reads_sleeps_within_the_bound() {
    const FLOOD: usize = 12 << 20;
    if !is_alone("a_flood_that_nobody_reads_sleeps_within_the_bound") {
        return;
    }
    watchdog(async {
        let served = served_alone().await;
        for capacity in CAPACITIES {
            let (stream, port) = Options::new().capacity(capacity).create().unwrap();
            let handle = port.handle();
            let backend = backend(port);
            let descriptor = vec![0xf1; 32 * 1024];
            let growth = Growth::begin();
            // Ends when the host has gone: what it writes then is discarded.
            let flood = asleep(move || {
                (0..FLOOD / descriptor.len())
                    .map(|_| transmit(&backend, &descriptor))
                    .sum::<usize>()
            });
            while handle.stats().tx.full == 0 {
                tokio::task::yield_now().await;
            }
            growth.assert_within(bound(capacity));
            for _ in 0..5 {
                assert_served().await;
            }
            let stats = handle.stats().tx;
            // One look in vain, and then sleep.
            assert_eq!((stats.full, stats.room_wakes), (1, 0));
            assert_eq!(stats.queued, capacity as u64);
            growth.assert_within(bound(capacity) + served);
            drop(stream);
            let waits = tokio::task::spawn_blocking(|| flood.join().unwrap()).await;
            assert_eq!(waits.unwrap(), 1);
            assert_eq!(handle.stats().tx.discarded, FLOOD as u64);
            assert_eq!(handle.stats().tx.queued, 0);
            // Nor did what was discarded take more.
            growth.assert_within(bound(capacity) + served);
        }
    })
    .await;
}

/// On Windows krun itself reads, and keeps what the guest does not take, without a bound.
#[cfg(unix)]
#[tokio::test]
async fn a_guest_that_opens_and_never_reads_makes_the_host_wait_within_the_bound() {
    static PIECE: [u8; 1 << 20] = [0x3c; 1 << 20];
    // The in-process guest's kernel: the buffers that it has offered, and the list of them.
    const KERNEL: usize = 32 * (4096 + 2 * size_of::<Vec<u8>>());
    if !is_alone("a_guest_that_opens_and_never_reads_makes_the_host_wait_within_the_bound") {
        return;
    }
    watchdog(async {
        let served = served_alone().await;
        for capacity in CAPACITIES {
            let (mut stream, port) = Options::new().capacity(capacity).create().unwrap();
            let handle = port.handle();
            let guest = Guest::boot(port);
            let growth = Growth::begin();
            let _agent = guest.open().unwrap();
            let vain = Arc::new(AtomicU64::new(0));
            let (look, mut looks) = tokio::sync::mpsc::unbounded_channel::<()>();
            let writer = tokio::spawn({
                let vain = Arc::clone(&vain);
                async move {
                    let mut write = std::pin::pin!(async {
                        let mut written = Ok(());
                        for _ in 0..64 {
                            written = written.and(counted(&vain, stream.write_all(&PIECE)).await);
                        }
                        written
                    });
                    loop {
                        tokio::select! {
                            biased;
                            _ = looks.recv() => {}
                            written = &mut write => break written,
                        }
                    }
                }
            });
            // The kernel takes 32 buffers. Then there may be less room than the writer is woken for.
            while handle.stats().rx.bytes < 32 * 4096 || handle.stats().rx.full == 0 {
                tokio::task::yield_now().await;
            }
            let polls = vain.load(Ordering::Relaxed);
            look.send(()).unwrap();
            while handle.stats().rx.queued < capacity as u64
                || vain.load(Ordering::Relaxed) == polls
            {
                tokio::task::yield_now().await;
            }
            growth.assert_within(bound(capacity) + KERNEL);

            let before = (handle.stats(), vain.load(Ordering::Relaxed));
            for _ in 0..5 {
                assert_served().await;
            }
            assert!(!writer.is_finished());
            growth.assert_within(bound(capacity) + KERNEL + served);
            // Neither side has looked again, but for a wake that may have been on its way.
            let (stats, polls) = (handle.stats().rx, vain.load(Ordering::Relaxed));
            assert!(polls <= before.1 + 1, "{polls} polls, {} before", before.1);
            assert!(polls <= stats.room_wakes + 2, "{polls} polls, {stats:?}");
            // A poll in vain is two looks, or three if it takes a signal first; and so many go before a write for
            // which one of the guest's 32 reads has made room.
            assert!(stats.full <= 3 * (polls + 32), "{polls} polls, {stats:?}");
            assert_eq!(stats.data_wakes, before.0.rx.data_wakes);
            let woken = stats.room_wakes - before.0.rx.room_wakes;
            assert!(woken <= 1, "{stats:?}, {:?} before", before.0.rx);

            guest.power_off().await;
            let written = writer.await.unwrap();
            assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        }
    })
    .await;
}

/// The guest says how much of each chunk it fills: half of it and a byte is the least that is lent as it is.
#[tokio::test]
async fn chunks_that_are_held_take_no_more_than_twice_what_they_count() {
    if !is_alone("chunks_that_are_held_take_no_more_than_twice_what_they_count") {
        return;
    }
    watchdog(async {
        for capacity in CAPACITIES {
            let (stream, backend) = idle_pair(capacity);
            let mut chunks = Chunks::new(stream);
            let descriptor = vec![0x5a; chunk_of(capacity) / 2 + 1];
            let fit = capacity / descriptor.len();
            let mut held = Vec::with_capacity(fit);
            let growth = Growth::begin();
            for _ in 0..fit {
                backend.write(&descriptor).unwrap();
                held.push(chunks.next().await.unwrap().unwrap());
            }
            // They count, so no more comes in.
            assert!(is_would_block(&backend.write(&descriptor)));
            let counted = chunks.get_ref().stats().tx.queued as usize;
            assert_eq!(counted, fit * descriptor.len());
            assert!(growth.peak() > counted, "lent, with what they do not fill");
            growth.assert_within(2 * capacity + 4 * chunk_of(capacity));
            assert!(held.iter().all(|chunk| *chunk == descriptor));
            // And that is over when they are dropped.
            drop(held);
            assert_eq!(backend.write(&descriptor).unwrap(), descriptor.len());
        }
    })
    .await;
}

#[tokio::test]
async fn an_end_in_the_middle_of_a_frame_is_an_error_and_not_a_short_frame() {
    if !is_alone("an_end_in_the_middle_of_a_frame_is_an_error_and_not_a_short_frame") {
        return;
    }
    watchdog(async {
        // What the end finds in the ring, in the codec's buffer, or in both.
        const ANNOUNCED: usize = 200_000;
        let cut_off = async |sent: usize, is_first: bool| {
            let (stream, backend) = common::pair();
            let mut frames = FramedRead::new(stream, LengthDelimitedCodec::new());
            backend.write(&[0, 0, 0, 2, b'o', b'k']).unwrap();
            backend.write(&(ANNOUNCED as u32).to_be_bytes()).unwrap();
            assert_eq!(backend.write(&vec![b'x'; sent]).unwrap(), sent);
            let vain = AtomicU64::new(0);
            let frame = counted(&vain, frames.next()).await;
            assert_eq!(frame.unwrap().unwrap(), b"ok"[..]);
            // The rest of the next one never comes: it waits, once, and others are served.
            {
                let mut cut = std::pin::pin!(counted(&vain, frames.next()));
                assert!(futures::poll!(cut.as_mut()).is_pending());
                if is_first {
                    assert_served().await;
                }
                drop(backend);
                assert!(cut.await.unwrap().is_err());
            }
            assert!(counted(&vain, frames.next()).await.is_none());
            assert_eq!(vain.into_inner(), 1);
        };
        // Once for what the process allocates once; and what a stream takes for an end behind one byte.
        cut_off(1, true).await;
        let growth = Growth::begin();
        cut_off(1, false).await;
        let alone = growth.peak();
        growth.assert_over().await;
        for sent in [1, 3, 5000, SMALL - 10] {
            let growth = Growth::begin();
            for _ in 0..20 {
                cut_off(sent, false).await;
                growth.assert_over().await;
            }
            // Besides what was sent: the test has it too.
            growth.assert_within(alone + sent + bound(SMALL));
        }
    })
    .await;
}

/// The length is the guest's to say, the memory the host's to give.
#[tokio::test]
async fn a_frame_that_claims_to_be_huge_is_an_error_before_it_is_memory() {
    if !is_alone("a_frame_that_claims_to_be_huge_is_an_error_before_it_is_memory") {
        return;
    }
    watchdog(async {
        let announced = async |length: u32| {
            let (stream, backend) = common::pair();
            let mut frames = FramedRead::new(stream, LengthDelimitedCodec::new());
            backend.write(&length.to_be_bytes()).unwrap();
            backend.write(b"some").unwrap();
            frames.next().await.unwrap().map(|frame| frame.to_vec())
        };
        // A frame that is as long as it says.
        announced(4).await.unwrap();
        let growth = Growth::begin();
        assert_eq!(announced(4).await.unwrap(), b"some");
        let alone = growth.peak();
        for length in [8 * 1024 * 1024 + 1, i32::MAX as u32, u32::MAX] {
            let growth = Growth::begin();
            announced(length).await.unwrap_err();
            growth.assert_within(alone);
            growth.assert_over().await;
        }

        let (stream, backend) = common::pair();
        let mut lines = FramedRead::new(stream, LinesCodec::new_with_max_length(100));
        backend.write(&[b'x'; 10_000]).unwrap();
        let error = lines.next().await.unwrap().unwrap_err();
        assert!(matches!(error, LinesCodecError::MaxLineLengthExceeded));
    })
    .await;
}

/// Four ports of one host, each with a guest that does harm in a way of its own from beginning to end, and a
/// fifth that behaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hostile_guests_at_once_do_not_starve_a_fifth() {
    if !is_alone("four_hostile_guests_at_once_do_not_starve_a_fifth") {
        return;
    }
    watchdog(async {
        let served = served_alone().await;
        let [dribbled, flooded, ignored, babbled] = [(); 4].map(|()| idle_pair(SMALL));
        let ((mut dribbled, dribbling), (flooded, flooding)) = (dribbled, flooded);
        let ((mut ignored, deaf), (babbled, babbling)) = (ignored, babbled);
        let garbage: Arc<[u8]> = common::pattern(SMALL / 2).into();
        let flood = vec![0; 64 * SMALL];
        let (stop, growth) = (Arc::new(AtomicBool::new(false)), Growth::begin());

        // Bytes one by one; bytes that nobody reads; bytes that make no sense; and none that is read.
        let dribbler = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                for number in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return number;
                    }
                    transmit(&dribbling, &[number as u8]);
                }
                unreachable!("the numbers have no end")
            }
        });
        let flooder = asleep(move || transmit(&flooding, &flood));
        let babbler = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    transmit(&babbling, &garbage);
                }
            }
        });
        let vain = Arc::new(AtomicU64::new(0));
        let deaf_writer = tokio::spawn({
            let vain = Arc::clone(&vain);
            async move {
                static PIECE: [u8; 4 * SMALL] = [0; 4 * SMALL];
                let written = counted(&vain, ignored.write_all(&PIECE)).await;
                (ignored, written)
            }
        });

        // All four are full before the first byte is read.
        let full = || {
            let guests = [&dribbled, &flooded, &babbled];
            guests.iter().all(|stream| stream.stats().tx.full > 0)
                && vain.load(Ordering::Relaxed) > 0
        };
        while !full() {
            tokio::task::yield_now().await;
        }
        growth.assert_within(4 * bound(SMALL));

        let dribbled_bytes = Arc::new(AtomicU64::new(0));
        let dribble = tokio::spawn({
            let received = Arc::clone(&dribbled_bytes);
            async move {
                let mut buffer = [0; 1000];
                loop {
                    let read = dribbled.read(&mut buffer).await.unwrap() as u64;
                    if read == 0 {
                        return;
                    }
                    let before = received.fetch_add(read, Ordering::Relaxed);
                    let expected = (before..before + read).map(|number| number as u8);
                    assert!(buffer[..read as usize].iter().copied().eq(expected));
                }
            }
        });
        let errors = Arc::new(AtomicU64::new(0));
        let babble = tokio::spawn({
            let errors = Arc::clone(&errors);
            async move {
                let mut stream = babbled;
                loop {
                    let mut lines = FramedRead::new(stream, LinesCodec::new_with_max_length(100));
                    while let Some(Ok(_)) = lines.next().await {}
                    errors.fetch_add(1, Ordering::Relaxed);
                    stream = lines.into_inner();
                    if stream.read_u8().await.is_err() {
                        return;
                    }
                }
            }
        });
        let mut rounds = 0;
        while rounds < 10
            || dribbled_bytes.load(Ordering::Relaxed) < 100_000
            || errors.load(Ordering::Relaxed) < 100
        {
            assert_served().await;
            rounds += 1;
        }
        assert!(!dribbler.is_finished() && !babbler.is_finished());
        assert!(!flooder.is_finished() && !deaf_writer.is_finished());
        let stats = flooded.stats().tx;
        assert_eq!((stats.full, stats.room_wakes), (1, 0));
        // The writer whom nobody reads has not been polled again.
        assert_eq!(vain.load(Ordering::Relaxed), 1);
        // The codec's buffer and the line that it makes.
        growth.assert_within(4 * bound(SMALL) + served + 2 * 8 * 1024);

        stop.store(true, Ordering::Relaxed);
        drop((flooded, deaf));
        let (ignored, written) = deaf_writer.await.unwrap();
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        drop(ignored);
        let dribbles = tokio::task::spawn_blocking(move || {
            flooder.join().unwrap();
            babbler.join().unwrap();
            dribbler.join().unwrap()
        })
        .await
        .unwrap();
        dribble.await.unwrap();
        babble.await.unwrap();
        assert_eq!(dribbled_bytes.load(Ordering::Relaxed), dribbles);
        assert_served().await;
    })
    .await;
}

/// On Windows an empty descriptor is none of ours: krun's pipe carries no empty write.
#[cfg(unix)]
#[tokio::test]
async fn empty_descriptors_are_no_bytes_no_spin_and_no_matter_to_other_streams() {
    use std::time::{Duration, Instant};

    const PORTS: usize = 4;
    const ROUNDS: usize = 5;
    if !is_alone("empty_descriptors_are_no_bytes_no_spin_and_no_matter_to_other_streams") {
        return;
    }
    watchdog(async {
        let served = served_alone().await;
        let pairs: Vec<_> = (0..PORTS).map(|_| idle_pair(SMALL)).collect();
        let full = Arc::new(common::pattern(SMALL / 2));
        let growth = Growth::begin();
        let (mut guests, mut hosts) = (Vec::new(), Vec::new());
        for (mut stream, backend) in pairs {
            let sent = Arc::clone(&full);
            guests.push(thread::spawn(move || {
                for _ in 0..ROUNDS {
                    transmit(&backend, &sent);
                    // krun offers the same one again at once, so how often depends on how long each call takes:
                    // a call that does not sleep would be made as often as the CPU allows.
                    let began = Instant::now();
                    for calls in 1..=2 {
                        assert_eq!(backend.write(&[]).unwrap(), 0);
                        assert!(began.elapsed() >= calls * Duration::from_millis(100));
                    }
                }
            }));
            let sent = Arc::clone(&full);
            hosts.push(tokio::spawn(async move {
                let vain = AtomicU64::new(0);
                let mut received = vec![0; sent.len()];
                for _ in 0..ROUNDS {
                    let read = counted(&vain, stream.read_exact(&mut received));
                    assert_eq!(read.await.unwrap(), sent.len());
                    assert!(received == *sent);
                }
                // The end comes after two more that are empty.
                assert_eq!(counted(&vain, stream.read(&mut received)).await.unwrap(), 0);
                (stream.stats().tx, vain.into_inner())
            }));
        }
        while !guests.iter().all(thread::JoinHandle::is_finished) {
            assert_served().await;
        }
        let buffers = PORTS * (full.len() + 1024);
        growth.assert_within(PORTS * bound(SMALL) + buffers + served);
        for guest in guests {
            guest.join().unwrap();
        }
        for host in hosts {
            let (stats, vain) = host.await.unwrap();
            assert_eq!(stats.bytes, (ROUNDS * full.len()) as u64);
            // The host sleeps through the empty ones: one wake for each that is none, one for the end,
            // and one as the guest has opened its port.
            let wakes = ROUNDS as u64 + 2;
            assert!(stats.data_wakes <= wakes, "{} wakes", stats.data_wakes);
            assert!(vain <= stats.data_wakes + 1, "{vain} polls in vain");
        }
    })
    .await;
}

const SECRET: u8 = 0xa5;
/// What lies in a buffer before it is read into.
const SENTINEL: u8 = 0xee;

/// Bytes that say where in their stream they are, and are neither zero nor one of the two above.
fn numbered(position: usize, length: usize) -> Vec<u8> {
    let numbers = position..position + length;
    numbers.map(|number| 1 + (number % 127) as u8).collect()
}

/// The ways in which the host reads.
#[derive(Clone, Copy)]
enum Way {
    Uninit,
    ReadBuf,
    TryReadBuf,
    FillBuf,
    Chunks,
}

/// One read, of up to `length` bytes: all that it shows.
async fn read_in_a_way(stream: &mut AgentStream, way: Way, length: usize) -> Vec<u8> {
    match way {
        Way::Uninit => {
            let mut memory = vec![std::mem::MaybeUninit::new(SENTINEL); length];
            let mut buffer = ReadBuf::uninit(&mut memory);
            read_once(stream, &mut buffer).await;
            let filled = buffer.filled().to_vec();
            assert!(buffer.initialized() == filled, "more than was read");
            filled
        }
        Way::ReadBuf => {
            let mut memory = vec![SENTINEL; length];
            let mut buffer = ReadBuf::new(&mut memory);
            read_once(stream, &mut buffer).await;
            let read = buffer.filled().len();
            assert!(memory[read..].iter().all(|&byte| byte == SENTINEL));
            memory.truncate(read);
            memory
        }
        Way::TryReadBuf => {
            stream.readable().await.unwrap();
            let mut memory = Vec::with_capacity(length);
            stream.try_read_buf(&mut memory).unwrap();
            memory
        }
        Way::FillBuf => {
            let shown = stream.fill_buf().await.unwrap().to_vec();
            // Some of it once more.
            stream.consume(shown.len() / 2);
            let again = stream.fill_buf().await.unwrap().to_vec();
            assert!(again == shown[shown.len() / 2..]);
            stream.consume(again.len());
            shown
        }
        Way::Chunks => {
            let chunk = Chunks::new(stream).next().await.unwrap().unwrap();
            // As it is, and as what can be made of it.
            let copy = chunk.to_vec();
            let mutable = bytes::BytesMut::from(chunk.clone());
            assert!(mutable == copy);
            let owned = Vec::from(chunk);
            assert!(owned == copy);
            copy
        }
    }
}

async fn read_once(stream: &mut AgentStream, buffer: &mut ReadBuf<'_>) {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, buffer))
        .await
        .unwrap();
}

/// What a chunk held before is nobody's to see: not in a read, not in a handle, not in what is made of
/// a handle, and not in the guest's descriptor. Nor is anything else but what was sent.
#[tokio::test]
async fn recycled_chunks_show_no_old_byte() {
    if !is_alone("recycled_chunks_show_no_old_byte") {
        return;
    }
    watchdog(async {
        for capacity in CAPACITIES {
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
                let (mut from_guest, mut from_host) = (0, 0);
                let ways = [
                    Way::Uninit,
                    Way::ReadBuf,
                    Way::TryReadBuf,
                    Way::FillBuf,
                    Way::Chunks,
                ];
                for (round, way) in ways.into_iter().cycle().take(4 * ways.len()).enumerate() {
                    for length in [1, 7, 100, 3000, 40_000_usize.min(capacity / 2)] {
                        let sent = numbered(from_guest, length);
                        assert_eq!(backend.write(&sent).unwrap(), length);
                        let mut shown = Vec::new();
                        while shown.len() < length {
                            // A buffer that is too short, and one that is too long; some chunks come to be read
                            // in two ways.
                            let is_first = shown.is_empty();
                            let length = if is_first { length / 2 + 1 } else { length };
                            let way = if is_first && round < 2 * ways.len() {
                                Way::ReadBuf
                            } else {
                                way
                            };
                            shown.extend(read_in_a_way(stream, way, length).await);
                        }
                        assert!(shown == sent, "{length} bytes from {from_guest} on");
                        from_guest += length;

                        // By a copy, and as they are, which a large one is.
                        let sent = numbered(from_host, length);
                        if matches!(way, Way::Chunks) {
                            let mut chunks = Chunks::new(&mut *stream);
                            chunks.send(sent.clone().into()).await.unwrap();
                        } else {
                            stream.write_all(&sent).await.unwrap();
                        }
                        let mut shown = Vec::new();
                        // A descriptor that is too short, and one with room for more than there is.
                        for room in [length / 2 + 1, length + 5000] {
                            let mut descriptor = vec![SENTINEL; room];
                            let Ok(read) = backend.read(&mut descriptor) else {
                                continue;
                            };
                            assert!(descriptor[read..].iter().all(|&byte| byte == SENTINEL));
                            shown.extend_from_slice(&descriptor[..read]);
                        }
                        assert!(shown == sent, "{length} bytes from {from_host} on");
                        from_host += length;
                        let mut descriptor = [SENTINEL; 100];
                        backend.read(&mut descriptor).unwrap_err();
                        assert_eq!(descriptor, [SENTINEL; 100]);
                    }
                }
            }
        }
    })
    .await;
}

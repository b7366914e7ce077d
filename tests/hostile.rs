//! Hostile guests. Whatever they do, the host's memory stays within the bound that `Options::capacity`
//! documents, nothing spins or panics, and other streams are served.
//!
//! The allocator counts for the whole process, and all streams with chunks of the usual size share one pool.
//! So each test runs in its own process, where the pool is empty at first.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use common::{Backend, SMALL, asleep, backend, counted, is_alone, is_would_block, watchdog};
use futures::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio_krun::{AgentStream, Chunks, Options};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec, LinesCodec, LinesCodecError};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe to write")]
// SAFETY: each call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller makes the promises that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `alloc` got `pointer` from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a thread, a task and a test's own strings take. It is small enough to notice a ring that holds twice its
/// capacity: for the smallest ring, that is four of its chunks, 16 KiB, beyond the bound.
const OVERHEAD: usize = 8 * 1024;

/// What a pipe allocates on Windows when it is created.
const PIPE: usize = if cfg!(windows) { 4 * 1024 } else { 0 };

/// A stream with the first capacity has its own chunks. One with the second takes them from the pool that all streams
/// share. Only one capacity may use that pool, because a second would find chunks that are already counted.
const CAPACITIES: [usize; 2] = [SMALL, 1 << 20];

fn chunk_of(capacity: usize) -> usize {
    capacity.div_ceil(8).min(64 * 1024)
}

/// The bound that `Options::capacity` documents for the chunks of one direction, and for those that the process keeps
/// unused while the two sides run on different cores.
fn bound(capacity: usize) -> usize {
    let unused = match chunk_of(capacity) {
        chunk @ 65_536 => 64 * chunk,
        _ => 0,
    };
    capacity + 4 * chunk_of(capacity) + unused
}

/// Measures what the process allocates beyond what it has at `start`.
struct Growth(usize);

impl Growth {
    fn start() -> Self {
        let live = LIVE.load(Ordering::Relaxed);
        PEAK.store(live, Ordering::Relaxed);
        Self(live)
    }

    /// The most that was allocated at once.
    fn peak(&self) -> usize {
        PEAK.load(Ordering::Relaxed) - self.0
    }

    #[track_caller]
    fn assert_within(&self, bound: usize) {
        let (peak, bound) = (self.peak(), bound + OVERHEAD);
        assert!(peak <= bound, "{peak} bytes, more than {bound}");
    }

    /// Checks that all of it is freed. Waits first, because tokio frees a descriptor at its driver's next turn.
    async fn assert_freed(&self) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let left = LIVE.load(Ordering::Relaxed).saturating_sub(self.0);
        assert!(left <= OVERHEAD, "{left} bytes are not freed");
    }
}

/// Creates a stream and the guest's end of it. Before the first byte, they take memory only for their slots.
fn idle_pair(capacity: usize) -> (AgentStream, Backend) {
    let growth = Growth::start();
    let (stream, port) = Options::new().capacity(capacity).create().unwrap();
    let backend = backend(port);
    growth.assert_within(2 * 200 * capacity.div_ceil(chunk_of(capacity)) + PIPE);
    (stream, backend)
}

/// Checks that a new stream is served, whatever happens on other streams. The stream has its own chunks, so it leaves
/// none in the shared pool.
async fn assert_served() {
    let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let guest = common::boot(port);
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

/// The most that [`assert_served`] allocates at once without a hostile guest.
async fn serving_peak() -> usize {
    let mut most = 0;
    // The first run includes what the process allocates only once.
    for _ in 0..5 {
        let growth = Growth::start();
        assert_served().await;
        most = most.max(growth.peak());
    }
    most
}

/// Writes as krun's TX thread does, which waits only for room. Returns how often it waited.
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
            assert!(!is_would_block(&written), "the wait ended without room");
        }
        rest = &rest[written.unwrap()..];
    }
    waits
}

#[tokio::test]
async fn one_byte_descriptors_stay_within_memory_bound() {
    const DESCRIPTORS: usize = 1_500_000;
    if !is_alone("one_byte_descriptors_stay_within_memory_bound") {
        return;
    }
    watchdog(async {
        let serving = serving_peak().await;
        for capacity in CAPACITIES {
            let (mut stream, backend) = idle_pair(capacity);
            let mut buffer = vec![0; 8192];
            let growth = Growth::start();
            let guest = thread::spawn(move || {
                let transmit = |number| transmit(&backend, &[number as u8]);
                let waits: usize = (0..DESCRIPTORS).map(transmit).sum();
                // The guest stays until the host has read everything.
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
                let (mut received, mut reads, pending) = (0, 0, AtomicU64::new(0));
                while received < DESCRIPTORS {
                    let read = counted(&pending, stream.read(&mut buffer)).await.unwrap();
                    let expected = (received..).map(|number| number as u8);
                    assert!(buffer[..read].iter().copied().eq(expected.take(read)));
                    received += read;
                    reads += 1;
                }
                (stream, reads, pending.into_inner())
            });
            let mut rounds = 0;
            while !host.is_finished() || rounds == 0 {
                assert_served().await;
                rounds += 1;
            }
            let (stream, reads, pending) = host.await.unwrap();
            let (_backend, waits) = tokio::task::spawn_blocking(|| guest.join().unwrap())
                .await
                .unwrap();
            growth.assert_within(bound(capacity) + serving);
            let stats = stream.stats().tx;
            assert!(stats.high_water <= capacity as u64);
            // Each refused write is followed by one wait, and each wait is ended by a read.
            assert_eq!(stats.full, waits as u64);
            assert!(waits <= reads, "{waits} waits, {reads} reads");
            // The host's task is polled when it is woken, and when tokio ends its turn, which is after 128 reads.
            let turns = reads as u64 / 100;
            let woken = stats.data_wakes + turns + 1;
            assert!(
                pending <= woken,
                "{pending} pending polls, woken {woken} times"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn unread_flood_sleeps_within_memory_bound() {
    const FLOOD: usize = 12 << 20;
    if !is_alone("unread_flood_sleeps_within_memory_bound") {
        return;
    }
    watchdog(async {
        let serving = serving_peak().await;
        for capacity in CAPACITIES {
            let (stream, port) = Options::new().capacity(capacity).create().unwrap();
            let handle = port.handle();
            let backend = backend(port);
            let descriptor = vec![0xf1; 32 * 1024];
            let growth = Growth::start();
            // Ends once the stream is dropped, because the rest is then discarded.
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
            // The ring refused one write. Since then the guest sleeps.
            assert_eq!((stats.full, stats.room_wakes), (1, 0));
            assert_eq!(stats.queued, capacity as u64);
            growth.assert_within(bound(capacity) + serving);
            drop(stream);
            let waits = tokio::task::spawn_blocking(|| flood.join().unwrap()).await;
            assert_eq!(waits.unwrap(), 1);
            assert_eq!(handle.stats().tx.discarded, FLOOD as u64);
            assert_eq!(handle.stats().tx.queued, 0);
            // Discarding took no more memory either.
            growth.assert_within(bound(capacity) + serving);
        }
    })
    .await;
}

/// Not on Windows: there krun itself reads, and queues without limit what the guest does not take.
#[cfg(unix)]
#[tokio::test]
async fn guest_that_never_reads_makes_host_wait_within_memory_bound() {
    static PIECE: [u8; 1 << 20] = [0x3c; 1 << 20];
    // The buffers that the in-process guest's kernel offers, and their list.
    const KERNEL: usize = 32 * (4096 + 2 * size_of::<Vec<u8>>());
    if !is_alone("guest_that_never_reads_makes_host_wait_within_memory_bound") {
        return;
    }
    watchdog(async {
        let serving = serving_peak().await;
        for capacity in CAPACITIES {
            let (mut stream, port) = Options::new().capacity(capacity).create().unwrap();
            let handle = port.handle();
            let guest = common::boot(port);
            let growth = Growth::start();
            let _agent = guest.open().unwrap();
            let pending = Arc::new(AtomicU64::new(0));
            let (poll_again, mut poll_requests) = tokio::sync::mpsc::unbounded_channel::<()>();
            let writer = tokio::spawn({
                let pending = Arc::clone(&pending);
                async move {
                    let mut write = std::pin::pin!(async {
                        let mut written = Ok(());
                        for _ in 0..64 {
                            written =
                                written.and(counted(&pending, stream.write_all(&PIECE)).await);
                        }
                        written
                    });
                    loop {
                        tokio::select! {
                            biased;
                            _ = poll_requests.recv() => {}
                            written = &mut write => break written,
                        }
                    }
                }
            });
            // The guest's kernel fills its 32 buffers. The room that this makes may be too little to wake the writer,
            // so poll the writer once more to fill the ring.
            while handle.stats().rx.bytes < 32 * 4096 || handle.stats().rx.full == 0 {
                tokio::task::yield_now().await;
            }
            let polls = pending.load(Ordering::Relaxed);
            poll_again.send(()).unwrap();
            while handle.stats().rx.queued < capacity as u64
                || pending.load(Ordering::Relaxed) == polls
            {
                tokio::task::yield_now().await;
            }
            growth.assert_within(bound(capacity) + KERNEL);

            let before = (handle.stats(), pending.load(Ordering::Relaxed));
            for _ in 0..5 {
                assert_served().await;
            }
            assert!(!writer.is_finished());
            growth.assert_within(bound(capacity) + KERNEL + serving);
            // Neither side has tried again, except after one wake that may have been on its way.
            let (stats, polls) = (handle.stats().rx, pending.load(Ordering::Relaxed));
            assert!(polls <= before.1 + 1, "{polls} polls, {} before", before.1);
            assert!(polls <= stats.room_wakes + 2, "{polls} polls, {stats:?}");
            // A pending poll tries twice, or three times if it takes a signal first. As many tries may be refused
            // before each write that one of the guest's 32 reads makes room for.
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

/// The guest decides how much of each chunk is there when the host takes it. This one writes half a chunk and one byte each
/// time: the host lends that without a copy, and copies the rest of the chunk.
#[tokio::test]
async fn held_chunks_take_at_most_twice_their_counted_bytes() {
    if !is_alone("held_chunks_take_at_most_twice_their_counted_bytes") {
        return;
    }
    watchdog(async {
        for capacity in CAPACITIES {
            let (stream, backend) = idle_pair(capacity);
            let mut chunks = Chunks::new(stream);
            let descriptor = vec![0x5a; chunk_of(capacity) / 2 + 1];
            let mut held = Vec::with_capacity(8 * capacity / chunk_of(capacity));
            let growth = Growth::start();
            while backend.write(&descriptor).is_ok() {
                // The copies of the rest are the host's own, so it keeps none.
                while let Some(chunk) = chunks.next().now_or_never() {
                    let chunk = chunk.unwrap().unwrap();
                    if chunk.len() >= chunk_of(capacity) / 2 {
                        held.push(chunk);
                    }
                }
            }
            // The held chunks count, so the ring takes no more.
            let counted: usize = held.iter().map(Bytes::len).sum();
            assert_eq!(chunks.get_ref().stats().tx.queued, counted as u64);
            assert!(counted > capacity - descriptor.len());
            assert!(growth.peak() > counted, "the chunks were copied");
            growth.assert_within(2 * capacity + 4 * chunk_of(capacity));
            assert!(held.iter().flatten().all(|byte| *byte == 0x5a));
            // Dropping them makes room.
            drop(held);
            assert_eq!(backend.write(&descriptor).unwrap(), descriptor.len());
        }
    })
    .await;
}

#[tokio::test]
async fn end_of_file_inside_frame_is_error_not_short_frame() {
    if !is_alone("end_of_file_inside_frame_is_error_not_short_frame") {
        return;
    }
    watchdog(async {
        const ANNOUNCED: usize = 200_000;
        // At the end of file, the cut frame is in the ring, in the codec's buffer, or in both.
        let cut_off = async |sent: usize, is_first: bool| {
            let (stream, backend) = common::pair();
            let mut frames = FramedRead::new(stream, LengthDelimitedCodec::new());
            backend.write(&[0, 0, 0, 2, b'o', b'k']).unwrap();
            backend.write(&(ANNOUNCED as u32).to_be_bytes()).unwrap();
            assert_eq!(backend.write(&vec![b'x'; sent]).unwrap(), sent);
            let pending = AtomicU64::new(0);
            let frame = counted(&pending, frames.next()).await;
            assert_eq!(frame.unwrap().unwrap(), b"ok"[..]);
            // The rest of the next frame never comes. The read waits once, and meanwhile another stream is served.
            {
                let mut cut = std::pin::pin!(counted(&pending, frames.next()));
                assert!(futures::poll!(cut.as_mut()).is_pending());
                if is_first {
                    assert_served().await;
                }
                drop(backend);
                assert!(cut.await.unwrap().is_err());
            }
            assert!(counted(&pending, frames.next()).await.is_none());
            assert_eq!(pending.into_inner(), 1);
        };
        // The first run includes what the process allocates only once. The second shows what a stream takes for an end
        // of file after one byte.
        cut_off(1, true).await;
        let growth = Growth::start();
        cut_off(1, false).await;
        let alone = growth.peak();
        growth.assert_freed().await;
        for sent in [1, 3, 5000, SMALL - 10] {
            let growth = Growth::start();
            for _ in 0..20 {
                cut_off(sent, false).await;
                growth.assert_freed().await;
            }
            // The test itself also holds what it sends.
            growth.assert_within(alone + sent + bound(SMALL));
        }
    })
    .await;
}

/// The guest chooses the announced length. The host must refuse a huge one before it allocates.
#[tokio::test]
async fn announced_huge_frame_is_error_before_allocation() {
    if !is_alone("announced_huge_frame_is_error_before_allocation") {
        return;
    }
    watchdog(async {
        let announce = async |length: u32| {
            let (stream, backend) = common::pair();
            let mut frames = FramedRead::new(stream, LengthDelimitedCodec::new());
            backend.write(&length.to_be_bytes()).unwrap();
            backend.write(b"some").unwrap();
            frames.next().await.unwrap().map(|frame| frame.to_vec())
        };
        // These frames are as long as announced. The first includes what the process allocates only once.
        announce(4).await.unwrap();
        let growth = Growth::start();
        assert_eq!(announce(4).await.unwrap(), b"some");
        let alone = growth.peak();
        for length in [8 * 1024 * 1024 + 1, i32::MAX as u32, u32::MAX] {
            let growth = Growth::start();
            announce(length).await.unwrap_err();
            growth.assert_within(alone);
            growth.assert_freed().await;
        }

        let (stream, backend) = common::pair();
        let mut lines = FramedRead::new(stream, LinesCodec::new_with_max_length(100));
        backend.write(&[b'x'; 10_000]).unwrap();
        let error = lines.next().await.unwrap().unwrap_err();
        assert!(matches!(error, LinesCodecError::MaxLineLengthExceeded));
    })
    .await;
}

/// One host serves five guests. Four do harm in different ways for the whole test; the fifth behaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_hostile_guests_do_not_starve_fifth() {
    if !is_alone("four_hostile_guests_do_not_starve_fifth") {
        return;
    }
    watchdog(async {
        let serving = serving_peak().await;
        let [dribbled, flooded, ignored, babbled] = [(); 4].map(|()| idle_pair(SMALL));
        let ((mut dribbled, dribbling), (flooded, flooding)) = (dribbled, flooded);
        let ((mut ignored, deaf), (babbled, babbling)) = (ignored, babbled);
        let garbage: Arc<[u8]> = common::pattern(SMALL / 2).into();
        let flood = vec![0; 64 * SMALL];
        let (stop, growth) = (Arc::new(AtomicBool::new(false)), Growth::start());

        // The dribbler sends single bytes. The flooder sends bytes that the host never reads. The babbler sends
        // garbage. The deaf guest never reads.
        let dribbler = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                for number in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return number;
                    }
                    transmit(&dribbling, &[number as u8]);
                }
                unreachable!("the counter never ends")
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
        let pending = Arc::new(AtomicU64::new(0));
        let deaf_writer = tokio::spawn({
            let pending = Arc::clone(&pending);
            async move {
                static PIECE: [u8; 4 * SMALL] = [0; 4 * SMALL];
                let written = counted(&pending, ignored.write_all(&PIECE)).await;
                (ignored, written)
            }
        });

        // All four rings are full before anyone reads the first byte.
        let full = || {
            let guests = [&dribbled, &flooded, &babbled];
            guests.iter().all(|stream| stream.stats().tx.full > 0)
                && pending.load(Ordering::Relaxed) > 0
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
        // The write to the deaf guest was not polled again.
        assert_eq!(pending.load(Ordering::Relaxed), 1);
        // The last term is for the codec's buffer and the line that it makes.
        growth.assert_within(4 * bound(SMALL) + serving + 2 * 8 * 1024);

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

/// Nor do empty descriptors add bytes or wake the host. Not on Windows: krun's pipe carries no empty write.
#[cfg(unix)]
#[tokio::test]
async fn empty_descriptors_neither_spin_nor_starve_other_streams() {
    use std::time::{Duration, Instant};

    const PORTS: usize = 4;
    const ROUNDS: usize = 5;
    if !is_alone("empty_descriptors_neither_spin_nor_starve_other_streams") {
        return;
    }
    watchdog(async {
        let serving = serving_peak().await;
        let pairs: Vec<_> = (0..PORTS).map(|_| idle_pair(SMALL)).collect();
        let full = Arc::new(common::pattern(SMALL / 2));
        let growth = Growth::start();
        let (mut guests, mut hosts) = (Vec::new(), Vec::new());
        for (mut stream, backend) in pairs {
            let sent = Arc::clone(&full);
            guests.push(thread::spawn(move || {
                for _ in 0..ROUNDS {
                    transmit(&backend, &sent);
                    // krun offers the same descriptor again at once. If the call did not sleep, krun would spin.
                    let began = Instant::now();
                    for calls in 1..=2 {
                        assert_eq!(backend.write(&[]).unwrap(), 0);
                        assert!(began.elapsed() >= calls * Duration::from_millis(100));
                    }
                }
            }));
            let sent = Arc::clone(&full);
            hosts.push(tokio::spawn(async move {
                let pending = AtomicU64::new(0);
                let mut received = vec![0; sent.len()];
                for _ in 0..ROUNDS {
                    let read = counted(&pending, stream.read_exact(&mut received));
                    assert_eq!(read.await.unwrap(), sent.len());
                    assert!(received == *sent);
                }
                // End of file comes after two more empty descriptors.
                assert_eq!(
                    counted(&pending, stream.read(&mut received)).await.unwrap(),
                    0
                );
                (stream.stats().tx, pending.into_inner())
            }));
        }
        while !guests.iter().all(thread::JoinHandle::is_finished) {
            assert_served().await;
        }
        let buffers = PORTS * (full.len() + 1024);
        growth.assert_within(PORTS * bound(SMALL) + buffers + serving);
        for guest in guests {
            guest.join().unwrap();
        }
        for host in hosts {
            let (stats, pending) = host.await.unwrap();
            assert_eq!(stats.bytes, (ROUNDS * full.len()) as u64);
            // Empty descriptors do not wake the host. There is one wake for each other descriptor, one for the end of
            // file, and one because the guest opened its port.
            let wakes = ROUNDS as u64 + 2;
            assert!(stats.data_wakes <= wakes, "{} wakes", stats.data_wakes);
            assert!(pending <= stats.data_wakes + 1, "{pending} pending polls");
        }
    })
    .await;
}

const SECRET: u8 = 0xa5;
/// Fills each buffer before a read, to show which bytes the read touches.
const SENTINEL: u8 = 0xee;

/// The bytes of a stream from `position` on. Each depends on its position. None is zero, `SECRET` or `SENTINEL`.
fn numbered(position: usize, length: usize) -> Vec<u8> {
    let numbers = position..position + length;
    numbers.map(|number| 1 + (number % 127) as u8).collect()
}

/// How the host reads.
#[derive(Clone, Copy)]
enum ReadMethod {
    Uninit,
    ReadBuf,
    TryReadBuf,
    FillBuf,
    Chunks,
}

/// Reads once, up to `length` bytes if the method takes a buffer. Returns every byte that the read showed.
async fn read_with(stream: &mut AgentStream, method: ReadMethod, length: usize) -> Vec<u8> {
    match method {
        ReadMethod::Uninit => {
            let mut memory = vec![std::mem::MaybeUninit::new(SENTINEL); length];
            let mut buffer = ReadBuf::uninit(&mut memory);
            read_once(stream, &mut buffer).await;
            let filled = buffer.filled().to_vec();
            assert!(
                buffer.initialized() == filled,
                "initialised more than it read"
            );
            filled
        }
        ReadMethod::ReadBuf => {
            let mut memory = vec![SENTINEL; length];
            let mut buffer = ReadBuf::new(&mut memory);
            read_once(stream, &mut buffer).await;
            let read = buffer.filled().len();
            assert!(memory[read..].iter().all(|&byte| byte == SENTINEL));
            memory.truncate(read);
            memory
        }
        ReadMethod::TryReadBuf => {
            stream.readable().await.unwrap();
            let mut memory = Vec::with_capacity(length);
            stream.try_read_buf(&mut memory).unwrap();
            memory
        }
        ReadMethod::FillBuf => {
            let shown = stream.fill_buf().await.unwrap().to_vec();
            // The half that is left shows again.
            stream.consume(shown.len() / 2);
            let again = stream.fill_buf().await.unwrap().to_vec();
            assert!(again == shown[shown.len() / 2..]);
            stream.consume(again.len());
            shown
        }
        ReadMethod::Chunks => {
            let chunk = Chunks::new(stream).next().await.unwrap().unwrap();
            // The chunk itself, and each type that it converts to.
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

/// A recycled chunk shows only what was sent. This holds for each method of reading, for what a `Bytes` handle converts
/// to, and for the guest's descriptor.
#[tokio::test]
async fn recycled_chunks_show_no_old_bytes() {
    if !is_alone("recycled_chunks_show_no_old_bytes") {
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
            // Another stream may get the chunks that this one has used.
            let (mut other, port) = Options::new().capacity(capacity).create().unwrap();
            let other_backend = common::backend(port);
            for (stream, backend) in [(&mut stream, &backend), (&mut other, &other_backend)] {
                let (mut from_guest, mut from_host) = (0, 0);
                let methods = [
                    ReadMethod::Uninit,
                    ReadMethod::ReadBuf,
                    ReadMethod::TryReadBuf,
                    ReadMethod::FillBuf,
                    ReadMethod::Chunks,
                ];
                for (round, method) in methods
                    .into_iter()
                    .cycle()
                    .take(4 * methods.len())
                    .enumerate()
                {
                    for length in [1, 7, 100, 3000, 40_000_usize.min(capacity / 2)] {
                        let sent = numbered(from_guest, length);
                        assert_eq!(backend.write(&sent).unwrap(), length);
                        let mut shown = Vec::new();
                        while shown.len() < length {
                            // The first buffer is too short, the next too long. In half of the rounds the first
                            // read uses another method, so that both methods read from the same chunk.
                            let is_first = shown.is_empty();
                            let length = if is_first { length / 2 + 1 } else { length };
                            let method = if is_first && round < 2 * methods.len() {
                                ReadMethod::ReadBuf
                            } else {
                                method
                            };
                            shown.extend(read_with(stream, method, length).await);
                        }
                        assert!(shown == sent, "{length} bytes from {from_guest} on");
                        from_guest += length;

                        // A plain write copies. `Chunks` copies only small items.
                        let sent = numbered(from_host, length);
                        if matches!(method, ReadMethod::Chunks) {
                            let mut chunks = Chunks::new(&mut *stream);
                            chunks.send(sent.clone().into()).await.unwrap();
                        } else {
                            stream.write_all(&sent).await.unwrap();
                        }
                        let mut shown = Vec::new();
                        // The first descriptor is too short, the second has room to spare.
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

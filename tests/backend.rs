//! Tests for each rule that krun's threads set, with the numbers from `AgentConsoleBackend`'s documentation.
//! The tests play krun: they call the backend as krun's workers do.

#![cfg(unix)] // krun calls a backend only there

mod common;
#[path = "../src/test_util/unix/readable.rs"]
mod readable;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{SMALL, asleep, fill, is_would_block, many, pair, pattern, watchdog};
use futures::{SinkExt, StreamExt};
use rustix::event::Timespec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::{AgentConsoleBackend, AgentStream, Chunks, Error, Options};
use tokio_test::assert_pending;

/// Whether `poll(2)` finds the wake descriptor readable now.
#[expect(unsafe_code, reason = "krun's trait has a raw descriptor")]
fn is_readable(backend: &AgentConsoleBackend) -> bool {
    // SAFETY: the backend owns the descriptor and outlives this borrow.
    let wake = unsafe { BorrowedFd::borrow_raw(backend.read_wake_fd()) };
    readable::is_any_readable(&[wake], Some(&Timespec::default())).unwrap()
}

/// Blocks as krun's RX thread does.
#[expect(unsafe_code, reason = "krun's trait has a raw descriptor")]
fn wait_until_readable(backend: &AgentConsoleBackend) {
    // SAFETY: the backend owns the descriptor and outlives this borrow.
    let wake = unsafe { BorrowedFd::borrow_raw(backend.read_wake_fd()) };
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let ready = readable::is_any_readable(&[wake], Some(&limit)).unwrap();
    assert!(ready, "the wake descriptor is never readable");
}

#[tokio::test]
async fn bytes_pass_both_ways_through_backend() {
    let (mut stream, backend) = pair();
    stream.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 64];
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"ping");
    assert_eq!(backend.write(b"pong").unwrap(), 4);
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 4);
    assert_eq!(&buffer[..4], b"pong");
}

#[tokio::test]
async fn rule_1_read_returns_zero_only_at_end_of_file() {
    let (mut stream, backend) = pair();
    let mut buffer = [0; 8];
    // Neither an empty ring, nor an empty buffer, nor an empty write of the host makes `read` return 0.
    assert!(is_would_block(&backend.read(&mut buffer)));
    assert!(is_would_block(&backend.read(&mut [])));
    assert_eq!(stream.write(&[]).await.unwrap(), 0);
    assert!(is_would_block(&backend.read(&mut buffer)));
    stream.write_all(b"data").await.unwrap();
    assert!(is_would_block(&backend.read(&mut [])));
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    // A shutdown is no hang-up.
    stream.shutdown().await.unwrap();
    assert!(is_would_block(&backend.read(&mut buffer)));
    // Even after the hang-up, a read into an empty buffer does not return 0.
    stream.hang_up();
    assert!(is_would_block(&backend.read(&mut [])));
    assert!(!is_readable(&backend), "krun would spin");
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);
}

#[tokio::test]
async fn rule_2_after_data_read_returns_zero_only_once_krun_waited() {
    let (mut stream, backend) = pair();
    stream.write_all(b"data").await.unwrap();
    stream.hang_up();
    let mut buffer = [0; 8];
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    // krun asks for the rest of the descriptor, and for two more of the same chain.
    for _ in 0..3 {
        assert!(is_would_block(&backend.read(&mut buffer[4..])));
    }
    assert!(
        is_readable(&backend),
        "krun would sleep and miss the end of file"
    );
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);

    // Without data before it, the end of file comes at once.
    let (stream, backend) = pair();
    assert!(is_would_block(&backend.read(&mut buffer)));
    stream.hang_up();
    assert!(is_readable(&backend));
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);
}

#[tokio::test]
async fn rule_3_every_result_is_count_or_would_block() {
    let (stream, backend) = pair();
    let mut buffer = [0; 8];
    let check = |result: io::Result<usize>| assert!(result.is_ok() || is_would_block(&result));
    let check_all = |buffer: &mut [u8]| {
        check(backend.read(buffer));
        check(backend.read(&mut []));
        check(backend.write(b"x"));
        check(backend.write(&[]));
    };
    check_all(&mut buffer);
    fill(&backend);
    check_all(&mut buffer);
    drop(stream);
    check_all(&mut buffer);
}

#[tokio::test]
async fn rule_4_read_never_blocks_in_any_state() {
    // The calls run on the test's own thread, so a call that blocks hangs the test. The ring is empty, then full. Then
    // the stream is shut down and dropped, which hangs up.
    let (mut stream, backend) = pair();
    let mut buffer = [0; 8];
    assert!(is_would_block(&backend.read(&mut buffer)));
    stream.write_all(&vec![1; SMALL]).await.unwrap();
    assert_eq!(backend.read(&mut buffer).unwrap(), 8);
    stream.shutdown().await.unwrap();
    assert_eq!(backend.read(&mut buffer).unwrap(), 8);
    drop(stream);
    let mut rest = vec![0; SMALL];
    assert_eq!(backend.read(&mut rest).unwrap(), SMALL - 16);
    assert!(is_would_block(&backend.read(&mut buffer)));
    backend.read_wake_fd();
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);
}

/// `read` returns although a caller's `drop` blocks in the middle of a send, which it must not do. The host also holds
/// every chunk of the other direction. Later it takes the writer's lock again and again.
#[tokio::test]
async fn rule_4_read_does_not_wait_for_host() {
    struct Slow(mpsc::Sender<()>, mpsc::Receiver<()>);
    impl AsRef<[u8]> for Slow {
        fn as_ref(&self) -> &[u8] {
            b"slow"
        }
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
            self.1.recv().unwrap();
        }
    }

    let _deadline = common::deadline();
    let (stream, backend) = pair();
    let (mut read, write) = stream.into_split();
    fill(&backend);
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(Chunks::new(&mut read).next().await.unwrap().unwrap());
    }
    let mut buffer = [0; 100];
    let (entered, in_drop) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel();
    let host = thread::spawn(move || {
        let mut chunks = Chunks::new(write);
        let item = bytes::Bytes::from_owner(Slow(entered, may_leave));
        futures::executor::block_on(chunks.send(item)).unwrap();
        chunks.into_inner()
    });
    // A small item is copied, and the sender then drops it.
    in_drop.recv().unwrap();
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"slow");
    assert!(is_would_block(&backend.read(&mut buffer)));
    assert!(is_would_block(&backend.read(&mut [])));
    leave.send(()).unwrap();
    let write = host.join().unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let host = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                written += write.try_write(&[7; 3000]).unwrap_or(0);
            }
            written
        }
    });
    let mut taken = 0;
    for _ in 0..if cfg!(miri) { 50 } else { 20_000 } {
        match backend.read(&mut buffer) {
            Ok(read) => taken += read,
            busy => assert!(is_would_block(&busy)),
        }
    }
    stop.store(true, Ordering::Relaxed);
    let written = host.join().unwrap();
    while let Ok(1..) = backend.read(&mut buffer).inspect(|read| taken += read) {}
    assert_eq!(taken, written);
    drop(held);
}

#[tokio::test]
#[expect(unsafe_code, reason = "krun's trait has a raw descriptor")]
async fn rule_5_wake_descriptor_never_changes_and_stays_open() {
    let (mut stream, backend) = pair();
    let descriptor = backend.read_wake_fd();
    stream.write_all(b"data").await.unwrap();
    backend.read(&mut [0; 8]).unwrap();
    drop(stream);
    assert_eq!(backend.read_wake_fd(), descriptor);
    // SAFETY: the backend owns the descriptor and outlives this borrow.
    let wake = unsafe { BorrowedFd::borrow_raw(descriptor) };
    rustix::io::fcntl_getfd(wake).unwrap();
}

#[tokio::test]
async fn rule_6_spurious_read_finds_nothing_and_drains_wake() {
    let (mut stream, backend) = pair();
    let mut buffer = [0; 8];
    for _ in 0..3 {
        assert!(is_would_block(&backend.read(&mut buffer)));
        assert!(!is_readable(&backend));
    }
    stream.write_all(b"data").await.unwrap();
    assert!(is_readable(&backend));
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    assert!(is_would_block(&backend.read(&mut buffer)));
    assert!(!is_readable(&backend), "krun would spin");
    stream.write_all(b"more").await.unwrap();
    assert!(is_readable(&backend), "krun would sleep on data");
}

#[tokio::test]
async fn rule_6_empty_buffer_does_not_spin_while_data_waits() {
    let (mut stream, backend) = pair();
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    stream.write_all(b"data").await.unwrap();
    assert!(is_readable(&backend));
    assert!(is_would_block(&backend.read(&mut [])));
    assert!(
        !is_readable(&backend),
        "krun would spin on the empty buffer"
    );
    // Nothing is lost: krun reads again at the host's next write, or when it has a buffer with room.
    stream.write_all(b", more").await.unwrap();
    assert!(is_readable(&backend));
    let mut buffer = [0; 16];
    assert_eq!(backend.read(&mut buffer).unwrap(), 10);
    assert_eq!(&buffer[..10], b"data, more");
}

#[tokio::test]
async fn rule_7_write_takes_all_or_nothing() {
    let (mut stream, backend) = pair();
    let filled = fill(&backend);
    assert_eq!(filled, SMALL);
    assert!(is_would_block(&backend.write(&[1; 1])));

    let mut buffer = vec![0; 1000];
    stream.read_exact(&mut buffer).await.unwrap();
    assert!(is_would_block(&backend.write(&[1; 1001])));
    assert_eq!(backend.write(&[1; 1000]).unwrap(), 1000);
    assert!(is_would_block(&backend.write(&[1; 1])));
}

#[tokio::test]
async fn rule_7_write_larger_than_ring_is_taken_in_ringfuls() {
    watchdog(async {
        let (mut stream, backend) = pair();
        let sent = pattern(3 * SMALL + 17);
        let expected = sent.clone();
        let krun = thread::spawn(move || {
            // As `try_access` does around `write_volatile`.
            let mut rest = &sent[..];
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                match backend.write(rest) {
                    Ok(written) => {
                        pieces.push(written);
                        rest = &rest[written..];
                    }
                    Err(_) => backend.wait_until_writable(),
                }
            }
            (pieces, backend)
        });
        let mut received = vec![0; expected.len()];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == expected);
        let (pieces, _backend) = krun.join().unwrap();
        assert_eq!(pieces, [SMALL, SMALL, SMALL, 17]);
    })
    .await;
}

#[tokio::test]
async fn rule_7_writes_to_dropped_stream_are_discarded_and_counted() {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let handle = port.handle();
    let backend = port.into_backend();
    assert_eq!(backend.write(&[1; 100]).unwrap(), 100);
    assert_eq!(handle.stats().tx.discarded, 0);
    drop(stream);
    assert_eq!(
        handle.stats().tx.discarded,
        100,
        "the unread bytes are not counted"
    );
    for _ in 0..10 {
        assert_eq!(backend.write(&[1; SMALL]).unwrap(), SMALL);
    }
    assert_eq!(backend.write(&[1; 5 * SMALL]).unwrap(), 5 * SMALL);
    assert_eq!(handle.stats().tx.discarded, 100 + 15 * SMALL as u64);
}

#[tokio::test]
async fn rule_8_empty_write_queues_nothing_and_does_not_spin() {
    let (mut stream, backend) = pair();
    // krun offers the same empty descriptor again after each call, so each call must take some time. It must also
    // return, because krun checks between calls whether the port must stop.
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(backend.write(&[]).unwrap(), 0);
    }
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(stream.stats().tx.queued, 0);
    assert_pending!(tokio_test::task::spawn(stream.read_u8()).poll());
    // The next descriptor works as usual.
    assert_eq!(backend.write(b"x").unwrap(), 1);
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

/// Waits for room on a krun thread, reports when the wait is over, and then writes. Call this while the ring is full.
fn wait_for_room(backend: AgentConsoleBackend) -> (mpsc::Receiver<()>, thread::JoinHandle<usize>) {
    let (returned, waiting) = mpsc::channel();
    let krun = asleep(move || {
        backend.wait_until_writable();
        returned.send(()).unwrap();
        backend.write(&[1; 1024]).unwrap()
    });
    assert_eq!(
        waiting.try_recv(),
        Err(mpsc::TryRecvError::Empty),
        "the wait ended without room"
    );
    (waiting, krun)
}

#[tokio::test]
async fn rule_9_wait_until_writable_waits_for_room() {
    watchdog(async {
        let (mut stream, backend) = pair();
        fill(&backend);
        let (waiting, krun) = wait_for_room(backend);
        stream.read_exact(&mut [0; SMALL / 2]).await.unwrap();
        waiting.recv().unwrap();
        assert_eq!(krun.join().unwrap(), 1024);
    })
    .await;
}

#[tokio::test]
async fn rule_9_dropping_stream_ends_wait_for_room() {
    watchdog(async {
        let (stream, backend) = pair();
        fill(&backend);
        let (waiting, krun) = wait_for_room(backend);
        drop(stream);
        waiting.recv().unwrap();
        assert_eq!(krun.join().unwrap(), 1024);
    })
    .await;
}

/// A stream whose guest waits for room no longer than `limit`, with a full ring and a write that was refused.
fn full_pair(limit: Option<Duration>) -> (AgentStream, AgentConsoleBackend) {
    let mut options = Options::new().capacity(SMALL);
    if let Some(limit) = limit {
        options = options.stall_timeout(limit);
    }
    let (stream, port) = options.create().unwrap();
    let backend = port.into_backend();
    assert_eq!(fill(&backend), SMALL);
    (stream, backend)
}

fn assert_cut_off(error: &io::Error) {
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
    assert!(matches!(reason, Some(Error::CutOff)), "{error}");
}

#[tokio::test]
async fn rule_9_stall_timeout_ends_wait_and_discards_later_writes() {
    watchdog(async {
        for limit in [Duration::ZERO, Duration::from_millis(1)] {
            let (mut stream, backend) = full_pair(Some(limit));
            let krun = thread::spawn(move || {
                backend.wait_until_writable();
                (backend.write(&[8; 1000]).unwrap(), backend)
            });
            let (written, backend) = krun.join().unwrap();
            assert_eq!(written, 1000);
            assert_eq!(stream.stats().tx.discarded, 1000);
            // There is nothing left to wait for.
            backend.wait_until_writable();
            let large = vec![8; 3 * SMALL];
            assert_eq!(backend.write(&large).unwrap(), large.len());
            let discarded = 1000 + large.len() as u64;
            assert_eq!(stream.stats().tx.discarded, discarded);

            // Room that the host makes now would be behind the gap.
            let mut received = vec![0; SMALL / 2];
            stream.read_exact(&mut received).await.unwrap();
            assert_eq!(backend.write(&[8; 1000]).unwrap(), 1000);
            assert_eq!(stream.stats().tx.discarded, discarded + 1000);
            let error = stream.read_to_end(&mut received).await.unwrap_err();
            assert_cut_off(&error);
            assert!(received == [7; SMALL]);
            assert_cut_off(&stream.try_read(&mut [0; 8]).unwrap_err());
            assert_eq!(stream.stats().tx.bytes, SMALL as u64);

            // The other direction goes on.
            stream.write_all(b"to the guest").await.unwrap();
            assert_eq!(backend.read(&mut [0; 64]).unwrap(), 12);
            drop(backend);
            assert_cut_off(&stream.read_u8().await.unwrap_err());
        }
    })
    .await;
}

/// Chunks that the host keeps fill the ring as well, and the host may wait for the next one.
#[tokio::test]
async fn rule_9_stall_timeout_wakes_host_that_waits_and_keeps_chunks() {
    watchdog(async {
        let (stream, backend) = full_pair(Some(Duration::from_millis(1)));
        let mut chunks = Chunks::new(stream);
        let mut kept = Vec::new();
        for _ in 0..8 {
            kept.push(chunks.next().await.unwrap().unwrap());
        }
        let mut next = tokio_test::task::spawn(chunks.next());
        assert_pending!(next.poll());
        // The end of the wait is enough, without another write.
        let krun = thread::spawn(move || {
            backend.wait_until_writable();
            backend
        });
        while !next.is_woken() {
            tokio::task::yield_now().await;
        }
        assert_cut_off(&next.await.unwrap().unwrap_err());
        let backend = krun.join().unwrap();
        assert!(kept.concat() == [7; SMALL]);
        assert_eq!(backend.write(&[8; 1000]).unwrap(), 1000);
        assert_eq!(chunks.get_ref().stats().tx.discarded, 1000);
    })
    .await;
}

#[tokio::test]
async fn rule_9_host_that_makes_room_in_time_is_not_cut_off() {
    watchdog(async {
        // The shortest limit there is, but the room is there when the wait begins.
        let (mut stream, backend) = full_pair(Some(Duration::ZERO));
        for _ in 0..10 {
            // `fill` was refused 1024 bytes. They fit, though half of the ring is not free.
            let mut received = [0; 1024];
            stream.read_exact(&mut received).await.unwrap();
            assert_eq!(received, [7; 1024]);
            backend.wait_until_writable();
            assert_eq!(fill(&backend), 1024);
        }
        stream.read_exact(&mut [0; SMALL]).await.unwrap();
        // Nor does a wait without a reason cut it off.
        backend.wait_until_writable();
        backend.write(b"x").unwrap();
        backend.wait_until_writable();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        assert_eq!(stream.stats().tx.discarded, 0);
        assert_pending!(tokio_test::task::spawn(stream.read_u8()).poll());
    })
    .await;
}

/// Too little room to wake krun's thread for, but enough for its write. When the time is over, the thread looks once more.
#[tokio::test]
async fn rule_9_stall_timeout_counts_room_that_was_not_worth_wake() {
    watchdog(async {
        // The host must read before the time is over. If the machine was too slow for that, it gets more time.
        for limit in (0..).map(|doublings| Duration::from_millis(20 << doublings)) {
            let options = Options::new().capacity(SMALL).stall_timeout(limit);
            let (mut stream, port) = options.create().unwrap();
            let backend = port.into_backend();
            assert_eq!(backend.write(&[7; 30_000]).unwrap(), 30_000);
            assert!(is_would_block(&backend.write(&[8; 3000])));
            let (send_began, began) = mpsc::channel();
            let krun = asleep(move || {
                send_began.send(Instant::now()).unwrap();
                backend.wait_until_writable();
                (backend.write(&[8; 3000]).unwrap(), backend)
            });
            let mut received = vec![0; 1000];
            stream.read_exact(&mut received).await.unwrap();
            let was_in_time = Instant::now() < began.recv().unwrap() + limit;
            let (written, backend) = krun.join().unwrap();
            assert_eq!(written, 3000);
            if !was_in_time {
                continue;
            }
            assert_eq!(stream.stats().tx.discarded, 0);
            drop(backend);
            stream.read_to_end(&mut received).await.unwrap();
            let (first, second) = received.split_at(30_000);
            assert!(first.iter().all(|byte| *byte == 7));
            assert!(second == [8; 3000]);
            break;
        }
    })
    .await;
}

#[tokio::test]
async fn rule_9_without_stall_timeout_nothing_is_cut_off() {
    watchdog(async {
        let ages = Duration::from_secs(1 << 40);
        for limit in [None, Some(Duration::MAX), Some(ages)] {
            let (mut stream, backend) = full_pair(limit);
            let (waiting, krun) = wait_for_room(backend);
            // A longer stretch only lets a defect show more often.
            thread::sleep(Duration::from_millis(50));
            assert_eq!(waiting.try_recv(), Err(mpsc::TryRecvError::Empty));
            stream.read_exact(&mut [0; SMALL / 2]).await.unwrap();
            waiting.recv().unwrap();
            assert_eq!(krun.join().unwrap(), 1024);
            assert_eq!(stream.stats().tx.discarded, 0);
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.unwrap();
            assert_eq!(received.len(), SMALL / 2 + 1024);
        }
    })
    .await;
}

/// The write needs the whole ring, and the host reads it in small pieces: longer than the timeout, but never without
/// progress. If the machine pauses for that long, the test tries again with twice the time.
#[tokio::test]
#[cfg_attr(miri, ignore = "it takes long by design")]
async fn rule_9_host_that_reads_slowly_is_not_cut_off() {
    watchdog(async {
        for limit in [100, 200, 400, 800, 1600].map(Duration::from_millis) {
            let options = Options::new().capacity(SMALL).stall_timeout(limit);
            let (mut stream, port) = options.create().unwrap();
            let backend = port.into_backend();
            fill(&backend);
            assert!(is_would_block(&backend.write(&[8; SMALL])));
            let krun = thread::spawn(move || {
                backend.wait_until_writable();
                backend.write(&[8; SMALL]).unwrap()
            });
            for _ in 0..32 {
                tokio::time::sleep(limit / 10).await;
                stream.read_exact(&mut [0; SMALL / 32]).await.unwrap();
            }
            assert_eq!(krun.join().unwrap(), SMALL);
            if stream.stats().tx.discarded == 0 {
                stream.read_exact(&mut [0; SMALL]).await.unwrap();
                return;
            }
        }
        panic!("a host that reads is cut off");
    })
    .await;
}

#[tokio::test]
async fn rule_10_quiesce_lets_waiting_write_through_and_loses_nothing() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let handle = port.handle();
        let backend = Arc::new(port.into_backend());
        let filled = fill(&backend);
        assert!(is_would_block(&backend.write(&[8; 1000])));
        let krun = thread::spawn({
            let backend = Arc::clone(&backend);
            move || {
                backend.wait_until_writable();
                backend.write(&[8; 1000]).unwrap()
            }
        });
        handle.quiesce();
        assert_eq!(krun.join().unwrap(), 1000);
        assert_eq!(handle.stats().tx.discarded, 0);

        // The ring keeps up to twice its capacity.
        assert_eq!(backend.write(&[9; SMALL - 1000]).unwrap(), SMALL - 1000);
        assert_eq!(handle.stats().tx.discarded, 0);
        handle.resume();
        assert!(is_would_block(&backend.write(&[8; 1])));
        let mut received = vec![0; 2 * SMALL];
        stream.read_exact(&mut received).await.unwrap();
        let (first, rest) = received.split_at(filled);
        assert!(first.iter().all(|byte| *byte == 7));
        assert!(rest[..1000].iter().all(|byte| *byte == 8));
        assert!(rest[1000..].iter().all(|byte| *byte == 9));
        assert_eq!(backend.write(&[8; 1]).unwrap(), 1);
    })
    .await;
}

#[tokio::test]
async fn rule_10_bytes_after_discarded_ones_are_never_read() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let handle = port.handle();
        let backend = port.into_backend();
        handle.quiesce();
        let sent = pattern(2 * SMALL + 10);
        assert_eq!(backend.write(&sent).unwrap(), sent.len());
        assert_eq!(handle.stats().tx.discarded, 10);
        handle.resume();
        let mut received = vec![0; 2 * SMALL];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == sent[..2 * SMALL]);

        // There is room again, but these bytes would follow a gap.
        assert_eq!(backend.write(b"more").unwrap(), 4);
        assert_eq!(handle.stats().tx.discarded, 14);
        for _ in 0..2 {
            let error = stream.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(error.to_string().contains("quiesced"), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn rule_11_panic_in_host_task_does_not_reach_krun() {
    let (stream, backend) = pair();
    let task = tokio::spawn(async move {
        let _stream = stream;
        panic!("the host's task fails");
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(backend.write(b"still accepted").unwrap(), 14);
    assert_eq!(backend.read(&mut [0; 8]).unwrap(), 0);
}

#[tokio::test]
async fn rule_12_bytes_written_before_guest_opens_are_kept() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let sent = pattern(many(300_000));
        stream.write_all(&sent).await.unwrap();
        let guest = common::boot(port);
        let mut received = vec![0; sent.len()];
        guest
            .open()
            .unwrap()
            .read_exact(&mut received)
            .await
            .unwrap();
        assert!(received == sent);
    })
    .await;
}

#[tokio::test]
async fn rule_12_pause_before_guest_opens_loses_nothing() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        stream.write_all(b"early").await.unwrap();
        let guest = common::boot(port);
        guest.stop_workers().await;
        guest.start_workers().unwrap();
        assert!(!stream.has_guest_opened());
        let mut received = [0; 5];
        let mut agent = guest.open().unwrap();
        agent.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"early");
    })
    .await;
}

#[tokio::test]
async fn rule_13_closed_port_drops_bytes_and_reopened_port_gets_new_ones() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = common::boot(port);
        let mut opened = guest.open().unwrap();
        assert_eq!(
            guest.open().unwrap_err().kind(),
            io::ErrorKind::ResourceBusy
        );
        stream.write_all(b"first").await.unwrap();
        opened.read_exact(&mut [0; 5]).await.unwrap();
        drop(opened);

        // More than the ring and the virtqueue hold. krun keeps reading, and the guest drops the bytes.
        stream.write_all(&vec![0; many(4 << 20)]).await.unwrap();
        let mut reopened = guest.open().unwrap();
        let mut marker = tokio::spawn(async move {
            // Bytes that were on their way when the port was reopened may still arrive.
            while reopened.read_u8().await.unwrap() != b'!' {}
        });
        loop {
            stream.write_all(b"!").await.unwrap();
            tokio::select! {
                done = &mut marker => break done.unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await;
}

#[tokio::test]
async fn rule_14_restarting_workers_loses_nothing() {
    watchdog(async {
        const LENGTH: usize = many(2 << 20);
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = common::boot(port);
        let (mut guest_read, mut guest_write) = tokio::io::split(guest.open().unwrap());
        let (mut host_read, mut host_write) = tokio::io::split(stream);
        let sent = pattern(LENGTH);

        let to_host = sent.clone();
        let send_in_guest = tokio::spawn(async move { guest_write.write_all(&to_host).await });
        let to_guest = sent.clone();
        let send_in_host = tokio::spawn(async move { host_write.write_all(&to_guest).await });
        let receive_in_guest = tokio::spawn(async move {
            let mut received = vec![0; LENGTH];
            guest_read.read_exact(&mut received).await.unwrap();
            received
        });
        let receive_in_host = tokio::spawn(async move {
            let mut received = vec![0; LENGTH];
            host_read.read_exact(&mut received).await.unwrap();
            received
        });
        while !(receive_in_guest.is_finished() && receive_in_host.is_finished()) {
            guest.stop_workers().await;
            guest.start_workers().unwrap();
            tokio::task::yield_now().await;
        }
        assert!(receive_in_guest.await.unwrap() == sent);
        assert!(receive_in_host.await.unwrap() == sent);
        send_in_guest.await.unwrap().unwrap();
        send_in_host.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn rule_14_rest_of_chunk_survives_new_worker() {
    let (mut stream, backend) = pair();
    stream.write_all(b"leftover").await.unwrap();
    let mut buffer = [0; 4];
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    // A new worker takes over here.
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer, b"over");
}

#[tokio::test]
async fn host_writes_wake_krun_once_per_batch() {
    let (mut stream, backend) = pair();
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    for _ in 0..100 {
        stream.write_all(b"x").await.unwrap();
    }
    wait_until_readable(&backend);
    assert_eq!(stream.stats().rx.data_wakes, 1);
    assert_eq!(backend.read(&mut [0; 200]).unwrap(), 100);
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    assert!(!is_readable(&backend));
}

/// When data fills only part of a descriptor, krun reads twice more and finds nothing: for the rest of the descriptor,
/// and for the next one.
#[tokio::test]
async fn host_write_wakes_krun_after_two_empty_reads() {
    let (mut stream, backend) = pair();
    for wakes in 1..=3 {
        for _ in 0..2 {
            assert!(is_would_block(&backend.read(&mut [0; 8])));
        }
        assert!(!is_readable(&backend));
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.stats().rx.data_wakes, wakes);
        wait_until_readable(&backend);
        assert_eq!(backend.read(&mut [0; 8]).unwrap(), 1);
    }
    // A signal between the two reads is taken by the second.
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    stream.write_all(b"x").await.unwrap();
    assert_eq!(backend.read(&mut [0; 8]).unwrap(), 1);
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    assert!(!is_readable(&backend));
}

#[tokio::test]
async fn guest_writes_wake_host_once_per_batch() {
    let (mut stream, backend) = pair();
    assert_pending!(tokio_test::task::spawn(stream.read_u8()).poll());
    for _ in 0..100 {
        backend.write(b"x").unwrap();
    }
    assert_eq!(stream.stats().tx.data_wakes, 1);
    stream.read_exact(&mut [0; 100]).await.unwrap();
    // The host does not sleep, so the guest does not wake it.
    for _ in 0..100 {
        backend.write(b"x").unwrap();
    }
    assert_eq!(stream.stats().tx.data_wakes, 1);
}

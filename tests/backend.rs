//! One test for each rule of krun's threads, by the numbers in `AgentConsoleBackend`'s
//! documentation. The tests play krun: they call the backend as its workers do.

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
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentConsoleBackend, AgentStream, Chunks, Options};
use tokio_test::assert_pending;

/// What `poll(2)` says of the wake descriptor right now.
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
async fn round_trip_through_the_backend() {
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
async fn rule_1_zero_is_answered_only_at_the_end() {
    let (mut stream, backend) = pair();
    let mut buffer = [0; 8];
    // Nothing yet, an empty buffer with nothing, a write of nothing, an empty buffer with data.
    assert!(is_would_block(&backend.read(&mut buffer)));
    assert!(is_would_block(&backend.read(&mut [])));
    assert_eq!(stream.write(&[]).await.unwrap(), 0);
    assert!(is_would_block(&backend.read(&mut buffer)));
    stream.write_all(b"data").await.unwrap();
    assert!(is_would_block(&backend.read(&mut [])));
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    // A host that only shut down has not hung up.
    stream.shutdown().await.unwrap();
    assert!(is_would_block(&backend.read(&mut buffer)));
    // The end: an empty buffer still does not get it.
    stream.hang_up();
    assert!(is_would_block(&backend.read(&mut [])));
    assert!(!is_readable(&backend), "krun would spin");
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);
}

#[tokio::test]
async fn rule_2_after_data_a_wait_comes_before_the_end() {
    let (mut stream, backend) = pair();
    stream.write_all(b"data").await.unwrap();
    stream.hang_up();
    let mut buffer = [0; 8];
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    // The rest of the descriptor, and two more of the same chain.
    for _ in 0..3 {
        assert!(is_would_block(&backend.read(&mut buffer[4..])));
    }
    assert!(is_readable(&backend), "krun would sleep and miss the end");
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);

    // Without data before it, it is answered at once.
    let (mut stream, backend) = pair();
    assert!(is_would_block(&backend.read(&mut buffer)));
    stream.hang_up();
    assert!(is_readable(&backend));
    assert_eq!(backend.read(&mut buffer).unwrap(), 0);
}

#[tokio::test]
async fn rule_3_every_answer_is_a_count_or_would_block() {
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
async fn rule_4_read_answers_in_each_state() {
    // On this thread, so that it would hang: empty, full, shut down, hung up, dropped.
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

/// Whatever the host is at meanwhile: code of its own that runs as it writes, and blocks, though it must not; every
/// chunk of the other direction; and the writer's lock, all the time.
#[tokio::test]
async fn rule_4_read_does_not_wait_for_the_host() {
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
    let (entered, is_in_drop) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel();
    let host = thread::spawn(move || {
        let mut chunks = Chunks::new(write);
        let item = bytes::Bytes::from_owner(Slow(entered, may_leave));
        futures::executor::block_on(chunks.send(item)).unwrap();
        chunks.into_inner()
    });
    // A few bytes are copied, and their owner is dropped then.
    is_in_drop.recv().unwrap();
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
async fn rule_5_the_wake_descriptor_is_the_same_and_stays_open() {
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
async fn rule_6_a_spurious_read_finds_nothing_and_leaves_the_wake_drained() {
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
async fn rule_6_an_empty_buffer_does_not_spin_while_data_waits() {
    let (mut stream, backend) = pair();
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    stream.write_all(b"data").await.unwrap();
    assert!(is_readable(&backend));
    assert!(is_would_block(&backend.read(&mut [])));
    assert!(
        !is_readable(&backend),
        "krun would spin on the empty buffer"
    );
    // Nothing is lost: krun looks again with the next write, or a real buffer.
    stream.write_all(b", more").await.unwrap();
    assert!(is_readable(&backend));
    let mut buffer = [0; 16];
    assert_eq!(backend.read(&mut buffer).unwrap(), 10);
    assert_eq!(&buffer[..10], b"data, more");
}

#[tokio::test]
async fn rule_7_a_write_is_taken_whole_or_not_at_all() {
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
async fn rule_7_a_write_larger_than_the_ring_is_taken_in_ringfuls() {
    watchdog(async {
        let (mut stream, backend) = pair();
        let sent = pattern(3 * SMALL + 17);
        let expected = sent.clone();
        let krun = thread::spawn(move || {
            // As `try_access` does it around `write_volatile`.
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
async fn rule_7_when_the_host_has_gone_writes_are_discarded_and_counted() {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let handle = port.handle();
    let backend = port.into_backend();
    assert_eq!(backend.write(&[1; 100]).unwrap(), 100);
    assert_eq!(handle.stats().tx.discarded, 0);
    drop(stream);
    assert_eq!(
        handle.stats().tx.discarded,
        100,
        "what was unread when it went"
    );
    for _ in 0..10 {
        assert_eq!(backend.write(&[1; SMALL]).unwrap(), SMALL);
    }
    assert_eq!(backend.write(&[1; 5 * SMALL]).unwrap(), 5 * SMALL);
    assert_eq!(handle.stats().tx.discarded, 100 + 15 * SMALL as u64);
}

#[tokio::test]
async fn rule_8_an_empty_write_queues_nothing_and_is_no_hot_loop() {
    let (mut stream, backend) = pair();
    // krun offers the same empty descriptor again after each answer: each has to take its time, and
    // to come, for in between krun looks whether the port is to stop.
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(backend.write(&[]).unwrap(), 0);
    }
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(stream.stats().tx.queued, 0);
    assert_pending!(tokio_test::task::spawn(stream.read_u8()).poll());
    // The next descriptor is as good as ever.
    assert_eq!(backend.write(b"x").unwrap(), 1);
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

/// Waits in a thread of krun's, with a word when the wait is over, and then writes. There is no room
/// yet.
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
        "there is no room yet"
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
async fn rule_9_dropping_the_stream_ends_the_wait() {
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

#[tokio::test]
async fn rule_10_quiesce_lets_the_waiting_write_through_and_loses_nothing() {
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

        // Up to twice the capacity is kept.
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
async fn rule_10_nothing_is_read_from_behind_a_hole() {
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

        // There is room again, but what comes now would follow a gap.
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
async fn rule_11_a_panic_on_the_hosts_side_does_not_reach_krun() {
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
async fn rule_12_bytes_written_before_the_guest_opens_are_kept() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let sent = pattern(many(300_000));
        stream.write_all(&sent).await.unwrap();
        let guest = Guest::boot(port);
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
async fn rule_12_a_pause_before_the_guest_opens_loses_nothing() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        stream.write_all(b"early").await.unwrap();
        let guest = Guest::boot(port);
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
async fn rule_13_a_closed_port_takes_bytes_and_a_reopened_one_gets_only_new_ones() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = Guest::boot(port);
        let mut opened = guest.open().unwrap();
        assert_eq!(
            guest.open().unwrap_err().kind(),
            io::ErrorKind::ResourceBusy
        );
        stream.write_all(b"first").await.unwrap();
        opened.read_exact(&mut [0; 5]).await.unwrap();
        drop(opened);

        // More than ring and virtqueue hold: krun goes on reading, and the guest drops it.
        stream.write_all(&vec![0; many(4 << 20)]).await.unwrap();
        let mut reopened = guest.open().unwrap();
        let mut marker = tokio::spawn(async move {
            // What was on the way when it was reopened may still come.
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
async fn rule_14_nothing_is_lost_when_the_workers_are_stopped_and_started() {
    watchdog(async {
        const LENGTH: usize = many(2 << 20);
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = Guest::boot(port);
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
async fn rule_14_a_leftover_of_a_chunk_survives() {
    let (mut stream, backend) = pair();
    stream.write_all(b"leftover").await.unwrap();
    let mut buffer = [0; 4];
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    // Another worker takes over here.
    assert_eq!(backend.read(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer, b"over");
}

#[tokio::test]
async fn the_hosts_write_wakes_krun_once_a_batch() {
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

/// krun reads twice in vain for a descriptor that is filled in part: for the rest of it, and for the
/// next one.
#[tokio::test]
async fn a_wake_comes_also_after_krun_has_looked_twice_in_vain() {
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
    // A signal between the two is taken by the second.
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    stream.write_all(b"x").await.unwrap();
    assert_eq!(backend.read(&mut [0; 8]).unwrap(), 1);
    assert!(is_would_block(&backend.read(&mut [0; 8])));
    assert!(!is_readable(&backend));
}

#[tokio::test]
async fn the_guests_writes_wake_the_host_once_a_batch() {
    let (mut stream, backend) = pair();
    assert_pending!(tokio_test::task::spawn(stream.read_u8()).poll());
    for _ in 0..100 {
        backend.write(b"x").unwrap();
    }
    assert_eq!(stream.stats().tx.data_wakes, 1);
    stream.read_exact(&mut [0; 100]).await.unwrap();
    // Nobody sleeps, so nobody is woken.
    for _ in 0..100 {
        backend.write(b"x").unwrap();
    }
    assert_eq!(stream.stats().tx.data_wakes, 1);
}

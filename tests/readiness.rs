//! Waiting for readiness, and reading and writing without waiting.

mod common;

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use common::{SMALL, fill, is_would_block, many, pair, pattern, watchdog};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, Ready};
use tokio::task::JoinHandle;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, OwnedWriteHalf};
use tokio_test::{assert_pending, assert_ready_ok};

#[tokio::test]
async fn readable_and_writable_say_what_is_true_at_once() {
    let (stream, backend) = pair();
    assert_ready_ok!(tokio_test::task::spawn(stream.writable()).poll());
    assert_pending!(tokio_test::task::spawn(stream.readable()).poll());
    backend.write(b"x").unwrap();
    for _ in 0..3 {
        assert_ready_ok!(tokio_test::task::spawn(stream.readable()).poll());
    }
    assert_eq!(stream.try_write(&vec![1; 2 * SMALL]).unwrap(), SMALL);
    assert_pending!(tokio_test::task::spawn(stream.writable()).poll());
}

#[tokio::test]
async fn readable_does_not_take_what_it_found() {
    let (stream, backend) = pair();
    let sent = pattern(SMALL);
    backend.write(&sent[..100]).unwrap();
    stream.readable().await.unwrap();
    // The chunk that is in the reader's hands by now is not appended to.
    backend.write(&sent[100..]).unwrap();
    let mut received = vec![0; SMALL];
    assert_eq!(stream.try_read(&mut received).unwrap(), SMALL);
    assert!(received == sent);
}

#[tokio::test]
async fn every_waiting_task_is_woken() {
    watchdog(async {
        let (stream, backend) = pair();
        let stream = Arc::new(stream);
        assert_eq!(stream.try_write(&vec![1; 2 * SMALL]).unwrap(), SMALL);
        let mut tasks = Vec::new();
        for interest in [Interest::READABLE, Interest::WRITABLE] {
            for _ in 0..5 {
                let stream = Arc::clone(&stream);
                tasks.push(tokio::spawn(async move {
                    stream.ready(interest).await.unwrap()
                }));
            }
        }
        tokio::task::yield_now().await;
        assert!(tasks.iter().all(|task| !task.is_finished()));
        backend.write(b"x").unwrap();
        backend.read(&mut vec![0; SMALL]).unwrap();
        for (index, task) in tasks.into_iter().enumerate() {
            let ready = task.await.unwrap();
            assert_eq!(ready.is_readable(), index < 5);
            assert_eq!(ready.is_writable(), index >= 5);
        }
    })
    .await;
}

#[tokio::test]
async fn tasks_that_wait_one_after_the_other_are_each_woken() {
    watchdog(async {
        let (stream, backend) = pair();
        let stream = Arc::new(stream);
        let taken = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (stream, taken) = (Arc::clone(&stream), Arc::clone(&taken));
                tokio::spawn(async move {
                    loop {
                        stream.readable().await.unwrap();
                        let mut byte = [0; 1];
                        match stream.try_read(&mut byte) {
                            Ok(0) => return,
                            Ok(_) => taken.fetch_add(1, Ordering::Relaxed),
                            Err(error) => {
                                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                                continue;
                            }
                        };
                    }
                })
            })
            .collect();
        let krun = std::thread::spawn(move || {
            for _ in 0..many(10_000) {
                while backend.write(&[1]).is_err() {
                    backend.wait_until_writable();
                }
            }
        });
        for task in tasks {
            task.await.unwrap();
        }
        krun.join().unwrap();
        assert_eq!(taken.load(Ordering::Relaxed), many(10_000));
    })
    .await;
}

#[tokio::test]
async fn ready_waits_for_either_and_tells_which() {
    watchdog(async {
        let (mut stream, backend) = pair();
        let both = Interest::READABLE | Interest::WRITABLE;
        let ready = stream.ready(both).await.unwrap();
        assert!(ready.is_writable() && !ready.is_readable());

        stream.write_all(&vec![1; SMALL]).await.unwrap();
        assert_pending!(tokio_test::task::spawn(stream.ready(both)).poll());
        let (ready, ()) = tokio::join!(stream.ready(both), async {
            backend.write(b"x").unwrap();
        });
        assert!(ready.unwrap().is_readable());

        drop(backend);
        let ready = stream.ready(both).await.unwrap();
        assert!(ready.is_readable() && ready.is_write_closed());
        stream.read_u8().await.unwrap();
        let ready = stream.ready(both).await.unwrap();
        assert!(ready.is_read_closed() && ready.is_write_closed());
    })
    .await;
}

/// Fills the ring, and waits in another task to write more.
async fn wait_for_room(stream: AgentStream) -> (OwnedWriteHalf, JoinHandle<io::Result<Ready>>) {
    let (read, mut write) = stream.into_split();
    write.write_all(&vec![1; SMALL]).await.unwrap();
    let waiting = tokio::spawn(async move { read.ready(Interest::WRITABLE).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    (write, waiting)
}

#[tokio::test]
async fn shutdown_makes_waiting_writers_ready() {
    watchdog(async {
        let (stream, _backend) = pair();
        let (mut write, waiting) = wait_for_room(stream).await;
        write.shutdown().await.unwrap();
        assert!(waiting.await.unwrap().unwrap().is_write_closed());
        let error = write.try_write(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    })
    .await;
}

#[tokio::test]
async fn hanging_up_and_dropping_the_write_half_make_waiting_writers_ready() {
    watchdog(async {
        for hang_up in [true, false] {
            let (stream, _backend) = pair();
            let (mut write, waiting) = wait_for_room(stream).await;
            if hang_up {
                write.hang_up();
            } else {
                drop(write);
            }
            assert!(waiting.await.unwrap().unwrap().is_write_closed());
        }
    })
    .await;
}

#[tokio::test]
async fn ready_for_neither_reading_nor_writing_is_an_error() {
    let (stream, _backend) = pair();
    let error = stream.ready(Interest::ERROR).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

/// Whatever the task waits for, it must give way now and then.
#[tokio::test]
async fn a_task_that_is_always_ready_gives_way_to_the_others() {
    watchdog(async {
        let (stream, backend) = pair();
        backend.write(b"x").unwrap();
        let turns = Arc::new(AtomicUsize::new(0));
        let other = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move {
                loop {
                    turns.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            }
        });
        for _ in 0..many(10_000) {
            stream.readable().await.unwrap();
        }
        other.abort();
        let turns = turns.load(Ordering::Relaxed);
        assert!(
            turns >= many(10_000) / 128,
            "{turns} turns beside 10,000 waits"
        );
    })
    .await;
}

#[tokio::test]
async fn try_methods_never_wait() {
    let (stream, backend) = pair();
    let mut buffer = [0; 8];
    assert!(is_would_block(&stream.try_read(&mut buffer)));
    assert!(is_would_block(&stream.try_read_buf(&mut BytesMut::new())));
    assert_eq!(stream.try_read(&mut []).unwrap(), 0);
    assert_eq!(stream.try_write(&[]).unwrap(), 0);
    assert_eq!(stream.try_write(&vec![1; 2 * SMALL]).unwrap(), SMALL);
    assert!(is_would_block(&stream.try_write(b"x")));
    assert_eq!(stream.try_write(&[]).unwrap(), 0);

    backend.write(b"ab").unwrap();
    assert_eq!(stream.try_read(&mut buffer[..1]).unwrap(), 1);
    let mut rest = BytesMut::new();
    assert_eq!(stream.try_read_buf(&mut rest).unwrap(), 1);
    assert_eq!(&rest[..], b"b");
    drop(backend);
    assert_eq!(stream.try_read(&mut buffer).unwrap(), 0);
    assert_eq!(
        stream.try_write(b"x").unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

/// A vector could grow as long as the guest writes: what it has room for when it is given is what one call takes.
#[tokio::test]
async fn try_read_buf_takes_what_the_buffer_has_room_for() {
    let (stream, backend) = pair();
    backend.write(&pattern(SMALL)).unwrap();
    let mut buffer = Vec::with_capacity(1000);
    let room = buffer.capacity();
    assert_eq!(stream.try_read_buf(&mut buffer).unwrap(), room);
    assert_eq!((buffer.len(), buffer.capacity()), (room, room));
    assert!(buffer == pattern(SMALL)[..room]);

    // One without room makes some, and takes no more than that.
    let read = stream.try_read_buf(&mut buffer).unwrap();
    assert!(read > 0 && read <= buffer.capacity() - room);
    assert!(buffer == pattern(SMALL)[..room + read]);

    // And one that cannot takes nothing, as a read into an empty slice.
    assert_eq!(stream.try_read_buf(&mut &mut [0; 0][..]).unwrap(), 0);
    assert_eq!(stream.stats().tx.queued as usize, SMALL - room - read);
}

/// The same calls of tokio's own.
#[cfg(unix)]
#[tokio::test]
async fn try_read_buf_reads_as_much_as_a_unix_streams() {
    let (stream, backend) = pair();
    let (socket, peer) = tokio::net::UnixStream::pair().unwrap();
    for length in [0, 1, 64, 1000, 5000] {
        let sent = pattern(2000);
        backend.write(&sent).unwrap();
        assert_eq!(peer.try_write(&sent).unwrap(), sent.len());
        let mut buffers = [const { Vec::new() }; 2].map(|mut buffer: Vec<u8>| {
            buffer.reserve_exact(length);
            buffer
        });
        let [ours, theirs] = &mut buffers;
        loop {
            socket.readable().await.unwrap();
            let read = socket.try_read_buf(theirs).unwrap();
            assert_eq!(stream.try_read_buf(ours).unwrap(), read);
            assert_eq!(ours, theirs);
            if ours.len() == sent.len() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn vectored_reads_and_writes_take_buffers_one_after_another() {
    let (stream, backend) = pair();
    let sent = pattern(10_000);
    let slices = [&sent[..1], &[], &sent[1..5000], &sent[5000..]].map(IoSlice::new);
    assert_eq!(stream.try_write_vectored(&slices).unwrap(), sent.len());
    let mut received = vec![0; SMALL];
    assert_eq!(backend.read(&mut received).unwrap(), sent.len());
    assert!(received.starts_with(&sent));

    backend.write(&sent).unwrap();
    let (mut first, mut second, mut third) = ([0; 3], [0; 0], vec![0; SMALL]);
    let mut slices = [&mut first[..], &mut second[..], &mut third[..]].map(IoSliceMut::new);
    assert_eq!(stream.try_read_vectored(&mut slices).unwrap(), sent.len());
    assert!(is_would_block(&stream.try_read_vectored(&mut slices)));
    assert_eq!(first, sent[..3]);
    assert!(third.starts_with(&sent[3..]));
}

#[tokio::test]
async fn a_vectored_write_stops_at_the_bound_in_the_middle_of_a_buffer() {
    let (mut stream, backend) = pair();
    assert!(stream.is_write_vectored());
    let sent = pattern(2 * SMALL);
    let slices = [&sent[..SMALL - 7], &sent[SMALL - 7..]].map(IoSlice::new);
    assert_eq!(stream.write_vectored(&slices).await.unwrap(), SMALL);
    let mut received = vec![0; 2 * SMALL];
    assert_eq!(backend.read(&mut received).unwrap(), SMALL);
    assert!(received.starts_with(&sent[..SMALL]));
}

#[tokio::test]
async fn a_panicking_buffer_loses_nothing() {
    struct Panics;
    #[expect(unsafe_code, reason = "the trait is unsafe")]
    // SAFETY: it never hands out memory.
    unsafe impl bytes::BufMut for Panics {
        fn remaining_mut(&self) -> usize {
            100
        }
        unsafe fn advance_mut(&mut self, _: usize) {}
        fn chunk_mut(&mut self) -> &mut bytes::buf::UninitSlice {
            panic!("the caller's code")
        }
    }
    let (stream, backend) = pair();
    backend.write(b"kept").unwrap();
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        stream.try_read_buf(&mut Panics)
    }));
    assert!(read.is_err());
    let mut buffer = [0; 8];
    assert_eq!(stream.try_read(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"kept");
}

#[tokio::test]
async fn guest_opened_resolves_at_krun_s_first_call() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = Guest::boot(port);
        assert!(!stream.has_guest_opened());
        {
            let mut opened = tokio_test::task::spawn(stream.guest_opened());
            assert_pending!(opened.poll());
        }
        let (opened, agent) = tokio::join!(stream.guest_opened(), async { guest.open() });
        opened.unwrap();
        assert!(stream.has_guest_opened());
        drop((agent, guest));
        // It stays so.
        stream.guest_opened().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_goes_without_opening_is_an_error() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let (opened, ()) = tokio::join!(stream.guest_opened(), async { drop(port) });
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!stream.has_guest_opened());
    })
    .await;
}

#[tokio::test]
async fn drained_waits_until_the_guest_has_taken_what_was_written_before() {
    watchdog(async {
        let (mut stream, backend) = pair();
        stream.drained().await.unwrap();
        stream.write_all(&[1; 1000]).await.unwrap();
        let stream = Arc::new(stream);
        let waiting = tokio::spawn({
            let stream = Arc::clone(&stream);
            async move { stream.drained().await }
        });
        tokio::task::yield_now().await;
        // What is written later does not count, and fills the ring so that room is no reason to
        // wake anyone.
        assert_eq!(stream.try_write(&vec![2; SMALL]).unwrap(), SMALL - 1000);
        let later = tokio::spawn({
            let stream = Arc::clone(&stream);
            async move { stream.drained().await }
        });
        tokio::task::yield_now().await;
        assert_eq!(backend.read(&mut [0; 999]).unwrap(), 999);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert_eq!(backend.read(&mut [0; 1]).unwrap(), 1);
        waiting.await.unwrap().unwrap();
        assert!(!later.is_finished());
        backend.read(&mut vec![0; SMALL]).unwrap();
        later.await.unwrap().unwrap();
    })
    .await;
}

/// Room is not what it waits for.
#[tokio::test]
async fn drained_is_woken_once_however_the_guest_takes_the_bytes() {
    watchdog(async {
        let (mut stream, backend) = pair();
        stream.write_all(&[1; SMALL]).await.unwrap();
        let stream = Arc::new(stream);
        let waiting = tokio::spawn({
            let stream = Arc::clone(&stream);
            async move { stream.drained().await }
        });
        for _ in 0..SMALL / 512 {
            // As often as it is woken it looks, and would ask for the next wake.
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            assert_eq!(backend.read(&mut [0; 512]).unwrap(), 512);
        }
        waiting.await.unwrap().unwrap();
        assert_eq!(stream.stats().rx.room_wakes, 1);
    })
    .await;
}

#[tokio::test]
async fn drained_knows_what_was_taken_from_what_was_thrown_away() {
    watchdog(async {
        for round in 0..many(300) {
            let (mut stream, backend) = pair();
            stream.write_all(b"x").await.unwrap();
            let taken = round % 2 == 0;
            let krun = std::thread::spawn(move || {
                if taken {
                    backend.read(&mut [0; 8]).unwrap();
                }
                drop(backend);
            });
            let drained = stream.drained().await;
            assert_eq!(drained.is_ok(), taken, "{drained:?}");
            krun.join().unwrap();
            assert_eq!(stream.drained().await.is_ok(), taken);
        }
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_opens_and_goes_at_once_has_opened() {
    watchdog(async {
        for _ in 0..many(300) {
            let (stream, backend) = pair();
            let krun = std::thread::spawn(move || {
                backend.write(b"x").unwrap();
                drop(backend);
            });
            stream.guest_opened().await.unwrap();
            krun.join().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn drained_fails_when_the_guest_goes() {
    watchdog(async {
        let (mut stream, backend) = pair();
        stream.write_all(b"x").await.unwrap();
        let (drained, ()) = tokio::join!(stream.drained(), async { drop(backend) });
        assert_eq!(drained.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    })
    .await;
}

/// In turns, not in time: between the moment a quiet stream has something to read and the moment
/// its task reads it, a flooded one on the same thread reads no more often than tokio lets any task.
#[tokio::test]
async fn a_flooded_stream_leaves_turns_for_a_quiet_one() {
    watchdog(async {
        // Each turn of a task is 128 operations at most, and tokio looks at its driver at least
        // every 61 turns (`Builder::event_interval`). Twice, for the turn under way.
        const MOST: usize = 2 * 61 * 128;
        let (mut flooded, flood) = pair();
        let (mut quiet, port) = pair();
        let reads = Arc::new(AtomicUsize::new(0));
        let reader = tokio::spawn({
            let reads = Arc::clone(&reads);
            async move {
                loop {
                    // Never empty when it is read.
                    fill(&flood);
                    flooded.read_u8().await.unwrap();
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let (say, mut heard) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn({
            let reads = Arc::clone(&reads);
            async move {
                while quiet.read_u8().await.is_ok() {
                    say.send(reads.load(Ordering::Relaxed)).unwrap();
                }
            }
        });
        for _ in 0..many(100) {
            let before = reads.load(Ordering::Relaxed);
            port.write(b"?").unwrap();
            let between = heard.recv().await.unwrap() - before;
            assert!(between <= MOST, "{between} reads of the flooded stream");
        }
        reader.abort();
    })
    .await;
}

#[tokio::test]
async fn stats_count_what_moved() {
    let (mut stream, backend) = pair();
    let slot = SMALL / 8;
    fill(&backend);
    assert!(is_would_block(&backend.write(&[1])));
    let stats = stream.stats();
    assert_eq!(stats.tx.queued, SMALL as u64);
    assert_eq!(stats.tx.high_water, SMALL as u64);
    assert_eq!(stats.tx.chunks_queued, 8);
    assert_eq!((stats.tx.bytes, stats.tx.chunks), (0, 0));
    // The fill's last try, and this test's.
    assert_eq!(stats.tx.full, 2);

    stream.read_exact(&mut vec![0; slot + 1]).await.unwrap();
    let stats = stream.stats();
    assert_eq!(stats.tx.queued as usize, SMALL - slot - 1);
    assert_eq!(stats.tx.high_water, SMALL as u64);
    assert_eq!((stats.tx.bytes as usize, stats.tx.chunks), (slot + 1, 2));

    assert!(is_would_block(&backend.read(&mut [0; 8])));
    stream.write_all(b"one wake").await.unwrap();
    stream.write_all(b"for both").await.unwrap();
    let stats = stream.stats();
    assert_eq!(stats.rx.data_wakes, 1);
    assert_eq!(stats.rx.queued, 16);
    assert_eq!(stats.tx.discarded, 0);
}

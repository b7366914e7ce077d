//! Readiness, the `try_` methods, `guest_opened`, `drained` and `stats`.

mod common;

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use common::{SMALL, backend, fill, is_would_block, many, pair, pattern, watchdog};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, Ready};
use tokio::task::JoinHandle;
use tokio_krun::{AgentStream, Options, OwnedWriteHalf};
use tokio_test::{assert_pending, assert_ready_ok};

#[tokio::test]
async fn readable_and_writable_reflect_current_state() {
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
async fn readable_takes_no_bytes() {
    let (stream, backend) = pair();
    let sent = pattern(SMALL);
    backend.write(&sent[..100]).unwrap();
    stream.readable().await.unwrap();
    // The reader already holds the first chunk, so this write is not appended to it.
    backend.write(&sent[100..]).unwrap();
    let mut received = vec![0; SMALL];
    assert_eq!(stream.try_read(&mut received).unwrap(), SMALL);
    assert!(received == sent);
}

#[tokio::test]
async fn every_task_waiting_for_readiness_is_woken() {
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
async fn tasks_competing_for_bytes_are_each_woken() {
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
async fn ready_waits_for_either_interest_and_reports_which() {
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

#[tokio::test]
async fn ready_reports_read_closed_with_bytes_unread() {
    watchdog(async {
        let (stream, backend) = pair();
        backend.write(b"left").unwrap();
        let ready = stream.ready(Interest::READABLE).await.unwrap();
        assert_eq!(ready, Ready::READABLE, "the guest is still there");

        drop(backend);
        let ended = Ready::READABLE | Ready::READ_CLOSED;
        let ready = stream.ready(Interest::READABLE).await.unwrap();
        assert_eq!(ready, ended);
        assert!(ready.is_readable() && ready.is_read_closed());
        let ready = stream.ready(Interest::READABLE | Interest::WRITABLE);
        let write_ended = Ready::WRITABLE | Ready::WRITE_CLOSED;
        assert_eq!(ready.await.unwrap(), ended | write_ended);
        // A task that waits only for writing is not told that reading has ended.
        let ready = stream.ready(Interest::WRITABLE).await.unwrap();
        assert_eq!(ready, write_ended);

        let mut buffer = [0; 8];
        assert_eq!(stream.try_read(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"left");
        let ready = stream.ready(Interest::READABLE).await.unwrap();
        assert_eq!(ready, ended);
        assert_eq!(stream.try_read(&mut buffer).unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn guest_going_wakes_ready_with_read_closed() {
    watchdog(async {
        let (stream, backend) = pair();
        let mut ready = tokio_test::task::spawn(stream.ready(Interest::READABLE));
        assert_pending!(ready.poll());
        drop(backend);
        while !ready.is_woken() {
            tokio::task::yield_now().await;
        }
        let ready = assert_ready_ok!(ready.poll());
        assert_eq!(ready, Ready::READABLE | Ready::READ_CLOSED);
    })
    .await;
}

/// Makes the same calls on tokio's `UnixStream`, whose driver may learn of the end a little later.
#[cfg(unix)]
#[tokio::test]
async fn ready_reports_end_of_peer_as_unix_stream_does() {
    watchdog(async {
        let (stream, backend) = pair();
        let (socket, peer) = tokio::net::UnixStream::pair().unwrap();
        backend.write(b"left").unwrap();
        assert_eq!(peer.try_write(b"left").unwrap(), 4);
        let theirs = socket.ready(Interest::READABLE).await.unwrap();
        assert_eq!(stream.ready(Interest::READABLE).await.unwrap(), theirs);

        drop((backend, peer));
        for unread in [4, 0] {
            let theirs = loop {
                let ready = socket.ready(Interest::READABLE).await.unwrap();
                if ready.is_read_closed() {
                    break ready;
                }
                tokio::task::yield_now().await;
            };
            assert_eq!(stream.ready(Interest::READABLE).await.unwrap(), theirs);
            let mut buffer = [0; 8];
            assert_eq!(socket.try_read(&mut buffer).unwrap(), unread);
            assert_eq!(stream.try_read(&mut buffer).unwrap(), unread);
        }
    })
    .await;
}

/// Fills the ring, and waits for room in another task.
async fn fill_and_wait_for_room(
    stream: AgentStream,
) -> (OwnedWriteHalf, JoinHandle<io::Result<Ready>>) {
    let (read, mut write) = stream.into_split();
    write.write_all(&vec![1; SMALL]).await.unwrap();
    let waiting = tokio::spawn(async move { read.ready(Interest::WRITABLE).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    (write, waiting)
}

#[tokio::test]
async fn shutdown_wakes_task_waiting_for_room() {
    watchdog(async {
        let (stream, _backend) = pair();
        let (mut write, waiting) = fill_and_wait_for_room(stream).await;
        write.shutdown().await.unwrap();
        assert!(waiting.await.unwrap().unwrap().is_write_closed());
        let error = write.try_write(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    })
    .await;
}

#[tokio::test]
async fn hang_up_or_dropped_write_half_wakes_task_waiting_for_room() {
    watchdog(async {
        for hang_up in [true, false] {
            let (stream, _backend) = pair();
            let (write, waiting) = fill_and_wait_for_room(stream).await;
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
async fn ready_fails_without_read_or_write_interest() {
    let (stream, _backend) = pair();
    let error = stream.ready(Interest::ERROR).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

/// A task that never has to wait must still yield now and then.
#[tokio::test]
async fn always_ready_task_yields_to_others() {
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
            "{turns} turns during 10,000 waits"
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

/// One call takes only what the buffer has room for at the start. Otherwise a vector could grow for as long as the
/// guest writes.
#[tokio::test]
async fn try_read_buf_takes_what_buffer_has_room_for() {
    let (stream, backend) = pair();
    backend.write(&pattern(SMALL)).unwrap();
    let mut buffer = Vec::with_capacity(1000);
    let room = buffer.capacity();
    assert_eq!(stream.try_read_buf(&mut buffer).unwrap(), room);
    assert_eq!((buffer.len(), buffer.capacity()), (room, room));
    assert!(buffer == pattern(SMALL)[..room]);

    // A full vector grows once, and takes no more than the new room.
    let read = stream.try_read_buf(&mut buffer).unwrap();
    assert!(read > 0 && read <= buffer.capacity() - room);
    assert!(buffer == pattern(SMALL)[..room + read]);

    // A full slice cannot grow, so it takes nothing.
    assert_eq!(stream.try_read_buf(&mut &mut [0; 0][..]).unwrap(), 0);
    assert_eq!(stream.stats().tx.queued as usize, SMALL - room - read);
}

/// Makes the same calls on tokio's `UnixStream`.
#[cfg(unix)]
#[tokio::test]
async fn try_read_buf_reads_as_much_as_unix_stream() {
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
async fn vectored_reads_and_writes_use_buffers_in_order() {
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
async fn vectored_write_stops_at_capacity_inside_buffer() {
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
async fn panicking_buffer_loses_nothing() {
    struct Panics;
    #[expect(unsafe_code, reason = "the trait is unsafe")]
    // SAFETY: it never hands out memory: `chunk_mut` panics.
    unsafe impl bytes::BufMut for Panics {
        fn remaining_mut(&self) -> usize {
            100
        }
        unsafe fn advance_mut(&mut self, _: usize) {}
        fn chunk_mut(&mut self) -> &mut bytes::buf::UninitSlice {
            panic!("from the caller's code")
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
async fn guest_opened_resolves_at_first_call_from_krun() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
        assert!(!stream.has_guest_opened());
        {
            let mut opened = tokio_test::task::spawn(stream.guest_opened());
            assert_pending!(opened.poll());
        }
        let (opened, agent) = tokio::join!(stream.guest_opened(), async { guest.open() });
        opened.unwrap();
        assert!(stream.has_guest_opened());
        drop((agent, guest));
        // It stays resolved after the guest has gone.
        stream.guest_opened().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn guest_opened_fails_if_port_is_dropped_first() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let (opened, ()) = tokio::join!(stream.guest_opened(), async { drop(port) });
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(!stream.has_guest_opened());
    })
    .await;
}

#[tokio::test]
async fn drained_waits_only_for_bytes_written_before() {
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
        // Bytes written later do not count. They also fill the ring, so that no task is woken for
        // room.
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

/// `drained` does not wait for room, so room must not wake it.
#[tokio::test]
async fn drained_is_woken_once_even_if_guest_reads_in_pieces() {
    watchdog(async {
        let (mut stream, backend) = pair();
        stream.write_all(&[1; SMALL]).await.unwrap();
        let stream = Arc::new(stream);
        let waiting = tokio::spawn({
            let stream = Arc::clone(&stream);
            async move { stream.drained().await }
        });
        for _ in 0..SMALL / 512 {
            // If the task were woken, it would look again and ask for another wake.
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
async fn drained_tells_taken_bytes_from_discarded_bytes() {
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
async fn guest_opened_resolves_if_guest_goes_right_after_first_call() {
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
async fn drained_fails_when_guest_goes() {
    watchdog(async {
        let (mut stream, backend) = pair();
        stream.write_all(b"x").await.unwrap();
        let (drained, ()) = tokio::join!(stream.drained(), async { drop(backend) });
        assert_eq!(drained.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    })
    .await;
}

/// Counts reads, not time. When a byte arrives at the quiet stream, its task reads it before the flooded stream on the
/// same thread makes more reads than tokio's scheduling allows.
#[tokio::test]
async fn flooded_stream_does_not_starve_quiet_stream() {
    watchdog(async {
        // A task's turn has at most 128 operations, and tokio polls its driver at least every 61
        // turns (`Builder::event_interval`). Doubled, for what is already under way.
        const MOST: usize = 2 * 61 * 128;
        let (mut flooded, flooded_backend) = pair();
        let (mut quiet, quiet_backend) = pair();
        let reads = Arc::new(AtomicUsize::new(0));
        let reader = tokio::spawn({
            let reads = Arc::clone(&reads);
            async move {
                loop {
                    // Keeps the ring from being empty at any read.
                    fill(&flooded_backend);
                    flooded.read_u8().await.unwrap();
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn({
            let reads = Arc::clone(&reads);
            async move {
                while quiet.read_u8().await.is_ok() {
                    sender.send(reads.load(Ordering::Relaxed)).unwrap();
                }
            }
        });
        for _ in 0..many(100) {
            let before = reads.load(Ordering::Relaxed);
            quiet_backend.write(b"?").unwrap();
            let between = receiver.recv().await.unwrap() - before;
            assert!(between <= MOST, "{between} reads of the flooded stream");
        }
        reader.abort();
    })
    .await;
}

/// A stream with a full ring. If `writes`, the stream has seen that there was room, so it takes the guest for active.
async fn full_stream(busy_poll: Duration, writes: bool) -> (AgentStream, common::Backend) {
    let options = Options::new().capacity(SMALL).busy_poll(busy_poll);
    let (mut stream, port) = options.create().unwrap();
    let full = vec![1; SMALL];
    if writes {
        stream.write_all(&full).await.unwrap();
    } else {
        assert_eq!(stream.try_write(&full).unwrap(), SMALL);
    }
    (stream, backend(port))
}

/// How often a write that has to wait looks for room: each look is counted as a refused write.
fn looks(stream: &mut AgentStream) -> u64 {
    let before = stream.stats().rx.full;
    assert_pending!(tokio_test::task::spawn(stream.write(b"x")).poll());
    stream.stats().rx.full - before
}

/// Before and after it asks to be woken.
const LOOKS_WITHOUT_SPIN: u64 = 2;

/// Counts looks, not time. A task that spins looks at least once more, however slow its thread is.
#[tokio::test]
async fn busy_poll_spins_only_right_after_guest_was_active() {
    let busy_poll = Duration::from_millis(1);
    let (mut never_active, _backend) = full_stream(busy_poll, false).await;
    assert_eq!(looks(&mut never_active), LOOKS_WITHOUT_SPIN);

    let (mut active, _backend) = full_stream(busy_poll, true).await;
    assert!(looks(&mut active) > LOOKS_WITHOUT_SPIN);
    // That was in vain, so the guest is idle now.
    for _ in 0..3 {
        std::thread::sleep(2 * busy_poll);
        assert_eq!(looks(&mut active), LOOKS_WITHOUT_SPIN);
    }

    let (mut without, _backend) = full_stream(Duration::ZERO, true).await;
    std::thread::sleep(2 * busy_poll);
    assert_eq!(looks(&mut without), LOOKS_WITHOUT_SPIN);
}

/// A turn that the system interrupts may spin again, so this looks for one turn that it does not interrupt. If each stream
/// spun by itself, there would be none.
#[tokio::test]
#[cfg_attr(miri, ignore = "Miri's clock runs too fast")]
async fn task_that_polls_many_quiet_streams_spins_once() {
    watchdog(async {
        let busy_poll = Duration::from_millis(1);
        let spins_of_turn = async || {
            let mut streams = Vec::new();
            for _ in 0..16 {
                streams.push(full_stream(busy_poll, true).await);
            }
            // Until the last spin on this thread is past.
            std::thread::sleep(2 * busy_poll);
            let looks = streams.iter_mut().map(|(stream, _)| looks(stream));
            looks.filter(|looks| *looks > LOOKS_WITHOUT_SPIN).count()
        };
        let mut spins = Vec::new();
        while spins.last() != Some(&1) {
            spins.push(spins_of_turn().await);
            assert!(spins.len() < 100, "spins of each turn: {spins:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn stats_count_bytes_refusals_and_wakes() {
    let (mut stream, backend) = pair();
    let slot = SMALL / 8;
    fill(&backend);
    assert!(is_would_block(&backend.write(&[1])));
    let stats = stream.stats();
    assert_eq!(stats.tx.queued, SMALL as u64);
    assert_eq!(stats.tx.high_water, SMALL as u64);
    assert_eq!(stats.tx.bytes, 0);
    // One refused write in `fill`, and one here.
    assert_eq!(stats.tx.full, 2);

    stream.read_exact(&mut vec![0; slot + 1]).await.unwrap();
    let stats = stream.stats();
    assert_eq!(stats.tx.queued as usize, SMALL - slot - 1);
    assert_eq!(stats.tx.high_water, SMALL as u64);
    assert_eq!(stats.tx.bytes as usize, slot + 1);

    assert!(is_would_block(&backend.read(&mut [0; 8])));
    stream.write_all(b"one wake").await.unwrap();
    stream.write_all(b"for both").await.unwrap();
    let stats = stream.stats();
    assert_eq!(stats.rx.data_wakes, 1);
    assert_eq!(stats.rx.queued, 16);
    assert_eq!(stats.tx.discarded, 0);
}

//! Reading and writing without a copy: `AsyncBufRead`, `write_bytes`, and `Chunks` with its `Bytes`.

mod common;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use common::{SMALL, asleep, backend, fill, is_would_block, many, pair, pattern, watchdog};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_krun::{AgentStream, Chunks, Error, Options};
use tokio_test::assert_pending;

#[tokio::test]
async fn async_buf_read_reads_lines() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        tokio::spawn(async move {
            for line in 0..many(5000) {
                let line = format!("line {line}\n");
                agent.write_all(line.as_bytes()).await.unwrap();
            }
            guest.drained().await;
            drop(agent);
            guest.power_off().await;
        });
        let mut lines = stream.lines();
        for line in 0..many(5000) {
            let read = lines.next_line().await.unwrap();
            assert_eq!(read, Some(format!("line {line}")));
        }
        assert_eq!(lines.next_line().await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn fill_buf_takes_nothing_and_mixes_with_reads() {
    let (mut stream, backend) = pair();
    backend.write(b"abcdef").unwrap();
    assert_eq!(stream.fill_buf().await.unwrap(), b"abcdef");
    assert_eq!(stream.fill_buf().await.unwrap(), b"abcdef");
    stream.consume(2);
    let mut byte = [0; 1];
    assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
    assert_eq!(&byte, b"c");
    assert_eq!(stream.try_read(&mut byte).unwrap(), 1);
    assert_eq!(stream.fill_buf().await.unwrap(), b"ef");
    // This takes no more than `fill_buf` has returned.
    stream.consume(usize::MAX);
    backend.write(b"gh").unwrap();
    assert_eq!(stream.fill_buf().await.unwrap(), b"gh");
    stream.consume(0);
    assert_eq!(stream.read_u16().await.unwrap(), u16::from_be_bytes(*b"gh"));
    drop(backend);
    assert_eq!(stream.fill_buf().await.unwrap(), b"");
}

#[tokio::test]
async fn consumed_bytes_free_capacity() {
    let (mut stream, backend) = pair();
    for _ in 0..10 {
        fill(&backend);
        let mut left = SMALL;
        while left > 0 {
            let shown = stream.fill_buf().await.unwrap().len();
            stream.consume(shown);
            left -= shown;
        }
        assert_eq!(stream.stats().tx.queued, 0);
    }
}

#[tokio::test]
async fn chunks_stay_in_order_when_mixed_with_reads() {
    let (stream, backend) = pair();
    let mut chunks = Chunks::new(stream);
    let sent = pattern(SMALL);
    backend.write(&sent).unwrap();
    let mut received = Vec::new();
    while received.len() < sent.len() {
        received.extend_from_slice(&chunks.next().await.unwrap().unwrap());
        if received.len() < sent.len() {
            received.push(chunks.get_mut().read_u8().await.unwrap());
        }
    }
    assert!(received == sent);
    drop(backend);
    assert!(chunks.next().await.is_none());
    assert!(chunks.next().await.is_none());
}

#[tokio::test]
async fn held_chunk_uses_capacity_until_last_handle_is_dropped() {
    watchdog(async {
        let (stream, backend) = pair();
        let mut chunks = Chunks::new(stream);
        let sent = pattern(SMALL);
        backend.write(&sent).unwrap();
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(chunks.next().await.unwrap().unwrap());
        }
        assert_eq!(held.concat(), sent);
        assert_eq!(chunks.get_ref().stats().tx.queued, SMALL as u64);
        assert!(is_would_block(&backend.write(&[1])));
        assert_pending!(tokio_test::task::spawn(chunks.next()).poll());

        // The host has read everything, but the held chunks leave no room, so krun's thread sleeps.
        // Dropping one of them wakes it.
        let krun = asleep(move || {
            backend.wait_until_writable();
            (backend.write(&[9; 10]).unwrap(), backend)
        });
        let slice = held.remove(3).slice(5..6);
        assert!(!krun.is_finished());
        drop(slice);
        let (written, backend) = krun.join().unwrap();
        assert_eq!(written, 10);
        assert_eq!(chunks.next().await.unwrap().unwrap(), [9; 10][..]);
        // The held chunks keep their bytes while the storage of dropped chunks is reused.
        drop(held.pop());
        let room = SMALL - 6 * SMALL / 8;
        assert_eq!(backend.write(&vec![7; room]).unwrap(), room);
        assert_eq!(held[..3].concat(), sent[..3 * SMALL / 8]);

        // The held chunks outlive the stream.
        drop((chunks, backend));
        assert_eq!(held[0], sent[..SMALL / 8]);
    })
    .await;
}

#[tokio::test]
async fn small_chunk_is_copied_and_frees_capacity() {
    let (stream, backend) = pair();
    let mut chunks = Chunks::new(stream);
    backend.write(b"few").unwrap();
    let few = chunks.next().await.unwrap().unwrap();
    assert_eq!(few, "few");
    assert_eq!(chunks.get_ref().stats().tx.queued, 0);
    assert_eq!(backend.write(&[1; SMALL]).unwrap(), SMALL);
    assert_eq!(few, "few");
}

#[tokio::test]
async fn sent_bytes_are_not_copied_and_are_dropped_once_guest_took_them() {
    struct Tracked(Vec<u8>, std::sync::mpsc::Sender<()>);
    impl AsRef<[u8]> for Tracked {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Tracked {
        fn drop(&mut self) {
            let _ = self.1.send(());
        }
    }
    let (stream, backend) = pair();
    let mut chunks = Chunks::new(stream);
    let (on_drop, dropped) = std::sync::mpsc::channel();
    let sent = pattern(10_000);
    chunks.get_mut().write_all(b"before ").await.unwrap();
    let item = Bytes::from_owner(Tracked(sent.clone(), on_drop));
    chunks.send(item).await.unwrap();
    chunks.get_mut().write_all(b" after").await.unwrap();
    assert!(dropped.try_recv().is_err(), "the item was copied");

    let mut received = vec![0; SMALL];
    assert_eq!(backend.read(&mut received[..7 + 9_999]).unwrap(), 7 + 9_999);
    assert!(dropped.try_recv().is_err());
    let read = backend.read(&mut received[7 + 9_999..]).unwrap();
    dropped.try_recv().unwrap();
    received.truncate(7 + 9_999 + read);
    assert_eq!(received, [b"before ", &sent[..], b" after"].concat());
}

#[tokio::test]
async fn item_larger_than_ring_is_sent_in_pieces_within_capacity() {
    watchdog(async {
        let (stream, backend) = pair();
        let mut chunks = Chunks::new(stream);
        let sent = pattern(5 * SMALL + 3);
        let item = Bytes::from(sent.clone());
        let mut received = Vec::new();
        {
            let mut send = tokio_test::task::spawn(chunks.send(item));
            let mut buffer = vec![0; 1000];
            while send.poll().is_pending() {
                let read = backend.read(&mut buffer).unwrap();
                received.extend_from_slice(&buffer[..read]);
                tokio::task::yield_now().await;
            }
        }
        assert!(chunks.get_ref().stats().rx.high_water <= SMALL as u64);
        let mut buffer = vec![0; SMALL];
        let read = backend.read(&mut buffer).unwrap();
        received.extend_from_slice(&buffer[..read]);
        assert!(received == sent);
    })
    .await;
}

#[tokio::test]
async fn items_of_many_sizes_stay_within_slots_and_capacity() {
    watchdog(async {
        // Chunks are 4 KiB, so items of 1 byte and of just over half a chunk use up slots fastest.
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        let mut chunks = Chunks::new(stream);
        let sizes = [1, SMALL / 16, 1, SMALL / 16 + 1, 0, 3, SMALL / 8, SMALL];
        let total: usize = many(100) * sizes.iter().sum::<usize>();
        let sent = pattern(total);
        let expected = sent.clone();
        let receiver = tokio::spawn(async move {
            let mut received = vec![0; total];
            agent.read_exact(&mut received).await.unwrap();
            received == expected
        });
        let mut sent = Bytes::from(sent);
        for size in sizes.iter().cycle().take(many(100) * sizes.len()) {
            chunks.feed(sent.split_to(*size)).await.unwrap();
        }
        chunks.flush().await.unwrap();
        assert!(receiver.await.unwrap());
        assert!(chunks.get_ref().stats().rx.high_water <= SMALL as u64);
    })
    .await;
}

#[tokio::test]
async fn closing_sink_flushes_and_shuts_down() {
    watchdog(async {
        let (stream, backend) = pair();
        let (read, write) = stream.into_split();
        let mut sink = Chunks::new(write);
        sink.feed(Bytes::from_static(b"last")).await.unwrap();
        sink.close().await.unwrap();
        let mut buffer = [0; 8];
        assert_eq!(backend.read(&mut buffer).unwrap(), 4);
        assert!(is_would_block(&backend.read(&mut buffer)));
        let error = sink.send(Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);

        // `Chunks` also works on a borrowed read half.
        let mut read = read;
        backend.write(b"answer").unwrap();
        assert_eq!(
            Chunks::new(&mut read).next().await.unwrap().unwrap(),
            "answer"
        );
    })
    .await;
}

/// The handle that a peek leaves behind keeps memory alive, but uses no capacity.
#[tokio::test]
async fn peeked_bytes_free_capacity_once_read() {
    watchdog(async {
        let (mut stream, backend) = pair();
        backend.write(b"x").unwrap();
        assert_eq!(stream.fill_buf().await.unwrap(), b"x");
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        assert_eq!(backend.write(&[1; SMALL]).unwrap(), SMALL);

        // The same if a half reads the peeked bytes, or if `Chunks` returns them. The first byte has left this much of its
        // chunk.
        const REST: usize = SMALL / 8 - 1;
        assert_eq!(stream.fill_buf().await.unwrap(), [1; REST]);
        let (mut read, _) = AgentStream::split(&mut stream);
        read.read_exact(&mut vec![0; SMALL]).await.unwrap();
        assert_eq!(backend.write(&[2; SMALL]).unwrap(), SMALL);
        assert_eq!(stream.fill_buf().await.unwrap(), [2; REST]);
        let chunk = Chunks::new(&mut stream).next().await.unwrap().unwrap();
        assert_eq!(chunk, [2; REST][..]);
        assert_eq!(stream.stats().tx.queued, SMALL as u64);
        drop(chunk);
        assert_eq!(stream.stats().tx.queued, (SMALL - REST) as u64);
    })
    .await;
}

#[tokio::test]
async fn small_peeked_chunk_is_copied() {
    let (mut stream, backend) = pair();
    let mut held = Vec::new();
    for byte in 0..100 {
        backend.write(&[byte]).unwrap();
        assert_eq!(stream.fill_buf().await.unwrap(), [byte]);
        held.push(Chunks::new(&mut stream).next().await.unwrap().unwrap());
        assert_eq!(stream.stats().tx.queued, 0, "one byte keeps a whole chunk");
    }
    assert!(held.concat().into_iter().eq(0..100));
}

#[tokio::test]
async fn consuming_wakes_guest_waiting_for_room() {
    watchdog(async {
        let (mut stream, backend) = pair();
        fill(&backend);
        assert!(is_would_block(&backend.write(&[1])));
        let krun = asleep(move || {
            backend.wait_until_writable();
            backend.write(&[1]).unwrap()
        });
        for _ in 0..4 {
            let shown = stream.fill_buf().await.unwrap().len();
            stream.consume(shown);
        }
        assert_eq!(krun.join().unwrap(), 1);
    })
    .await;
}

/// A slot for each would be far too many: the ring has 18.
#[tokio::test]
async fn small_items_share_slots() {
    let (stream, backend) = pair();
    let mut chunks = Chunks::new(stream);
    for item in 0..100u8 {
        watchdog(chunks.send(Bytes::from(vec![item; 3])))
            .await
            .unwrap();
    }
    let mut received = [0; 300];
    assert_eq!(backend.read(&mut received).unwrap(), 300);
}

/// One byte and then an item that is just not small, in turn: each pair would take two slots, and the slots would run
/// out at half the capacity.
#[tokio::test]
async fn half_filled_chunks_do_not_reduce_the_capacity() {
    const ITEM: usize = SMALL / 16;
    let (stream, backend) = pair();
    let mut chunks = Chunks::new(stream);
    let sent = pattern(SMALL);
    let mut rest = Bytes::from(sent.clone());
    while rest.len() > ITEM {
        let one = rest.split_to(1);
        assert_eq!(chunks.get_ref().try_write(&one).unwrap(), 1);
        let item = rest.split_to(ITEM);
        watchdog(chunks.send(item)).await.unwrap();
    }
    assert_eq!(chunks.get_ref().try_write(&rest).unwrap(), rest.len());
    assert!(is_would_block(&chunks.get_ref().try_write(&[0])));
    assert_eq!(chunks.get_ref().stats().rx.queued, SMALL as u64);
    let mut received = vec![0; SMALL];
    assert_eq!(backend.read(&mut received).unwrap(), SMALL);
    assert!(received == sent);
}

#[tokio::test]
async fn panic_in_drop_of_sent_bytes_does_not_reach_krun() {
    struct Bomb;
    impl AsRef<[u8]> for Bomb {
        fn as_ref(&self) -> &[u8] {
            &[1; SMALL / 8]
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("from the caller's code");
        }
    }
    let (stream, backend) = pair();
    let mut chunks = Chunks::new(stream);
    chunks.send(Bytes::from_owner(Bomb)).await.unwrap();
    chunks.send(Bytes::from_static(b"next")).await.unwrap();
    let mut received = [0; SMALL];
    let read = backend.read(&mut received).unwrap();
    assert_eq!(read, SMALL / 8 + 4);
    assert_eq!(&received[SMALL / 8..read], b"next");
}

#[tokio::test]
#[should_panic(expected = "before `poll_ready` was ready")]
async fn start_send_without_poll_ready_panics_instead_of_dropping_item() {
    let (stream, _backend) = pair();
    let mut chunks = Chunks::new(stream);
    chunks
        .start_send_unpin(Bytes::from_static(b"first"))
        .unwrap();
    let _ = chunks.start_send_unpin(Bytes::from_static(b"second"));
}

#[tokio::test]
async fn chunk_stream_ends_after_error() {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    port.handle().quiesce();
    let backend = backend(port);
    backend.write(&vec![1; 2 * SMALL + 1]).unwrap();
    let mut chunks = Chunks::new(stream);
    let mut received = 0;
    let error = loop {
        match chunks.next().await.unwrap() {
            Ok(chunk) => received += chunk.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(received, 2 * SMALL);
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(chunks.next().await.is_none());
}

#[tokio::test]
async fn write_bytes_takes_whole_piece_and_copies_only_small_one() {
    let (stream, backend) = pair();
    // Just under half a chunk of 4 KiB, half of it, and several chunks.
    for length in [1, SMALL / 16 - 1, SMALL / 16, SMALL / 2] {
        let sent = Bytes::from(pattern(length));
        let mut piece = sent.clone();
        assert_eq!(stream.write_bytes(&mut piece).await.unwrap(), length);
        assert!(piece.is_empty());
        drop(piece);
        let is_copied = sent.is_unique();
        assert_eq!(is_copied, length < SMALL / 16, "{length} bytes");
        let mut received = vec![0; SMALL];
        assert_eq!(backend.read(&mut received).unwrap(), length);
        assert!(received[..length] == sent);
        assert!(sent.is_unique(), "the ring keeps bytes that were read");
    }
}

#[tokio::test]
async fn write_bytes_advances_past_what_fits() {
    watchdog(async {
        let (stream, backend) = pair();
        let sent = Bytes::from(pattern(2 * SMALL + 100));
        let mut rest = sent.clone();
        let mut received = vec![0; SMALL + 1];
        let mut taken = 0;
        for expected in [SMALL, SMALL, 100] {
            assert_eq!(stream.write_bytes(&mut rest).await.unwrap(), expected);
            assert!(rest == sent[taken + expected..]);
            assert_eq!(backend.read(&mut received).unwrap(), expected);
            assert!(received[..expected] == sent[taken..taken + expected]);
            taken += expected;
        }
        assert!(rest.is_empty());
        // A small piece that fits in part: the copy, too, is of its front.
        assert_eq!(stream.try_write(&vec![1; SMALL - 3]).unwrap(), SMALL - 3);
        let mut rest = Bytes::from_static(b"abcde");
        assert_eq!(stream.write_bytes(&mut rest).await.unwrap(), 3);
        assert_eq!(rest, "de");
        assert_eq!(backend.read(&mut received).unwrap(), SMALL);
        assert_eq!(&received[SMALL - 3..SMALL], b"abc");
    })
    .await;
}

#[tokio::test]
async fn empty_write_bytes_completes_even_if_ring_is_full() {
    let (stream, backend) = pair();
    assert_eq!(stream.try_write(&vec![1; SMALL]).unwrap(), SMALL);
    assert_eq!(stream.write_bytes(&mut Bytes::new()).await.unwrap(), 0);
    assert_eq!(backend.read(&mut vec![0; 2 * SMALL]).unwrap(), SMALL);
}

#[tokio::test]
async fn cancelled_write_bytes_leaves_bytes_and_sends_nothing() {
    watchdog(async {
        let (stream, backend) = pair();
        // A piece that would be copied, and one that would not.
        for length in [10, SMALL / 2] {
            let sent = Bytes::from(pattern(length));
            let mut bytes = sent.clone();
            assert_eq!(stream.try_write(&vec![1; SMALL]).unwrap(), SMALL);
            {
                let mut write = tokio_test::task::spawn(stream.write_bytes(&mut bytes));
                assert_pending!(write.poll());
            }
            assert!(bytes == sent);
            // Dropped once it was woken, but before it wrote.
            let mut received = vec![0; 2 * SMALL];
            {
                let mut write = tokio_test::task::spawn(stream.write_bytes(&mut bytes));
                assert_pending!(write.poll());
                assert_eq!(backend.read(&mut received).unwrap(), SMALL);
                while !write.is_woken() {
                    tokio::task::yield_now().await;
                }
            }
            assert!(bytes == sent);
            assert!(is_would_block(&backend.read(&mut received)));
            assert_eq!(stream.stats().rx.queued, 0);

            assert_eq!(stream.write_bytes(&mut bytes).await.unwrap(), length);
            assert_eq!(backend.read(&mut received).unwrap(), length);
            assert!(received[..length] == sent);
        }
    })
    .await;
}

#[tokio::test]
async fn waiting_write_bytes_goes_on_once_guest_took_half() {
    watchdog(async {
        let (stream, backend) = pair();
        assert_eq!(stream.try_write(&vec![1; SMALL]).unwrap(), SMALL);
        let mut bytes = Bytes::from(pattern(SMALL));
        let mut received = vec![0; SMALL];
        {
            let mut write = tokio_test::task::spawn(stream.write_bytes(&mut bytes));
            assert_pending!(write.poll());
            let half = &mut received[..SMALL / 2];
            assert_eq!(backend.read(half).unwrap(), SMALL / 2);
            while !write.is_woken() {
                tokio::task::yield_now().await;
            }
            assert_eq!(write.await.unwrap(), SMALL / 2);
        }
        assert!(bytes == pattern(SMALL)[SMALL / 2..]);
        assert_eq!(backend.read(&mut received).unwrap(), SMALL);
        assert!(received[SMALL / 2..] == pattern(SMALL)[..SMALL / 2]);
    })
    .await;
}

/// Whether it fails at once, or while it waits for room.
#[tokio::test]
async fn failed_write_bytes_leaves_bytes() {
    watchdog(async {
        for length in [10, SMALL / 2] {
            for end in ["shutdown", "hang-up", "guest gone", "guest gone meanwhile"] {
                let (mut stream, backend) = pair();
                let sent = Bytes::from(pattern(length));
                let mut bytes = sent.clone();
                let backend = match end {
                    "shutdown" => {
                        stream.shutdown().await.unwrap();
                        Some(backend)
                    }
                    "hang-up" => {
                        stream.hang_up();
                        Some(backend)
                    }
                    "guest gone" => {
                        drop(backend);
                        None
                    }
                    _ => {
                        assert_eq!(stream.try_write(&vec![1; SMALL]).unwrap(), SMALL);
                        let mut write = tokio_test::task::spawn(stream.write_bytes(&mut bytes));
                        assert_pending!(write.poll());
                        drop(backend);
                        let error = write.await.unwrap_err();
                        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
                        None
                    }
                };
                let error = stream.write_bytes(&mut bytes).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{end}");
                assert!(bytes == sent, "{end}");
                let gone = matches!(
                    error.get_ref().and_then(|reason| reason.downcast_ref()),
                    Some(Error::GuestGone)
                );
                assert_eq!(gone, backend.is_none(), "{end}: {error}");
                drop(bytes);
                assert!(sent.is_unique(), "{end}: the ring keeps the bytes");
                assert_eq!(stream.stats().rx.queued, 0, "{end}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn write_bytes_works_on_each_write_half() {
    let (mut stream, backend) = pair();
    let mut received = vec![0; SMALL];
    let sent = Bytes::from(pattern(SMALL / 2));
    {
        let (_read, write) = AgentStream::split(&mut stream);
        let mut bytes = sent.clone();
        assert_eq!(write.write_bytes(&mut bytes).await.unwrap(), sent.len());
        assert!(bytes.is_empty());
    }
    assert_eq!(backend.read(&mut received).unwrap(), sent.len());
    assert!(received[..sent.len()] == sent);

    let (read, write) = stream.into_split();
    drop(read);
    let mut bytes = sent.clone();
    assert_eq!(write.write_bytes(&mut bytes).await.unwrap(), sent.len());
    assert!(bytes.is_empty());
    drop(write);
    assert_eq!(backend.read(&mut received).unwrap(), sent.len());
    assert!(received[..sent.len()] == sent);
}

/// What one call takes stays together, so that tasks which write whole messages never mix them up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_that_several_tasks_write_arrive_whole() {
    const TASKS: usize = 4;
    /// The task in the upper two bits, and a count.
    fn content(task: usize, index: usize) -> u8 {
        ((task << 6) | (index % 61)) as u8
    }
    watchdog(async {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        let stream = Arc::new(stream);
        // Pieces that are copied and others, and one that never fits at once.
        let sizes = [1, 100, SMALL / 16, SMALL / 8 + 1, SMALL / 2, SMALL + 1];
        let length = many(64) * sizes.iter().sum::<usize>();
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let stream = Arc::clone(&stream);
                tokio::spawn(async move {
                    let mut rest: Bytes = (0..length).map(|index| content(task, index)).collect();
                    let mut calls = VecDeque::new();
                    for size in sizes.iter().cycle().take(many(64) * sizes.len()) {
                        let mut piece = rest.split_to(*size);
                        while !piece.is_empty() {
                            let before = piece.len();
                            let taken = stream.write_bytes(&mut piece).await.unwrap();
                            assert_eq!(piece.len(), before - taken);
                            calls.push_back(taken);
                        }
                    }
                    calls
                })
            })
            .collect();
        let mut received = vec![0; TASKS * length];
        agent.read_exact(&mut received).await.unwrap();
        let mut calls = Vec::new();
        for task in tasks {
            calls.push(task.await.unwrap());
        }

        let mut read = [0; TASKS];
        let mut rest = &received[..];
        while let Some(first) = rest.first() {
            let task = usize::from(first >> 6);
            let (call, later) = rest.split_at(calls[task].pop_front().unwrap());
            for byte in call {
                assert_eq!(*byte, content(task, read[task]));
                read[task] += 1;
            }
            rest = later;
        }
        assert_eq!(read, [length; TASKS]);
        assert!(calls.iter().all(VecDeque::is_empty));
        assert!(stream.stats().rx.high_water <= SMALL as u64);
    })
    .await;
}

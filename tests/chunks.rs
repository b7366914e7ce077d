//! Without a copy: `AsyncBufRead`, and `Bytes` in and out.

mod common;

use std::io;

use bytes::Bytes;
use common::{SMALL, asleep, backend, fill, is_would_block, many, pair, pattern, watchdog};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Chunks, Options};
use tokio_test::assert_pending;

#[tokio::test]
async fn lines_are_read_by_async_buf_read() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = Guest::boot(port);
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
async fn fill_buf_shows_without_taking_and_mixes_with_reads() {
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
    // More than was shown is not taken.
    stream.consume(usize::MAX);
    backend.write(b"gh").unwrap();
    assert_eq!(stream.fill_buf().await.unwrap(), b"gh");
    stream.consume(0);
    assert_eq!(stream.read_u16().await.unwrap(), u16::from_be_bytes(*b"gh"));
    drop(backend);
    assert_eq!(stream.fill_buf().await.unwrap(), b"");
}

#[tokio::test]
async fn consumed_bytes_return_to_the_bound() {
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
async fn chunks_come_in_order_with_bytes_read_in_between() {
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
async fn a_held_chunk_counts_against_the_bound_until_its_last_handle_is_dropped() {
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

        // krun's thread, asleep with nothing in the ring, is woken by a drop.
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
        // They are still what they were, with their storage held and others' used again.
        drop(held.pop());
        let room = SMALL - 6 * SMALL / 8;
        assert_eq!(backend.write(&vec![7; room]).unwrap(), room);
        assert_eq!(held[..3].concat(), sent[..3 * SMALL / 8]);

        // They outlive the stream.
        drop((chunks, backend));
        assert_eq!(held[0], sent[..SMALL / 8]);
    })
    .await;
}

#[tokio::test]
async fn a_few_bytes_are_the_holders_own() {
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
async fn sent_bytes_are_not_copied_and_are_dropped_when_taken() {
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
    let (say, dropped) = std::sync::mpsc::channel();
    let sent = pattern(10_000);
    chunks.get_mut().write_all(b"before ").await.unwrap();
    let item = Bytes::from_owner(Tracked(sent.clone(), say));
    chunks.send(item).await.unwrap();
    chunks.get_mut().write_all(b" after").await.unwrap();
    assert!(dropped.try_recv().is_err(), "it was copied");

    let mut received = vec![0; SMALL];
    assert_eq!(backend.read(&mut received[..7 + 9_999]).unwrap(), 7 + 9_999);
    assert!(dropped.try_recv().is_err());
    let read = backend.read(&mut received[7 + 9_999..]).unwrap();
    dropped.try_recv().unwrap();
    received.truncate(7 + 9_999 + read);
    assert_eq!(received, [b"before ", &sent[..], b" after"].concat());
}

#[tokio::test]
async fn an_item_larger_than_the_ring_is_sent_in_pieces_within_the_bound() {
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
async fn many_items_of_any_size_keep_within_slots_and_bytes() {
    watchdog(async {
        // Chunks of 4 KiB: items of 1 byte and of just over half a chunk use up slots fastest.
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = Guest::boot(port);
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
async fn closing_the_sink_flushes_and_shuts_down() {
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

        // The other half is read by chunks as well, borrowed.
        let mut read = read;
        backend.write(b"answer").unwrap();
        assert_eq!(
            Chunks::new(&mut read).next().await.unwrap().unwrap(),
            "answer"
        );
    })
    .await;
}

/// A handle that a peek has left behind keeps memory, and nothing waits for it.
#[tokio::test]
async fn a_peek_counts_for_nothing_once_it_is_read() {
    watchdog(async {
        let (mut stream, backend) = pair();
        backend.write(b"x").unwrap();
        assert_eq!(stream.fill_buf().await.unwrap(), b"x");
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        assert_eq!(backend.write(&[1; SMALL]).unwrap(), SMALL);

        // The same with what reads it a half, and with a chunk that was peeked at.
        assert_eq!(stream.fill_buf().await.unwrap(), [1; SMALL / 8]);
        let (mut read, _) = AgentStream::split(&mut stream);
        read.read_exact(&mut vec![0; SMALL]).await.unwrap();
        assert_eq!(backend.write(&[2; SMALL]).unwrap(), SMALL);
        assert_eq!(stream.fill_buf().await.unwrap(), [2; SMALL / 8]);
        let chunk = Chunks::new(&mut stream).next().await.unwrap().unwrap();
        assert_eq!(chunk, [2; SMALL / 8][..]);
        assert_eq!(stream.stats().tx.queued, SMALL as u64);
        drop(chunk);
        assert_eq!(stream.stats().tx.queued, (SMALL - SMALL / 8) as u64);
    })
    .await;
}

#[tokio::test]
async fn a_few_bytes_that_were_peeked_at_are_copied_as_well() {
    let (mut stream, backend) = pair();
    let mut held = Vec::new();
    for byte in 0..100 {
        backend.write(&[byte]).unwrap();
        assert_eq!(stream.fill_buf().await.unwrap(), [byte]);
        held.push(Chunks::new(&mut stream).next().await.unwrap().unwrap());
        assert_eq!(stream.stats().tx.queued, 0, "it would keep a whole chunk");
    }
    assert!(held.concat().into_iter().eq(0..100));
}

#[tokio::test]
async fn consuming_wakes_a_guest_that_waits_for_room() {
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

#[tokio::test]
async fn small_items_share_a_slot_and_large_ones_keep_within_the_slots() {
    let (stream, backend) = pair();
    let mut chunks = Chunks::new(stream);
    for item in 0..100u8 {
        watchdog(chunks.send(Bytes::from(vec![item; 3])))
            .await
            .unwrap();
    }
    assert_eq!(chunks.get_ref().stats().rx.chunks_queued, 1);
    let mut received = [0; 300];
    assert_eq!(backend.read(&mut received).unwrap(), 300);

    // One byte and half a chunk in turn: two slots for each pair, so the slots come to their end
    // before the bytes do. One more at the start, so that the last pair finds a slot too few.
    let sent = pattern(2 * SMALL);
    let mut rest = Bytes::from(sent.clone());
    let mut written = SMALL / 16;
    chunks.send(rest.split_to(written)).await.unwrap();
    loop {
        let one = chunks.get_ref().try_write(&rest[..1]);
        if is_would_block(&one) {
            break;
        }
        let _ = rest.split_to(one.unwrap());
        written += 1;
        let mut send = tokio_test::task::spawn(chunks.send(rest.split_to(SMALL / 16)));
        if send.poll().is_pending() {
            drop(send);
            break;
        }
        written += SMALL / 16;
    }
    let stats = chunks.get_ref().stats().rx;
    assert!(stats.queued < SMALL as u64, "{stats:?}");
    assert!(stats.chunks_queued >= 16, "{stats:?}");
    let mut received = vec![0; SMALL];
    let read = backend.read(&mut received).unwrap();
    assert!(read >= written);
    assert!(received[..read] == sent[..read]);
}

#[tokio::test]
async fn a_foreign_drop_that_panics_does_not_reach_krun() {
    struct Bomb;
    impl AsRef<[u8]> for Bomb {
        fn as_ref(&self) -> &[u8] {
            &[1; SMALL / 8]
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the caller's code");
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
async fn start_send_out_of_turn_panics_and_drops_no_item_silently() {
    let (stream, _backend) = pair();
    let mut chunks = Chunks::new(stream);
    chunks
        .start_send_unpin(Bytes::from_static(b"first"))
        .unwrap();
    let _ = chunks.start_send_unpin(Bytes::from_static(b"second"));
}

#[tokio::test]
async fn after_an_error_the_chunk_stream_ends() {
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

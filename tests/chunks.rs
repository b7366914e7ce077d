//! Reading and writing without a copy: `AsyncBufRead`, and `Chunks` with its `Bytes`.

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
async fn async_buf_read_reads_lines() {
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

        // The same if a half reads the peeked bytes, or if `Chunks` returns them.
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

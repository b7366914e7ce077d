//! Without a copy: `AsyncBufRead`, and `Bytes` in and out.

mod common;

use std::io;

use bytes::Bytes;
use common::{SMALL, fill, is_would_block, pair, pattern, watchdog};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_krun::guest::Guest;
use tokio_krun::{AgentStream, Chunks, Options};
use tokio_test::assert_pending;

#[tokio::test]
async fn lines_are_read_by_async_buf_read() {
    watchdog(async {
        let (stream, port) = AgentStream::new().unwrap();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        tokio::spawn(async move {
            for line in 0..5000 {
                let line = format!("line {line}\n");
                agent.write_all(line.as_bytes()).await.unwrap();
            }
            agent.flush().await.unwrap();
            drop(agent);
            guest.power_off().await;
        });
        let mut lines = stream.lines();
        for line in 0..5000 {
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
        let krun = std::thread::spawn(move || {
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
        let (stream, port) = Options::new().capacity(SMALL).slots(8).create().unwrap();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        let mut chunks = Chunks::new(stream);
        let sizes = [1, SMALL / 16, 1, SMALL / 16 + 1, 0, 3, SMALL / 8, SMALL];
        let total: usize = 200 * sizes.iter().sum::<usize>();
        let sent = pattern(total);
        let expected = sent.clone();
        let receiver = tokio::spawn(async move {
            let mut received = vec![0; total];
            agent.read_exact(&mut received).await.unwrap();
            received == expected
        });
        let mut sent = Bytes::from(sent);
        for size in sizes.iter().cycle().take(200 * sizes.len()) {
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

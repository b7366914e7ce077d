//! Drops every operation at each point where it waits. No byte is lost, and none arrives twice.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use common::{SMALL, cancelled_at, counted, many, pattern, watchdog};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio_krun::{Chunks, Options, OwnedReadHalf, OwnedWriteHalf};

const LENGTH: usize = many(2 << 20);

/// Reads everything, with each way to read in turn. Drops each at its first or second wait.
async fn read_all_with_cancellation(mut half: OwnedReadHalf) -> Vec<u8> {
    let mut received = Vec::new();
    let mut buffer = vec![0; 3000];
    for round in 0.. {
        let polls = 1 + round / 5 % 2;
        match round % 5 {
            0 => {
                if let Some(read) = cancelled_at(polls, half.read(&mut buffer)).await {
                    received.extend_from_slice(&buffer[..read.unwrap()]);
                }
            }
            1 => {
                if let Some(ready) = cancelled_at(polls, half.readable()).await {
                    ready.unwrap();
                    let read = half.try_read(&mut buffer).unwrap();
                    received.extend_from_slice(&buffer[..read]);
                }
            }
            2 => {
                let shown = cancelled_at(polls, half.fill_buf()).await;
                let shown = shown.map_or(0, |shown| {
                    let shown = shown.unwrap();
                    received.extend_from_slice(shown);
                    shown.len()
                });
                half.consume(shown);
            }
            3 => {
                let mut chunks = Chunks::new(&mut half);
                if let Some(Some(chunk)) = cancelled_at(polls, chunks.next()).await {
                    received.extend_from_slice(&chunk.unwrap());
                }
            }
            _ => {
                // Not `read_exact`: if that is dropped, you lose count of the bytes that it has read.
                let read = cancelled_at(polls, half.read_buf(&mut received)).await;
                if matches!(read, Some(Ok(0))) {
                    return received;
                }
            }
        }
        // A dropped read has taken nothing.
        assert_eq!(half.stats().tx.bytes, received.len() as u64);
    }
    unreachable!("the loop ends by returning")
}

/// Writes everything, with each way to write in turn. Drops each at its first or second wait.
async fn write_all_with_cancellation(mut half: OwnedWriteHalf, bytes: &[u8]) {
    let mut rest = bytes;
    for round in 0.. {
        if rest.is_empty() {
            break;
        }
        let polls = 1 + round / 5 % 2;
        let piece = &rest[..rest.len().min(1 + round * 37 % 9000)];
        let written = match round % 5 {
            0 => cancelled_at(polls, half.write(piece)).await,
            1 => {
                let ready = cancelled_at(polls, half.writable()).await;
                ready.map(|ready| ready.and_then(|()| half.try_write(piece)))
            }
            2 => {
                let mut sink = Chunks::new(&mut half);
                let sent = cancelled_at(polls, sink.send(Bytes::copy_from_slice(piece))).await;
                if sent.is_none() {
                    // The item is still in the sink or already in the ring. A flush sends what is left.
                    let mut polls = 1;
                    while cancelled_at(polls, sink.flush()).await.is_none() {
                        polls += 1;
                    }
                }
                Some(Ok(piece.len()))
            }
            3 => {
                let mut bytes = Bytes::copy_from_slice(piece);
                let written = cancelled_at(polls, half.write_bytes(&mut bytes)).await;
                let advanced = written
                    .as_ref()
                    .map_or(0, |written| *written.as_ref().unwrap());
                assert_eq!(bytes, piece[advanced..]);
                written
            }
            _ => {
                cancelled_at(polls, half.drained()).await;
                None
            }
        };
        if let Some(written) = written {
            rest = &rest[written.unwrap()..];
        }
        // A dropped write has written nothing. While the guest takes bytes, the two counts may come from different
        // moments, so this waits until they agree. If they never do, the watchdog ends the test.
        while half.stats().rx.bytes + half.stats().rx.queued != (bytes.len() - rest.len()) as u64 {
            tokio::task::yield_now().await;
        }
    }
    half.drained().await.unwrap();
    assert_eq!(half.stats().rx.bytes, bytes.len() as u64);
}

async fn transfer_both_ways_with_cancellation() {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let guest = common::boot(port);
    let agent = guest.open().unwrap();
    let (mut agent_read, mut agent_write) = tokio::io::split(agent);
    while cancelled_at(1, stream.guest_opened()).await.is_none() {}
    let (read, write) = stream.into_split();
    let sent = pattern(LENGTH);

    let guest_sends = tokio::spawn({
        let sent = sent.clone();
        async move { agent_write.write_all(&sent).await.unwrap() }
    });
    let guest_receives = tokio::spawn({
        let expected = sent.clone();
        async move {
            let mut received = vec![0; LENGTH];
            agent_read.read_exact(&mut received).await.unwrap();
            assert!(received == expected);
        }
    });
    let host_sends = tokio::spawn({
        let sent = sent.clone();
        async move { write_all_with_cancellation(write, &sent).await }
    });
    let host_receives = tokio::spawn(read_all_with_cancellation(read));
    for task in [guest_sends, guest_receives, host_sends] {
        task.await.unwrap();
    }
    guest.drained().await;
    guest.power_off().await;
    assert!(host_receives.await.unwrap() == sent);
}

#[tokio::test]
async fn cancelling_at_each_wait_loses_nothing_on_one_thread() {
    watchdog(transfer_both_ways_with_cancellation()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_at_each_wait_loses_nothing_on_several_threads() {
    watchdog(transfer_both_ways_with_cancellation()).await;
}

/// Tokio has two ways to cancel: a timeout, and `select`.
#[tokio::test]
async fn timeout_loses_nothing() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        let no_time = std::time::Duration::ZERO;
        let read = tokio::time::timeout(no_time, stream.read_u8()).await;
        assert!(read.is_err(), "the read completed without data");
        agent.write_all(b"kept").await.unwrap();
        let mut received = [0; 4];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"kept");
    })
    .await;
}

/// The read or write has been polled, and woken by what it waits for, when another branch completes first.
#[tokio::test]
async fn select_loses_nothing_when_it_drops_read_or_write() {
    watchdog(async {
        let (mut stream, backend) = common::pair();
        let mut received = [0; 4];
        let pending_polls = AtomicU64::new(0);
        for round in 1..=3 {
            tokio::select! {
                biased;
                _ = counted(&pending_polls, stream.read_exact(&mut received)) => {
                    panic!("the read completed without data")
                }
                written = async { backend.write(b"kept") } => assert_eq!(written.unwrap(), 4),
            }
            assert_eq!(
                pending_polls.load(Ordering::Relaxed),
                round,
                "the read was not polled"
            );
            assert_eq!(
                (stream.stats().tx.bytes, stream.stats().tx.queued),
                (4 * (round - 1), 4)
            );
            stream.read_exact(&mut received).await.unwrap();
            assert_eq!(std::mem::take(&mut received), *b"kept");
        }

        let pending_polls = AtomicU64::new(0);
        let mut taken = vec![0; SMALL];
        stream.write_all(&vec![1; SMALL]).await.unwrap();
        for round in 1..=3 {
            tokio::select! {
                biased;
                _ = counted(&pending_polls, stream.write(b"lost")) => {
                    panic!("the write completed without room")
                }
                read = async { backend.read(&mut taken) } => assert_eq!(read.unwrap(), SMALL),
            }
            assert_eq!(
                pending_polls.load(Ordering::Relaxed),
                round,
                "the write was not polled"
            );
            assert!(taken.iter().all(|byte| *byte == round as u8));
            assert_eq!(stream.stats().rx.queued, 0);
            stream
                .write_all(&vec![round as u8 + 1; SMALL])
                .await
                .unwrap();
        }
    })
    .await;
}

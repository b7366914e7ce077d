//! How the bytes flow: backpressure, vectored writes, flushes, and a carry that is cancelled and goes on.

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::{AgentStream, Carry, Ended, Options};
use tokio_test::{assert_pending, task};

use crate::common::{
    SMALL, backend, boot, cancelled_at, fill, is_would_block, many, pattern, watchdog,
};
use crate::scripted::{Read, Scripted, Write};

/// What the carry reads from the client at once.
const READ_SIZE: usize = 64 * 1024;

#[tokio::test]
async fn client_that_does_not_read_makes_guest_wait() {
    watchdog(async {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let handle = port.handle();
        let backend = backend(port);
        let (mut client, socket) = tokio::io::duplex(1024);
        let mut carry = Carry::new(stream, socket);
        let mut written = 0;
        loop {
            let filled = fill(&backend);
            written += filled;
            assert!(cancelled_at(1, carry.run()).await.is_none());
            if filled == 0 {
                break;
            }
        }
        // The client's buffer and the ring, and no more: chunks on the way count against the capacity.
        assert_eq!(carry.carried().from_guest, 1024);
        assert!(handle.stats().tx.queued <= SMALL as u64);
        assert!((SMALL..=SMALL + 1024).contains(&written), "{written}");
        assert!(is_would_block(&backend.write(&[7; 1024])));

        // The client reads: the guest may write again.
        let mut received = vec![0; written];
        let reads = client.read_exact(&mut received);
        tokio::select! {
            read = reads => { read.unwrap(); }
            ended = carry.run() => panic!("{ended:?}"),
        }
        assert!(fill(&backend) > 0);
    })
    .await;
}

#[tokio::test]
async fn guest_that_does_not_read_makes_client_wait() {
    watchdog(async {
        let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let handle = port.handle();
        let backend = backend(port);
        let (mut client, socket) = tokio::io::duplex(1024);
        let mut carry = Carry::new(stream, socket);
        let sent = pattern(4 * READ_SIZE);
        let mut written = 0;
        // It ends once neither moves.
        loop {
            let Some(wrote) = cancelled_at(1, client.write(&sent[written..])).await else {
                break;
            };
            written += wrote.unwrap();
            assert!(cancelled_at(1, carry.run()).await.is_none());
        }
        assert_eq!(handle.stats().rx.queued, SMALL as u64);
        let in_flight = written - 1024 - SMALL;
        assert!(in_flight <= READ_SIZE, "{in_flight}");

        // The guest reads: nothing is lost.
        let mut received = Vec::new();
        let mut buf = [0; 1000];
        while received.len() < written {
            match backend.read(&mut buf) {
                Ok(read) => received.extend_from_slice(&buf[..read]),
                Err(_) => assert!(cancelled_at(1, carry.run()).await.is_none()),
            }
        }
        assert!(received == sent[..written]);
    })
    .await;
}

/// A carry of `sent`, which is in the ring in many chunks.
async fn loaded(sent: &[u8], client: &Scripted) -> Carry<Scripted> {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let backend = backend(port);
    assert_eq!(backend.write(sent).unwrap(), sent.len());
    drop(backend); // the guest has gone
    Carry::new(stream, client.clone())
}

#[tokio::test]
async fn vectored_write_gathers_chunks_and_goes_on_after_each_part() {
    watchdog(async {
        let sent = pattern(SMALL - 7);
        for most in [1, 1000, 4096, 10_000, usize::MAX] {
            let client = Scripted::default();
            client.with(|script| {
                script.is_vectored = true;
                script
                    .writes
                    .extend(std::iter::repeat_n(Write::Takes(most), SMALL));
            });
            let mut carry = loaded(&sent, &client).await;
            assert_eq!(carry.run().await.unwrap(), Ended::Guest);
            assert!(client.arrived() == sent);
            assert!(client.with(|script| script.is_shut_down));
            let buffers = client.with(|script| script.buffers.clone());
            assert!(buffers[0] > 1 && buffers.iter().all(|buffers| *buffers <= 16));
            if most == usize::MAX {
                assert_eq!(buffers.len(), 1); // one system call for all of it
            }
        }
    })
    .await;
}

#[tokio::test]
async fn socket_without_vectored_writes_gets_one_chunk_a_write() {
    watchdog(async {
        let sent = pattern(SMALL - 7);
        let client = Scripted::default();
        assert_eq!(
            loaded(&sent, &client).await.run().await.unwrap(),
            Ended::Guest
        );
        assert!(client.arrived() == sent);
        assert!(client.with(|script| script.buffers.iter().all(|buffers| *buffers == 1)));
    })
    .await;
}

#[tokio::test]
async fn bytes_are_flushed_when_the_ring_is_empty() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let backend = backend(port);
        let client = Scripted::default();
        let mut carry = Carry::new(stream, client.clone());
        let mut run = task::spawn(carry.run());
        for (number, part) in [b"one", b"two"].into_iter().enumerate() {
            backend.write(part).unwrap();
            assert_pending!(run.poll());
            assert_eq!(client.arrived().len(), 3 * (number + 1));
        }
        assert_eq!(client.arrived(), b"onetwo");
    })
    .await;
}

#[tokio::test]
async fn debug_shows_no_payload() {
    let (stream, port) = AgentStream::pair().unwrap();
    let backend = backend(port);
    backend.write(b"secret").unwrap();
    let (_client, socket) = tokio::io::duplex(1);
    let mut carry = Carry::new(stream, socket);
    assert!(cancelled_at(1, carry.run()).await.is_none());
    let shown = format!("{carry:?}");
    assert!(
        shown.contains("to_client: 5 bytes") && !shown.contains("ecret"),
        "{shown}"
    );
    let shown = format!("{:?}", carry.into_parts());
    assert!(
        shown.contains("to_client: 5 bytes") && !shown.contains("ecret"),
        "{shown}"
    );
}

#[tokio::test]
async fn flood_of_client_leaves_guests_bytes_their_turn() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = boot(port);
        let (mut read, mut write) = guest.open().unwrap().into_split();
        let client = Scripted::default();
        client.reads([Read::Flood]);
        let mut carry = Carry::new(stream, client.clone());
        let carried = tokio::spawn(async move { carry.run().await });
        let reader =
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        for round in 1..=10 {
            write.write_all(b"a line").await.unwrap();
            while client.arrived().len() < 6 * round {
                tokio::task::yield_now().await;
            }
        }
        carried.abort();
        assert!(carried.await.unwrap_err().is_cancelled());
        assert!(reader.await.unwrap().unwrap() > 0);
    })
    .await;
}

/// The turns after which the carry is cancelled; `true` takes it apart as well.
type Steps = Vec<(usize, bool)>;

async fn turns(count: usize) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

async fn carries_all_bytes(capacity: usize, buffer: usize, piece: usize, steps: Steps) {
    let (stream, port) = Options::new().capacity(capacity).create().unwrap();
    let guest = boot(port);
    let (mut agent_read, mut agent_write) = guest.open().unwrap().into_split();
    let (client, socket) = tokio::io::duplex(buffer);
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let sent = pattern(many(200_000));
    let (to_client, to_guest) = (sent.clone(), sent.clone());
    let agent_writes = tokio::spawn(async move {
        for part in to_client.chunks(piece) {
            agent_write.write_all(part).await.unwrap();
        }
        agent_write
    });
    let client_writes = tokio::spawn(async move {
        for part in to_guest.chunks(piece) {
            client_write.write_all(part).await.unwrap();
        }
        client_write
    });
    let length = sent.len();
    let agent_reads = tokio::spawn(async move {
        let mut received = vec![0; length];
        agent_read.read_exact(&mut received).await.unwrap();
        received
    });
    let client_reads = tokio::spawn(async move {
        let mut received = vec![0; length];
        client_read.read_exact(&mut received).await.unwrap();
        (client_read, received)
    });

    let mut carry = Carry::new(stream, socket);
    for (turns_left, apart) in steps {
        tokio::select! {
            ended = carry.run() => panic!("{ended:?}"),
            () = turns(turns_left) => {}
        }
        if apart {
            let mut parts = carry.into_parts();
            for chunk in parts.to_client {
                parts.socket.write_all(&chunk).await.unwrap();
            }
            let mut rest: Bytes = parts.to_guest;
            while !rest.is_empty() {
                parts.stream.write_bytes(&mut rest).await.unwrap();
            }
            carry = Carry::new(parts.stream, parts.socket);
        }
    }
    let carried = tokio::spawn(async move { carry.run().await });
    assert!(agent_reads.await.unwrap() == sent);
    let (client_read, received) = client_reads.await.unwrap();
    assert!(received == sent);
    agent_writes.await.unwrap();
    drop(client_read.unsplit(client_writes.await.unwrap()));
    assert_eq!(carried.await.unwrap().unwrap(), Ended::Client);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 60 })
    })]

    #[test]
    fn cancelled_carry_goes_on_without_loss(
        capacity in SMALL..4 * SMALL,
        buffer in 64_usize..30_000,
        piece in 64_usize..50_000,
        steps in proptest::collection::vec((1_usize..6, any::<bool>()), 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(watchdog(async {
            carries_all_bytes(capacity, buffer, piece, steps).await;
        }));
    }
}

#[tokio::test]
async fn what_was_not_flushed_when_taken_apart_is_flushed_by_the_next_carry() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = boot(port);
        let mut agent = guest.open().unwrap();
        agent.write_all(b"word").await.unwrap();
        guest.drained().await;
        let client = Scripted::default();
        client.with(|script| script.is_slow = true);
        let mut carry = Carry::new(stream, client.clone());
        assert!(cancelled_at(1, carry.run()).await.is_none());
        assert_eq!(carry.carried().from_guest, 4);
        let parts = carry.into_parts();
        assert!(parts.to_client.is_empty());
        assert_eq!(client.arrived(), b"");

        client.with(|script| script.is_slow = false);
        let mut carry = Carry::new(parts.stream, parts.socket);
        assert!(cancelled_at(1, carry.run()).await.is_none());
        assert_eq!(client.arrived(), b"word"); // though the guest wrote nothing more
    })
    .await;
}

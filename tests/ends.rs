//! One test for each row of the table of ends in `AgentStream`'s documentation, with the
//! in-process guest.

mod common;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{SMALL, backend, many, pair, pattern, watchdog};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentPort, AgentStream, Options};
use tokio_test::assert_pending;

fn assert_broken_pipe<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn shutdown_delivers_and_closes_writing_without_hanging_up() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        let sent = pattern(many(300_000));
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_broken_pipe(stream.write(b"more").await);

        let mut received = vec![0; sent.len()];
        agent.read_exact(&mut received).await.unwrap();
        assert!(received == sent);
        assert_pending!(tokio_test::task::spawn(agent.read_u8()).poll());

        // The guest can still answer.
        agent.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
    })
    .await;
}

#[tokio::test]
async fn hang_up_delivers_and_then_the_guest_reads_the_end() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        agent.write_all(b"before").await.unwrap();
        guest.drained().await;
        let sent = pattern(many(300_000));
        stream.write_all(&sent).await.unwrap();
        stream.hang_up();
        assert_broken_pipe(stream.write(b"more").await);

        let mut received = Vec::new();
        agent.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);

        // Reads go on; the guest's writes do not.
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"before");
        assert_broken_pipe(agent.write(b"answer").await);
    })
    .await;
}

#[tokio::test]
async fn dropping_the_stream_hangs_up_and_discards_what_the_guest_writes() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let handle = port.handle();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        stream.write_all(b"goodbye").await.unwrap();
        drop(stream);
        let mut received = Vec::new();
        // Linux' driver lets no more out after the hang-up; until then writes are discarded.
        agent.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"goodbye");
        assert_eq!(handle.stats().tx.discarded, 0);
    })
    .await;
}

#[tokio::test]
async fn dropping_without_hanging_up_discards_and_counts_and_tells_the_guest_nothing() {
    watchdog(async {
        let (mut stream, port) = Options::new()
            .capacity(SMALL)
            .hang_up_on_drop(false)
            .create()
            .unwrap();
        let handle = port.handle();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        stream.write_all(b"goodbye").await.unwrap();
        drop(stream);

        // More than ring and virtqueue hold together.
        let written = many(4 << 20);
        agent.write_all(&vec![1; written]).await.unwrap();
        guest.drained().await;
        assert_eq!(handle.stats().tx.discarded, written as u64);
        agent.read_exact(&mut [0; 7]).await.unwrap();
        assert_pending!(tokio_test::task::spawn(agent.read_u8()).poll());
    })
    .await;
}

#[tokio::test]
async fn when_the_guest_powers_off_the_host_reads_what_is_left_and_then_the_end() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        let sent = pattern(many(300_000));
        agent.write_all(&sent).await.unwrap();
        guest.drained().await;
        guest.power_off().await;
        assert_broken_pipe(agent.write(b"from the grave").await);
        assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);

        assert_broken_pipe(stream.write(b"too late").await);
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert_broken_pipe(stream.write(b"too late").await);
    })
    .await;
}

#[tokio::test]
async fn when_the_backend_is_dropped_waiting_reads_and_writes_end() {
    watchdog(async {
        let (stream, backend) = pair();
        let (mut read_half, mut write_half) = tokio::io::split(stream);
        write_half.write_all(&[1; SMALL]).await.unwrap();
        let reader = tokio::spawn(async move { read_half.read(&mut [0; 8]).await });
        let writer = tokio::spawn(async move { write_half.write(&[0; 8]).await });
        tokio::task::yield_now().await;
        backend.write(b"last").unwrap();
        drop(backend);
        assert_eq!(reader.await.unwrap().unwrap(), 4);
        assert_broken_pipe(writer.await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn when_the_port_is_dropped_unattached_the_stream_ends() {
    let (mut stream, port) = AgentStream::pair().unwrap();
    drop(port);
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert_broken_pipe(stream.write(b"x").await);
}

#[tokio::test]
async fn dropping_the_guest_with_a_full_ring_leaves_no_thread_behind() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = Guest::boot(port);
        let mut agent = guest.open().unwrap();
        // A ringful, and one more that has to wait.
        agent.write_all(&[1; SMALL]).await.unwrap();
        guest.drained().await;
        agent.write_all(&[2; SMALL]).await.unwrap();
        drop(agent);
        drop(guest);
        // The end comes when both workers have let go of the backend. Whether the second was still
        // handed over is a race, as when a VM's process is killed; the first was.
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received.starts_with(&[1; SMALL]));
    })
    .await;
}

#[tokio::test]
async fn the_exit_hook_holds_the_end_back_until_the_stream_is_dropped() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let hook = port.exit_hook(Duration::MAX);
        let backend = Arc::new(backend(port));
        let sent = pattern(many(300_000));
        backend.write(&sent).unwrap();
        let krun = thread::spawn({
            let backend = Arc::clone(&backend);
            move || {
                hook(0);
                // Nothing can be written to the host from here on.
                backend.write(b"ignored").unwrap()
            }
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        assert_broken_pipe(stream.write(b"too late").await);
        assert!(!krun.is_finished(), "the host has not finished with it");
        drop(stream);
        assert_eq!(krun.join().unwrap(), 7);
    })
    .await;
}

#[tokio::test]
async fn one_exit_hook_ends_several_streams_at_once() {
    watchdog(async {
        let (mut first, first_port) = AgentStream::pair().unwrap();
        let (mut second, second_port) = AgentStream::pair().unwrap();
        let hook = AgentPort::exit_hook_for([&first_port, &second_port], Duration::MAX);
        let krun = thread::spawn(move || hook(0));
        // The second first, with the first one held.
        assert_eq!(second.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(first.read(&mut [0; 8]).await.unwrap(), 0);
        drop(first);
        assert!(!krun.is_finished());
        drop(second);
        krun.join().unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_exit_hook_waits_no_longer_than_its_limit() {
    let (stream, port) = AgentStream::pair().unwrap();
    port.exit_hook(Duration::from_millis(1))(0);
    // It came back with the stream alive; dropped, it comes back at once however long the limit.
    drop(stream);
    port.exit_hook(Duration::MAX)(0);
}

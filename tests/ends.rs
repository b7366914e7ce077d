//! A test for each row of the table of ends in `AgentStream`'s documentation, with the in-process guest.

mod common;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{SMALL, backend, many, pair, pattern, watchdog};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::{AgentPort, AgentStream, Options};
use tokio_test::assert_pending;

fn assert_broken_pipe<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn shutdown_delivers_bytes_and_ends_writing_without_hanging_up() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
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
async fn guest_reads_all_bytes_then_end_of_file_after_hang_up() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
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

        // The host can still read, but the guest can no longer write.
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"before");
        assert_broken_pipe(agent.write(b"answer").await);
    })
    .await;
}

#[tokio::test]
async fn dropping_stream_delivers_bytes_and_hangs_up() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let handle = port.handle();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        stream.write_all(b"goodbye").await.unwrap();
        drop(stream);
        let mut received = Vec::new();
        // After the hang-up, Linux' driver lets the guest write nothing more. Until then its writes are discarded.
        agent.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"goodbye");
        assert_eq!(handle.stats().tx.discarded, 0);
    })
    .await;
}

#[tokio::test]
async fn dropping_stream_without_hang_up_discards_and_counts_guest_writes() {
    watchdog(async {
        let (mut stream, port) = Options::new()
            .capacity(SMALL)
            .hang_up_on_drop(false)
            .create()
            .unwrap();
        let handle = port.handle();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        stream.write_all(b"goodbye").await.unwrap();
        drop(stream);

        // More than the ring and the virtqueue hold together.
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
async fn host_reads_all_bytes_then_end_of_file_after_guest_power_off() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
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
async fn dropping_backend_wakes_pending_reads_and_writes() {
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
async fn dropping_unattached_port_ends_stream() {
    let (mut stream, port) = AgentStream::pair().unwrap();
    drop(port);
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    assert_broken_pipe(stream.write(b"x").await);
}

#[tokio::test]
async fn dropping_guest_with_full_ring_stops_both_workers() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        // The first write fills the ring, so the second has to wait.
        agent.write_all(&[1; SMALL]).await.unwrap();
        guest.drained().await;
        agent.write_all(&[2; SMALL]).await.unwrap();
        drop(agent);
        drop(guest);
        // End of file comes when both workers have dropped the backend. The first write always
        // arrives. Whether the second does is a race, as when a VM's process is killed.
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received.starts_with(&[1; SMALL]));
    })
    .await;
}

/// Otherwise it would wait until somebody reads, as krun joins the thread that waits for room.
#[tokio::test]
async fn power_off_returns_with_full_ring_if_there_is_stall_timeout() {
    watchdog(async {
        let (mut stream, port) = Options::new()
            .capacity(SMALL)
            .stall_timeout(Duration::from_millis(1))
            .create()
            .unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        agent.write_all(&[1; SMALL]).await.unwrap();
        guest.drained().await;
        agent.write_all(&[2; SMALL]).await.unwrap();
        while stream.stats().tx.full == 0 {
            tokio::task::yield_now().await;
        }
        guest.power_off().await;
        assert!(stream.stats().tx.discarded > 0);
        let mut received = Vec::new();
        let error = stream.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(received == [1; SMALL]);
        assert_broken_pipe(stream.write(b"too late").await);
    })
    .await;
}

#[tokio::test]
async fn exit_hook_waits_until_stream_is_dropped() {
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
                // From here on writes to the host are discarded.
                backend.write(b"ignored").unwrap()
            }
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        assert_broken_pipe(stream.write(b"too late").await);
        assert!(
            !krun.is_finished(),
            "the hook returned while the stream was alive"
        );
        drop(stream);
        assert_eq!(krun.join().unwrap(), 7);
    })
    .await;
}

#[tokio::test]
async fn single_exit_hook_ends_several_streams() {
    watchdog(async {
        let (mut first, first_port) = AgentStream::pair().unwrap();
        let (mut second, second_port) = AgentStream::pair().unwrap();
        let hook = AgentPort::exit_hook_for([&first_port, &second_port], Duration::MAX);
        let krun = thread::spawn(move || hook(0));
        // The second stream ends while the first is still alive.
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
async fn exit_hook_waits_no_longer_than_its_limit() {
    let (mut stream, port) = AgentStream::pair().unwrap();
    // Without a limit to wait for, the hook still ends the stream.
    port.exit_hook(Duration::ZERO)(0);
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    port.exit_hook(Duration::from_millis(1))(0);
    // The hook returned while the stream was alive. After the drop it returns at once, whatever its limit.
    drop(stream);
    port.exit_hook(Duration::MAX)(0);
}

//! The halves: borrowed, owned, reunited, dropped and forgotten.

mod common;

use std::io;

use common::{SMALL, is_would_block, many, pattern, watchdog};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Options, PortHandle, ReuniteError};
use tokio_test::assert_pending;

fn boot(options: &Options) -> (AgentStream, PortHandle, Guest) {
    let (stream, port) = options.create().unwrap();
    let handle = port.handle();
    (stream, handle, common::boot(port))
}

#[tokio::test]
async fn borrowed_halves_work_concurrently_and_leave_stream_open() {
    watchdog(async {
        let (mut stream, _, guest) = boot(&Options::new().capacity(SMALL));
        let mut agent = guest.open().unwrap();
        let echo = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(&mut agent);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let sent = pattern(many(1 << 20));
        let mut received = vec![0; sent.len()];
        let (mut read, mut write) = stream.split();
        let (write_result, read_result) =
            tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
        write_result.unwrap();
        read_result.unwrap();
        assert!(received == sent);

        stream.write_all(b"still open").await.unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"still open");
        drop(stream);
        echo.await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owned_halves_work_in_two_tasks_and_reunite() {
    watchdog(async {
        let (stream, _, guest) = boot(&Options::new().capacity(SMALL));
        let mut agent = guest.open().unwrap();
        let echo = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(&mut agent);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let (mut read, mut write) = stream.into_split();
        let sent = pattern(many(1 << 20));
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write
        });
        let reader = tokio::spawn(async move {
            let mut received = vec![0; expected.len()];
            read.read_exact(&mut received).await.unwrap();
            assert!(received == expected);
            read
        });
        let (write, read) = (writer.await.unwrap(), reader.await.unwrap());

        let mut stream = read.reunite(write).unwrap();
        stream.write_all(b"whole").await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"whole");
        drop(stream);
        echo.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn reunite_returns_halves_of_different_streams() {
    let (first, _, _first_guest) = boot(&Options::new());
    let (second, _, _second_guest) = boot(&Options::new());
    let (first_read, first_write) = first.into_split();
    let (second_read, second_write) = second.into_split();
    let error = first_read.reunite(second_write).unwrap_err();
    assert!(error.to_string().contains("different streams"), "{error}");
    let ReuniteError(first_read, second_write) = error;
    // Neither stream has ended, and both reunite.
    first_write.reunite(first_read).unwrap();
    second_write.reunite(second_read).unwrap();
}

#[tokio::test]
async fn read_half_dropped_discards_guest_writes_and_keeps_writing_open() {
    watchdog(async {
        let (stream, handle, guest) = boot(&Options::new().capacity(SMALL));
        let mut agent = guest.open().unwrap();
        agent.write_all(b"unread").await.unwrap();
        guest.drained().await;
        let (read, mut write) = stream.into_split();
        drop(read);
        agent.write_all(&vec![1; many(4 << 20)]).await.unwrap();
        guest.drained().await;
        assert_eq!(handle.stats().tx.discarded, 6 + many(4 << 20) as u64);

        write.write_all(b"heard").await.unwrap();
        let mut received = [0; 5];
        agent.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"heard");
        assert_pending!(tokio_test::task::spawn(agent.read_u8()).poll());
        drop(write);
        assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn write_half_dropped_shuts_down_without_hanging_up() {
    watchdog(async {
        let (stream, _, guest) = boot(&Options::new());
        let mut agent = guest.open().unwrap();
        let (mut read, mut write) = stream.into_split();
        write.write_all(b"last").await.unwrap();
        drop(write);
        agent.read_exact(&mut [0; 4]).await.unwrap();
        assert_pending!(tokio_test::task::spawn(agent.read_u8()).poll());
        agent.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        read.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        drop(read);
        assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn forgotten_half_ends_nothing() {
    watchdog(async {
        let (stream, handle, guest) = boot(&Options::new().capacity(SMALL));
        let mut agent = guest.open().unwrap();
        let (read, write) = stream.into_split();
        read.forget();
        agent.write_all(b"kept").await.unwrap();
        guest.drained().await;
        assert_eq!(handle.stats().tx.discarded, 0);
        write.forget();
        // No half is left, so the stream is dropped.
        assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(handle.stats().tx.discarded, 4);
    })
    .await;
}

#[tokio::test]
async fn write_half_hangs_up() {
    watchdog(async {
        let (stream, _, guest) = boot(&Options::new());
        let mut agent = guest.open().unwrap();
        let (read, write) = stream.into_split();
        write.hang_up();
        assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(
            write.try_write(b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        let read = read.try_read(&mut [0; 8]);
        if cfg!(windows) {
            // A pipe has one end for both directions.
            assert_eq!(read.unwrap(), 0);
        } else {
            assert!(is_would_block(&read));
        }
    })
    .await;
}

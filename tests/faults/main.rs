//! Other faults: no descriptors left, signals during a wait, wakes without a reason, the caller's code, streams on another
//! runtime.

mod callers_code;
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod linux;

use std::pin::pin;
use std::time::Duration;

use common::{SMALL, pattern, watchdog};
use futures::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::runtime::Builder;
use tokio_krun::{AgentStream, Chunks};
use tokio_test::{assert_pending, assert_ready};

/// A stream waits on the runtime that it was created on, even if you use it on another.
#[test]
fn stream_works_on_another_runtime() {
    let home = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()
        .unwrap();
    let (mut stream, port) = home.block_on(async { AgentStream::pair() }).unwrap();
    let guest = common::boot(port);
    let mut agent = guest.open().unwrap();
    let echo = std::thread::spawn(move || {
        let elsewhere = Builder::new_current_thread().enable_all().build().unwrap();
        elsewhere.block_on(async {
            let mut buffer = vec![0; 1000];
            loop {
                match agent.read(&mut buffer).await.unwrap() {
                    0 => return,
                    read => agent.write_all(&buffer[..read]).await.unwrap(),
                }
            }
        });
    });
    let sent = pattern(10_000);
    for _ in 0..3 {
        // Each round uses a new runtime that knows nothing of the stream.
        let away = Builder::new_current_thread().enable_time().build().unwrap();
        let mut received = vec![0; sent.len()];
        away.block_on(watchdog(async {
            tokio::task::yield_now().await;
            stream.write_all(&sent).await.unwrap();
            stream.read_exact(&mut received).await.unwrap();
        }));
        assert!(received == sent);
    }
    stream.hang_up();
    echo.join().unwrap();
}

/// The runtime shuts down while a task waits for a stream. The guest keeps running.
#[test]
fn runtime_shutdown_gives_guest_end_of_file() {
    let _deadline = common::deadline();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (mut stream, port) = runtime.block_on(async { AgentStream::pair() }).unwrap();
    let guest = common::boot(port);
    let mut agent = guest.open().unwrap();
    runtime.spawn(async move {
        let mut buffer = [0; 10];
        while let Ok(1..) = stream.read(&mut buffer).await {}
    });
    let elsewhere = Builder::new_current_thread().enable_all().build().unwrap();
    elsewhere.block_on(async { agent.write_all(b"hello").await.unwrap() });
    runtime.shutdown_timeout(Duration::from_secs(60));
    // The runtime dropped the task, and with it the stream.
    elsewhere.block_on(async { assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0) });
}

/// A stream's runtime shuts down while tasks of another runtime wait for the stream. Each wait fails. Not on Windows:
/// there a wait needs no runtime.
#[cfg(unix)]
#[test]
fn runtime_shutdown_fails_waits_on_another_runtime() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use common::{backend, counted};
    use tokio_krun::{Error, Options};

    let _deadline = common::deadline();
    let home = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()
        .unwrap();
    let created = || Options::new().capacity(SMALL).create_on(home.handle());
    let away = Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let waiting = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    let mut ends = Vec::new();
    for operation in 0..8 {
        // Each task has its own stream, because each direction keeps only one waker for polls.
        let (mut stream, port) = created().unwrap();
        ends.push(backend(port));
        let full = vec![1; SMALL];
        assert_eq!(stream.try_write(&full).unwrap(), SMALL);
        let waiting = Arc::clone(&waiting);
        tasks.push(away.spawn(async move {
            let wait = async {
                match operation {
                    0 => stream.read(&mut [0; 8]).await.map(drop),
                    1 => stream.fill_buf().await.map(drop),
                    2 => Chunks::new(&mut stream).next().await.unwrap().map(drop),
                    3 => stream.readable().await,
                    4 => stream.guest_opened().await,
                    5 => stream.write(&[1; 8]).await.map(drop),
                    6 => stream.writable().await,
                    _ => stream.drained().await,
                }
            };
            counted(&waiting, wait).await.unwrap_err()
        }));
    }
    while waiting.load(Ordering::Relaxed) < tasks.len() as u64 {
        std::thread::yield_now();
    }
    assert!(tasks.iter().all(|task| !task.is_finished()));
    home.shutdown_timeout(Duration::from_secs(60));
    for (operation, task) in tasks.into_iter().enumerate() {
        let error = futures::executor::block_on(task).unwrap();
        // The kind must not suggest that the guest ended.
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::Other,
            "{operation}: {error}"
        );
        let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
        assert!(
            matches!(reason, Some(Error::RuntimeGone)),
            "{operation}: {error:?}"
        );
    }
    drop(ends);
}

/// A wake without a reason causes no end of file, no error and no bytes.
#[tokio::test]
async fn wake_without_reason_ends_no_wait() {
    watchdog(async {
        for operation in 0..6 {
            let (mut stream, backend) = common::pair();
            let check = async |wait: std::pin::Pin<&mut (dyn Future<Output = ()> + Send)>| {
                let mut wait = tokio_test::task::spawn(wait);
                // Polls without a wake.
                for _ in 0..3 {
                    assert_pending!(wait.poll());
                }
                // krun's first call wakes every task that waits for the guest, so it wakes this one too.
                assert!(backend.read(&mut [0; 8]).is_err());
                while !wait.is_woken() {
                    tokio::task::yield_now().await;
                }
                for _ in 0..3 {
                    assert_pending!(wait.poll());
                }
                backend.write(b"x").unwrap();
                while !wait.is_woken() {
                    tokio::task::yield_now().await;
                }
                assert_ready!(wait.poll());
            };
            match operation {
                0 => {
                    check(pin!(async {
                        assert_eq!(stream.read_u8().await.unwrap(), b'x');
                    }))
                    .await;
                }
                1 => {
                    check(pin!(async {
                        assert_eq!(stream.fill_buf().await.unwrap(), b"x");
                    }))
                    .await;
                }
                2 => {
                    check(pin!(async {
                        let chunk = Chunks::new(&mut stream).next().await;
                        assert_eq!(chunk.unwrap().unwrap(), "x");
                    }))
                    .await;
                }
                3 => check(pin!(async { stream.readable().await.unwrap() })).await,
                4 => {
                    check(pin!(async {
                        let ready = stream.ready(Interest::READABLE).await.unwrap();
                        assert_eq!(ready, tokio::io::Ready::READABLE);
                    }))
                    .await;
                }
                _ => {
                    check(pin!(async {
                        std::future::poll_fn(|cx| stream.poll_read_ready(cx))
                            .await
                            .unwrap();
                    }))
                    .await;
                }
            }
            assert!(matches!(stream.stats().tx.bytes, 0 | 1));
        }
    })
    .await;
}

/// If `try_read` takes the bytes, their signal is still there when the next wait begins.
#[tokio::test]
async fn stale_wake_ends_no_wait() {
    watchdog(async {
        let (mut stream, backend) = common::pair();
        for round in 1..=20 {
            let mut buffer = [0; 8];
            {
                let mut read = tokio_test::task::spawn(stream.read(&mut buffer));
                assert_pending!(read.poll());
                backend.write(b"x").unwrap();
            }
            assert_eq!(stream.try_read(&mut buffer).unwrap(), 1);
            // Tokio's driver gets a turn in every other round.
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut read = tokio_test::task::spawn(stream.read(&mut buffer));
            for _ in 0..3 {
                assert_pending!(read.poll());
                tokio::task::yield_now().await;
            }
            backend.write(b"y").unwrap();
            while !read.is_woken() {
                tokio::task::yield_now().await;
            }
            assert_eq!(assert_ready!(read.poll()).unwrap(), 1);

            // The same for the signal of room that `try_write` has used.
            let full = vec![1; SMALL];
            assert_eq!(stream.try_write(&full).unwrap(), SMALL);
            assert_pending!(tokio_test::task::spawn(stream.write(b"z")).poll());
            assert_eq!(backend.read(&mut vec![0; SMALL]).unwrap(), SMALL);
            assert_eq!(stream.try_write(&full).unwrap(), SMALL);
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for _ in 0..3 {
                assert_pending!(tokio_test::task::spawn(stream.write(b"z")).poll());
                tokio::task::yield_now().await;
            }
            assert_eq!(backend.read(&mut vec![0; SMALL]).unwrap(), SMALL);
        }
    })
    .await;
}

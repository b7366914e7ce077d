//! Callers on threads that are not a runtime's.

mod common;

use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{backend, deadline, pattern};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_krun::Options;
use tokio_util::io::SyncIoBridge;

#[test]
fn plain_thread_reads_with_a_deadline() {
    let _deadline = deadline();
    let runtime = Runtime::new().unwrap();
    let handle = runtime.handle().clone();
    let (mut stream, port) = Options::new().create_on(&handle).unwrap();
    let guest = backend(port);
    let (timed_out, is_timed_out) = mpsc::channel();
    let caller = thread::spawn(move || {
        // Nothing comes.
        let limit = Duration::from_millis(1);
        let late = handle.block_on(async { timeout(limit, stream.read_u8()).await });
        assert!(late.is_err());
        timed_out.send(()).unwrap();
        let limit = Duration::from_secs(600);
        handle
            .block_on(async { timeout(limit, stream.read_u8()).await })
            .unwrap()
            .unwrap()
    });
    is_timed_out.recv().unwrap();
    guest.write(&[7]).unwrap();
    assert_eq!(caller.join().unwrap(), 7);
}

#[test]
fn caller_waits_before_current_thread_runtime_runs() {
    let _deadline = deadline();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (mut stream, port) = Options::new().create_on(runtime.handle()).unwrap();
    let guest = backend(port);
    let agent = thread::spawn(move || {
        guest.write(b"ready").unwrap();
        guest
    });
    let mut word = [0; 5];
    let limit = Duration::from_secs(600);
    runtime
        .block_on(async { timeout(limit, stream.read_exact(&mut word)).await })
        .unwrap()
        .unwrap();
    assert_eq!(&word, b"ready");
    let _guest = agent.join().unwrap();
    // The runtime goes on with the same stream.
    runtime.block_on(stream.write_all(b"go")).unwrap();
}

#[test]
fn std_read_and_write_work_by_tokio_utils_bridge() {
    let _deadline = deadline();
    let runtime = Runtime::new().unwrap();
    let (stream, port) = Options::new().create_on(runtime.handle()).unwrap();
    let guest = backend(port);
    let (read, write) = stream.into_split();
    let mut read = SyncIoBridge::new_with_handle(read, runtime.handle().clone());
    let mut write = SyncIoBridge::new_with_handle(write, runtime.handle().clone());
    let bytes = pattern(100_000);
    let echo = thread::spawn(move || {
        let mut buffer = [0; 1000];
        let mut left = 100_000;
        while left > 0 {
            match guest.read(&mut buffer) {
                Ok(got) => {
                    assert_eq!(guest.write(&buffer[..got]).unwrap(), got);
                    left -= got;
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    thread::yield_now();
                }
            }
        }
    });
    let sent = bytes.clone();
    let writer = thread::spawn(move || write.write_all(&sent).map(|()| write));
    let mut received = vec![0; bytes.len()];
    read.read_exact(&mut received).unwrap();
    assert_eq!(received, bytes);
    drop(writer.join().unwrap().unwrap());
    echo.join().unwrap();
    assert_eq!(read.read(&mut received).unwrap(), 0);
}

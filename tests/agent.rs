//! The guest's end, with a socket instead of a port. `tests/microvm` tests in a VM what only a port does.
#![cfg(target_os = "linux")]

mod common;

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{pattern, watchdog};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::agent::VirtioPort;
use tokio_test::{assert_pending, assert_ready_ok};

/// A port, and a blocking device at its other end.
fn port() -> (VirtioPort, UnixStream) {
    let (guest, device) = UnixStream::pair().unwrap();
    (
        VirtioPort::from_owned_fd(OwnedFd::from(guest)).unwrap(),
        device,
    )
}

#[tokio::test]
async fn reads_wait_for_bytes_and_writes_wait_for_room() {
    watchdog(async {
        use std::io::{Read, Write};

        let (port, mut device) = port();
        let (mut read, mut write) = tokio::io::split(port);
        let sent = pattern(1 << 20);
        let expected = sent.clone();
        let echo = std::thread::spawn(move || {
            let mut received = vec![0; 1 << 20];
            device.read_exact(&mut received).unwrap();
            device.write_all(&received).unwrap();
        });
        let mut received = vec![0; sent.len()];
        tokio::try_join!(write.write_all(&sent), read.read_exact(&mut received)).unwrap();
        assert!(received == expected);
        echo.join().unwrap();
        assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn hang_up_ends_reads_and_pending_write() {
    watchdog(async {
        use std::io::Write;

        let (mut port, mut device) = port();
        while port.try_write(&[1; 4096]).is_ok() {}
        {
            let mut write = tokio_test::task::spawn(port.write(&[1; 4096]));
            assert_pending!(write.poll());
        }
        device.write_all(b"last").unwrap();
        let (mut read, mut write) = tokio::io::split(port);
        let waiting = tokio::spawn(async move { write.write_all(&[1; 1 << 20]).await });
        tokio::task::yield_now().await;
        drop(device);
        let error = waiting.await.unwrap().unwrap_err();
        let ended = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        assert!(ended.contains(&error.kind()), "{error}");
        // The peer has left bytes unread, so the socket first returns an error. A port returns what is left.
        let mut buffer = [0; 8];
        let read = match read.read(&mut buffer).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                read.read(&mut buffer).await
            }
            read => read,
        };
        assert_eq!(&buffer[..read.unwrap()], b"last");
    })
    .await;
}

#[tokio::test]
async fn try_methods_never_wait() {
    use std::io::Write;

    let (port, mut device) = port();
    let mut buffer = [0; 8];
    let nothing = port.try_read(&mut buffer).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    device.write_all(b"some").unwrap();
    watchdog(port.readable()).await.unwrap();
    assert_eq!(port.try_read(&mut buffer).unwrap(), 4);
    watchdog(port.writable()).await.unwrap();
    assert_eq!(port.try_write(b"back").unwrap(), 4);
    while port.try_write(&[1; 4096]).is_ok() {}
    let full = port.try_write(&[1; 4096]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    let flags = rustix::io::fcntl_getfd(port.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[tokio::test]
async fn poll_ready_methods_move_no_bytes() {
    use std::io::{Read, Write};

    let (port, mut device) = port();
    let mut readable = tokio_test::task::spawn(poll_fn(|cx| port.poll_read_ready(cx)));
    assert_pending!(readable.poll());
    device.write_all(b"some").unwrap();
    watchdog(&mut readable).await.unwrap();
    assert_ready_ok!(readable.poll());
    assert_eq!(port.try_read(&mut [0; 8]).unwrap(), 4);
    // Only a read that finds nothing clears the readiness.
    port.try_read(&mut [0; 8]).unwrap_err();
    assert_pending!(readable.poll());

    let mut writable = tokio_test::task::spawn(poll_fn(|cx| port.poll_write_ready(cx)));
    assert_ready_ok!(writable.poll());
    let mut written = 0;
    while let Ok(more) = port.try_write(&[1; 4096]) {
        written += more;
    }
    assert_pending!(writable.poll());
    device.read_exact(&mut vec![0; written]).unwrap();
    watchdog(&mut writable).await.unwrap();

    drop(device);
    watchdog(&mut readable).await.unwrap();
}

#[tokio::test]
async fn open_path_fails_without_device_and_open_waits_for_name() {
    let error = VirtioPort::open_path("/dev/vport99p99").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("/dev/vport99p99"), "{error}");
    let never = VirtioPort::open("no port has this name");
    let waited = tokio::time::timeout(Duration::from_millis(50), never).await;
    assert!(waited.is_err(), "opened {waited:?}");
}

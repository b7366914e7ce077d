//! The guest's end. The same tests run with the port of an in-process guest, also of one with threads, and on Linux with a socket
//! instead of a device.
//! `tests/microvm` tests in a VM what only a device does.

mod common;

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::panic::{RefUnwindSafe, UnwindSafe};

use bytes::BufMut;
use common::{SMALL, pattern, watchdog};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, Interest,
};
use tokio_krun::agent::{OwnedReadHalf, OwnedWriteHalf, ReuniteError, VirtioPort};
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Options};
use tokio_test::{assert_pending, assert_ready_ok, task};

/// The host's end of a port.
enum Host {
    InProcess(AgentStream, Guest),
    #[cfg(target_os = "linux")]
    Socket(tokio::net::UnixStream),
}

fn in_process() -> (VirtioPort, Host) {
    in_guest(false)
}

#[cfg(unix)]
fn threads() -> (VirtioPort, Host) {
    in_guest(true)
}

fn in_guest(threads: bool) -> (VirtioPort, Host) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    let guest = Guest::builder().port("agent", port).threads(threads).boot();
    (guest.open().unwrap(), Host::InProcess(stream, guest))
}

#[cfg(target_os = "linux")]
fn socket() -> (VirtioPort, Host) {
    let (guest, host) = std::os::unix::net::UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let host = tokio::net::UnixStream::from_std(host).unwrap();
    let port = VirtioPort::from_owned_fd(guest.into()).unwrap();
    (port, Host::Socket(host))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Host {
    fn stream(&mut self) -> &mut dyn Stream {
        match self {
            Self::InProcess(stream, _) => stream,
            #[cfg(target_os = "linux")]
            Self::Socket(stream) => stream,
        }
    }

    fn guest(&self) -> Option<&Guest> {
        match self {
            Self::InProcess(_, guest) => Some(guest),
            #[cfg(target_os = "linux")]
            Self::Socket(_) => None,
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream().write_all(bytes).await.unwrap();
    }

    async fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut received = vec![0; count];
        self.stream().read_exact(&mut received).await.unwrap();
        received
    }

    /// Answers with what it receives, until it has received `count` bytes.
    async fn echo(&mut self, mut count: usize) {
        let mut buffer = [0; 5000];
        while count > 0 {
            let read = self.stream().read(&mut buffer).await.unwrap();
            self.send(&buffer[..read]).await;
            count -= read;
        }
    }

    /// The guest goes on.
    fn hang_up(self) -> Option<Guest> {
        match self {
            Self::InProcess(stream, guest) => {
                drop(stream);
                Some(guest)
            }
            #[cfg(target_os = "linux")]
            Self::Socket(_) => None,
        }
    }

    /// Lets the agent write until there is no room, and returns how much it wrote. There will be none until
    /// [`go_on`](Self::go_on).
    async fn fill(&self, port: &VirtioPort) -> usize {
        if let Some(guest) = self.guest() {
            guest.stop_workers().await;
        }
        port.writable().await.unwrap();
        let mut written = 0;
        loop {
            match port.try_write(&[1; 4096]) {
                Ok(more) => written += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return written,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn go_on(&self) {
        if let Some(guest) = self.guest() {
            guest.start_workers().unwrap();
        }
    }

    async fn take(&mut self, count: usize) {
        self.go_on();
        self.receive(count).await;
    }

    /// Waits until the agent has closed its port, if it does so now.
    async fn sees_closed(&mut self) {
        match self {
            // Another process can open it.
            Self::InProcess(_, guest) => drop(guest.open().unwrap()),
            #[cfg(target_os = "linux")]
            Self::Socket(stream) => assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0),
        }
    }

    /// Asserts that the agent still has its port open.
    fn sees_open(&mut self) {
        match self {
            Self::InProcess(_, guest) => {
                let error = guest.open().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ResourceBusy);
            }
            #[cfg(target_os = "linux")]
            Self::Socket(stream) => {
                let error = stream.try_read(&mut [0; 8]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
            }
        }
    }
}

macro_rules! with_each_port {
    ($($test:ident)*) => {
        mod in_process {
            $(
                #[tokio::test]
                async fn $test() {
                    let (port, host) = super::in_process();
                    super::watchdog(super::$test(port, host)).await;
                }
            )*
        }

        // On Windows it has a pipe, with ends of its own.
        #[cfg(unix)]
        mod threads {
            $(
                #[tokio::test]
                async fn $test() {
                    let (port, host) = super::threads();
                    super::watchdog(super::$test(port, host)).await;
                }
            )*
        }

        #[cfg(target_os = "linux")]
        mod socket {
            $(
                #[tokio::test]
                async fn $test() {
                    let (port, host) = super::socket();
                    super::watchdog(super::$test(port, host)).await;
                }
            )*
        }
    };
}

with_each_port! {
    reads_wait_for_bytes_and_writes_wait_for_room
    borrowed_halves_work_at_once
    hang_up_ends_reads_and_pending_write
    hang_up_shows_without_reading
    hang_up_wakes_waiting_task
    empty_write_fails_only_after_hang_up
    empty_read_finds_nothing_at_once
    try_methods_never_wait
    poll_ready_methods_move_no_bytes
    readable_wakes_each_task
    vectored_writes_arrive_in_order
    lines_come_from_a_buf_reader
    dropped_half_leaves_the_other_working
    port_closes_with_its_second_half
    only_halves_of_one_port_reunite
    port_is_ready_for_nothing_but_reading_and_writing
}

async fn reads_wait_for_bytes_and_writes_wait_for_room(port: VirtioPort, mut host: Host) {
    let (mut read, mut write) = port.into_split();
    let sent = pattern(1 << 20);
    let expected = sent.clone();
    let echo = tokio::spawn(async move {
        host.echo(1 << 20).await;
        host.hang_up()
    });
    let writing = tokio::spawn(async move { write.write_all(&sent).await });
    let mut received = vec![0; expected.len()];
    read.read_exact(&mut received).await.unwrap();
    assert!(received == expected);
    writing.await.unwrap().unwrap();
    let _guest = echo.await.unwrap();
    assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0);
}

async fn borrowed_halves_work_at_once(mut port: VirtioPort, mut host: Host) {
    let sent = pattern(1 << 20);
    let mut received = vec![0; sent.len()];
    let echo = tokio::spawn(async move {
        host.echo(1 << 20).await;
        host
    });
    let (mut read, mut write) = port.split();
    tokio::try_join!(write.write_all(&sent), read.read_exact(&mut received)).unwrap();
    assert!(received == sent);
    let mut host = echo.await.unwrap();

    host.send(b"12345").await;
    let (read, write) = port.split();
    read.readable().await.unwrap();
    assert!(read.ready(Interest::READABLE).await.unwrap().is_readable());
    poll_fn(|cx| read.poll_read_ready(cx)).await.unwrap();
    let mut buffer = [0; 2];
    assert_eq!(read.try_read(&mut buffer).unwrap(), 2);
    assert_eq!(&buffer, b"12");
    let mut vec = Vec::with_capacity(8).limit(1);
    assert_eq!(read.try_read_buf(&mut vec).unwrap(), 1);
    assert_eq!(vec.get_ref(), b"3");
    let read = read.try_read_vectored(&mut [IoSliceMut::new(&mut buffer)]);
    assert_eq!(read.unwrap(), 2);
    assert_eq!(&buffer, b"45");

    write.writable().await.unwrap();
    assert!(write.ready(Interest::WRITABLE).await.unwrap().is_writable());
    poll_fn(|cx| write.poll_write_ready(cx)).await.unwrap();
    assert_eq!(write.try_write(b"12").unwrap(), 2);
    let three = [IoSlice::new(b"3"), IoSlice::new(b"45")];
    assert_eq!(write.try_write_vectored(&three).unwrap(), 3);
    assert_eq!(host.receive(5).await, b"12345");
}

async fn hang_up_ends_reads_and_pending_write(port: VirtioPort, mut host: Host) {
    host.fill(&port).await;
    host.take(1).await;
    host.send(b"last").await;
    let (mut read, mut write) = port.into_split();
    let waiting = tokio::spawn(async move { write.write_all(&[1; 16 << 20]).await });
    tokio::task::yield_now().await;
    let _guest = host.hang_up();
    assert!(is_hang_up(waiting.await.unwrap()));
    let mut received = Vec::new();
    // The peer has left bytes unread, so the socket first returns an error. A port returns what is left.
    while let Err(error) = read.read_to_end(&mut received).await {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(received, b"last");
}

/// A socket also says that its peer has left bytes unread.
fn is_hang_up<T: std::fmt::Debug>(written: io::Result<T>) -> bool {
    let error = written.unwrap_err();
    [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind())
}

async fn hang_up_shows_without_reading(port: VirtioPort, mut host: Host) {
    let ready = port.ready(Interest::READABLE | Interest::WRITABLE).await;
    let ready = ready.unwrap();
    assert!(ready.is_writable() && !ready.is_readable(), "{ready:?}");
    assert!(!ready.is_read_closed() && !ready.is_write_closed());

    let mut waiting = task::spawn(port.ready(Interest::READABLE));
    assert_pending!(waiting.poll());
    host.send(b"last").await;
    let ready = (&mut waiting).await.unwrap();
    assert!(ready.is_readable() && !ready.is_read_closed(), "{ready:?}");

    let _guest = host.hang_up();
    // It is ready for the bytes that are left, so a wait for the hang-up alone would not wait.
    while !port
        .ready(Interest::READABLE)
        .await
        .unwrap()
        .is_read_closed()
    {
        tokio::task::yield_now().await;
    }
    let ready = port.ready(Interest::READABLE | Interest::WRITABLE).await;
    let ready = ready.unwrap();
    assert!(ready.is_readable() && ready.is_read_closed(), "{ready:?}");
    assert!(ready.is_writable() && ready.is_write_closed(), "{ready:?}");
    port.writable().await.unwrap();
    assert!(is_hang_up(port.try_write(b"too late")));

    let mut buffer = [0; 8];
    assert_eq!(port.try_read(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"last");
    for _ in 0..2 {
        port.readable().await.unwrap();
        assert_eq!(port.try_read(&mut buffer).unwrap(), 0);
        assert_eq!(port.try_read_buf(&mut Vec::new()).unwrap(), 0);
        let mut buffers = [IoSliceMut::new(&mut buffer)];
        assert_eq!(port.try_read_vectored(&mut buffers).unwrap(), 0);
    }
}

async fn hang_up_wakes_waiting_task(port: VirtioPort, host: Host) {
    let mut waiting = task::spawn(port.ready(Interest::READABLE));
    assert_pending!(waiting.poll());
    let _guest = host.hang_up();
    let ready = (&mut waiting).await.unwrap();
    assert!(ready.is_readable() && ready.is_read_closed(), "{ready:?}");
}

async fn empty_write_fails_only_after_hang_up(mut port: VirtioPort, host: Host) {
    for full in [false, true] {
        if full {
            host.fill(&port).await;
        }
        assert_eq!(port.write(b"").await.unwrap(), 0);
        assert_eq!(port.write_vectored(&[]).await.unwrap(), 0);
        assert_eq!(port.try_write(b"").unwrap(), 0);
        let empty = [IoSlice::new(b""), IoSlice::new(b"")];
        assert_eq!(port.try_write_vectored(&empty).unwrap(), 0);
    }
    host.go_on();
    let _guest = host.hang_up();
    while !port
        .ready(Interest::WRITABLE)
        .await
        .unwrap()
        .is_write_closed()
    {
        tokio::task::yield_now().await;
    }
    let kind = |written: io::Result<usize>| written.unwrap_err().kind();
    assert_eq!(kind(port.write(b"").await), ErrorKind::BrokenPipe);
    assert_eq!(kind(port.write_vectored(&[]).await), ErrorKind::BrokenPipe);
    assert_eq!(kind(port.try_write(b"")), ErrorKind::BrokenPipe);
    assert_eq!(kind(port.try_write_vectored(&[])), ErrorKind::BrokenPipe);
}

async fn empty_read_finds_nothing_at_once(mut port: VirtioPort, host: Host) {
    assert_eq!(port.read(&mut []).await.unwrap(), 0);
    assert_eq!(port.try_read(&mut []).unwrap(), 0);
    assert_eq!(port.try_read_buf(&mut [0; 0].as_mut_slice()).unwrap(), 0);
    assert_eq!(port.try_read_vectored(&mut []).unwrap(), 0);
    assert_eq!(
        port.try_read_vectored(&mut [IoSliceMut::new(&mut [])])
            .unwrap(),
        0
    );
    drop(host);
}

async fn try_methods_never_wait(port: VirtioPort, mut host: Host) {
    let would_block = |moved: io::Result<usize>| {
        assert_eq!(moved.unwrap_err().kind(), ErrorKind::WouldBlock);
    };
    let (mut first, mut second) = ([0; 3], [0; 8]);
    would_block(port.try_read(&mut first));
    would_block(port.try_read_buf(&mut Vec::new()));
    would_block(port.try_read_vectored(&mut [IoSliceMut::new(&mut first)]));

    host.send(b"some bytes to read").await;
    port.readable().await.unwrap();
    assert_eq!(port.try_read(&mut first).unwrap(), 3);
    assert_eq!(&first, b"som");
    let mut buffer = b"read: ".to_vec().limit(5);
    assert_eq!(port.try_read_buf(&mut buffer).unwrap(), 5);
    assert_eq!(buffer.into_inner(), b"read: e byt");
    let mut buffers = [&mut [][..], &mut first, &mut second].map(IoSliceMut::new);
    assert_eq!(port.try_read_vectored(&mut buffers).unwrap(), 10);
    assert_eq!((&first, &second[..7]), (b"es ", &b"to read"[..]));
    would_block(port.try_read(&mut first));

    port.writable().await.unwrap();
    assert_eq!(port.try_write(b"back").unwrap(), 4);
    let buffers = [b"".as_slice(), b" and", b" forth"].map(IoSlice::new);
    assert_eq!(port.try_write_vectored(&buffers).unwrap(), 10);
    assert_eq!(host.receive(14).await, b"back and forth");
    host.fill(&port).await;
    would_block(port.try_write(&[1; 4096]));
    would_block(port.try_write_vectored(&[IoSlice::new(&[1; 4096])]));
}

async fn poll_ready_methods_move_no_bytes(port: VirtioPort, mut host: Host) {
    let mut readable = task::spawn(poll_fn(|cx| port.poll_read_ready(cx)));
    assert_pending!(readable.poll());
    host.send(b"some").await;
    (&mut readable).await.unwrap();
    assert_ready_ok!(readable.poll());
    assert_eq!(port.try_read(&mut [0; 8]).unwrap(), 4);
    // Only a read that finds nothing clears the readiness of a device.
    port.try_read(&mut [0; 8]).unwrap_err();
    assert_pending!(readable.poll());

    let mut writable = task::spawn(poll_fn(|cx| port.poll_write_ready(cx)));
    assert_ready_ok!(writable.poll());
    let written = host.fill(&port).await;
    assert_pending!(writable.poll());
    host.take(written).await;
    (&mut writable).await.unwrap();

    assert_pending!(readable.poll());
    let _guest = host.hang_up();
    (&mut readable).await.unwrap();
}

async fn readable_wakes_each_task(port: VirtioPort, mut host: Host) {
    let mut waiting = [(); 3].map(|()| task::spawn(port.readable()));
    for task in &mut waiting {
        assert_pending!(task.poll());
    }
    host.send(b"!").await;
    for mut task in waiting {
        (&mut task).await.unwrap();
    }
}

async fn vectored_writes_arrive_in_order(mut port: VirtioPort, mut host: Host) {
    assert!(port.is_write_vectored());
    let bytes = pattern(200_000);
    // From a few bytes a buffer to more than one write takes.
    for size in [7, 5_000, 50_000] {
        let expected = bytes.clone();
        let receiving = tokio::spawn(async move {
            assert!(host.receive(expected.len()).await == expected);
            host
        });
        let mut buffers: Vec<_> = bytes.chunks(size).map(IoSlice::new).collect();
        let mut buffers = buffers.as_mut_slice();
        while !buffers.is_empty() {
            let written = port.write_vectored(buffers).await.unwrap();
            IoSlice::advance_slices(&mut buffers, written);
        }
        host = receiving.await.unwrap();
    }
}

async fn lines_come_from_a_buf_reader(port: VirtioPort, mut host: Host) {
    let (read, mut write) = port.into_split();
    host.send(b"one\ntwo\n").await;
    let _guest = host.hang_up();
    let mut lines = BufReader::new(read).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("one"));
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("two"));
    assert_eq!(lines.next_line().await.unwrap(), None);
    write.flush().await.unwrap();
    write.shutdown().await.unwrap();
}

async fn dropped_half_leaves_the_other_working(port: VirtioPort, mut host: Host) {
    let (read, mut write) = port.into_split();
    drop(read);
    write.write_all(b"reading has ended").await.unwrap();
    assert_eq!(host.receive(17).await, b"reading has ended");
    // It may still write, and nobody reads it.
    host.send(b"unread").await;
    host.sees_open();
}

async fn port_closes_with_its_second_half(port: VirtioPort, mut host: Host) {
    let (mut read, mut write) = port.into_split();
    // Without effect, as the device has no half-close.
    write.shutdown().await.unwrap();
    write.write_all(b"!").await.unwrap();
    assert_eq!(host.receive(1).await, b"!");
    drop(write);
    host.sees_open();
    host.send(b"?").await;
    assert_eq!(read.read_u8().await.unwrap(), b'?');
    drop(read);
    host.sees_closed().await;
}

async fn only_halves_of_one_port_reunite(port: VirtioPort, mut host: Host) {
    let (other, _other_host) = in_process();
    let (read, write) = port.into_split();
    let (other_read, other_write) = other.into_split();
    let error = read.reunite(other_write).unwrap_err();
    let advice = "the halves are of different ports: reunite the two of one `into_split`";
    assert_eq!(error.to_string(), advice);
    let ReuniteError(read, other_write) = error;
    let ReuniteError(other_read, write) = write.reunite(other_read).unwrap_err();
    other_read.reunite(other_write).unwrap();
    let mut port = write.reunite(read).unwrap();
    port.write_all(b"whole").await.unwrap();
    assert_eq!(host.receive(5).await, b"whole");
    drop(port);
    host.sees_closed().await;
}

async fn port_is_ready_for_nothing_but_reading_and_writing(port: VirtioPort, host: Host) {
    let interest = (Interest::READABLE | Interest::WRITABLE).remove(Interest::READABLE);
    assert!(port.ready(interest.unwrap()).await.unwrap().is_writable());
    #[cfg(target_os = "linux")]
    {
        let error = port.ready(Interest::PRIORITY).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    drop(host);
}

#[test]
fn ports_and_halves_are_as_free_as_tokios_streams() {
    fn check<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + 'static>() {}
    check::<VirtioPort>();
    check::<OwnedReadHalf>();
    check::<OwnedWriteHalf>();
}

#[cfg(not(target_os = "linux"))]
#[tokio::test]
async fn open_outside_a_guest_names_what_is_missing() {
    let error = VirtioPort::open("agent").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = error.to_string();
    assert!(
        error.contains("\"agent\"") && error.contains("Linux"),
        "{error}"
    );
}

/// What only a descriptor has.
#[cfg(target_os = "linux")]
mod descriptor {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustix::fs::OFlags;
    use rustix::io::FdFlags;
    use tokio_test::assert_ready_err;

    use super::*;

    fn end() -> OwnedFd {
        UnixStream::pair().unwrap().0.into()
    }

    #[tokio::test]
    async fn port_gives_its_descriptor_back() {
        let nonblocking = |fd: &OwnedFd| {
            let flags = rustix::fs::fcntl_getfl(fd).unwrap();
            flags.contains(OFlags::NONBLOCK)
        };
        let fd = VirtioPort::from_owned_fd(end()).unwrap();
        let fd = fd.into_nonblocking_fd().unwrap();
        assert!(nonblocking(&fd));
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
        let fd = VirtioPort::from_owned_fd(fd).unwrap();
        assert!(!nonblocking(&fd.into_blocking_fd().unwrap()));
    }

    #[tokio::test]
    async fn in_process_port_has_no_descriptor() {
        let (port, mut host) = in_process();
        let error = port.into_nonblocking_fd().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("in-process"), "{error}");
        host.sees_closed().await;
        let (port, _host) = in_process();
        let error = port.into_blocking_fd().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn missing_runtime_is_an_error_that_names_enable_io() {
        let errors = [
            VirtioPort::from_owned_fd(end()).unwrap_err(),
            VirtioPort::open_path("/dev/null").unwrap_err(),
            futures::executor::block_on(VirtioPort::open("agent")).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Other);
            let error = error.to_string();
            assert!(
                error.starts_with("this thread is outside any tokio runtime: "),
                "{error}"
            );
            assert!(error.contains("enable_io"), "{error}");
        }
    }

    #[test]
    fn port_fails_after_its_runtime_has_shut_down() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .unwrap()
        };
        let first = runtime();
        let mut port = first
            .block_on(async { VirtioPort::from_owned_fd(end()) })
            .unwrap();
        drop(first);
        runtime().block_on(async {
            let kind = |result: io::Result<usize>| result.unwrap_err().kind();
            assert_eq!(kind(port.read(&mut [0; 8]).await), ErrorKind::Other);
            for bytes in [b"some".as_slice(), b""] {
                assert_eq!(kind(port.write(bytes).await), ErrorKind::Other);
                assert_eq!(kind(port.try_write(bytes)), ErrorKind::Other);
            }
            let mut readable = task::spawn(port.readable());
            assert_ready_err!(readable.poll());
            let mut writable = task::spawn(poll_fn(|cx| port.poll_write_ready(cx)));
            assert_ready_err!(writable.poll());
        });
    }

    #[tokio::test]
    async fn open_path_names_the_path_that_is_no_port() {
        let error = VirtioPort::open_path("/dev/vport99p99").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/dev/vport99p99"), "{error}");
        let error = VirtioPort::open_path("/dev/null").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }

    #[tokio::test]
    async fn open_waits_for_the_name() {
        let never = VirtioPort::open("no port has this name");
        let waited = tokio::time::timeout(Duration::from_millis(50), never).await;
        assert!(waited.is_err(), "opened {waited:?}");
    }
}

//! The guest's end of the port, for the agent inside the VM.
//!
//! The agent is a program of its own, built for the guest (such as `x86_64-unknown-linux-musl`), and
//! depends on this crate with nothing but this:
//!
//! ```toml
//! [dependencies]
//! tokio-krun = { version = "0.1", default-features = false, features = ["agent"] }
//! ```
//!
//! It is [`AsyncRead`] + [`AsyncWrite`] as the host's [`AgentStream`](crate::AgentStream) is, so both sides can
//! share their protocol's code.
//!
//! ```no_run
//! use futures::{SinkExt, StreamExt};
//! use tokio_krun::agent::VirtioPort;
//! use tokio_util::codec::{Framed, LinesCodec};
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let port = VirtioPort::open("agent").await?;
//!     let mut lines = Framed::new(port, LinesCodec::new_with_max_length(1024));
//!     while let Some(line) = lines.next().await {
//!         lines.send(line?.to_uppercase()).await?;
//!     }
//!     Ok(())
//! }
//! ```

mod find;
mod uevents;

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

/// A virtio-console port, as Linux shows it in a guest: non-blocking, and registered with tokio.
///
/// # Ends
///
/// | event | here |
/// | --- | --- |
/// | the host hangs up | reads give what is left, then the end of the file; writes fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe), also one that is waiting for room |
/// | `shutdown()` | nothing: the device has no half-close |
/// | dropped | the port is closed, which the host does not see; what it sends meanwhile is lost |
///
/// A blocking write to a port whose host has hung up never returns in Linux; this is what is different here.
/// krun tells of the end of the file a moment before the hang-up, so a write in between may still succeed. A
/// port that was hung up stays so: one port, one connection. The host's program cannot go without the VM.
///
/// # Writing
///
/// Linux takes at most 32 KiB at a time. A write is complete when the device has it: the host reads it in
/// order, but a guest that powers off at once may take it along. An agent whose last words matter waits for
/// an answer to them.
///
/// To read and write in two tasks there is [`tokio::io::split`](https://docs.rs/tokio/1/tokio/io/fn.split.html). The descriptor is not to be given to
/// `poll(2)` or another epoll: Linux' `virtio_console` takes what its device has completed when it is polled,
/// so that this port's own wait for it may not end.
///
/// # Cancel safety
///
/// As of tokio's own streams: a read or write that is dropped while it waits has moved nothing.
///
/// # Examples
///
/// ```no_run
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::agent::VirtioPort;
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> std::io::Result<()> {
///     let mut port = VirtioPort::open("agent").await?;
///     let mut buffer = vec![0; 32 * 1024];
///     loop {
///         match port.read(&mut buffer).await? {
///             0 => return Ok(()), // the host has hung up
///             read => port.write_all(&buffer[..read]).await?,
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct VirtioPort(AsyncFd<OwnedFd>);

impl VirtioPort {
    /// Opens the port that the host has given this name
    /// ([`AgentPort::attach`](https://docs.rs/tokio-krun/latest/tokio_krun/struct.AgentPort.html#method.attach)),
    /// once it appears: the host tells the names after the guest has started, and each after it has opened the
    /// port itself.
    ///
    /// It waits for as long as there is no such port or no device file for it; wrap it in
    /// [`tokio::time::timeout`](https://docs.rs/tokio/1/tokio/time/fn.timeout.html) where it may never come. `/sys` must be mounted, and `/dev` be a `devtmpfs` or
    /// have a udev. If the port is not there at once it listens for the kernel's events (`NETLINK_KOBJECT_UEVENT`),
    /// which do not come into the network namespace of a container with user ids of its own. Of two ports with
    /// one name it takes either.
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if a process has it open, as Linux lets one have it;
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied), which a process that is not root may also meet while
    /// udev has still to let it in; [`NotFound`](io::ErrorKind::NotFound) if `/sys` is not mounted; what else the
    /// system says.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped while it waits, it has opened nothing.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use tokio::time::timeout;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn open() -> std::io::Result<()> {
    /// let port = timeout(Duration::from_secs(10), VirtioPort::open("agent")).await??;
    /// # Ok(()) }
    /// ```
    pub async fn open(name: &str) -> io::Result<Self> {
        find::appears(name, Self::open_path).await
    }

    /// Opens the port's device file, such as `/dev/vport0p1`.
    ///
    /// The host must have opened its end, as krun has before it tells the port's name. A port that was opened before
    /// that reads as one that was hung up, for good.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open), and [`NotFound`](io::ErrorKind::NotFound).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn open() -> std::io::Result<()> {
    /// // A link of udev's, in a distribution that has it.
    /// let port = VirtioPort::open_path("/dev/virtio-ports/agent")?;
    /// # Ok(()) }
    /// ```
    pub fn open_path(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = path.as_ref();
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("open {}: {error}", path.display()))
        })?;
        register(fd).map(Self)
    }

    /// Takes a port that someone else has opened, such as the process that started this one. Makes it
    /// non-blocking. As with [`open_path`](Self::open_path), the host's end must be open.
    ///
    /// # Errors
    ///
    /// What the system says to a descriptor that cannot be waited for.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Examples
    ///
    /// Any file that can be waited for will do, such as one end of a socket in a test of an agent:
    ///
    /// ```
    /// use std::io::Write;
    /// use std::os::{fd::OwnedFd, unix::net::UnixStream};
    /// use tokio::io::AsyncReadExt;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (agent, mut host) = UnixStream::pair()?;
    /// let mut port = VirtioPort::from_owned_fd(OwnedFd::from(agent))?;
    /// host.write_all(b"hello")?;
    /// let mut greeting = [0; 5];
    /// port.read_exact(&mut greeting).await?;
    /// assert_eq!(&greeting, b"hello");
    /// # Ok(()) }
    /// ```
    pub fn from_owned_fd(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        register(fd).map(Self)
    }

    /// Gives the descriptor back, such as to a process that is to go on with the port. It stays non-blocking.
    ///
    /// # Errors
    ///
    /// None at present; as `into_nonblocking_fd` of tokio's pipes.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn hand_over() -> std::io::Result<()> {
    /// let port = VirtioPort::open("agent").await?;
    /// let fd = port.into_nonblocking_fd()?;
    /// # Ok(()) }
    /// ```
    pub fn into_nonblocking_fd(self) -> io::Result<OwnedFd> {
        Ok(self.0.into_inner())
    }

    /// Gives the descriptor back, for blocking reads and writes. A blocking write that waits when the host hangs up
    /// never returns.
    ///
    /// # Errors
    ///
    /// What the system says.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::fs::File;
    /// use std::io::Write;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn log() -> std::io::Result<()> {
    /// let port = VirtioPort::open("log").await?;
    /// let mut log = File::from(port.into_blocking_fd()?);
    /// writeln!(log, "the agent has started")?;
    /// # Ok(()) }
    /// ```
    pub fn into_blocking_fd(self) -> io::Result<OwnedFd> {
        let fd = self.0.into_inner();
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags & !OFlags::NONBLOCK)?;
        Ok(fd)
    }

    /// Waits until the port is ready in one of the ways of `interest`, and says in which. Being ready
    /// includes having ended.
    ///
    /// # Errors
    ///
    /// If the runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tokio::io::Interest;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn serve(port: &VirtioPort) -> std::io::Result<()> {
    /// let ready = port.ready(Interest::READABLE | Interest::WRITABLE).await?;
    /// if ready.is_write_closed() {
    ///     return Ok(()); // the host has hung up
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        Ok(self.0.ready(interest).await?.ready())
    }

    /// Waits until there is something to read, or the end.
    ///
    /// # Errors
    ///
    /// If the runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::io::ErrorKind;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn read(port: &VirtioPort, buffer: &mut [u8]) -> std::io::Result<usize> {
    /// loop {
    ///     port.readable().await?;
    ///     match port.try_read(buffer) {
    ///         Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
    ///         read => return read,
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(Interest::READABLE).await.map(drop)
    }

    /// Polls for something to read, or the end. Wakes the last task that polled for reading, by this or by a read.
    ///
    /// # Errors
    ///
    /// If the runtime has shut down.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::future::poll_fn;
    /// use std::task::Poll;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn next(ports: &[VirtioPort]) -> usize {
    /// // Which of several ports has something to read?
    /// poll_fn(|cx| {
    ///     let ready = |port: &VirtioPort| port.poll_read_ready(cx).is_ready();
    ///     ports.iter().position(ready).map_or(Poll::Pending, Poll::Ready)
    /// })
    /// .await
    /// # }
    /// ```
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx).map_ok(drop)
    }

    /// Reads what there is, without waiting: no bytes at the end of the file, or into an empty buffer.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing.
    ///
    /// # Examples
    ///
    /// See [`readable`](Self::readable).
    ///
    /// ```no_run
    /// # fn read(port: &tokio_krun::agent::VirtioPort, buffer: &mut [u8]) -> std::io::Result<()> {
    /// let read = port.try_read(buffer)?;
    /// # Ok(()) }
    /// ```
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let mut guard = self.ready_now(Interest::READABLE)?;
        read(&mut guard, buf).unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
    }

    /// Waits until there may be room for a write, or the host has hung up.
    ///
    /// # Errors
    ///
    /// If the runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::io::ErrorKind;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn write(port: &VirtioPort, bytes: &[u8]) -> std::io::Result<usize> {
    /// loop {
    ///     port.writable().await?;
    ///     match port.try_write(bytes) {
    ///         Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
    ///         written => return written,
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn writable(&self) -> io::Result<()> {
        self.ready(Interest::WRITABLE).await.map(drop)
    }

    /// Polls for what may be room for a write, or the host's hang-up. Wakes the last task that polled for writing,
    /// by this or by a write.
    ///
    /// # Errors
    ///
    /// If the runtime has shut down.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::task::{Context, Poll};
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// /// A service that is ready when its port takes a request.
    /// fn poll_ready(port: &VirtioPort, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
    ///     port.poll_write_ready(cx)
    /// }
    /// ```
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx).map_ok(drop)
    }

    /// Writes what there is room for, without waiting.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room, and
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) once the host has hung up.
    ///
    /// # Examples
    ///
    /// See [`writable`](Self::writable).
    ///
    /// ```no_run
    /// # fn write(port: &tokio_krun::agent::VirtioPort) -> std::io::Result<()> {
    /// let written = port.try_write(b"as much as fits")?;
    /// # Ok(()) }
    /// ```
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let mut guard = self.ready_now(Interest::WRITABLE)?;
        write(&mut guard, buf).unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
    }

    /// What tokio knows of the port, without waiting and without asking the system: to `poll(2)` it could take
    /// away what a task waits for (see "Writing" in the type's documentation).
    fn ready_now(&self, interest: Interest) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        let ready = pin!(self.0.ready(interest));
        match ready.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => guard,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl AsyncRead for VirtioPort {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            if let Some(length) = read(&mut guard, buf.initialize_unfilled()) {
                buf.advance(length?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// The driver has no vectored writes: each buffer would be a descriptor of its own.
impl AsyncWrite for VirtioPort {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Some(written) = write(&mut guard, buf) {
                return Poll::Ready(written);
            }
        }
    }

    /// A write is complete when the device has it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The device has no half-close.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsFd for VirtioPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for VirtioPort {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `None` if there is nothing yet, and tokio knows.
fn read(guard: &mut AsyncFdReadyGuard<'_, OwnedFd>, buf: &mut [u8]) -> Option<io::Result<usize>> {
    match retry_on_intr(|| rustix::io::read(guard.get_inner(), &mut *buf)) {
        Err(Errno::AGAIN) if guard.ready().is_read_closed() => Some(Ok(0)),
        Err(Errno::AGAIN) => {
            guard.clear_ready();
            None
        }
        read => Some(read.map_err(Into::into)),
    }
}

/// `None` if there is no room, and tokio knows.
fn write(guard: &mut AsyncFdReadyGuard<'_, OwnedFd>, buf: &[u8]) -> Option<io::Result<usize>> {
    match retry_on_intr(|| rustix::io::write(guard.get_inner(), buf)) {
        // Linux says no more than this when the host has hung up.
        Err(Errno::AGAIN) if guard.ready().is_write_closed() => {
            Some(Err(io::ErrorKind::BrokenPipe.into()))
        }
        // It says 0 if another write has just taken the room that there was.
        Err(Errno::AGAIN) | Ok(0) => {
            guard.clear_ready();
            None
        }
        written => Some(written.map_err(Into::into)),
    }
}

#[expect(
    unsafe_code,
    reason = "`AsyncFd::register`, the way that tokio has not deprecated, asks for a promise about the descriptor"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped, and always the same descriptor; the
    // registration owns it.
    let registered = unsafe { AsyncFd::register(fd) };
    Ok(registered?)
}

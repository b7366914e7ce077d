//! The guest's end of the port, for the agent inside the VM.
//!
//! [`VirtioPort`] opens the port by its name and is `AsyncRead` + `AsyncWrite`, like the host's
//! [`AgentStream`](crate::AgentStream). So both sides can share the code of their protocol.
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
//!
//! The agent is a separate program, built for the guest (for example for
//! `x86_64-unknown-linux-musl`). It needs no other feature of this crate:
//!
//! ```toml
//! [dependencies]
//! tokio-krun = { version = "0.1", default-features = false, features = ["agent"] }
//! ```

mod find;
mod mount;
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

pub use mount::mount_filesystems;

/// A virtio-console port in a Linux guest: the agent's stream to the host.
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
///
/// The port is non-blocking and registered with tokio. To read and write in two tasks, use
/// [`tokio::io::split`](https://docs.rs/tokio/1/tokio/io/fn.split.html).
///
/// # Ends
///
/// | event | effect on the port |
/// | --- | --- |
/// | the host hangs up | reads return what is left, then end of file; writes fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe), even one that waits for room |
/// | you call `shutdown()` | none: the device has no half-close |
/// | you drop the port | it closes, and the host does not notice; what the host sends from then on is lost |
///
/// A blocking write would behave differently: in Linux, it never returns once the host has hung up.
///
/// krun reports end of file a moment before the hang-up, so a write in between may still succeed. A
/// hang-up is final: one port carries one connection. The host's program cannot exit and leave the
/// VM running, because the VM is part of its process.
///
/// # Writing
///
/// Linux takes at most 32 KiB per write. A write completes when the device has its bytes, and the
/// host reads them in order. If the guest powers off at once, they may be lost. If your agent's last
/// words matter, let it wait for an answer to them.
///
/// # The descriptor
///
/// Do not pass the descriptor to `poll(2)` or to another epoll instance. On each poll, Linux's
/// `virtio_console` collects what its device has completed, so this port's own wait for that may
/// never end.
///
/// # Cancel safety
///
/// Reads and writes are as cancel safe as those of tokio's streams: one that you drop while it waits
/// has moved no bytes.
#[derive(Debug)]
pub struct VirtioPort(AsyncFd<OwnedFd>);

impl VirtioPort {
    /// Opens the port that the host attached under `name`, and waits until it appears.
    ///
    /// The host attaches a port with
    /// [`AgentPort::attach`](https://docs.rs/tokio-krun/latest/tokio_krun/struct.AgentPort.html#method.attach).
    /// It announces a port's name after the guest has started and after it has opened its own end of
    /// that port.
    ///
    /// `open` waits as long as there is no port of that name, or no device file for it. If the port may
    /// never appear, wrap the call in
    /// [`tokio::time::timeout`](https://docs.rs/tokio/1/tokio/time/fn.timeout.html). If two ports have
    /// the same name, it opens either of them.
    ///
    /// `/sys` must be mounted. `/dev` must be a `devtmpfs`, or udev must manage it. If the port is not
    /// there at once, `open` listens for the kernel's events (`NETLINK_KOBJECT_UEVENT`). These do not
    /// reach the network namespace of a container that has its own user namespace.
    ///
    /// # Errors
    ///
    /// - [`ResourceBusy`](io::ErrorKind::ResourceBusy) if a process already has the port open. Linux
    ///   allows only one.
    /// - [`PermissionDenied`](io::ErrorKind::PermissionDenied) if you may not open the device file. A
    ///   process that is not root may also get this before udev has set the file's permissions.
    /// - [`NotFound`](io::ErrorKind::NotFound) if `/sys` is not mounted.
    /// - Any other error of the system.
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if you drop it while it waits, it has opened nothing.
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
        find::open_when_present(name, Self::open_path).await
    }

    /// Opens the port's device file, such as `/dev/vport0p1`.
    ///
    /// The host must have opened its end first; krun does so before it announces the port's name. A port
    /// that you open earlier behaves as if the host had hung up, for good.
    ///
    /// # Errors
    ///
    /// - [`NotFound`](io::ErrorKind::NotFound) if there is no such file.
    /// - [`ResourceBusy`](io::ErrorKind::ResourceBusy), [`PermissionDenied`](io::ErrorKind::PermissionDenied)
    ///   and others, as with [`open`](Self::open).
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime with I/O enabled.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn open() -> std::io::Result<()> {
    /// // A link that udev creates on some distributions.
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
        register(fd).map(Self).map_err(|error| {
            // epoll's answer to a regular file or `/dev/null`.
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => io::ErrorKind::InvalidInput,
                kind => kind,
            };
            let path = path.display();
            io::Error::new(
                kind,
                format!("{path} is not a port, as it cannot be waited for: {error}"),
            )
        })
    }

    /// Takes a port that is already open, for example one that your parent process opened.
    ///
    /// The descriptor becomes non-blocking. As with [`open_path`](Self::open_path), the host must have
    /// opened its end before the port was opened.
    ///
    /// # Errors
    ///
    /// The system's error if the descriptor does not support waiting (epoll).
    ///
    /// # Panics
    ///
    /// If called outside a tokio runtime with I/O enabled.
    ///
    /// # Examples
    ///
    /// Any descriptor that supports waiting will do. In a test of an agent, use one end of a socket:
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

    /// Returns the descriptor, for example to pass it to another process. It stays non-blocking.
    ///
    /// # Errors
    ///
    /// None at present. The signature is that of `into_nonblocking_fd` of tokio's pipes.
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

    /// Returns the descriptor, for blocking reads and writes.
    ///
    /// If the host hangs up while a blocking write waits, that write never returns.
    ///
    /// # Errors
    ///
    /// The system's error if it cannot change the descriptor.
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

    /// Waits until the port is ready for one of the operations in `interest`, and returns which.
    ///
    /// A port that has ended is ready.
    ///
    /// # Errors
    ///
    /// [`Other`](io::ErrorKind::Other) if the runtime has shut down.
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

    /// Waits until there is something to read, or end of file.
    ///
    /// # Errors
    ///
    /// [`Other`](io::ErrorKind::Other) if the runtime has shut down.
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

    /// Polls for something to read, or end of file.
    ///
    /// Only the task that polled for reading last is woken, whether by this method or by a read.
    ///
    /// # Errors
    ///
    /// [`Other`](io::ErrorKind::Other) if the runtime has shut down.
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

    /// Reads what is there, without waiting. Returns 0 at end of file, or if the buffer is empty.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing to read yet.
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
    /// [`Other`](io::ErrorKind::Other) if the runtime has shut down.
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

    /// Polls for room for a write, or the host's hang-up. A write may still find no room.
    ///
    /// Only the task that polled for writing last is woken, whether by this method or by a write.
    ///
    /// # Errors
    ///
    /// [`Other`](io::ErrorKind::Other) if the runtime has shut down.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::task::{Context, Poll};
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// /// Your service is ready when its port can take a request.
    /// fn poll_ready(port: &VirtioPort, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
    ///     port.poll_write_ready(cx)
    /// }
    /// ```
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx).map_ok(drop)
    }

    /// Writes as much as there is room for, without waiting.
    ///
    /// # Errors
    ///
    /// - [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room.
    /// - [`BrokenPipe`](io::ErrorKind::BrokenPipe) once the host has hung up.
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

    /// Returns tokio's own view of the port's readiness. It neither waits nor asks the system, because
    /// `poll(2)` could take away the event that a task waits for; see "The descriptor" in the type's docs.
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

/// Vectored writes are not supported: the driver would send each buffer as a separate descriptor.
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

    /// Does nothing: a write completes only when the device has its bytes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: the device has no half-close.
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

/// Reads once. `None` means that there is nothing yet, and that tokio's readiness is cleared.
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

/// Writes once. `None` means that there is no room, and that tokio's readiness is cleared.
fn write(guard: &mut AsyncFdReadyGuard<'_, OwnedFd>, buf: &[u8]) -> Option<io::Result<usize>> {
    match retry_on_intr(|| rustix::io::write(guard.get_inner(), buf)) {
        // After a hang-up, Linux returns only `AGAIN`.
        Err(Errno::AGAIN) if guard.ready().is_write_closed() => {
            Some(Err(io::ErrorKind::BrokenPipe.into()))
        }
        // It returns 0 if another write has just taken the last room.
        Err(Errno::AGAIN) | Ok(0) => {
            guard.clear_ready();
            None
        }
        written => Some(written.map_err(Into::into)),
    }
}

#[expect(
    unsafe_code,
    reason = "`AsyncFd::register` is unsafe, and tokio has deprecated the safe constructors"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps the same descriptor open until it is dropped, and the registration
    // owns it.
    let registered = unsafe { AsyncFd::register(fd) };
    Ok(registered?)
}

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
//!
//! # Testing without a VM
//!
//! With the feature `test-util`, a `VirtioPort` can also be that of an in-process guest, on each system that this crate
//! supports. Your agent runs in it as it is: in [`Guest::run`], `open` finds the guest's ports.
//!
//! ```
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio_krun::agent::VirtioPort;
//! use tokio_krun::{AgentStream, test_util::Guest};
//!
//! /// The agent, except for what only a VM has, such as `mount_filesystems`.
//! async fn agent() -> std::io::Result<()> {
//!     let mut port = VirtioPort::open("agent").await?;
//!     let answer = !port.read_u8().await?;
//!     port.write_u8(answer).await
//! }
//!
//! # /*
//! #[tokio::test]
//! # */
//! # #[tokio::main(flavor = "current_thread")]
//! async fn answers() {
//!     let (mut stream, port) = AgentStream::pair().unwrap();
//!     let guest = Guest::boot(port);
//!     let agent = tokio::spawn(guest.run(agent()));
//!     stream.write_u8(0x0f).await.unwrap();
//!     assert_eq!(stream.read_u8().await.unwrap(), 0xf0);
//!     agent.await.unwrap().unwrap();
//! }
//! # answers();
//! ```
//!
//! [`Guest::run`]: https://docs.rs/tokio-krun/latest/tokio_krun/test_util/struct.Guest.html#method.run

#[cfg(all(feature = "agent", target_os = "linux"))]
mod device;
#[cfg(all(feature = "agent", target_os = "linux"))]
mod mount;
mod port;
mod split;

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

#[cfg(all(feature = "agent", target_os = "linux"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "agent", target_os = "linux"))))]
pub use mount::mount_filesystems;
use port::Port;
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, ReuniteError, WriteHalf};

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
/// The port is non-blocking and registered with tokio. Its methods have the names, signatures and meaning of those of
/// tokio's [`UnixStream`](https://docs.rs/tokio/1/tokio/net/struct.UnixStream.html). To read and write in two tasks, use
/// [`into_split`](Self::into_split). To read lines, wrap it in a
/// [`BufReader`](https://docs.rs/tokio/1/tokio/io/struct.BufReader.html), as you would any of tokio's own streams.
///
/// # Ends
///
/// | event | effect on the port |
/// | --- | --- |
/// | the host hangs up | reads return what is left, then end of file; writes fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe), even one that waits for room, and one of no bytes; [`ready`](Self::ready) says so without a read |
/// | you call `shutdown()` | none: the device has no half-close |
/// | you drop one half of [`into_split`](Self::into_split) | none |
/// | you drop the port, or both halves | it closes, and the host does not notice; what the host sends from then on is lost |
///
/// A blocking write would behave differently: in Linux, it never returns once the host has hung up.
///
/// krun reports end of file a moment before the hang-up, so a write in between may still succeed. It
/// needs a free buffer of the port for that. While all of them hold what you have not read, usually 32
/// buffers of up to 4 KiB each, no hang-up shows. A hang-up is final: one port carries one connection.
/// The host's program cannot exit and leave the VM running, because the VM is part of its process.
///
/// # Writing
///
/// Linux takes at most 32 KiB per write. A write completes when the device has its bytes, and the
/// host reads them in order. If the guest powers off at once, they may be lost. If your agent's last
/// words matter, let it wait for an answer to them.
///
/// A vectored write copies small buffers together, as the driver would send each of them separately.
///
/// # Cancel safety
///
/// Reads and writes are as cancel safe as those of tokio's streams: one that you drop while it waits
/// has moved no bytes.
#[derive(Debug)]
pub struct VirtioPort(Port);

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
    /// In the in-process guest of the feature `test-util`, call it in the agent's own task: in a task that the agent spawned, it
    /// looks for a real port, and waits.
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
    /// - [`Unsupported`](io::ErrorKind::Unsupported) outside Linux or without the feature `agent`, except in an
    ///   in-process guest.
    /// - [`NotConnected`](io::ErrorKind::NotConnected) if the in-process guest has gone, or has begun to power off.
    /// - [`Other`](io::ErrorKind::Other) outside a tokio runtime.
    /// - Any other error of the system.
    ///
    /// # Panics
    ///
    /// If the runtime has no I/O driver (`tokio::runtime::Builder::enable_io`).
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
        Port::open(name).await.map(Self)
    }

    /// Splits the port into a half for reading and a half for writing, to use both at once within one task, such as
    /// in `tokio::join!`. Dropping them changes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut port = guest.open()?;
    /// // A handshake in which both sides speak first.
    /// let (mut read, mut write) = port.split();
    /// # stream.write_u8(2).await?;
    /// let ((), version) = tokio::try_join!(write.write_u8(1), read.read_u8())?;
    /// assert_eq!(version, 2);
    /// # Ok(()) }
    /// ```
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf(self), WriteHalf(self))
    }

    /// Splits the port into two owned halves, for two tasks.
    ///
    /// Dropping a half has no effect, as the device has no half-close. The port closes with the second one.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let port = guest.open()?;
    /// let (mut read, mut write) = port.into_split();
    /// let requests = tokio::spawn(async move { read.read_u8().await });
    /// write.write_u8(1).await?; // an event, while the other task waits for a request
    /// # assert_eq!(stream.read_u8().await?, 1);
    ///
    /// # stream.write_u8(2).await?;
    /// assert_eq!(requests.await??, 2);
    /// # Ok(()) }
    /// ```
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        let port = Arc::new(self);
        (OwnedReadHalf(Arc::clone(&port)), OwnedWriteHalf(port))
    }

    /// Waits until the port is ready for one of the operations in `interest`, and returns which.
    ///
    /// As with tokio's streams, it may be ready although there is nothing: the `try_` method then returns
    /// [`WouldBlock`](io::ErrorKind::WouldBlock), and the next wait is a real one.
    ///
    /// A port that has ended is ready. `is_read_closed` and `is_write_closed` both mean that the host has hung up. There may
    /// still be bytes left to read.
    ///
    /// # Errors
    ///
    /// [`Other`](io::ErrorKind::Other) if the runtime has shut down; [`InvalidInput`](io::ErrorKind::InvalidInput) if
    /// `interest` asks for neither reading nor writing, because a port is never ready for anything else.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::Interest;
    ///
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut port = guest.open()?;
    /// let ready = port.ready(Interest::READABLE | Interest::WRITABLE).await?;
    /// assert!(ready.is_writable() && !ready.is_readable()); // the host has sent nothing yet
    ///
    /// stream.hang_up();
    /// let ready = port.ready(Interest::READABLE).await?;
    /// assert!(ready.is_read_closed());
    /// # Ok(()) }
    /// ```
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.0.ready(interest).await
    }
}

/// Reading.
impl VirtioPort {
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
    /// ```
    /// use std::io::ErrorKind;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// async fn read(port: &VirtioPort, buffer: &mut [u8]) -> std::io::Result<usize> {
    ///     loop {
    ///         port.readable().await?;
    ///         match port.try_read(buffer) {
    ///             Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
    ///             read => return read,
    ///         }
    ///     }
    /// }
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let port = guest.open()?;
    /// # stream.write_all(b"hello").await?;
    /// # assert_eq!(read(&port, &mut [0; 8]).await?, 5);
    /// # Ok(()) }
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
        self.0.poll_read_ready(cx)
    }

    /// Reads what is there, without waiting. Returns 0 at end of file, or if the buffer is empty.
    ///
    /// One read returns at most what is in one of the device's buffers, which are usually 4 KiB each.
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
        self.0.try_read(buf)
    }

    /// Reads what is there into a buffer that advances, without waiting.
    ///
    /// A buffer that grows, such as a `Vec`, takes what fits into its spare capacity, or grows first if it has none.
    ///
    /// # Errors
    ///
    /// As [`try_read`](Self::try_read).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let port = guest.open()?;
    /// # stream.write_all(b"hello").await?;
    /// let mut received = Vec::with_capacity(4096);
    /// port.readable().await?;
    /// port.try_read_buf(&mut received)?;
    /// assert_eq!(received, b"hello");
    /// # Ok(()) }
    /// ```
    pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        self.0.try_read_buf(buf)
    }

    /// Reads what is there into several buffers, without waiting.
    ///
    /// # Errors
    ///
    /// As [`try_read`](Self::try_read).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// use std::io::IoSliceMut;
    ///
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let port = guest.open()?;
    /// # stream.write_all(b"1hello").await?;
    /// let (mut kind, mut body) = ([0; 1], [0; 16]);
    /// port.readable().await?;
    /// let read = port.try_read_vectored(&mut [IoSliceMut::new(&mut kind), IoSliceMut::new(&mut body)])?;
    /// assert_eq!((&kind, &body[..read - 1]), (b"1", b"hello".as_slice()));
    /// # Ok(()) }
    /// ```
    pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.try_read_vectored(bufs)
    }
}

/// Writing.
impl VirtioPort {
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
    /// ```
    /// use std::io::ErrorKind;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// async fn write(port: &VirtioPort, bytes: &[u8]) -> std::io::Result<usize> {
    ///     loop {
    ///         port.writable().await?;
    ///         match port.try_write(bytes) {
    ///             Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
    ///             written => return written,
    ///         }
    ///     }
    /// }
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let port = guest.open()?;
    /// # assert_eq!(write(&port, b"hello").await?, 5);
    /// # Ok(()) }
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
        self.0.poll_write_ready(cx)
    }

    /// Writes as much as there is room for, without waiting. Returns 0 only if the buffer is empty.
    ///
    /// # Errors
    ///
    /// - [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room.
    /// - [`BrokenPipe`](io::ErrorKind::BrokenPipe) once the host has hung up, even if the buffer is empty.
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
        self.0.try_write(buf)
    }

    /// Writes as much of several buffers as there is room for, without waiting.
    ///
    /// They reach the host together: see [Writing](Self#writing).
    ///
    /// # Errors
    ///
    /// As [`try_write`](Self::try_write).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncReadExt;
    /// use std::io::IoSlice;
    ///
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let port = guest.open()?;
    /// port.writable().await?;
    /// let written = port.try_write_vectored(&[IoSlice::new(b"1"), IoSlice::new(b"hello")])?;
    /// assert_eq!(written, 6);
    /// # stream.read_exact(&mut [0; 6]).await?;
    /// # Ok(()) }
    /// ```
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }
}

#[cfg(any(test, feature = "test-util"))]
impl VirtioPort {
    pub(crate) fn in_process(port: crate::test_util::Port) -> Self {
        Self(Port::InProcess(port))
    }
}

impl AsyncRead for VirtioPort {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncWrite for VirtioPort {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
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

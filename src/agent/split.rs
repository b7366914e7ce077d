//! The halves of a port. They delegate to the port.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

use super::VirtioPort;

/// The reading half of a [`VirtioPort`], borrowed by [`split`](VirtioPort::split).
///
/// # Examples
///
/// ```
/// use tokio::io::AsyncReadExt;
/// use tokio_krun::agent::ReadHalf;
///
/// async fn length(requests: &mut ReadHalf<'_>) -> std::io::Result<u32> {
///     requests.read_u32().await
/// }
/// # use tokio::io::AsyncWriteExt;
/// # use tokio_krun::{AgentStream, test_util::Guest};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # stream.write_u32(7).await?;
/// # assert_eq!(length(&mut guest.open()?.split().0).await?, 7);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ReadHalf<'a>(pub(super) &'a VirtioPort);

/// The writing half of a [`VirtioPort`], borrowed by [`split`](VirtioPort::split).
///
/// # Examples
///
/// ```
/// use tokio::io::AsyncWriteExt;
/// use tokio_krun::agent::WriteHalf;
///
/// async fn report(replies: &mut WriteHalf<'_>, state: &str) -> std::io::Result<()> {
///     replies.write_all(state.as_bytes()).await
/// }
/// # use tokio_krun::{AgentStream, test_util::Guest};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (_stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # report(&mut guest.open()?.split().1, "idle").await
/// # }
/// ```
#[derive(Debug)]
pub struct WriteHalf<'a>(pub(super) &'a VirtioPort);

/// The reading half of a [`VirtioPort`], from [`into_split`](VirtioPort::into_split).
///
/// Dropping it has no effect on the port: what the host writes waits there. Dropping both halves closes the port.
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
/// let (mut read, write) = port.into_split();
/// # stream.write_all(b"stop").await?;
/// # stream.hang_up();
/// let requests = tokio::spawn(async move {
///     let mut requests = String::new();
///     read.read_to_string(&mut requests).await?; // until the host hangs up
///     std::io::Result::Ok(requests)
/// });
/// assert_eq!(requests.await??, "stop");
/// # drop(write);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct OwnedReadHalf(pub(super) Arc<VirtioPort>);

/// The writing half of a [`VirtioPort`], from [`into_split`](VirtioPort::into_split).
///
/// Dropping it has no effect on the port: the host does not notice, so the reading half may wait for a request forever. Dropping
/// both halves closes the port.
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
/// let (read, mut write) = port.into_split();
/// let events = tokio::spawn(async move { write.write_all(b"ready").await });
/// events.await??;
/// # let mut received = [0; 5];
/// # stream.read_exact(&mut received).await?;
/// # assert_eq!(&received, b"ready");
/// # drop(read);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct OwnedWriteHalf(pub(super) Arc<VirtioPort>);

impl ReadHalf<'_> {
    /// Waits until this half is ready, or the host has hung up: equivalent to [`VirtioPort::ready`].
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.0.ready(interest).await
    }

    /// Waits until there is something to read: equivalent to [`VirtioPort::readable`].
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// Polls for something to read: equivalent to [`VirtioPort::poll_read_ready`].
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx)
    }

    /// Reads what there is, without waiting: equivalent to [`VirtioPort::try_read`].
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }

    /// Reads into a buffer that advances: equivalent to [`VirtioPort::try_read_buf`].
    pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        self.0.try_read_buf(buf)
    }

    /// Reads into several buffers: equivalent to [`VirtioPort::try_read_vectored`].
    pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.try_read_vectored(bufs)
    }
}

impl AsyncRead for ReadHalf<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.0.poll_read(cx, buf)
    }
}

impl WriteHalf<'_> {
    /// Waits until this half is ready, or the host has hung up: equivalent to [`VirtioPort::ready`].
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.0.ready(interest).await
    }

    /// Waits until there may be room to write: equivalent to [`VirtioPort::writable`].
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    /// Polls for room to write: equivalent to [`VirtioPort::poll_write_ready`].
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx)
    }

    /// Writes as much as fits, without waiting: equivalent to [`VirtioPort::try_write`].
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    /// Writes from several buffers: equivalent to [`VirtioPort::try_write_vectored`].
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }
}

impl AsyncWrite for WriteHalf<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.0.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.0.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl OwnedReadHalf {
    /// Puts the two halves of a port back together.
    ///
    /// # Errors
    ///
    /// [`ReuniteError`] with both halves, if they are not of the same port.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (_stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let port = guest.open()?;
    /// let (read, write) = port.into_split();
    /// let port = read.reunite(write)?;
    /// # Ok(()) }
    /// ```
    pub fn reunite(self, other: OwnedWriteHalf) -> Result<VirtioPort, ReuniteError> {
        if !Arc::ptr_eq(&self.0, &other.0) {
            return Err(ReuniteError(self, other));
        }
        drop(other);
        Ok(Arc::into_inner(self.0).expect("a port has two halves, and one was just dropped"))
    }

    /// Waits until this half is ready, or the host has hung up: equivalent to [`VirtioPort::ready`].
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.0.ready(interest).await
    }

    /// Waits until there is something to read: equivalent to [`VirtioPort::readable`].
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// Polls for something to read: equivalent to [`VirtioPort::poll_read_ready`].
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx)
    }

    /// Reads what there is, without waiting: equivalent to [`VirtioPort::try_read`].
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }

    /// Reads into a buffer that advances: equivalent to [`VirtioPort::try_read_buf`].
    pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        self.0.try_read_buf(buf)
    }

    /// Reads into several buffers: equivalent to [`VirtioPort::try_read_vectored`].
    pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.0.try_read_vectored(bufs)
    }
}

impl AsyncRead for OwnedReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.0.poll_read(cx, buf)
    }
}

impl OwnedWriteHalf {
    /// Puts the two halves of a port back together.
    ///
    /// # Errors
    ///
    /// [`ReuniteError`] with both halves, if they are not of the same port.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (_stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let port = guest.open()?;
    /// let (read, write) = port.into_split();
    /// let port = write.reunite(read)?;
    /// # Ok(()) }
    /// ```
    pub fn reunite(self, other: OwnedReadHalf) -> Result<VirtioPort, ReuniteError> {
        other.reunite(self)
    }

    /// Waits until this half is ready, or the host has hung up: equivalent to [`VirtioPort::ready`].
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.0.ready(interest).await
    }

    /// Waits until there may be room to write: equivalent to [`VirtioPort::writable`].
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await
    }

    /// Polls for room to write: equivalent to [`VirtioPort::poll_write_ready`].
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx)
    }

    /// Writes as much as fits, without waiting: equivalent to [`VirtioPort::try_write`].
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    /// Writes from several buffers: equivalent to [`VirtioPort::try_write_vectored`].
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }
}

impl AsyncWrite for OwnedWriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.0.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.0.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The error of [`OwnedReadHalf::reunite`]: the two halves are not of the same port. It gives both back.
///
/// # Examples
///
/// ```
/// use tokio_krun::agent::{OwnedReadHalf, OwnedWriteHalf, ReuniteError, VirtioPort};
///
/// fn reunite(read: OwnedReadHalf, write: OwnedWriteHalf) -> Option<VirtioPort> {
///     match read.reunite(write) {
///         Ok(port) => Some(port),
///         Err(ReuniteError(_read, _write)) => None, // of two ports
///     }
/// }
/// ```
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the halves are of different ports: reunite the two of one `into_split`")
    }
}

impl Error for ReuniteError {}

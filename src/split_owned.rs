//! The owned halves of a stream. They delegate to the host's end.

use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

use crate::host::{Host, Peeked};
use crate::permit::Permit;
use crate::stats::Stats;
use crate::stream::AgentStream;

/// The reading half of an [`AgentStream`], from [`into_split`](AgentStream::into_split).
///
/// Dropping it ends reading: what the guest writes from then on, and what is left unread, is discarded and
/// [counted](crate::RingStats::discarded). Dropping both halves drops the stream.
///
/// # Examples
///
/// ```
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::{AgentStream, test_util::Guest};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let (read, mut write) = stream.into_split();
/// drop(read); // what the agent writes does not matter and must not block it
///
/// agent.write_all(b"chatter").await?;
/// guest.drained().await;
/// assert_eq!(write.stats().tx.discarded, 7);
/// write.write_all(b"do this").await?; // writing goes on
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct OwnedReadHalf {
    host: Arc<Host>,
    peeked: Peeked,
    stop_on_drop: bool,
}

/// The writing half of an [`AgentStream`], from [`into_split`](AgentStream::into_split).
///
/// Dropping it shuts the stream down for writing, without hanging up; see [Ends](AgentStream#ends). Unlike with a
/// socket, the guest does not notice, so the reading half may wait for an answer forever. Dropping both halves drops
/// the stream.
///
/// # Examples
///
/// ```
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::{AgentStream, test_util::Guest};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let (mut read, mut write) = stream.into_split();
/// write.write_all(b"report, then power off").await?;
/// drop(write); // no more requests; the agent can still answer
///
/// agent.write_all(b"all is well").await?;
/// # guest.drained().await;
/// # guest.power_off().await;
/// let mut report = String::new();
/// read.read_to_string(&mut report).await?;
/// assert_eq!(report, "all is well");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct OwnedWriteHalf {
    host: Arc<Host>,
    shut_down_on_drop: bool,
}

pub(crate) fn into_split(host: Arc<Host>) -> (OwnedReadHalf, OwnedWriteHalf) {
    let read = OwnedReadHalf {
        host: Arc::clone(&host),
        peeked: Peeked::default(),
        stop_on_drop: true,
    };
    let write = OwnedWriteHalf {
        host,
        shut_down_on_drop: true,
    };
    (read, write)
}

impl OwnedReadHalf {
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Puts the two halves of a stream back together.
    ///
    /// # Errors
    ///
    /// [`ReuniteError`] with both halves, if they are not of the same stream.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// // A handshake in which both sides speak first.
    /// let (mut read, mut write) = stream.into_split();
    /// let hello = tokio::spawn(async move { write.write_u8(1).await.map(|()| write) });
    /// agent.write_u8(2).await?;
    /// assert_eq!(read.read_u8().await?, 2);
    ///
    /// let mut stream = read.reunite(hello.await??)?;
    /// stream.hang_up();
    /// # Ok(()) }
    /// ```
    pub fn reunite(self, other: OwnedWriteHalf) -> Result<AgentStream, ReuniteError> {
        if !Arc::ptr_eq(&self.host, &other.host) {
            return Err(ReuniteError(self, other));
        }
        let host = Arc::clone(&self.host);
        other.forget();
        self.forget();
        Ok(AgentStream::from_host(host))
    }

    /// Drops this half without ending reading. As long as the other half lives, what the guest writes stays in the ring
    /// until that is full.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let (read, write) = stream.into_split();
    /// read.forget();
    ///
    /// agent.write_all(b"chatter").await?;
    /// guest.drained().await;
    /// let tx = write.stats().tx;
    /// assert_eq!((tx.queued, tx.discarded), (7, 0));
    /// # Ok(()) }
    /// ```
    pub fn forget(mut self) {
        self.stop_on_drop = false;
    }

    /// Waits until this half is ready, or the stream has ended: equivalent to [`AgentStream::ready`].
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.host.ready(interest).await
    }

    /// Waits until the guest has gone: equivalent to [`AgentStream::closed`].
    pub async fn closed(&self) {
        self.host.closed().await;
    }

    /// Closes the whole stream: equivalent to [`AgentStream::close`].
    pub fn close(&self) {
        self.host.close();
    }

    /// Returns how many bytes each direction holds: equivalent to [`AgentStream::capacity`].
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.host.capacity()
    }

    /// Returns what the rings have done so far: equivalent to [`AgentStream::stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.host.stats()
    }

    /// Waits until there is something to read: equivalent to [`AgentStream::readable`].
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(Interest::READABLE).await.map(drop)
    }

    /// Polls for something to read: equivalent to [`AgentStream::poll_read_ready`].
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.host.poll_read_ready(cx)
    }

    /// Reads what there is, without waiting: equivalent to [`AgentStream::try_read`].
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.host.try_read(buf)
    }

    /// Reads into a buffer that advances: equivalent to [`AgentStream::try_read_buf`].
    pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        self.host.try_read_buf(buf)
    }

    /// Reads into several buffers: equivalent to [`AgentStream::try_read_vectored`].
    pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.host.try_read_vectored(bufs)
    }

    /// Reads what there is to the end of `buf`: equivalent to [`AgentStream::read_available`].
    pub async fn read_available(&self, buf: &mut BytesMut, limit: usize) -> io::Result<usize> {
        self.host.read_available(buf, limit).await
    }

    /// Reads what there is, without waiting: equivalent to [`AgentStream::try_read_available`].
    pub fn try_read_available(&self, buf: &mut BytesMut, limit: usize) -> io::Result<usize> {
        self.host.try_read_available(buf, limit)
    }

    /// Waits until the guest has opened its port: equivalent to [`AgentStream::guest_opened`].
    pub async fn guest_opened(&self) -> io::Result<()> {
        self.host.guest_opened().await
    }

    /// Whether the guest has opened its port: equivalent to [`AgentStream::has_guest_opened`].
    #[must_use]
    pub fn has_guest_opened(&self) -> bool {
        self.host.has_guest_opened()
    }
}

impl AsyncRead for OwnedReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.host.poll_read(cx, buf)
    }
}

impl AsyncBufRead for OwnedReadHalf {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        this.peeked.poll_fill_buf(&this.host, cx)
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.peeked.consume(&this.host, amount);
    }
}

impl OwnedWriteHalf {
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Puts the two halves of a stream back together.
    ///
    /// # Errors
    ///
    /// [`ReuniteError`] with both halves, if they are not of the same stream.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// # agent.write_u8(2).await?;
    /// let (mut read, mut write) = stream.into_split();
    /// let version = tokio::spawn(async move { read.read_u8().await.map(|version| (version, read)) });
    /// write.write_u8(1).await?;
    ///
    /// let (version, read) = version.await??;
    /// assert_eq!(version, 2);
    /// let stream = write.reunite(read)?;
    /// # Ok(()) }
    /// ```
    pub fn reunite(self, other: OwnedReadHalf) -> Result<AgentStream, ReuniteError> {
        other.reunite(self)
    }

    /// Drops this half without shutting the stream down for writing.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::Interest;
    /// use tokio_krun::AgentStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, _port) = AgentStream::pair()?;
    /// let (read, write) = stream.into_split();
    /// write.forget();
    /// assert!(!read.ready(Interest::WRITABLE).await?.is_write_closed());
    ///
    /// let (stream, _port) = AgentStream::pair()?;
    /// let (read, write) = stream.into_split();
    /// drop(write);
    /// assert!(read.ready(Interest::WRITABLE).await?.is_write_closed());
    /// # Ok(()) }
    /// ```
    pub fn forget(mut self) {
        self.shut_down_on_drop = false;
    }

    /// Waits until this half is ready, or the stream has ended: equivalent to [`AgentStream::ready`].
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.host.ready(interest).await
    }

    /// Waits until the guest has gone: equivalent to [`AgentStream::closed`].
    pub async fn closed(&self) {
        self.host.closed().await;
    }

    /// Closes the whole stream: equivalent to [`AgentStream::close`].
    pub fn close(&self) {
        self.host.close();
    }

    /// Returns how many bytes each direction holds: equivalent to [`AgentStream::capacity`].
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.host.capacity()
    }

    /// Returns what the rings have done so far: equivalent to [`AgentStream::stats`].
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.host.stats()
    }

    /// Waits until there is room to write: equivalent to [`AgentStream::writable`].
    pub async fn writable(&self) -> io::Result<()> {
        self.ready(Interest::WRITABLE).await.map(drop)
    }

    /// Polls for room to write: equivalent to [`AgentStream::poll_write_ready`].
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.host.poll_write_ready(cx)
    }

    /// Writes as much as fits, without waiting: equivalent to [`AgentStream::try_write`].
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.host.try_write(&[IoSlice::new(buf)])
    }

    /// Writes from several buffers: equivalent to [`AgentStream::try_write_vectored`].
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.host.try_write(bufs)
    }

    /// Writes from the front of `bytes` without a copy: equivalent to [`AgentStream::write_bytes`].
    pub async fn write_bytes(&self, bytes: &mut Bytes) -> io::Result<usize> {
        self.host.write_bytes(bytes).await
    }

    /// Waits for room and sets it aside: equivalent to [`AgentStream::reserve`].
    pub async fn reserve(&self, length: usize) -> io::Result<Permit<'_>> {
        self.host.reserve(length).await
    }

    /// Sets room aside, without waiting: equivalent to [`AgentStream::try_reserve`].
    pub fn try_reserve(&self, length: usize) -> io::Result<Permit<'_>> {
        self.host.try_reserve(length)
    }

    /// Writes all or nothing, without waiting: equivalent to [`AgentStream::try_write_all`].
    pub fn try_write_all(&self, buf: &[u8]) -> io::Result<()> {
        self.host.try_write_all(buf)
    }

    /// Writes all or nothing, without a copy: equivalent to [`AgentStream::try_write_all_bytes`].
    pub fn try_write_all_bytes(&self, bytes: Bytes) -> Result<(), (Bytes, io::Error)> {
        self.host.try_write_all_bytes(bytes)
    }

    /// Waits until the guest's device has taken everything written: equivalent to [`AgentStream::drained`].
    pub async fn drained(&self) -> io::Result<()> {
        self.host.drained().await
    }

    /// Hangs up: equivalent to [`AgentStream::hang_up`].
    pub fn hang_up(&self) {
        self.host.hang_up();
    }
}

impl AsyncWrite for OwnedWriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.host.poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.host.poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.host.shut_down();
        Poll::Ready(Ok(()))
    }
}

impl Drop for OwnedReadHalf {
    fn drop(&mut self) {
        // First, so that the ring lets go of the last handle and its storage returns to the pool.
        self.peeked.clear();
        if self.stop_on_drop {
            self.host.stop_reading();
        }
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.shut_down_on_drop {
            self.host.shut_down();
        }
    }
}

/// The error of [`OwnedReadHalf::reunite`]: the two halves are not of the same stream. It gives both back.
///
/// # Examples
///
/// ```
/// use tokio_krun::{AgentStream, ReuniteError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (first, _port) = AgentStream::pair()?;
/// let (second, _port) = AgentStream::pair()?;
/// let (read, write) = first.into_split();
/// let (other_read, other_write) = second.into_split();
///
/// // Both halves come back, and can be used on.
/// let ReuniteError(read, other_write) = read.reunite(other_write).unwrap_err();
/// let first = read.reunite(write)?;
/// let second = other_read.reunite(other_write)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the halves are of different streams: reunite the two of one `into_split`")
    }
}

impl Error for ReuniteError {}

//! The borrowed halves of a stream. They delegate to the host's end.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

use crate::host::{Host, Peeked};
use crate::permit::Permit;
use crate::stats::Stats;
#[cfg(doc)]
use crate::stream::AgentStream;

/// The reading half of an [`AgentStream`], borrowed by [`split`](AgentStream::split).
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
/// use tokio_krun::{AgentStream, test_util::Guest};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let (read, mut write) = AgentStream::split(&mut stream); // `AsyncBufReadExt` has a `split` too
/// write.write_all(b"list\n").await?;
///
/// agent.write_all(b"one\ntwo\n").await?;
/// let mut lines = read.lines();
/// assert_eq!(lines.next_line().await?.as_deref(), Some("one"));
/// assert_eq!(lines.next_line().await?.as_deref(), Some("two"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ReadHalf<'a> {
    host: &'a Arc<Host>,
    peeked: Peeked,
}

/// The writing half of an [`AgentStream`], borrowed by [`split`](AgentStream::split).
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::{AgentStream, WriteHalf, test_util::Guest};
///
/// async fn ask(agent: &mut WriteHalf<'_>, question: &str) -> std::io::Result<()> {
///     agent.write_u16(question.len() as u16).await?;
///     agent.write_all(question.as_bytes()).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// # agent.write_u64(42).await?;
/// let (mut read, mut write) = stream.split();
/// let (_, uptime) = tokio::try_join!(ask(&mut write, "uptime"), read.read_u64())?;
/// assert_eq!(uptime, 42);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct WriteHalf<'a> {
    host: &'a Arc<Host>,
}

impl<'a> ReadHalf<'a> {
    pub(crate) fn new(host: &'a Arc<Host>) -> Self {
        Self {
            host,
            peeked: Peeked::default(),
        }
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        self.host
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

impl AsyncRead for ReadHalf<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.host.poll_read(cx, buf)
    }
}

impl AsyncBufRead for ReadHalf<'_> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        this.peeked.poll_fill_buf(this.host, cx)
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.peeked.consume(this.host, amount);
    }
}

impl<'a> WriteHalf<'a> {
    pub(crate) fn new(host: &'a Arc<Host>) -> Self {
        Self { host }
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        self.host
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

impl AsyncWrite for WriteHalf<'_> {
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

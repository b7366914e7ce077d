//! What a stream has beside `AsyncWrite`, to write.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::Interest;

use super::AgentStream;
use crate::permit::Permit;

/// Writing.
impl AgentStream {
    /// Waits until there is room to write, or until writes fail.
    ///
    /// Usually followed by [`try_write`](Self::try_write), which may still find no room if another task was faster. Any
    /// number of tasks may wait; all are woken, once half of the capacity is free.
    ///
    /// # Errors
    ///
    /// If the stream's runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is written.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let mut rest = &b"request"[..];
    /// while !rest.is_empty() {
    ///     stream.writable().await?;
    ///     match stream.try_write(rest) {
    ///         Err(error) if error.kind() == ErrorKind::WouldBlock => {} // another task was faster
    ///         written => rest = &rest[written?..],
    ///     }
    /// }
    /// let mut received = [0; 7];
    /// agent.read_exact(&mut received).await?;
    /// assert_eq!(&received, b"request");
    /// # Ok(()) }
    /// ```
    pub async fn writable(&self) -> io::Result<()> {
        self.ready(Interest::WRITABLE).await.map(drop)
    }

    /// Polls for room to write. Only the last task that polled for writing is woken, whether it polled this or a write.
    ///
    /// # Errors
    ///
    /// If the stream's runtime has shut down.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::future::poll_fn;
    /// use std::task::Poll;
    ///
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (busy, _busy_port) = AgentStream::pair()?;
    /// # let (idle, _idle_port) = AgentStream::pair()?;
    /// // Which of the VM's ports can take more work?
    /// while busy.try_write(&[0; 64 * 1024]).is_ok() {}
    /// let streams = [busy, idle];
    /// let takes_more = poll_fn(|cx| {
    ///     let ready = |stream: &AgentStream| stream.poll_write_ready(cx).is_ready();
    ///     streams.iter().position(ready).map_or(Poll::Pending, Poll::Ready)
    /// });
    /// assert_eq!(takes_more.await, 1);
    /// # Ok(()) }
    /// ```
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.host.poll_write_ready(cx)
    }

    /// Writes as much as fits, without waiting.
    ///
    /// # Errors
    ///
    /// - [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room.
    /// - [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the stream was shut down or hung up, or the guest has gone.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// use tokio_krun::{AgentStream, Options};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let message = vec![0; 5 * 1024 * 1024];
    /// let written = stream.try_write(&message)?;
    /// assert_eq!(written, Options::DEFAULT_CAPACITY);
    ///
    /// // Nobody in the guest reads yet.
    /// let error = stream.try_write(&message[written..]).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::WouldBlock);
    /// # Ok(()) }
    /// ```
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.host.try_write(&[IoSlice::new(buf)])
    }

    /// Like [`try_write`](Self::try_write), from several buffers, one after another.
    ///
    /// # Errors
    ///
    /// As for [`try_write`](Self::try_write).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::IoSlice;
    ///
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let body = b"hello";
    /// let header = (body.len() as u16).to_be_bytes();
    /// let bufs = [IoSlice::new(&header), IoSlice::new(body)];
    /// assert_eq!(stream.try_write_vectored(&bufs)?, 7);
    ///
    /// let mut received = [0; 7];
    /// agent.read_exact(&mut received).await?;
    /// assert_eq!(&received, b"\0\x05hello");
    /// # Ok(()) }
    /// ```
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.host.try_write(bufs)
    }

    /// Writes from the front of `bytes`, without a copy if that pays, and returns how many bytes it wrote.
    ///
    /// It waits until at least one byte fits, unless `bytes` is empty. It advances `bytes` past what it wrote; call it again
    /// while `bytes` is not empty. Like [`Chunks`](crate::Chunks#writing), it copies a piece of less than half a chunk.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the stream was shut down or hung up, or the guest has gone; or an error
    /// if the stream's runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if it is dropped while it waits, nothing was written and `bytes` is unchanged. With a `Sink`, an item
    /// could stay behind and go out later; here, nothing does.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use bytes::Bytes;
    /// use tokio::time::timeout;
    ///
    /// # use tokio_krun::Options;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, _port) = Options::new().capacity(64 * 1024).create()?;
    /// let mut frame = Bytes::from(vec![7; 64 * 1024]);
    /// stream.write_bytes(&mut frame).await?;
    /// assert!(frame.is_empty());
    ///
    /// // Now the ring is full, and this frame stays yours.
    /// let mut late = Bytes::from_static(b"too late");
    /// let limit = Duration::from_millis(10);
    /// assert!(timeout(limit, stream.write_bytes(&mut late)).await.is_err());
    /// assert_eq!(late, "too late");
    /// # Ok(()) }
    /// ```
    pub async fn write_bytes(&self, bytes: &mut Bytes) -> io::Result<usize> {
        self.host.write_bytes(bytes).await
    }

    /// Waits until there is room for `length` bytes, and sets it aside for one write: see [`Permit`].
    ///
    /// Use it if all of a message must go in at once, or if nothing may wait between making a message and writing it. Tasks
    /// get their room in the order in which they call this. While one waits, other writes get only the room that it leaves. If
    /// tasks reserve all of it again and again, a plain `write` may never get any: then let all who share a stream reserve.
    ///
    /// Like a write, it is woken once half of the capacity is free, or the guest has read everything, and not for a little room
    /// before that. A future of this that you keep without polling it keeps its place, and the tasks behind it wait.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) at once if `length` is more than the [capacity](Self::capacity).
    /// - [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the stream was shut down, hung up or closed, or the guest has gone.
    /// - An error if the stream's runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if you drop it while it waits, it sets nothing aside, and loses its place in the order.
    ///
    /// # Examples
    ///
    /// All of a frame or nothing, within a time limit:
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tokio::time::timeout;
    /// use tokio_krun::AgentStream;
    ///
    /// async fn send(stream: &AgentStream, frame: &[u8]) -> std::io::Result<()> {
    ///     let permit = timeout(Duration::from_secs(5), stream.reserve(frame.len())).await??;
    ///     permit.write_all(frame)
    /// }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, _port) = AgentStream::pair()?;
    /// # send(&stream, b"frame").await?;
    /// # assert_eq!(stream.stats().rx.queued, 5);
    /// # Ok(()) }
    /// ```
    pub async fn reserve(&self, length: usize) -> io::Result<Permit<'_>> {
        self.host.reserve(length).await
    }

    /// Sets room for `length` bytes aside, if there is room now.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is not; or as for [`reserve`](Self::reserve).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, _port) = AgentStream::pair()?;
    /// let all = stream.try_reserve(stream.capacity())?;
    /// let error = stream.try_write(b"no room is left").unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::WouldBlock);
    ///
    /// drop(all);
    /// stream.try_write(b"now there is")?;
    /// # Ok(()) }
    /// ```
    pub fn try_reserve(&self, length: usize) -> io::Result<Permit<'_>> {
        self.host.try_reserve(length)
    }

    /// Writes all of `buf` or nothing, without waiting.
    ///
    /// To wait for enough room, use [`reserve`](Self::reserve): [`writable`](Self::writable) returns as soon as one byte fits.
    ///
    /// # Errors
    ///
    /// - [`WouldBlock`](io::ErrorKind::WouldBlock) if it does not fit now.
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) if it is larger than the [capacity](Self::capacity).
    /// - [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the stream was shut down, hung up or closed, or the guest has gone.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// # use tokio_krun::{AgentStream, Options};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, _port) = Options::new().capacity(32 * 1024).create()?;
    /// stream.try_write_all(&[1; 20_000])?;
    /// let error = stream.try_write_all(&[2; 20_000]).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::WouldBlock);
    /// assert_eq!(stream.stats().rx.queued, 20_000); // no part of the second
    /// # Ok(()) }
    /// ```
    pub fn try_write_all(&self, buf: &[u8]) -> io::Result<()> {
        self.host.try_write_all(buf)
    }

    /// Writes all of `bytes` or nothing, without waiting, and without a copy if that pays.
    ///
    /// # Errors
    ///
    /// As for [`try_write_all`](Self::try_write_all), and with the error you get your `bytes` back.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    ///
    /// # use tokio_krun::{AgentStream, Options};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, _port) = Options::new().capacity(32 * 1024).create()?;
    /// let frame = Bytes::from(vec![7; 20_000]);
    /// assert!(stream.try_write_all_bytes(frame.clone()).is_ok());
    /// let (rejected, error) = stream.try_write_all_bytes(frame.clone()).unwrap_err();
    /// assert_eq!(rejected, frame);
    /// # assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    /// # Ok(()) }
    /// ```
    pub fn try_write_all_bytes(&self, bytes: Bytes) -> Result<(), (Bytes, io::Error)> {
        self.host.try_write_all_bytes(bytes)
    }

    /// Waits until the guest's device has taken everything written before this call, like `tcdrain(3)` for a terminal.
    /// As for every `async` function, the call is its first poll.
    ///
    /// It does not mean that a program in the guest has read the bytes. They may lie in the buffers of the guest's
    /// kernel, and krun takes them while the port is closed, too. [Flushing](AgentStream#flushing) does not even wait
    /// for this.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the guest has gone; or an error if the stream's runtime has shut
    /// down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let agent = guest.open()?;
    /// stream.write_all(b"prepare for a checkpoint").await?;
    /// stream.drained().await?;
    /// // None of it is left on this side.
    /// assert_eq!(stream.stats().rx.queued, 0);
    /// # Ok(()) }
    /// ```
    pub async fn drained(&self) -> io::Result<()> {
        self.host.drained().await
    }
}

//! What a stream has beside `AsyncRead`, to read.

use std::io::{self, IoSliceMut};
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use tokio::io::Interest;

use super::AgentStream;

/// Reading.
impl AgentStream {
    /// Waits until there is something to read, or end of file.
    ///
    /// Usually followed by [`try_read`](Self::try_read), which may still find nothing if another task was faster. Any
    /// number of tasks may wait; all are woken.
    ///
    /// # Errors
    ///
    /// If the stream's runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is read.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// agent.write_all(b"hello").await?;
    /// let mut buf = [0; 64];
    /// let read = loop {
    ///     stream.readable().await?;
    ///     match stream.try_read(&mut buf) {
    ///         Err(error) if error.kind() == ErrorKind::WouldBlock => {} // another task was faster
    ///         read => break read?,
    ///     }
    /// };
    /// assert_eq!(&buf[..read], b"hello");
    /// # Ok(()) }
    /// ```
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(Interest::READABLE).await.map(drop)
    }

    /// Polls for something to read, or end of file. Only the last task that polled for reading is woken, whether it
    /// polled this or a read.
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
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (quiet, _port) = AgentStream::pair()?;
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// // Which of the VM's ports has something to read?
    /// let streams = [quiet, stream];
    /// agent.write_all(b"hello").await?;
    /// let speaks = poll_fn(|cx| {
    ///     let ready = |stream: &AgentStream| stream.poll_read_ready(cx).is_ready();
    ///     streams.iter().position(ready).map_or(Poll::Pending, Poll::Ready)
    /// });
    /// assert_eq!(speaks.await, 1);
    /// # Ok(()) }
    /// ```
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.host.poll_read_ready(cx)
    }

    /// Reads what there is, across chunks, without waiting. `Ok(0)` means end of file, or an empty `buf`.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let mut buf = [0; 64];
    /// let nothing = stream.try_read(&mut buf).unwrap_err();
    /// assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    ///
    /// agent.write_all(b"two ").await?;
    /// agent.write_all(b"writes").await?;
    /// guest.drained().await;
    /// let read = stream.try_read(&mut buf)?;
    /// assert_eq!(&buf[..read], b"two writes");
    /// # Ok(()) }
    /// ```
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.host.try_read(buf)
    }

    /// Like [`try_read`](Self::try_read), into a buffer that advances and may grow.
    ///
    /// One call reads no more than fits into the buffer without growing it. If the buffer has no room, it grows first: a
    /// `Vec` or `BytesMut` by 64 bytes. So reserve as much as you want to read.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing yet.
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
    /// let mut received = Vec::with_capacity(1024);
    /// for part in ["comes in ", "two parts"] {
    ///     agent.write_all(part.as_bytes()).await?;
    ///     guest.drained().await;
    ///     stream.try_read_buf(&mut received)?;
    /// }
    /// assert_eq!(received, b"comes in two parts");
    /// # Ok(()) }
    /// ```
    pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        self.host.try_read_buf(buf)
    }

    /// Like [`try_read`](Self::try_read), into several buffers, one after another.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::IoSliceMut;
    ///
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// agent.write_all(b"\0\x05hello").await?;
    /// guest.drained().await;
    ///
    /// let (mut header, mut body) = ([0; 2], [0; 64]);
    /// let mut bufs = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut body)];
    /// assert_eq!(stream.try_read_vectored(&mut bufs)?, 7);
    /// assert_eq!(u16::from_be_bytes(header), 5);
    /// assert_eq!(&body[..5], b"hello");
    /// # Ok(()) }
    /// ```
    pub fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.host.try_read_vectored(bufs)
    }

    /// Reads what there is to the end of `buf`, which grows, and waits until there is something.
    ///
    /// It reads at most `limit` bytes, however full `buf` is, and returns how many it read. Zero is end of file, or a
    /// `limit` of zero. `buf` needs no room beforehand.
    ///
    /// # Errors
    ///
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the guest's bytes from here on were discarded, see
    /// [`Error::CutOff`](crate::Error::CutOff); or an error if the stream's runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: if it is dropped while it waits, nothing was read.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::BytesMut;
    ///
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// agent.write_all(&[7; 10_000]).await?;
    /// guest.drained().await;
    ///
    /// let mut frame = BytesMut::new();
    /// assert_eq!(stream.read_available(&mut frame, 8 * 1024).await?, 8 * 1024);
    /// assert_eq!(stream.read_available(&mut frame, 8 * 1024).await?, 10_000 - 8 * 1024);
    /// assert_eq!(frame.len(), 10_000);
    /// # Ok(()) }
    /// ```
    pub async fn read_available(&self, buf: &mut BytesMut, limit: usize) -> io::Result<usize> {
        self.host.read_available(buf, limit).await
    }

    /// Like [`read_available`](Self::read_available), without waiting.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing to read now; or as for
    /// [`read_available`](Self::read_available).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// use bytes::BytesMut;
    ///
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, _port) = AgentStream::pair()?;
    /// let error = stream.try_read_available(&mut BytesMut::new(), 1024).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::WouldBlock);
    /// # Ok(()) }
    /// ```
    pub fn try_read_available(&self, buf: &mut BytesMut, limit: usize) -> io::Result<usize> {
        self.host.try_read_available(buf, limit)
    }

    /// Waits until the guest has opened its port.
    ///
    /// krun does not report that. It starts its threads when a program in the guest opens the port for the first time,
    /// so the first call of one of them is the sign. What you write before that is kept. You cannot see whether the
    /// port is still open.
    ///
    /// On Windows the sign is that krun has opened the pipe, which it does when the VM starts.
    ///
    /// # An agent that restarts
    ///
    /// You do not see a restart here, because krun does not report that the guest closed its port. Once this has returned,
    /// it returns at once for every later agent, too.
    ///
    /// If the agent dies in the middle of a frame, the restarted agent can complete that frame. Your codec then returns one
    /// valid frame with bytes of both. In the other direction, the restarted agent may begin to read in the middle of a
    /// frame of yours.
    ///
    /// If your agent may restart, let both sides find the start of a frame again. Send a mark and a new random id, and
    /// discard everything until the agent's answer with that id. Then go on with a new codec and the bytes that came after
    /// the id. The example [`resync`] does this with `Framed` and its parts.
    ///
    /// [`resync`]: https://docs.rs/crate/tokio-krun/latest/source/examples/resync.rs
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the guest has gone, or the stream was closed, before the guest opened
    /// its port; or an error if the stream's runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use std::time::Duration;
    ///
    /// use tokio::time::timeout;
    ///
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// let agent = guest.open()?;
    /// timeout(Duration::from_secs(60), stream.guest_opened()).await??;
    ///
    /// // A VM that ends before its agent has started.
    /// let (stream, port) = AgentStream::pair()?;
    /// drop(Guest::boot(port));
    /// let error = stream.guest_opened().await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    /// # Ok(()) }
    /// ```
    pub async fn guest_opened(&self) -> io::Result<()> {
        self.host.guest_opened().await
    }

    /// Whether the guest has opened its port; see [`guest_opened`](Self::guest_opened).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use tokio::time::timeout;
    ///
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// let limit = Duration::from_millis(20);
    /// if timeout(limit, stream.read_u8()).await.is_err() {
    ///     let why = match stream.has_guest_opened() {
    ///         true => "the agent does not answer",
    ///         false => "the agent has not opened its port",
    ///     };
    ///     assert_eq!(why, "the agent has not opened its port");
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn has_guest_opened(&self) -> bool {
        self.host.has_guest_opened()
    }
}

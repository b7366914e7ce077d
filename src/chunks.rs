//! The stream by chunks: `Bytes` in and out, without a copy.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;

use crate::host::Host;

pin_project_lite::pin_project! {
    /// A stream by chunks: a [`Stream`] of what the guest sends and a [`Sink`] of [`Bytes`] for
    /// it, without copying them.
    ///
    /// It wraps an [`AgentStream`](crate::AgentStream), a half of it, or a mutable borrow of
    /// either. Chunks follow the order of the byte stream: what is read or written through the
    /// wrapped stream before or after comes before or after.
    ///
    /// # Reading
    ///
    /// Each item is what one of the ring's chunks has left, so its size says nothing of the
    /// guest's writes. It is the ring's own storage, lent out: until it, and each clone and slice
    /// of it, is dropped, its bytes count against the [capacity](crate::Options::capacity). So
    /// holding chunks does not make the ring grow; but the guest waits when less is left than it
    /// sends at once (a Linux guest: up to 32 KiB), so a message that may be as large as the capacity
    /// must be copied out as it comes. Less than half a chunk (of 64 KiB, in a stream of 512 KiB or more) is
    /// copied instead: such bytes are the holder's own. Either way an item costs one allocation, that of
    /// its handle or of the copy. What is held therefore takes at most twice the memory that is counted.
    ///
    /// After an error the stream ends.
    ///
    /// # Writing
    ///
    /// [`Bytes`] go into the ring as they are, in pieces if there is not enough room, and are
    /// dropped when the guest has taken them. Less than half a chunk is copied instead, so that
    /// small items share a slot. Flushing waits until the item is in the ring; see
    /// [Flushing](crate::AgentStream#flushing).
    ///
    /// An item that is made of a type of the caller's ([`Bytes::from_owner`]) may be dropped by krun's
    /// thread: that type's `drop` must not block.
    ///
    /// # Cancel safety
    ///
    /// `StreamExt::next` is cancel safe: no chunk is lost. A cancelled `SinkExt::send` is not: it has
    /// sent its item, or leaves it in this adapter to be sent with the next item or flush, or, if an
    /// item before it was still waiting, drops it. Flushing is cancel safe, so an item that is sent
    /// after a completed flush is never dropped. Dropping the adapter drops an item that is not in
    /// the ring yet.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    /// use futures::{SinkExt, StreamExt};
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// use tokio_krun::{AgentStream, Chunks, test_util::Guest};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let guest = Guest::boot(port);
    /// let mut agent = guest.open()?;
    /// let mut chunks = Chunks::new(stream);
    ///
    /// agent.write_all(b"from the guest").await?;
    /// assert_eq!(chunks.next().await.unwrap()?, "from the guest");
    ///
    /// chunks.send(Bytes::from_static(b"from the host")).await?;
    /// let mut received = [0; 13];
    /// agent.read_exact(&mut received).await?;
    /// # Ok(()) }
    /// ```
    #[derive(Debug)]
    #[must_use = "it does nothing unless polled"]
    pub struct Chunks<S> {
        stream: S,
        // Not yet in the ring.
        pending: Bytes,
        // Reading has failed.
        has_failed: bool,
    }
}

impl<S> Chunks<S> {
    /// Takes `stream` by chunks.
    ///
    /// # Examples
    ///
    /// ```
    /// # use futures::StreamExt;
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, Chunks, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// agent.write_all(b"\x04body").await?;
    /// assert_eq!(stream.read_u8().await?, 4);
    ///
    /// // Only for the body: the stream is borrowed.
    /// let mut chunks = Chunks::new(&mut stream);
    /// assert_eq!(chunks.next().await.unwrap()?, "body");
    /// # Ok(()) }
    /// ```
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            pending: Bytes::new(),
            has_failed: false,
        }
    }

    /// The stream inside.
    ///
    /// # Examples
    ///
    /// ```
    /// # use futures::StreamExt;
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, Chunks, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let mut chunks = Chunks::new(stream);
    /// agent.write_all(b"hello").await?;
    /// assert_eq!(chunks.next().await.unwrap()?, "hello");
    /// assert_eq!(chunks.get_ref().stats().tx.bytes, 5);
    /// # Ok(()) }
    /// ```
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream inside. An item that waits to be sent comes after what is written there.
    ///
    /// # Examples
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use futures::SinkExt;
    /// # use tokio::io::AsyncReadExt;
    /// # use tokio_krun::{AgentStream, Chunks, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let mut chunks = Chunks::new(stream);
    /// chunks.send(Bytes::from_static(b"goodbye")).await?; // flushes
    /// chunks.get_mut().hang_up();
    ///
    /// let mut heard = String::new();
    /// agent.read_to_string(&mut heard).await?;
    /// assert_eq!(heard, "goodbye");
    /// # Ok(()) }
    /// ```
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Gives the stream back. An item that was not flushed is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use futures::SinkExt;
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, Chunks, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let mut chunks = Chunks::new(stream);
    /// let image = Bytes::from(vec![0; 1024 * 1024]);
    /// chunks.send(image).await?; // without a copy
    ///
    /// let mut stream = chunks.into_inner();
    /// stream.write_all(b"that was the image").await?;
    /// # let mut image = vec![1; 1024 * 1024];
    /// # agent.read_exact(&mut image).await?;
    /// # assert!(image.iter().all(|byte| *byte == 0));
    /// # let mut words = [0; 18];
    /// # agent.read_exact(&mut words).await?;
    /// # assert_eq!(&words, b"that was the image");
    /// # Ok(()) }
    /// ```
    pub fn into_inner(self) -> S {
        self.stream
    }
}

/// What can be read by chunks: [`AgentStream`](crate::AgentStream), its reading halves, and mutable
/// borrows of them. Sealed.
///
/// # Examples
///
/// ```
/// # use std::io;
/// # use futures::StreamExt;
/// # use tokio::io::AsyncWriteExt;
/// # use tokio_krun::{AgentStream, Chunks, ReadChunks, test_util::Guest};
/// /// Reads to the end, from a stream or a half of one.
/// async fn count(source: impl ReadChunks) -> io::Result<usize> {
///     let mut chunks = Chunks::new(source);
///     let mut bytes = 0;
///     while let Some(chunk) = chunks.next().await {
///         bytes += chunk?.len();
///     }
///     Ok(bytes)
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # guest.open()?.write_all(b"hello").await?;
/// # guest.drained().await;
/// # guest.power_off().await;
/// assert_eq!(count(&mut stream).await?, 5);
/// # Ok(()) }
/// ```
pub trait ReadChunks: sealed::AsHost {}

/// What can be written by chunks: [`AgentStream`](crate::AgentStream), its writing halves, and
/// mutable borrows of them. Sealed.
///
/// # Examples
///
/// ```
/// # use std::io;
/// # use bytes::Bytes;
/// # use futures::{SinkExt, StreamExt, stream};
/// # use tokio::io::AsyncReadExt;
/// # use tokio_krun::{AgentStream, Chunks, WriteChunks, test_util::Guest};
/// /// Sends pages to a stream or a half of one, without a copy.
/// async fn send(pages: Vec<Bytes>, target: impl WriteChunks) -> io::Result<()> {
///     let mut pages = stream::iter(pages).map(Ok);
///     Chunks::new(target).send_all(&mut pages).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let (read, mut write) = stream.into_split();
/// send(vec![Bytes::from_static(&[0; 65536]); 8], &mut write).await?;
/// # agent.read_exact(&mut vec![1; 8 * 65536]).await?;
/// # Ok(()) }
/// ```
pub trait WriteChunks: sealed::AsHost {}

impl<S: ReadChunks + ?Sized> ReadChunks for &mut S {}
impl<S: WriteChunks + ?Sized> WriteChunks for &mut S {}

pub(crate) mod sealed {
    use super::Host;

    /// What has a host's end.
    pub trait AsHost {
        #[doc(hidden)]
        fn as_host(&self) -> &Host;
    }

    impl<S: AsHost + ?Sized> AsHost for &mut S {
        fn as_host(&self) -> &Host {
            (**self).as_host()
        }
    }
}

impl<S: ReadChunks> Stream for Chunks<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        if *this.has_failed {
            return Poll::Ready(None);
        }
        let read = ready!(this.stream.as_host().poll_read_bytes(cx));
        *this.has_failed = read.is_err();
        Poll::Ready(Some(read).filter(|read| !matches!(read, Ok(bytes) if bytes.is_empty())))
    }
}

impl<S: WriteChunks> Sink<Bytes> for Chunks<S> {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }

    /// # Panics
    ///
    /// If it was not [ready](Self::poll_ready): the item before this one would be lost.
    fn start_send(self: Pin<&mut Self>, item: Bytes) -> io::Result<()> {
        let this = self.project();
        assert!(
            this.pending.is_empty(),
            "`start_send` called before `poll_ready` was ready"
        );
        *this.pending = item;
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        while !this.pending.is_empty() {
            ready!(this.stream.as_host().poll_write_bytes(cx, this.pending))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Flushes, and shuts the stream down for writing, without hanging up.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.stream.as_host().shared().host_shut_down();
        Poll::Ready(Ok(()))
    }
}

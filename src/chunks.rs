//! The stream in chunks: `Bytes` in and out, without a copy.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::{fmt, io, mem};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;

use crate::host::Host;
use crate::split::{ReadHalf, WriteHalf};
use crate::split_owned::{OwnedReadHalf, OwnedWriteHalf};
use crate::stream::AgentStream;

pin_project_lite::pin_project! {
    /// An [`AgentStream`] in chunks: a [`Stream`] of what the guest sends and a [`Sink`] of [`Bytes`] for it, without
    /// copying them.
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
    ///
    /// It wraps an [`AgentStream`], a half of it, or a borrow or an [`Arc`] of either. You may also read and write through
    /// the wrapped stream before or after: all bytes keep their order.
    ///
    /// # Sharing
    ///
    /// With a shared borrow or an [`Arc`], any number of tasks can have chunks of their own of one stream. Each chunk is read by
    /// one of them. Items are written whole: nothing that another task writes comes between the bytes of one, also if it is
    /// larger than the ring. Tasks that wait for room get it in the order in which they began to wait. Closing such a sink flushes
    /// it, and leaves the stream open for the others.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use bytes::Bytes;
    /// use futures::SinkExt;
    /// # use tokio::io::AsyncReadExt;
    /// use tokio_krun::{AgentStream, Chunks, test_util::Guest};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let stream = Arc::new(stream);
    /// for client in 1..=3 {
    ///     let mut chunks = Chunks::new(Arc::clone(&stream));
    ///     tokio::spawn(async move { chunks.send(Bytes::from(vec![client; 1000])).await });
    /// }
    /// let mut item = [0; 1000];
    /// for _ in 1..=3 {
    ///     agent.read_exact(&mut item).await?;
    ///     assert!(item.iter().all(|byte| *byte == item[0]));
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Reading
    ///
    /// Each item is what is left of one of the ring's chunks, so its size says nothing about the guest's writes. It is the
    /// ring's own storage, lent to you. Until you drop the item and each clone and slice of it, its bytes count against the
    /// [capacity](crate::Options::capacity). So holding chunks does not make the ring grow. But the guest waits once less
    /// room is left than it sends at once, which is up to 32 KiB for Linux. So copy out a message that may be as large as
    /// the capacity.
    ///
    /// A piece of less than half a chunk is copied instead, and the copy belongs to you. A chunk has 64 KiB, or an eighth of
    /// the capacity if that is less. Either way an item costs one allocation, for its handle or for the copy. The items that
    /// you hold take at most twice the memory that is counted.
    ///
    /// After an error the stream ends.
    ///
    /// # Writing
    ///
    /// [`Bytes`] go into the ring as they are, in pieces if there is not enough room, and are dropped when the guest has
    /// taken them. An item of less than half a chunk is copied instead, so that small items share storage. Larger items are
    /// copied too if so many items wait in the ring that it could not otherwise hold its capacity. Flushing waits until
    /// the item is in the ring; see [Flushing](crate::AgentStream#flushing).
    ///
    /// After closing, `feed` still takes an item; the next flush fails with `BrokenPipe`, as `send` does.
    ///
    /// krun's thread may drop an item. If you made it from a type of your own ([`Bytes::from_owner`]), that type's `drop`
    /// may use the stream, but it must not block: the guest's bytes wait meanwhile.
    ///
    /// # Cancel safety
    ///
    /// `StreamExt::next` is cancel safe: no chunk is lost.
    ///
    /// `SinkExt::send` is not. A cancelled `send` may leave its item, or the rest of it, in this adapter. It then goes out
    /// with the next item or flush, as with tokio-util's `Framed`. So do not send it again. If an earlier item was still
    /// waiting, a cancelled `send` drops its own. Flushing is cancel safe, so an item that you send after a completed flush
    /// is never dropped. Dropping the adapter drops an item that is not in the ring yet.
    ///
    /// A shared adapter whose `send` was cancelled keeps its place in the order, and the others wait behind it. So flush it
    /// or drop it. If you drop it in the middle of an item that is larger than the ring, the guest has a part of that item, and
    /// the next item follows: as the guest cannot tell, close the stream.
    ///
    /// [`write_bytes`](AgentStream::write_bytes) leaves nothing behind: what it has not written stays in your `Bytes`.
    ///
    /// [`Stream`]: https://docs.rs/futures-core/0.3/futures_core/stream/trait.Stream.html
    /// [`Sink`]: https://docs.rs/futures-sink/0.3/futures_sink/trait.Sink.html
    /// [`Bytes`]: https://docs.rs/bytes/1/bytes/struct.Bytes.html
    /// [`Bytes::from_owner`]: https://docs.rs/bytes/1/bytes/struct.Bytes.html#method.from_owner
    #[derive(Debug)]
    #[must_use = "it does nothing unless polled"]
    pub struct Chunks<S> {
        stream: S,
        // An item that is not in the ring yet.
        pending: Bytes,
        // Reading has failed.
        has_failed: bool,
        // What a shared stream is waiting for.
        reading: Waiting<Bytes>,
        writing: Waiting<()>,
    }
}

/// A wait of a shared stream. Polling in turn is for one task a direction, so each of several tasks waits by a future of its
/// own.
struct Waiting<T>(Option<Pin<Box<dyn Future<Output = io::Result<T>> + Send + Sync>>>);

impl<T> Waiting<T> {
    const NONE: Self = Self(None);

    /// Polls the wait, or a new one if there is none.
    fn poll<F>(&mut self, cx: &mut Context<'_>, begin: impl FnOnce() -> F) -> Poll<io::Result<T>>
    where
        F: Future<Output = io::Result<T>> + Send + Sync + 'static,
    {
        // Taken out, so that nothing is left of a wait that panics.
        let mut waiting = self.0.take().unwrap_or_else(|| Box::pin(begin()));
        let result = waiting.as_mut().poll(cx);
        if result.is_pending() {
            self.0 = Some(waiting);
        }
        result
    }
}

// As the stream itself. No code of the caller's runs under a lock.
impl<T> UnwindSafe for Waiting<T> {}
impl<T> RefUnwindSafe for Waiting<T> {}

impl<T> fmt::Debug for Waiting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "waiting" } else { "none" })
    }
}

impl<S> Chunks<S> {
    /// Wraps `stream`.
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
    /// // Only for the body, by borrowing the stream.
    /// let mut chunks = Chunks::new(&mut stream);
    /// assert_eq!(chunks.next().await.unwrap()?, "body");
    /// # Ok(()) }
    /// ```
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            pending: Bytes::new(),
            reading: Waiting::NONE,
            writing: Waiting::NONE,
            has_failed: false,
        }
    }

    /// Returns a reference to the stream inside.
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

    /// Returns a mutable reference to the stream inside. What you write there comes before an item that still waits to be
    /// sent.
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

    /// Returns the stream. An item that was not flushed is lost.
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

/// A stream that can be read in chunks: [`AgentStream`], its reading halves, and borrows and [`Arc`]s of them.
///
/// This trait is sealed.
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

/// A stream that can be written in chunks: [`AgentStream`], its writing halves, and borrows and [`Arc`]s of them.
///
/// This trait is sealed.
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

impl ReadChunks for AgentStream {}
impl ReadChunks for ReadHalf<'_> {}
impl ReadChunks for OwnedReadHalf {}
impl<S: ReadChunks + ?Sized> ReadChunks for &mut S {}
impl<S: ReadChunks + ?Sized> ReadChunks for &S {}
impl<S: ReadChunks + ?Sized> ReadChunks for Arc<S> {}

impl WriteChunks for AgentStream {}
impl WriteChunks for WriteHalf<'_> {}
impl WriteChunks for OwnedWriteHalf {}
impl<S: WriteChunks + ?Sized> WriteChunks for &mut S {}
impl<S: WriteChunks + ?Sized> WriteChunks for &S {}
impl<S: WriteChunks + ?Sized> WriteChunks for Arc<S> {}

mod sealed {
    use super::{AgentStream, Arc, Host, OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};

    pub trait AsHost {
        #[doc(hidden)]
        fn as_host(&self) -> &Arc<Host>;

        /// Whether other tasks may wait for the same direction.
        #[doc(hidden)]
        fn is_shared(&self) -> bool {
            false
        }
    }

    impl AsHost for AgentStream {
        fn as_host(&self) -> &Arc<Host> {
            self.host()
        }
    }

    impl AsHost for ReadHalf<'_> {
        fn as_host(&self) -> &Arc<Host> {
            self.host()
        }
    }

    impl AsHost for WriteHalf<'_> {
        fn as_host(&self) -> &Arc<Host> {
            self.host()
        }
    }

    impl AsHost for OwnedReadHalf {
        fn as_host(&self) -> &Arc<Host> {
            self.host()
        }
    }

    impl AsHost for OwnedWriteHalf {
        fn as_host(&self) -> &Arc<Host> {
            self.host()
        }
    }

    impl<S: AsHost + ?Sized> AsHost for &mut S {
        fn as_host(&self) -> &Arc<Host> {
            (**self).as_host()
        }

        fn is_shared(&self) -> bool {
            (**self).is_shared()
        }
    }

    impl<S: AsHost + ?Sized> AsHost for &S {
        fn as_host(&self) -> &Arc<Host> {
            (**self).as_host()
        }

        fn is_shared(&self) -> bool {
            true
        }
    }

    impl<S: AsHost + ?Sized> AsHost for Arc<S> {
        fn as_host(&self) -> &Arc<Host> {
            (**self).as_host()
        }

        fn is_shared(&self) -> bool {
            true
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
        let host = this.stream.as_host();
        let read = ready!(if this.stream.is_shared() {
            let begin = || {
                let host = Arc::clone(host);
                async move { host.read_bytes().await }
            };
            this.reading.poll(cx, begin)
        } else {
            host.poll_read_bytes(cx)
        });
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
    /// If [`poll_ready`](Self::poll_ready) was not ready: the item before this one would be lost.
    fn start_send(self: Pin<&mut Self>, item: Bytes) -> io::Result<()> {
        let this = self.project();
        assert!(
            this.pending.is_empty() && this.writing.0.is_none(),
            "`start_send` called before `poll_ready` was ready"
        );
        *this.pending = item;
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.project();
        let host = this.stream.as_host();
        if this.stream.is_shared() {
            if this.writing.0.is_none() {
                if this.pending.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                match ready!(host.poll_write_whole(cx, this.pending)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => return Poll::Ready(written),
                }
            }
            return this.writing.poll(cx, || {
                let (host, item) = (Arc::clone(host), mem::take(this.pending));
                async move { host.write_whole(item).await }
            });
        }
        while !this.pending.is_empty() {
            ready!(host.poll_write_bytes(cx, this.pending))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Flushes, and shuts the stream down for writing, without hanging up. If the stream is shared, it only flushes.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        if !self.stream.is_shared() {
            self.stream.as_host().shut_down();
        }
        Poll::Ready(Ok(()))
    }
}

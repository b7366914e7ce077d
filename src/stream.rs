//! The host's end: a stream like any other of tokio's.

mod reading;
mod writing;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};

use crate::error::Error;
use crate::host::{Host, Peeked};
use crate::options::Options;
use crate::port::AgentPort;
use crate::shared::ConsoleSharedState;
use crate::split::{ReadHalf, WriteHalf};
use crate::split_owned::{self, OwnedReadHalf, OwnedWriteHalf};
use crate::stats::Stats;

/// A stream of bytes to and from the agent in a microVM.
///
/// Use it like tokio's [`UnixStream`]. Its other end is the [`AgentPort`] that [`pair`](Self::pair) returns with it:
/// attach that to the VM.
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::{AgentStream, test_util::Guest};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let guest = Guest::boot(port); // with a VM: `port.attach(console, "agent")`
/// let mut agent = guest.open()?;
///
/// agent.write_all(b"hello").await?;
/// let mut greeting = [0; 5];
/// stream.read_exact(&mut greeting).await?;
/// assert_eq!(&greeting, b"hello");
/// # Ok(()) }
/// ```
///
/// Each direction holds [`Options::capacity`] bytes. When a direction is full, its writer waits: you wait until the guest
/// has taken enough, and the guest waits until you have read enough.
///
/// # Ends
///
/// | event | the stream | the guest |
/// | --- | --- | --- |
/// | [`shutdown`] | writes fail with `BrokenPipe`, reads go on | reads everything written before, and sees no end |
/// | [`hang_up`](Self::hang_up) | writes fail with `BrokenPipe`, reads go on | reads everything written before, then end of file; its own writes fail from then on, and a blocking one never returns |
/// | dropped, or [closed](Self::close) | – | the same as for `hang_up`, unless [turned off](Options::hang_up_on_drop); its writes are discarded and [counted](crate::RingStats::discarded) |
/// | the guest powers off | reads what is left, then end of file; by then writes fail with `BrokenPipe` | – |
/// | the VM or the port is dropped | the same | – |
///
/// On Windows the port is a pipe, which has one end for both directions. After a hang-up, reads end too, once
/// everything that the guest had written before was read. And a stream that you drop before the VM is built, without having
/// written anything, takes the pipe with it.
///
/// krun ends the process when the guest powers off, so use the port's [exit hook](AgentPort::exit_hook). You cannot
/// detect that the guest closed its port: krun does not report it.
///
/// `shutdown` does not hang up because the guest cannot write after a hang-up: Linux's `virtio_console` lets nobody
/// write to a port whose host has gone. So a protocol that waits for the other side's half-close, such as
/// [`copy_bidirectional`], needs a message of its own for that. You cannot use a port again after a hang-up: one port,
/// one stream.
///
/// The halves of [`into_split`](Self::into_split) have ends of their own: see [`OwnedReadHalf`] and
/// [`OwnedWriteHalf`].
///
/// # Flushing
///
/// A write is complete when its bytes are in the ring, from where krun's thread takes them. So [`flush`] has nothing
/// to do. It does not mean that the guest has read the bytes, or even opened its port; bytes written before that are
/// kept. To wait until the guest's device has taken them, use [`drained`](Self::drained).
///
/// # Runtimes
///
/// The stream belongs to the runtime in which it was created, like each of tokio's streams. While that runtime lives,
/// you can use it from any task and thread. It takes part in tokio's [cooperative scheduling](tokio::task::coop), so a
/// guest that floods it does not starve other tasks.
///
/// # Blocking callers
///
/// A thread outside the runtime can wait for any of these methods with [`Handle::block_on`], and with a time limit:
///
/// ```
/// use std::time::Duration;
///
/// use tokio::io::AsyncReadExt;
/// use tokio::runtime::Runtime;
/// use tokio::time::timeout;
/// # use tokio::io::AsyncWriteExt;
/// # use tokio_krun::{Options, test_util::Guest};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let runtime = Runtime::new()?;
/// let (mut stream, port) = Options::new().create_on(runtime.handle())?;
/// # let guest = Guest::boot(port);
/// # runtime.block_on(guest.open()?.write_u8(1))?;
/// let limit = Duration::from_secs(180);
/// let version = runtime.handle().block_on(async { timeout(limit, stream.read_u8()).await })??;
/// # assert_eq!(version, 1);
/// # Ok(()) }
/// ```
///
/// For code that needs `std::io::Read` and `Write`, there is tokio-util's [`SyncIoBridge`], with `new_with_handle`.
///
/// Neither works on a thread that runs async code; from there use `spawn_blocking`. A `current_thread` runtime moves bytes only
/// while a thread is in its own `block_on`. So if nothing runs it yet, call `Runtime::block_on` in place of the handle's.
///
/// # Cancel safety
///
/// Like tokio's own: a [`read`] or [`write`] that is dropped while it waits has read or written nothing. Each method
/// that waits says so itself.
///
/// # Compared with tokio's streams
///
/// A method that tokio's [`UnixStream`] or [`NamedPipeServer`] has too has the same name, signature and meaning here.
///
/// | tokio's | here |
/// | --- | --- |
/// | `ready`, `readable`, `writable` | the same; any number of tasks may wait, and each call costs some of its task's [budget](tokio::task::coop). An interest in neither reading nor writing is `InvalidInput` |
/// | `poll_read_ready`, `poll_write_ready` | the same |
/// | readiness | exact: it ends with the last byte that you read or the last room that you fill, where tokio's lasts until a call returns `WouldBlock`. `is_write_closed` is set after your own `shutdown`, too |
/// | a write that waits for room | goes on once half of the capacity is free or the guest has read everything, as a socket's does with its own threshold |
/// | after the runtime has shut down | waiting fails; what need not wait succeeds, `read` and `write` too, where only tokio's `try_` methods do |
/// | `try_read`, `try_read_buf`, `try_read_vectored` | the same; one call takes everything that fits, across chunks. Into an empty buffer they always return `Ok(0)` |
/// | `try_write`, `try_write_vectored` | the same. Writing nothing returns `Ok(0)` even if there is no room |
/// | `split`, `into_split`, `reunite`, `forget` | the same, but the guest does not notice that you dropped a writing half; with `AsyncBufReadExt` in scope see [`split`](Self::split). `OwnedReadHalf` has `forget` too, as dropping it has an effect here |
/// | `AsyncRead`, `AsyncWrite` with vectored writes | the same, but the peer does not see a `shutdown`: see [Ends](#ends) |
/// | `AsRef<UnixStream>` of the owned halves | none: each half has the methods of its own direction |
/// | `pair` | [`pair`](Self::pair) and [`Options::create`]: the other end is an [`AgentPort`], not a stream |
/// | `connect`, `from_std`, `into_std`, `as_raw_fd` | none: there is no socket, and the bytes pass through no descriptor |
/// | `try_io`, `async_io` | none: they are for your own system calls on that descriptor |
/// | `peek` (`TcpStream`) | [`fill_buf`](https://docs.rs/tokio/1/tokio/io/trait.AsyncBufReadExt.html#method.fill_buf), of `AsyncBufRead`, which tokio's streams lack |
/// | `local_addr`, `peer_addr`, `peer_cred`, `take_error` | none: the only peer is the VM's guest, and there are no pending errors |
/// | `disconnect` (`NamedPipeServer`) | [`hang_up`](Self::hang_up), for good |
/// | – | [`drained`](Self::drained), [`guest_opened`](Self::guest_opened), [`closed`](Self::closed), [`close`](Self::close), [`reserve`](Self::reserve) and other whole writes, [`write_bytes`](Self::write_bytes), [`read_available`](Self::read_available), [`stats`](Self::stats), and [`Chunks`](crate::Chunks) |
///
/// [`UnixStream`]: https://docs.rs/tokio/1/tokio/net/struct.UnixStream.html
/// [`NamedPipeServer`]: https://docs.rs/tokio/1/x86_64-pc-windows-msvc/tokio/net/windows/named_pipe/struct.NamedPipeServer.html
/// [`Handle::block_on`]: tokio::runtime::Handle::block_on
/// [`SyncIoBridge`]: https://docs.rs/tokio-util/0.7/tokio_util/io/struct.SyncIoBridge.html
/// [`copy_bidirectional`]: https://docs.rs/tokio/1/tokio/io/fn.copy_bidirectional.html
/// [`shutdown`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.shutdown
/// [`flush`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.flush
/// [`read`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncReadExt.html#method.read
/// [`write`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.write
#[derive(Debug)]
pub struct AgentStream {
    host: Arc<Host>,
    peeked: Peeked,
}

impl AgentStream {
    /// Makes a stream with the default [`Options`], and the port that is its other end.
    ///
    /// # Errors
    ///
    /// Those of [`Options::create`]: such as [`Error::NoRuntime`] outside a tokio runtime, and [`Error::Os`] if the system
    /// gives no descriptor.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// stream.write_all(b"configuration").await?; // kept until the agent opens its port
    ///
    /// let guest = Guest::boot(port);
    /// let mut agent = guest.open()?;
    /// let mut received = [0; 13];
    /// agent.read_exact(&mut received).await?;
    /// assert_eq!(&received, b"configuration");
    /// # Ok(()) }
    /// ```
    pub fn pair() -> Result<(Self, AgentPort), Error> {
        Options::new().create()
    }

    pub(crate) fn register(shared: Arc<ConsoleSharedState>) -> io::Result<Self> {
        Host::register(shared).map(|host| Self::from_host(Arc::new(host)))
    }

    pub(crate) fn from_host(host: Arc<Host>) -> Self {
        Self {
            host,
            peeked: Peeked::default(),
        }
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Splits the stream into a half for reading and a half for writing, to use both at once within one task, such as
    /// in `tokio::join!`. Dropping them changes nothing.
    ///
    /// Where tokio's `AsyncBufReadExt` is in scope, which has a `split` of its own, call it as
    /// `AgentStream::split(&mut stream)`.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let (mut from_host, mut to_host) = tokio::io::split(guest.open()?);
    /// # tokio::spawn(async move { tokio::io::copy(&mut from_host, &mut to_host).await });
    /// // The agent echoes. To write all of it before reading would fill both directions.
    /// let request = vec![7; 12 * 1024 * 1024];
    /// let mut reply = vec![0; request.len()];
    ///
    /// let (mut read, mut write) = stream.split();
    /// tokio::try_join!(write.write_all(&request), read.read_exact(&mut reply))?;
    /// assert!(reply == request);
    /// # Ok(()) }
    /// ```
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf::new(&self.host), WriteHalf::new(&self.host))
    }

    /// Splits the stream into two owned halves, for two tasks.
    ///
    /// Dropping a half ends its direction: see [`OwnedReadHalf`] and [`OwnedWriteHalf`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let (mut from_host, mut to_host) = tokio::io::split(guest.open()?);
    /// # tokio::spawn(async move { tokio::io::copy(&mut from_host, &mut to_host).await });
    /// let (mut read, mut write) = stream.into_split();
    /// let asks = tokio::spawn(async move { write.write_all(b"ping").await });
    ///
    /// let mut reply = [0; 4]; // from an agent that echoes
    /// read.read_exact(&mut reply).await?;
    /// assert_eq!(&reply, b"ping");
    /// asks.await??;
    /// # Ok(()) }
    /// ```
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        split_owned::into_split(self.host)
    }

    /// Waits until the stream is ready for something that `interest` asks for, and returns what it is ready for.
    ///
    /// As for tokio's streams, being ready includes having ended: a read or write then returns at once, with end
    /// of file or an error. `is_read_closed` means that the guest writes no more; there may be bytes left to read.
    ///
    /// # Errors
    ///
    /// If the stream's runtime has shut down; [`InvalidInput`](io::ErrorKind::InvalidInput) if `interest` asks
    /// for neither reading nor writing, because a stream is never ready for anything else.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is read or written.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::Interest;
    ///
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let agent = guest.open()?;
    /// let ready = stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
    /// assert!(ready.is_writable() && !ready.is_readable()); // the agent has sent nothing yet
    ///
    /// guest.power_off().await;
    /// let ready = stream.ready(Interest::READABLE).await?;
    /// assert!(ready.is_read_closed());
    /// # Ok(()) }
    /// ```
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.host.ready(interest).await
    }

    /// Waits until the guest has gone: it has powered off, or its VM or port was dropped.
    ///
    /// Unlike a read, it does not wait until you have read what the guest left. Any number of tasks may wait.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// guest.open()?.write_all(b"last words").await?;
    /// guest.drained().await;
    /// guest.power_off().await;
    /// stream.closed().await; // although nothing was read yet
    ///
    /// let mut heard = String::new();
    /// stream.read_to_string(&mut heard).await?;
    /// assert_eq!(heard, "last words");
    /// # Ok(()) }
    /// ```
    pub async fn closed(&self) {
        self.host.closed().await;
    }

    /// Hangs up: the guest reads everything that was written and then end of file, for good. Returns at once.
    /// Further writes fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe).
    ///
    /// Reads go on, but the guest's kernel lets the guest write no more, and a blocking write in the guest never
    /// returns. To end a conversation without that, use `shutdown`, or a message of your protocol.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (mut stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// stream.write_all(b"goodbye").await?;
    /// stream.hang_up();
    ///
    /// let mut heard = String::new();
    /// agent.read_to_string(&mut heard).await?; // to end of file
    /// assert_eq!(heard, "goodbye");
    /// let error = stream.write_all(b"one more thing").await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    /// # Ok(()) }
    /// ```
    pub fn hang_up(&self) {
        self.host.hang_up();
    }

    /// Closes the stream, as dropping it does, without owning it. Returns at once; a second call does nothing.
    ///
    /// Reads return end of file, and what was unread is discarded. Writes fail with
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe). Every task that waits to read, to write or for the guest to open its port is
    /// woken; [`drained`](Self::drained) and [`closed`](Self::closed) go on waiting for the guest. The guest sees what it sees
    /// when you drop the stream (see [Ends](AgentStream#ends)), and an [exit hook](AgentPort::exit_hook) waits no longer.
    ///
    /// Call it from a task that shares the stream, such as one that watches a deadline. Or call it to say that you have
    /// handled everything, when the guest has powered off and other tasks still hold the stream.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use bytes::BytesMut;
    ///
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let agent = guest.open()?;
    /// let stream = Arc::new(stream);
    /// let reader = tokio::spawn({
    ///     let stream = Arc::clone(&stream);
    ///     async move { stream.read_available(&mut BytesMut::new(), 1024).await }
    /// });
    /// # tokio::task::yield_now().await;
    /// stream.close();
    /// assert_eq!(reader.await??, 0); // end of file
    /// # Ok(()) }
    /// ```
    pub fn close(&self) {
        self.host.close();
    }

    /// Returns how many bytes each direction holds: [`Options::capacity`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::{AgentStream, Options};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, _port) = AgentStream::pair()?;
    /// assert_eq!(stream.capacity(), Options::DEFAULT_CAPACITY);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.host.capacity()
    }

    /// Returns what the rings have done so far.
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
    /// stream.write_all(b"request").await?;
    /// stream.drained().await?;
    /// let stats = stream.stats();
    /// assert_eq!(stats.rx.bytes, 7); // the guest has taken them
    /// assert_eq!(stats.rx.queued, 0);
    /// assert_eq!(stats.tx.bytes, 0); // no answer yet
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.host.stats()
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.host.poll_read(cx, buf)
    }
}

impl AsyncBufRead for AgentStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        this.peeked.poll_fill_buf(&this.host, cx)
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.peeked.consume(&this.host, amount);
    }
}

impl AsyncWrite for AgentStream {
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

    /// Nothing to do: see [Flushing](AgentStream#flushing).
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends writing without telling the guest: see [Ends](AgentStream#ends).
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.host.shut_down();
        Poll::Ready(Ok(()))
    }
}

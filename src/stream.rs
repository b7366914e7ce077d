//! The host's end: a stream like any other of tokio's.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
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
/// | dropped | – | the same as for `hang_up`, unless [turned off](Options::hang_up_on_drop); its writes are discarded and [counted](crate::RingStats::discarded) |
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
/// | `ready`, `readable`, `writable` | the same; any number of tasks may wait, and each call costs some of its task's [budget](tokio::task::coop) |
/// | `poll_read_ready`, `poll_write_ready` | the same |
/// | readiness | exact: it ends with the last byte that you read, where tokio's lasts until a read returns `WouldBlock`. `is_write_closed` is set after your own `shutdown`, too |
/// | a write that waits for room | goes on once half of the capacity is free or the guest has read everything, as a socket's does with its own threshold |
/// | after the runtime has shut down | waiting fails; bytes that are there can still be read, and a write that fits succeeds |
/// | `try_read`, `try_read_buf`, `try_read_vectored` | the same; one call takes everything that fits, across chunks |
/// | `try_write`, `try_write_vectored` | the same |
/// | `split`, `into_split`, `reunite`, `forget` | the same; with `AsyncBufReadExt` in scope see [`split`](Self::split). `OwnedReadHalf` has `forget` too, as dropping it has an effect here |
/// | `AsyncRead`, `AsyncWrite` with vectored writes | the same, but the peer does not see a `shutdown`: see [Ends](#ends) |
/// | `AsRef<UnixStream>` of the owned halves | none: each half has the methods of its own direction |
/// | `pair` | [`pair`](Self::pair) and [`Options::create`]: the other end is an [`AgentPort`], not a stream |
/// | `connect`, `from_std`, `into_std`, `as_raw_fd` | none: there is no socket, and the bytes pass through no descriptor |
/// | `try_io`, `async_io` | none: they are for your own system calls on that descriptor |
/// | `peek` (`TcpStream`) | [`fill_buf`](https://docs.rs/tokio/1/tokio/io/trait.AsyncBufReadExt.html#method.fill_buf), of `AsyncBufRead`, which tokio's streams lack |
/// | `local_addr`, `peer_addr`, `peer_cred`, `take_error` | none: the only peer is the VM's guest, and there are no pending errors |
/// | `disconnect` (`NamedPipeServer`) | [`hang_up`](Self::hang_up), for good |
/// | – | [`drained`](Self::drained), [`guest_opened`](Self::guest_opened), [`closed`](Self::closed), [`write_bytes`](Self::write_bytes), [`stats`](Self::stats), and [`Chunks`](crate::Chunks) |
///
/// [`UnixStream`]: https://docs.rs/tokio/1/tokio/net/struct.UnixStream.html
/// [`NamedPipeServer`]: https://docs.rs/tokio/1/x86_64-pc-windows-msvc/tokio/net/windows/named_pipe/struct.NamedPipeServer.html
/// [`copy_bidirectional`]: https://docs.rs/tokio/1/tokio/io/fn.copy_bidirectional.html
/// [`shutdown`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.shutdown
/// [`flush`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.flush
/// [`read`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncReadExt.html#method.read
/// [`write`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.write
#[derive(Debug)]
pub struct AgentStream {
    host: Host,
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

    pub(crate) fn register(
        shared: Arc<ConsoleSharedState>,
        hang_up_on_drop: bool,
    ) -> io::Result<Self> {
        Host::register(shared, hang_up_on_drop).map(Self::from_host)
    }

    pub(crate) fn from_host(host: Host) -> Self {
        Self {
            host,
            peeked: Peeked::default(),
        }
    }

    pub(crate) fn host(&self) -> &Host {
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
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the guest has gone without opening its port; or an error if the
    /// stream's runtime has shut down.
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
    pub fn hang_up(&mut self) {
        self.host.hang_up();
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

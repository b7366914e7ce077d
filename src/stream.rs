//! The host's end: a stream like any other of tokio's.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Error;
use crate::host::Host;
use crate::methods::{
    common_methods, impl_as_host, impl_read, impl_write, read_methods, write_methods,
};
use crate::options::Options;
use crate::port::AgentPort;
use crate::shared::ConsoleSharedState;
use crate::split::{self, OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};

/// A stream of bytes to and from the agent in a microVM.
///
/// It is made together with the [`AgentPort`] that is attached to the VM, and is used like tokio's
/// [`UnixStream`]. Both directions are bounded by
/// [`Options::capacity`]: a write waits while the guest has not taken enough of what was written
/// before, and the guest's writes wait while the stream is not read.
///
/// # Ends
///
/// | event | the stream | the guest |
/// | --- | --- | --- |
/// | [`shutdown`] | writes fail with `BrokenPipe`, reads go on | reads everything written before, and is told nothing |
/// | [`hang_up`](Self::hang_up) | writes fail with `BrokenPipe`, reads go on | reads everything written before, then the end of the file; from then on its own writes fail, and a blocking one never returns |
/// | dropped | – | as with `hang_up` (unless [turned off](Options::hang_up_on_drop)); what it writes is discarded and [counted](crate::RingStats::discarded) |
/// | the guest powers off | reads what is left, then the end of the file; by then writes fail with `BrokenPipe` | – |
/// | the VM or the port is dropped | the same | – |
///
/// On Windows the port is a pipe, which has one end for both directions: after a hang-up the reads
/// end, too, once all that the guest had written before was read.
///
/// A guest that powers off needs the port's [exit hook](AgentPort::exit_hook), as krun ends the process. One that closes its port
/// is not seen here: krun does not tell.
///
/// `shutdown` does not hang up because on this device that would silence the guest as well: Linux'
/// `virtio_console` lets no one write to a port whose host has gone. So a protocol that waits for
/// the other side's half-close, such as [`copy_bidirectional`], needs a word of its own for that.
/// A port that was hung up cannot be used again: one port, one stream.
///
/// The halves of [`into_split`](Self::into_split) have ends of their own: see [`OwnedReadHalf`] and
/// [`OwnedWriteHalf`].
///
/// # Flushing
///
/// A write is complete when its bytes are in the ring, from where the VM's own thread takes them,
/// so [`flush`] has nothing to do. It does not say that the guest
/// has read them, nor even opened its port; bytes written before that are kept for it. To wait until
/// the guest's device has taken them there is [`drained`](Self::drained).
///
/// # Runtimes
///
/// The stream belongs to the runtime it was created in, as each of tokio's streams, and may be used
/// from any task and thread while that runtime lives. It takes part in tokio's
/// [cooperative scheduling](tokio::task::coop): a guest that floods it does not starve other tasks.
///
/// # Cancel safety
///
/// Reads and writes are as cancel-safe as tokio's own: [`read`] and
/// [`write`] that are dropped while they wait have read or written
/// nothing. Each method of this type that waits says so itself.
///
/// # Compared with tokio's streams
///
/// Methods that tokio's [`UnixStream`] or [`NamedPipeServer`] have too have the same name,
/// signature and meaning here.
///
/// | tokio's | here |
/// | --- | --- |
/// | `ready`, `readable`, `writable` | the same; any number of tasks may wait |
/// | `poll_read_ready`, `poll_write_ready` | the same |
/// | `try_read`, `try_read_buf`, `try_read_vectored` | the same; one call takes all there is and it has room for, across chunks |
/// | `try_write`, `try_write_vectored` | the same |
/// | `split`, `into_split`, `reunite`, `forget` | the same, but see [`split`](Self::split) beside `AsyncBufReadExt`. Unlike a `UnixStream`'s, `OwnedReadHalf` has `forget` too, as dropping it says something here |
/// | `AsyncRead`, `AsyncWrite` with vectored writes | the same, but `shutdown` is not seen by the peer, see [Ends](#ends) |
/// | `AsRef<UnixStream>` of the owned halves | none: each half has the methods of its own direction |
/// | `pair` | [`pair`](Self::pair), and [`Options::create`]: the other end is an [`AgentPort`], not a stream |
/// | `connect`, `from_std`, `into_std`, `as_raw_fd` | none: there is no socket, and the bytes pass through no descriptor |
/// | `try_io`, `async_io` | none: they are for system calls of the caller's own on that descriptor |
/// | `peek` (`TcpStream`) | [`fill_buf`](https://docs.rs/tokio/1/tokio/io/trait.AsyncBufReadExt.html#method.fill_buf), of `AsyncBufRead`, which tokio's streams lack |
/// | `local_addr`, `peer_addr`, `peer_cred`, `take_error` | none: the one peer is the VM's guest, and there are no pending errors |
/// | `disconnect` (`NamedPipeServer`) | [`hang_up`](Self::hang_up), for good |
/// | – | [`drained`](Self::drained), [`guest_opened`](Self::guest_opened), [`stats`](Self::stats), and [`Chunks`](crate::Chunks) |
///
/// [`UnixStream`]: https://docs.rs/tokio/1/tokio/net/struct.UnixStream.html
/// [`NamedPipeServer`]: https://docs.rs/tokio/1/x86_64-pc-windows-msvc/tokio/net/windows/named_pipe/struct.NamedPipeServer.html
/// [`copy_bidirectional`]: https://docs.rs/tokio/1/tokio/io/fn.copy_bidirectional.html
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::{AgentStream, test_util::Guest};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::pair()?;
/// let guest = Guest::boot(port);
/// let mut agent = guest.open()?;
///
/// agent.write_all(b"hello").await?;
/// let mut greeting = [0; 5];
/// stream.read_exact(&mut greeting).await?;
/// assert_eq!(&greeting, b"hello");
/// # Ok(()) }
/// ```
///
/// [`shutdown`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.shutdown
/// [`flush`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.flush
/// [`read`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncReadExt.html#method.read
/// [`write`]: https://docs.rs/tokio/1/tokio/io/trait.AsyncWriteExt.html#method.write
#[derive(Debug)]
pub struct AgentStream {
    host: Host,
    /// What `poll_fill_buf` has shown last: a handle that keeps it alive.
    peeked: Bytes,
}

impl AgentStream {
    /// A stream with the default [`Options`], and the port that is its other end.
    ///
    /// # Errors
    ///
    /// [`Error::NoRuntime`] outside a tokio runtime, and [`Error::Os`] if the system gives no
    /// descriptor.
    ///
    /// # Panics
    ///
    /// If the current runtime has no I/O driver (`tokio::runtime::Builder::enable_io`).
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (mut stream, port) = AgentStream::pair()?;
    /// stream.write_all(b"configuration").await?; // kept until the agent is there
    ///
    /// let guest = Guest::boot(port); // with a VM: `port.attach(console, "agent")`
    /// let mut agent = guest.open()?;
    /// let mut received = [0; 13];
    /// agent.read_exact(&mut received).await?;
    /// assert_eq!(&received, b"configuration");
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn pair() -> Result<(Self, AgentPort), Error> {
        Options::new().create()
    }

    #[track_caller]
    pub(crate) fn register(
        shared: Arc<ConsoleSharedState>,
        hang_up_on_drop: bool,
    ) -> io::Result<Self> {
        Host::register(shared, hang_up_on_drop).map(Self::from_host)
    }

    pub(crate) fn from_host(host: Host) -> Self {
        Self {
            host,
            peeked: Bytes::new(),
        }
    }

    fn host(&self) -> &Host {
        &self.host
    }

    /// Splits the stream into a half to read and a half to write, for two tasks' work within one
    /// task, such as in `tokio::join!`. Dropping them changes nothing.
    ///
    /// Where tokio's `AsyncBufReadExt` is in scope, which has a `split` of its own, this is to be
    /// called as `AgentStream::split(&mut stream)`.
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
    /// // The agent sends back what it reads: to write all of it first would end with both sides full.
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

    /// Splits the stream into two halves of its own, for two tasks.
    ///
    /// Dropping one of them is an end of its own: see [`OwnedReadHalf`] and [`OwnedWriteHalf`].
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
    /// let mut reply = [0; 4]; // from an agent that sends back what it reads
    /// read.read_exact(&mut reply).await?;
    /// assert_eq!(&reply, b"ping");
    /// asks.await??;
    /// # Ok(()) }
    /// ```
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        split::into_split(self.host)
    }

    common_methods!();
    read_methods!();
    write_methods!();
}

impl_as_host!(AgentStream);
impl_read!(AgentStream);
impl_write!(AgentStream);

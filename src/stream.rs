//! The host's end: a stream like any other of tokio's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use crate::error::Error;
use crate::options::Options;
use crate::port::AgentPort;
use crate::shared::ConsoleSharedState;
use crate::sys::HostWait;

/// A stream of bytes to and from the agent in a microVM.
///
/// It is made together with the [`AgentPort`] that is attached to the VM, and is used like tokio's
/// [`UnixStream`](tokio::net::UnixStream). Both directions are bounded by
/// [`Options::capacity`]: a write waits while the guest has not taken enough of what was written
/// before, and the guest's writes wait while the stream is not read.
///
/// # Ends
///
/// | event | the stream | the guest |
/// | --- | --- | --- |
/// | [`shutdown`] | writes fail with `BrokenPipe`, reads go on | reads everything written before, and is told nothing |
/// | [`hang_up`](Self::hang_up) | writes fail with `BrokenPipe`, reads go on | reads everything written before, then the end of the file; from then on its own writes block |
/// | dropped | – | as with `hang_up` (unless [turned off](Options::hang_up_on_drop)); what it writes is discarded and [counted](crate::PortHandle::discarded) |
/// | the guest powers off | reads what is left, then the end of the file; writes fail with `BrokenPipe` | – |
/// | the VM or the port is dropped | the same | – |
///
/// The first case needs the port's [exit hook](AgentPort::exit_hook). A guest that closes its port
/// is not seen here: krun does not tell.
///
/// `shutdown` does not hang up because on this device that would silence the guest as well: Linux'
/// `virtio_console` lets no one write to a port whose host has gone. A port that was hung up cannot
/// be used again: one port, one stream.
///
/// # Flushing
///
/// A write is complete when its bytes are in the ring, from where the VM's own thread takes them,
/// so [`flush`] has nothing to do. It does not say that the guest
/// has read them, nor even opened its port; bytes written before that are kept for it.
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
/// nothing.
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::{AgentStream, guest::Guest};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (mut stream, port) = AgentStream::new()?;
/// let mut agent = Guest::boot(port).open()?;
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
    shared: Arc<ConsoleSharedState>,
    readable: HostWait,
    writable: HostWait,
    hang_up_on_drop: bool,
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
    #[track_caller]
    pub fn new() -> Result<(Self, AgentPort), Error> {
        Options::new().create()
    }

    #[track_caller]
    pub(crate) fn register(
        shared: Arc<ConsoleSharedState>,
        hang_up_on_drop: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            readable: HostWait::register(&shared, |shared| &shared.tx_data)?,
            writable: HostWait::register(&shared, |shared| &shared.rx_room)?,
            shared,
            hang_up_on_drop,
        })
    }

    /// Hangs up: the guest reads everything that was written and then the end of the file, for
    /// good. Returns at once; further writes fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe).
    ///
    /// Reads go on, but the guest's kernel lets it write no more: a blocking write in the guest
    /// does not return. A conversation is ended without that by `shutdown`, or by the two ends'
    /// own protocol.
    pub fn hang_up(&mut self) {
        self.shared.host_hang_up();
    }

    fn poll_wait_for<T>(
        wait: &HostWait,
        cx: &mut Context<'_>,
        mut look: impl FnMut() -> Option<T>,
    ) -> Poll<io::Result<T>> {
        // A read that finds something is progress and costs budget, so that a side that always
        // finds something gives way to other tasks at times.
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            if let Some(found) = look() {
                budget.made_progress();
                return Poll::Ready(Ok(found));
            }
            ready!(wait.poll(cx))?;
        }
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let limit = buf.remaining();
        if limit == 0 {
            return Poll::Ready(Ok(()));
        }
        let shared = &self.shared;
        let look = || {
            shared
                .tx_data
                .look(|| shared.host_read(limit, |bytes| buf.put_slice(bytes)))
        };
        Self::poll_wait_for(&self.readable, cx, look).map_ok(|_| ())
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let shared = &self.shared;
        let look = || shared.rx_room.look(|| shared.host_write(buf));
        Self::poll_wait_for(&self.writable, cx, look).map(|result| result?)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.host_shut_down();
        Poll::Ready(Ok(()))
    }
}

impl Drop for AgentStream {
    fn drop(&mut self) {
        if self.hang_up_on_drop {
            self.shared.host_hang_up();
        } else {
            self.shared.host_shut_down();
        }
        self.shared.host_stop_reading();
    }
}

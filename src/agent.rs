//! The guest's end of the port, for the agent inside the VM.
//!
//! The agent is a program of its own, built for the guest (such as `x86_64-unknown-linux-musl`), and
//! depends on this crate with nothing but this:
//!
//! ```toml
//! [dependencies]
//! tokio-krun = { version = "0.1", default-features = false, features = ["guest"] }
//! ```
//!
//! It is [`AsyncRead`] + [`AsyncWrite`] as the host's [`AgentStream`](crate::AgentStream) is, so both sides can
//! share their protocol's code.

mod find;
mod uevents;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A virtio-console port, as Linux shows it in a guest: non-blocking, and registered with tokio.
///
/// # Ends
///
/// | event | here |
/// | --- | --- |
/// | the host hangs up, or its program goes | reads give what is left, then the end of the file; writes fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe), also one that is waiting for room |
/// | `shutdown()` | nothing: the device has no half-close |
/// | dropped | the port is closed, which the host does not see; what it sends meanwhile is lost |
///
/// A blocking write to a port whose host has hung up never returns in Linux; this is what is different here.
/// A port that was hung up stays so: one port, one connection.
///
/// # Writing
///
/// Linux takes at most 32 KiB at a time. A write is complete when the device has it: the host reads it in
/// order, but a guest that powers off at once may take it along. An agent whose last words matter waits for
/// an answer to them.
///
/// # Cancel safety
///
/// As of tokio's own streams: a read or write that is dropped while it waits has moved nothing.
///
/// # Examples
///
/// ```no_run
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::agent::VirtioPort;
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> std::io::Result<()> {
///     let mut port = VirtioPort::open("agent").await?;
///     let mut buffer = vec![0; 32 * 1024];
///     loop {
///         match port.read(&mut buffer).await? {
///             0 => return Ok(()), // the host has hung up
///             read => port.write_all(&buffer[..read]).await?,
///         }
///     }
/// }
/// ```
#[derive(Debug)]
pub struct VirtioPort(AsyncFd<OwnedFd>);

impl VirtioPort {
    /// Opens the port that the host has given this name
    /// ([`AgentPort::attach`](crate::AgentPort::attach)), once it appears: the host tells the names after the
    /// guest has started.
    ///
    /// It waits for as long as there is no such port; wrap it in [`tokio::time::timeout`] where it may never
    /// come. `/sys` and `/dev` (a `devtmpfs`) must be mounted.
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if a process has it open, as Linux lets one have it;
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied); what else the system says.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped while it waits, it has opened nothing.
    pub async fn open(name: &str) -> io::Result<Self> {
        Self::open_path(find::appears(name).await?)
    }

    /// Opens the port's device file, such as `/dev/vport0p1`.
    ///
    /// # Errors
    ///
    /// As of [`open`](Self::open), and [`NotFound`](io::ErrorKind::NotFound).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn open_path(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = path.as_ref();
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("open {}: {error}", path.display()))
        })?;
        Self::register(fd)
    }

    /// Takes a port that someone else has opened, such as the process that started this one. Makes it
    /// non-blocking.
    ///
    /// # Errors
    ///
    /// What the system says to a descriptor that cannot be waited for.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Self::register(fd)
    }

    fn register(fd: OwnedFd) -> io::Result<Self> {
        register(fd).map(Self)
    }

    /// Waits until there is something to read, or the end.
    ///
    /// # Errors
    ///
    /// If the runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.retain_ready();
        Ok(())
    }

    /// Waits until there may be room for a write, or the host has hung up.
    ///
    /// # Errors
    ///
    /// If the runtime has shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await?.retain_ready();
        Ok(())
    }

    /// Reads what there is, without waiting: no bytes at the end of the file.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is nothing.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_io(Interest::READABLE, |fd| read(fd, buf))
    }

    /// Writes what there is room for, without waiting.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room, and
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) once the host has hung up.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        let written = self.0.try_io(Interest::WRITABLE, |fd| write(fd, buf));
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.has_hung_up()? => {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            written => written,
        }
    }

    fn has_hung_up(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.0.get_ref(), PollFlags::empty())];
        rustix::event::poll(&mut fds, Some(&Timespec::default()))?;
        Ok(fds[0].revents().contains(PollFlags::HUP))
    }
}

impl AsyncRead for VirtioPort {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            match read(self.0.get_ref(), buf.initialize_unfilled()) {
                Ok(length) => {
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                // A hang-up is for good, so it is not waited for more than once.
                Err(_) if guard.ready().is_read_closed() => return Poll::Ready(Ok(())),
                Err(_) => guard.clear_ready(),
            }
        }
    }
}

impl AsyncWrite for VirtioPort {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match write(self.0.get_ref(), buf) {
                // Linux says no more than this when the host has hung up.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if guard.ready().is_write_closed() {
                        return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                    }
                    guard.clear_ready();
                }
                written => return Poll::Ready(written),
            }
        }
    }

    /// A write is complete when the device has it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The device has no half-close.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsFd for VirtioPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for VirtioPort {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn read(fd: &OwnedFd, buf: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        rustix::io::read(fd, &mut *buf)
    })?)
}

fn write(fd: &OwnedFd, buf: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::write(fd, buf))?)
}

#[expect(
    unsafe_code,
    reason = "`AsyncFd::register`, the way that tokio has not deprecated, asks for a promise about the descriptor"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped, and always the same descriptor; the
    // registration owns it.
    let registered = unsafe { AsyncFd::register(fd) };
    Ok(registered?)
}

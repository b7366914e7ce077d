//! The port's device file, registered with tokio.

mod find;
mod uevents;

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker, ready};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::io::{Interest, ReadBuf, Ready};
use tokio::runtime::Handle;

use super::VirtioPort;
use super::port::Port;

/// By path and by descriptor.
#[cfg_attr(docsrs, doc(cfg(all(feature = "agent", target_os = "linux"))))]
impl VirtioPort {
    /// Opens the port's device file, such as `/dev/vport0p1`.
    ///
    /// The host must have opened its end first; krun does so before it announces the port's name. A port
    /// that you open earlier behaves as if the host had hung up, for good.
    ///
    /// # Errors
    ///
    /// - [`NotFound`](io::ErrorKind::NotFound) if there is no such file.
    /// - [`ResourceBusy`](io::ErrorKind::ResourceBusy), [`PermissionDenied`](io::ErrorKind::PermissionDenied)
    ///   and others, as with [`open`](Self::open).
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) if the file is no port.
    ///
    /// # Panics
    ///
    /// If the runtime has no I/O driver (`tokio::runtime::Builder::enable_io`).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn open() -> std::io::Result<()> {
    /// // A link that udev creates on some distributions.
    /// let port = VirtioPort::open_path("/dev/virtio-ports/agent")?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn open_path(path: impl AsRef<Path>) -> io::Result<Self> {
        Device::open_path(path.as_ref()).map(Self::from)
    }

    /// Takes a port that is already open, for example one that your parent process opened.
    ///
    /// The descriptor becomes non-blocking. As with [`open_path`](Self::open_path), the host must have
    /// opened its end before the port was opened.
    ///
    /// Do not pass a duplicate of the descriptor to `poll(2)` or to another epoll instance. On each poll,
    /// Linux's `virtio_console` collects what its device has completed, so this port's own wait for that
    /// may never end.
    ///
    /// # Errors
    ///
    /// - [`Other`](io::ErrorKind::Other) outside a tokio runtime.
    /// - The system's error if the descriptor does not support waiting (epoll).
    ///
    /// # Panics
    ///
    /// If the runtime has no I/O driver (`tokio::runtime::Builder::enable_io`).
    ///
    /// # Examples
    ///
    /// Any descriptor that supports waiting will do, such as one end of a socket:
    ///
    /// ```
    /// use std::io::Write;
    /// use std::os::{fd::OwnedFd, unix::net::UnixStream};
    /// use tokio::io::AsyncReadExt;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (agent, mut host) = UnixStream::pair()?;
    /// let mut port = VirtioPort::from_owned_fd(OwnedFd::from(agent))?;
    /// host.write_all(b"hello")?;
    /// let mut greeting = [0; 5];
    /// port.read_exact(&mut greeting).await?;
    /// assert_eq!(&greeting, b"hello");
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn from_owned_fd(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Device::register(fd).map(Self::from)
    }

    /// Returns the descriptor, for example to pass it to another process. It stays non-blocking.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](io::ErrorKind::Unsupported) if the port is that of an in-process guest, which has no
    /// descriptor.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn hand_over() -> std::io::Result<()> {
    /// let port = VirtioPort::open("agent").await?;
    /// let fd = port.into_nonblocking_fd()?;
    /// # Ok(()) }
    /// ```
    pub fn into_nonblocking_fd(self) -> io::Result<OwnedFd> {
        self.0.into_device().map(Device::into_fd)
    }

    /// Returns the descriptor, for blocking reads and writes.
    ///
    /// If the host hangs up while a blocking write waits, that write never returns.
    ///
    /// # Errors
    ///
    /// - [`Unsupported`](io::ErrorKind::Unsupported) if the port is that of an in-process guest, which has no
    ///   descriptor.
    /// - The system's error if it cannot change the descriptor.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::fs::File;
    /// use std::io::Write;
    /// use tokio_krun::agent::VirtioPort;
    ///
    /// # async fn log() -> std::io::Result<()> {
    /// let port = VirtioPort::open("log").await?;
    /// let mut log = File::from(port.into_blocking_fd()?);
    /// writeln!(log, "the agent has started")?;
    /// # Ok(()) }
    /// ```
    pub fn into_blocking_fd(self) -> io::Result<OwnedFd> {
        let fd = self.into_nonblocking_fd()?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags & !OFlags::NONBLOCK)?;
        Ok(fd)
    }
}

impl From<Device> for VirtioPort {
    fn from(device: Device) -> Self {
        Self(Port::Device(device))
    }
}

pub(super) struct Device(AsyncFd<OwnedFd>);

/// Opening.
impl Device {
    pub(super) async fn open(name: &str) -> io::Result<Self> {
        // First, so that the error does not depend on whether the port is there already.
        check_runtime()?;
        find::open_when_present(name, |path| Self::open_path(&path)).await
    }

    #[track_caller]
    fn open_path(path: &Path) -> io::Result<Self> {
        check_runtime()?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("open {}: {error}", path.display()))
        })?;
        Self::register(fd).map_err(|error| {
            // epoll's answer to a regular file or `/dev/null`.
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => io::ErrorKind::InvalidInput,
                kind => kind,
            };
            let path = path.display();
            io::Error::new(
                kind,
                format!("{path} is not a port, as it cannot be waited for: {error}"),
            )
        })
    }

    #[track_caller]
    fn register(fd: OwnedFd) -> io::Result<Self> {
        register(fd).map(Self)
    }

    fn into_fd(self) -> OwnedFd {
        self.0.into_inner()
    }
}

/// Reading and writing, with the meaning that [`VirtioPort`] documents.
impl Device {
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        // tokio would wait forever.
        if !interest.is_readable() && !interest.is_writable() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.0.ready(interest).await?.ready())
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(cx).map_ok(drop)
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(cx).map_ok(drop)
    }

    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            if let Some(length) = read(&mut guard, buf.initialize_unfilled()) {
                buf.advance(length?);
                return Poll::Ready(Ok(()));
            }
        }
    }

    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let found = self.ready_now(Interest::READABLE)?;
        let read = found.and_then(|mut guard| read(&mut guard, buf));
        read.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(self.write_nothing());
        }
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Some(written) = write(&mut guard, buf) {
                return Poll::Ready(written);
            }
        }
    }

    pub(super) fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return self.write_nothing();
        }
        let found = self.ready_now(Interest::WRITABLE)?;
        let written = found.and_then(|mut guard| write(&mut guard, buf));
        written.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
    }

    /// Fails if the host has hung up. Linux returns 0 even then.
    fn write_nothing(&self) -> io::Result<usize> {
        let found = self.ready_now(Interest::WRITABLE)?;
        match found.is_some_and(|guard| guard.ready().is_write_closed()) {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(0),
        }
    }

    /// Returns tokio's own view of the port's readiness. It neither waits nor asks the system, because
    /// `poll(2)` could take away the event that a task waits for: see [`VirtioPort::from_owned_fd`].
    fn ready_now(&self, interest: Interest) -> io::Result<Option<AsyncFdReadyGuard<'_, OwnedFd>>> {
        let ready = pin!(self.0.ready(interest));
        match ready.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => guard.map(Some),
            Poll::Pending => Ok(None),
        }
    }
}

/// Reads once. `None` means that there is nothing yet, and that tokio's readiness is cleared.
fn read(guard: &mut AsyncFdReadyGuard<'_, OwnedFd>, buf: &mut [u8]) -> Option<io::Result<usize>> {
    match retry_on_intr(|| rustix::io::read(guard.get_inner(), &mut *buf)) {
        Err(Errno::AGAIN) if guard.ready().is_read_closed() => Some(Ok(0)),
        Err(Errno::AGAIN) => {
            guard.clear_ready();
            None
        }
        read => Some(read.map_err(Into::into)),
    }
}

/// Writes once. `None` means that there is no room, and that tokio's readiness is cleared.
fn write(guard: &mut AsyncFdReadyGuard<'_, OwnedFd>, buf: &[u8]) -> Option<io::Result<usize>> {
    match retry_on_intr(|| rustix::io::write(guard.get_inner(), buf)) {
        // After a hang-up, Linux returns only `AGAIN`.
        Err(Errno::AGAIN) if guard.ready().is_write_closed() => {
            Some(Err(io::ErrorKind::BrokenPipe.into()))
        }
        // It returns 0 if another write has just taken the last room.
        Err(Errno::AGAIN) | Ok(0) => {
            guard.clear_ready();
            None
        }
        written => Some(written.map_err(Into::into)),
    }
}

// As tokio's own streams are.
impl UnwindSafe for Device {}
impl RefUnwindSafe for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(self.0.get_ref()).finish()
    }
}

/// tokio would panic.
fn check_runtime() -> io::Result<()> {
    match Handle::try_current() {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::other(
            "this thread is outside any tokio runtime: \
             open the port inside one that has I/O enabled (`enable_io` of its builder)",
        )),
    }
}

#[track_caller]
#[expect(
    unsafe_code,
    reason = "`AsyncFd::register` is unsafe, and tokio has deprecated the safe constructors"
)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    check_runtime()?;
    // SAFETY: an `OwnedFd` keeps the same descriptor open until it is dropped, and the registration
    // owns it.
    let registered = unsafe { AsyncFd::register(fd) };
    Ok(registered?)
}

//! What each side sleeps on: a descriptor, or one thread's condition variable.

#![expect(
    unsafe_code,
    reason = "`AsyncFd::register`, which tokio offers in place of its deprecated `new`, asks for a promise about the descriptor"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::shared::Wake;
use crate::sync::blocking::{Condvar, Mutex};

/// A descriptor that is readable after a signal, until it is drained.
///
/// On Linux it is an eventfd, elsewhere a pipe. `--cfg tokio_krun_pipe` takes the pipe on Linux too, to test it there.
/// Both are non-blocking and close-on-exec.
///
/// Two kinds of sleepers wait for it. krun's RX thread polls it by level, and drains it before it reports that there is
/// nothing. Tokio registers it by edge: each signal is an edge of its own, even while the descriptor is still readable
/// from the last one, so the host never drains it. tokio's own driver relies on that for its waker (mio's
/// `sys/unix/waker`: an eventfd with `EPOLLET`, and a pipe that is emptied only when it is full).
#[derive(Debug)]
pub(crate) struct WakePipe(imp::Descriptors);

impl WakePipe {
    pub(crate) fn new() -> io::Result<Self> {
        imp::Descriptors::new().map(Self)
    }

    /// Takes every signal so far.
    pub(crate) fn drain(&self) {
        let mut buffer = [0; imp::DRAIN_SIZE];
        // A short read has emptied it, and so has `WouldBlock`. Nothing else can go wrong with an open descriptor.
        loop {
            match rustix::io::read(self.0.reader(), &mut buffer) {
                Ok(read) if read == buffer.len() && imp::DRAINS_IN_PARTS => {}
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}

impl Wake for WakePipe {
    fn signal(&self) {
        loop {
            match rustix::io::write(self.0.writer(), imp::TOKEN) {
                Err(Errno::INTR) => {}
                // It is full and so it is readable. That is enough for a level, but it is no new edge. Once emptied it
                // takes another signal.
                Err(Errno::AGAIN) => self.drain(),
                Ok(_) | Err(_) => return,
            }
        }
    }
}

impl AsRawFd for WakePipe {
    fn as_raw_fd(&self) -> RawFd {
        self.0.reader().as_raw_fd()
    }
}

impl AsFd for WakePipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.reader()
    }
}

/// One descriptor, and a counter in the kernel that a read resets.
#[cfg(all(target_os = "linux", not(tokio_krun_pipe)))]
mod imp {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    use rustix::event::{EventfdFlags, eventfd};

    pub(super) const TOKEN: &[u8] = &1u64.to_ne_bytes();
    pub(super) const DRAIN_SIZE: usize = size_of::<u64>();
    pub(super) const DRAINS_IN_PARTS: bool = false;

    #[derive(Debug)]
    pub(super) struct Descriptors(OwnedFd);

    impl Descriptors {
        pub(super) fn new() -> io::Result<Self> {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            Ok(Self(eventfd(0, flags)?))
        }

        pub(super) fn reader(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        pub(super) fn writer(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

/// A pipe, for systems without eventfd.
#[cfg(any(not(target_os = "linux"), tokio_krun_pipe))]
mod imp {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    pub(super) const TOKEN: &[u8] = &[1];
    pub(super) const DRAIN_SIZE: usize = 64;
    pub(super) const DRAINS_IN_PARTS: bool = true;

    #[derive(Debug)]
    pub(super) struct Descriptors {
        reader: io::PipeReader,
        writer: io::PipeWriter,
    }

    impl Descriptors {
        pub(super) fn new() -> io::Result<Self> {
            // std's pipes are close-on-exec.
            let (reader, writer) = io::pipe()?;
            rustix::io::ioctl_fionbio(&reader, true)?;
            rustix::io::ioctl_fionbio(&writer, true)?;
            Ok(Self { reader, writer })
        }

        pub(super) fn reader(&self) -> BorrowedFd<'_> {
            self.reader.as_fd()
        }

        pub(super) fn writer(&self) -> BorrowedFd<'_> {
            self.writer.as_fd()
        }
    }
}

/// How the host's tasks wait for a wake pipe.
#[derive(Debug)]
pub(crate) struct HostWait(AsyncFd<Arc<WakePipe>>);

impl HostWait {
    /// Registers with the current runtime.
    ///
    /// # Panics
    ///
    /// If the current runtime has no I/O driver, as for each of tokio's own streams.
    pub(crate) fn register(wake: Arc<WakePipe>) -> io::Result<Self> {
        // SAFETY: the registration owns a handle to the wake pipe, which keeps one descriptor open until it is
        // dropped. `as_raw_fd` always returns that descriptor.
        let registered = unsafe { AsyncFd::register_with_interest(wake, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Ready once there was a signal since the last time this was ready; it may also be ready without one. Wakes the
    /// last task that polled. Fails once the runtime has shut down.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.0.poll_read_ready(cx)).map_err(runtime_gone)?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// The same for any number of tasks at once: each is woken.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.0.readable().await.map_err(runtime_gone)?.clear_ready();
        Ok(())
    }
}

/// tokio has no other error for such a wait.
fn runtime_gone(_: io::Error) -> io::Error {
    Error::RuntimeGone.into()
}

/// A wake for one thread that has nothing else to wait for.
#[derive(Debug)]
pub(crate) struct ThreadWake {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl ThreadWake {
    /// Never fails; every wake has this signature.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            signalled: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// Blocks until there was a signal since the last wait, and takes it. Returns `false` if there was none by `deadline`.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut signalled = self
            .signalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while !*signalled {
            signalled =
                match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                    None => self
                        .changed
                        .wait(signalled)
                        .unwrap_or_else(PoisonError::into_inner),
                    Some(Duration::ZERO) => return false,
                    Some(left) => {
                        let waited = self.changed.wait_timeout(signalled, left);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                };
        }
        *signalled = false;
        true
    }
}

impl Wake for ThreadWake {
    fn signal(&self) {
        *self
            .signalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }
}

#[cfg(all(test, not(tokio_krun_loom)))]
mod tests {
    use rustix::event::Timespec;

    use super::*;
    use crate::test_util::is_any_readable;

    fn is_readable(wake: &WakePipe) -> bool {
        is_any_readable(&[wake.as_fd()], Some(&Timespec::default())).unwrap()
    }

    /// Fills it until a write would wait.
    fn full() -> WakePipe {
        let wake = WakePipe::new().unwrap();
        let most = (u64::MAX - 1).to_ne_bytes();
        while rustix::io::write(wake.0.writer(), &most).is_ok() {}
        wake
    }

    #[test]
    fn wake_pipe_is_readable_from_signal_until_drained() {
        let wake = WakePipe::new().unwrap();
        assert!(!is_readable(&wake));
        for signals in [1, 3, 100] {
            for _ in 0..signals {
                wake.signal();
            }
            assert!(is_readable(&wake));
            wake.drain();
            assert!(!is_readable(&wake));
        }
        // Without a signal before it.
        wake.drain();
        assert!(!is_readable(&wake));
    }

    #[test]
    fn signal_to_full_wake_pipe_does_not_block_and_is_an_edge() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let wake = Arc::new(full());
            let wait = HostWait::register(Arc::clone(&wake)).unwrap();
            // Being full already is one edge.
            wait.wait().await.unwrap();
            wake.signal();
            wait.wait().await.unwrap();
            assert!(is_readable(&wake));
            wake.drain();
            assert!(!is_readable(&wake));
        });
    }
}

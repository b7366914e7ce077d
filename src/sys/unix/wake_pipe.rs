//! A wake that is a descriptor: readable after a signal, until it is drained.
//!
//! On Linux it is an eventfd, elsewhere a pipe; `--cfg tokio_krun_pipe` takes the pipe on Linux too,
//! so that it is tested there. Both are non-blocking and close-on-exec.
//!
//! Two kinds of sleeper wait for it. krun's RX thread polls it by level, and drains it before it
//! reports that it has nothing. Tokio registers it by edge: each signal is an edge of its own, also
//! while it is still readable from the last one, so the host never drains it. That is what tokio's
//! own driver relies on for its waker (mio's `sys/unix/waker`: eventfd with `EPOLLET`, and a pipe
//! that is emptied only when it is full).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;

use crate::shared::Wake;

#[cfg(all(target_os = "linux", not(tokio_krun_pipe)))]
mod eventfd;
#[cfg(all(target_os = "linux", not(tokio_krun_pipe)))]
use eventfd as imp;
#[cfg(any(not(target_os = "linux"), tokio_krun_pipe))]
mod pipe;
#[cfg(any(not(target_os = "linux"), tokio_krun_pipe))]
use pipe as imp;

#[derive(Debug)]
pub(crate) struct WakePipe(imp::Descriptors);

impl WakePipe {
    pub(crate) fn new() -> io::Result<Self> {
        imp::Descriptors::new().map(Self)
    }

    /// Takes every signal so far.
    pub(super) fn drain(&self) {
        let mut buffer = [0; imp::DRAIN_SIZE];
        // A short read has emptied it; so has `WouldBlock`. No other error can come from a
        // descriptor that is open for as long as `self`.
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
                // It is full, so it is readable: enough for a level, but no new edge. Once emptied
                // it takes another signal.
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

#[cfg(all(test, not(tokio_krun_loom)))]
mod tests {
    use rustix::event::Timespec;
    use tokio::io::unix::AsyncFd;

    use super::super::readable;
    use super::*;

    fn is_readable(wake: &WakePipe) -> bool {
        readable::is_any_readable(&[wake.as_fd()], Some(&Timespec::default())).unwrap()
    }

    /// Fills it to where a write would wait.
    fn full() -> WakePipe {
        let wake = WakePipe::new().unwrap();
        let most = (u64::MAX - 1).to_ne_bytes();
        while rustix::io::write(wake.0.writer(), &most).is_ok() {}
        wake
    }

    #[test]
    fn it_is_readable_from_a_signal_until_it_is_drained() {
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
        // Spurious.
        wake.drain();
        assert!(!is_readable(&wake));
    }

    #[test]
    #[expect(unsafe_code, reason = "as in `host_wait.rs`")]
    fn a_signal_to_a_full_one_does_not_wait_and_is_an_edge() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let wake = full();
            // SAFETY: the descriptor is that of `wake`, which outlives the registration.
            let wake = unsafe { AsyncFd::register(wake) }.unwrap();
            // What was there before is one edge.
            wake.readable().await.unwrap().clear_ready();
            wake.get_ref().signal();
            wake.readable().await.unwrap().clear_ready();
            assert!(is_readable(wake.get_ref()));
            wake.get_ref().drain();
            assert!(!is_readable(wake.get_ref()));
        });
    }
}

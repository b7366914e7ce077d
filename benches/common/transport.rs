//! The transports that are compared.

mod duplex;
mod hand_written;
mod krun;
mod piper;
mod unix_socket;

pub(crate) use duplex::Duplex;
pub(crate) use hand_written::HandWritten;
#[allow(unused_imports)] // each program uses a part of it
pub(crate) use krun::{Krun, KrunSpinning};
pub(crate) use piper::Piper;
pub(crate) use unix_socket::UnixSocket;

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};

/// Wakes a thread outside the runtime.
pub(crate) struct Unpark(Thread);

impl Unpark {
    /// Returns a waker for the calling thread.
    pub(crate) fn waker() -> Waker {
        Arc::new(Self(thread::current())).into()
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

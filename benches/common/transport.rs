//! The transports that are compared.

mod duplex;
mod krun;
mod piper;
mod seed;
mod unix_socket;

pub(crate) use duplex::Duplex;
#[allow(unused_imports)] // each program uses its own part
pub(crate) use krun::{Krun, KrunSpinning};
pub(crate) use piper::Piper;
pub(crate) use seed::Seed;
pub(crate) use unix_socket::UnixSocket;

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::thread::{self, Thread};

/// Wakes a thread that is none of a runtime's.
pub(crate) struct Unpark(Thread);

impl Unpark {
    /// For the calling thread.
    pub(crate) fn waker() -> Waker {
        Arc::new(Self(thread::current())).into()
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

//! One descriptor, and a counter in the kernel that one read sets back.

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
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    pub(super) fn reader(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn writer(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

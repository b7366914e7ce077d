//! A pipe, for systems without eventfd.

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

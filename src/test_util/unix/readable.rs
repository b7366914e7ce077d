//! `poll(2)` for reading, as krun's RX thread calls it.

use std::os::fd::BorrowedFd;

use rustix::event::Timespec;
use rustix::io::Result;

/// Waits until one of `fds` is readable, for at most `limit`, and returns whether one is.
#[cfg(not(miri))]
pub(crate) fn is_any_readable(fds: &[BorrowedFd<'_>], limit: Option<&Timespec>) -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};

    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    poll(&mut fds, limit).map(|ready| ready > 0)
}

/// Miri has no `poll(2)`. A descriptor that is ready when it is added to an epoll counts as an edge, so this sees a level
/// too.
#[cfg(miri)]
pub(crate) fn is_any_readable(fds: &[BorrowedFd<'_>], limit: Option<&Timespec>) -> Result<bool> {
    use rustix::event::epoll;

    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for fd in fds {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&set, fd, epoll::EventData::new_u64(0), flags)?;
    }
    let mut events = Vec::with_capacity(fds.len());
    epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), limit).map(|ready| ready > 0)
}

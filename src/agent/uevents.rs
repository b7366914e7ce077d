//! The kernel's word that a device has come or changed.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

/// The group that the kernel itself sends to; others are of udev.
const KERNEL: u32 = 1;

pub(super) struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// From here on, none is missed.
    pub(super) fn listen() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            Some(netlink::KOBJECT_UEVENT),
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        super::register(socket).map(Self)
    }

    /// Waits until there has been one, of whatever device: a reason to look, and no more is made of it.
    pub(super) async fn any(&self) -> io::Result<()> {
        let mut event = [0; 4096];
        loop {
            let mut guard = self.0.readable().await?;
            match rustix::net::recv(self.0.get_ref(), &mut event, RecvFlags::empty()) {
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                // Some came that there was no room for.
                Ok(_) | Err(Errno::NOBUFS) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

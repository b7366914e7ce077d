//! The kernel's and udev's word that a device has come or changed.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

/// The groups that the kernel sends to, and udev when it has done its part.
const KERNEL_AND_UDEV: u32 = 1 | 2;

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
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_AND_UDEV))?;
        super::register(socket).map(Self)
    }

    /// Waits until there has been one, of whatever device: a reason to look, and no more is made of it. Takes all
    /// that have come.
    pub(super) async fn any(&self) -> io::Result<()> {
        let mut event = [0; 4096];
        let mut have_come = false;
        while !have_come {
            let mut guard = self.0.readable().await?;
            loop {
                match rustix::net::recv(self.0.get_ref(), &mut event, RecvFlags::empty()) {
                    // Some came that there was no room for.
                    Ok(_) | Err(Errno::NOBUFS) => have_come = true,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            guard.clear_ready();
        }
        Ok(())
    }
}

//! Events from the kernel and from udev: a device was added or has changed.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

/// The multicast groups: the kernel sends to 1, and udev to 2 once it has handled the kernel's event.
const KERNEL_AND_UDEV: u32 = 1 | 2;

pub(super) struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Starts to listen. No event after this call is missed.
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

    /// Waits for an event of any device, and takes all that are queued.
    ///
    /// An event only says that it is time to look again, so its content is ignored.
    pub(super) async fn wait(&self) -> io::Result<()> {
        let mut event = [0; 4096];
        let mut received = false;
        while !received {
            let mut guard = self.0.readable().await?;
            loop {
                match rustix::net::recv(self.0.get_ref(), &mut event, RecvFlags::empty()) {
                    // `NOBUFS`: events came that the socket had no room for.
                    Ok(_) | Err(Errno::NOBUFS) => received = true,
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

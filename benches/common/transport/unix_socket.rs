//! A Unix socket. The host uses tokio's `UnixStream`. The VMM's side calls `read`, `write` and
//! `poll(2)`, as krun's port over a file descriptor does.

use std::io;
use std::os::unix::net::UnixStream as Socket;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::common::vmm::{Channel, Input, Output, Transport};

pub(crate) struct UnixSocket;

pub(crate) struct Descriptor(Socket);

impl Transport for UnixSocket {
    const NAME: &'static str = "UnixStream";
    type Read = OwnedReadHalf;
    type Write = OwnedWriteHalf;
    type Input = Descriptor;
    type Output = Descriptor;

    fn new(capacity: Option<usize>) -> Channel<Self> {
        let (host, vmm) = Socket::pair().expect("cannot create sockets");
        for socket in [&host, &vmm] {
            socket
                .set_nonblocking(true)
                .expect("cannot set the socket up");
            if let Some(capacity) = capacity {
                // Linux doubles the size, because it counts its own bookkeeping in. Only root may
                // exceed the system's limit. Without root, the buffer gets that limit.
                let half = capacity / 2;
                let _ = sockopt::set_socket_send_buffer_size_force(socket, half)
                    .or_else(|_| sockopt::set_socket_send_buffer_size(socket, half));
            }
        }
        let (read, write) = UnixStream::from_std(host)
            .expect("cannot register the socket")
            .into_split();
        Channel {
            read,
            write,
            input: Descriptor(vmm.try_clone().expect("cannot duplicate the socket")),
            output: Descriptor(vmm),
            stats: None,
        }
    }
}

impl Descriptor {
    fn wait(&self, flags: PollFlags) {
        poll(&mut [PollFd::new(&self.0, flags)], None).expect("cannot wait");
    }
}

impl Input for Descriptor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut self.0, buf)
    }

    fn wait_until_readable(&mut self) {
        self.wait(PollFlags::IN);
    }
}

impl Output for Descriptor {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut self.0, buf)
    }

    fn wait_until_writable(&mut self) {
        self.wait(PollFlags::OUT);
    }
}

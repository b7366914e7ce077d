//! A virtio-console port as the guest's kernel shows it, for scenarios that need single system calls
//! or blocking ones.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio_krun::agent::VirtioPort;

use crate::scenario::block_on;

/// The scenarios' port; some use others too.
pub const AGENT: &str = "agent";

pub struct Port {
    fd: OwnedFd,
}

impl Port {
    /// Opens the port non-blocking. Reads and writes wait in `poll(2)`, which also reports a hang-up.
    pub fn open(name: &str) -> io::Result<Self> {
        block_on(async { VirtioPort::open(name).await?.into_nonblocking_fd() })
            .map(|fd| Self { fd })
    }

    /// Opens the port for blocking reads and writes. If the host hangs up while a write waits, Linux
    /// never returns from that write.
    pub fn open_blocking(name: &str) -> io::Result<Self> {
        block_on(async { VirtioPort::open(name).await?.into_blocking_fd() }).map(|fd| Self { fd })
    }

    /// Reads without waiting: `None` if there is nothing to read, 0 if the host has hung up.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        retry_interrupted(|| rustix::io::read(&self.fd, &mut *buf))
    }

    /// Writes without waiting: `None` if there is no room.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<Option<usize>> {
        retry_interrupted(|| rustix::io::write(&self.fd, buf))
    }

    /// Reports which of `IN`, `OUT` and `HUP` are set now.
    pub fn ready(&self) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN | PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default()))?;
        Ok(fds[0].revents())
    }

    /// Sleeps until one of `wanted` is set or the host hangs up.
    ///
    /// Fails with `BrokenPipe` if the host has hung up and `wanted` is only `OUT`: a write would
    /// never find room again. A read still returns what the host sent before, then end of file.
    pub fn wait(&self, wanted: PollFlags) -> io::Result<PollFlags> {
        loop {
            let mut fds = [PollFd::new(&self.fd, wanted)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let ready = fds[0].revents();
            if ready.contains(PollFlags::HUP) && wanted == PollFlags::OUT {
                return Err(io::Error::new(
                    io::ErrorKind::BrokenPipe,
                    "the host hung up while the guest had something to write",
                ));
            }
            return Ok(ready);
        }
    }

    /// Reads at least one byte. Returns 0 at end of file.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read(buf)? {
                Some(n) => return Ok(n),
                None => self.wait(PollFlags::IN)?,
            };
        }
    }

    pub fn read_exact(&self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read(buf)? {
                0 => return Err(end_of_file()),
                n => buf = &mut buf[n..],
            }
        }
        Ok(())
    }

    /// Writes at least one byte.
    pub fn write(&self, buf: &[u8]) -> io::Result<usize> {
        loop {
            match self.try_write(buf)? {
                Some(n) => return Ok(n),
                None => self.wait(PollFlags::OUT)?,
            };
        }
    }

    pub fn write_all(&self, mut buf: &[u8]) -> io::Result<()> {
        while !buf.is_empty() {
            let n = self.write(buf)?;
            buf = &buf[n..];
        }
        Ok(())
    }
}

pub fn end_of_file() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the host hung up while the guest expected more",
    )
}

fn retry_interrupted(
    mut call: impl FnMut() -> rustix::io::Result<usize>,
) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(n) => return Ok(Some(n)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

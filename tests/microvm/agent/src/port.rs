//! A virtio-console port, as the guest's kernel shows it: for scenarios about single system calls, or blocking ones.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio_krun::agent::VirtioPort;

use crate::scenario::run;

/// The port that each scenario talks over; some use others besides.
pub const AGENT: &str = "agent";

pub struct Port {
    fd: OwnedFd,
}

impl Port {
    /// Opens the port non-blocking: reads and writes wait in `poll(2)`, where they also see the
    /// host hang up.
    pub fn open(name: &str) -> io::Result<Self> {
        run(async { VirtioPort::open(name).await?.into_nonblocking_fd() }).map(|fd| Self { fd })
    }

    /// Opens the port for blocking reads and writes. A write that is waiting when the host hangs
    /// up never returns: that is how Linux does it.
    pub fn open_blocking(name: &str) -> io::Result<Self> {
        run(async { VirtioPort::open(name).await?.into_blocking_fd() }).map(|fd| Self { fd })
    }

    /// Reads what there is: `None` if that is nothing, 0 if the host has hung up.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        retried(|| rustix::io::read(&self.fd, &mut *buf))
    }

    /// Writes what there is room for: `None` if there is none.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<Option<usize>> {
        retried(|| rustix::io::write(&self.fd, buf))
    }

    /// What there is now of `IN`, `OUT` and `HUP`.
    pub fn ready(&self) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN | PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default()))?;
        Ok(fds[0].revents())
    }

    /// Sleeps until one of `wanted`, or a hang-up, has come. `BrokenPipe` if the host has hung up
    /// and only writing was asked for: such a write would never again find room, while a read
    /// still yields what the host sent before, and then end of file.
    pub fn wait(&self, wanted: PollFlags) -> io::Result<PollFlags> {
        loop {
            let mut fds = [PollFd::new(&self.fd, wanted)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let came = fds[0].revents();
            if came.contains(PollFlags::HUP) && wanted == PollFlags::OUT {
                return Err(io::Error::new(
                    io::ErrorKind::BrokenPipe,
                    "the host hung up while the guest had something to write",
                ));
            }
            return Ok(came);
        }
    }

    /// Reads at least one byte, or 0 at the end of file.
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

fn retried(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(n) => return Ok(Some(n)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

//! What a [`VirtioPort`](super::VirtioPort) is backed by: a device file, or an in-process guest.

use std::borrow::Cow;
use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio::io::{Interest, ReadBuf, Ready};

#[cfg(all(feature = "agent", target_os = "linux"))]
use super::device::Device;
#[cfg(any(test, feature = "test-util"))]
use crate::test_util;

/// The most that Linux returns from one read, where pages are this large: each of the device's buffers is one page.
const MOST_READ: usize = 4096;
/// The most bytes that Linux takes in one write.
const MOST_WRITTEN: usize = 32 * 1024;

#[derive(Debug)]
pub(super) enum Port {
    #[cfg(all(feature = "agent", target_os = "linux"))]
    Device(Device),
    #[cfg(any(test, feature = "test-util"))]
    InProcess(test_util::Port),
}

/// Does the same with whichever it is.
macro_rules! delegate {
    ($port:expr, $backing:ident => $call:expr) => {
        match $port {
            #[cfg(all(feature = "agent", target_os = "linux"))]
            Port::Device($backing) => $call,
            #[cfg(any(test, feature = "test-util"))]
            Port::InProcess($backing) => $call,
        }
    };
}

impl Port {
    pub(super) async fn open(name: &str) -> io::Result<Self> {
        #[cfg(any(test, feature = "test-util"))]
        if let Some(opened) = test_util::open_in_process(name).await {
            return opened.map(Self::InProcess);
        }
        #[cfg(all(feature = "agent", target_os = "linux"))]
        return Device::open(name).await.map(Self::Device);
        #[cfg(not(all(feature = "agent", target_os = "linux")))]
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "cannot open the port {name:?}: this task runs in no in-process guest, \
                 and a real port needs the feature `agent` on Linux"
            ),
        ))
    }

    #[cfg(all(feature = "agent", target_os = "linux"))]
    pub(super) fn into_device(self) -> io::Result<Device> {
        match self {
            Self::Device(device) => Ok(device),
            #[cfg(any(test, feature = "test-util"))]
            Self::InProcess(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the port of an in-process guest has no descriptor",
            )),
        }
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        delegate!(self, port => port.ready(interest).await)
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, port => port.poll_read_ready(cx))
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, port => port.poll_write_ready(cx))
    }

    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, port => port.poll_read(cx, buf))
    }

    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        delegate!(self, port => port.try_read(buf))
    }

    /// A page at a time has room on the stack, and needs no unsafe code to fill memory that is not initialized.
    pub(super) fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        let mut bytes = [0; MOST_READ];
        let limit = buf.chunk_mut().len().min(MOST_READ);
        let read = self.try_read(&mut bytes[..limit])?;
        buf.put_slice(&bytes[..read]);
        Ok(read)
    }

    /// One read after another, as Linux's `readv(2)` does for a device.
    pub(super) fn try_read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut total = 0;
        for buf in bufs.iter_mut().filter(|buf| !buf.is_empty()) {
            match self.try_read(buf) {
                Ok(read) => {
                    total += read;
                    if read < buf.len() {
                        break;
                    }
                }
                Err(error) if total == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(total)
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, port => port.poll_write(cx, buf))
    }

    pub(super) fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write(cx, &gather(bufs))
    }

    pub(super) fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        delegate!(self, port => port.try_write(buf))
    }

    pub(super) fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write(&gather(bufs))
    }
}

/// What one write takes of `bufs`, copied together unless it is in one buffer.
///
/// Given the buffers as they are, Linux would send each in a descriptor of its own, and notify the host of each. There are only
/// 32 descriptors, and a notification, which leaves the VM, costs more than such a copy.
fn gather<'a>(bufs: &'a [IoSlice<'_>]) -> Cow<'a, [u8]> {
    let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
    let first: &[u8] = filled.next().map_or(&[], |buf| buf);
    if first.len() >= MOST_WRITTEN || filled.next().is_none() {
        return Cow::Borrowed(first);
    }
    let total = bufs
        .iter()
        .fold(0, |sum: usize, buf| sum.saturating_add(buf.len()));
    let mut gathered = Vec::with_capacity(total.min(MOST_WRITTEN));
    for buf in bufs {
        let room = MOST_WRITTEN - gathered.len();
        gathered.extend_from_slice(&buf[..buf.len().min(room)]);
    }
    Cow::Owned(gathered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_copied_only_to_be_sent_together() {
        let large = vec![1; MOST_WRITTEN + 1];
        let gathered = |bufs: &[&[u8]]| {
            let bufs: Vec<_> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
            let gathered = gather(&bufs);
            (matches!(gathered, Cow::Owned(_)), gathered.into_owned())
        };
        assert_eq!(gathered(&[]), (false, vec![]));
        assert_eq!(gathered(&[b"", b""]), (false, vec![]));
        assert_eq!(gathered(&[b"", b"one", b""]), (false, b"one".to_vec()));
        assert_eq!(gathered(&[b"one", b"", b"two"]), (true, b"onetwo".to_vec()));
        // More than one write takes.
        assert_eq!(gathered(&[&large, b"more"]), (false, large.clone()));
        let (copied, bytes) = gathered(&[b"head", &large, b"more"]);
        assert!(copied);
        assert_eq!(bytes.len(), MOST_WRITTEN);
        assert!(bytes.starts_with(b"head\x01") && bytes.ends_with(&[1]));
    }
}

//! The two halves of a stream, borrowed and owned. No I/O logic of their own.

use std::error::Error;
use std::fmt;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use crate::host::Host;
use crate::methods::{
    common_methods, impl_as_host, impl_read, impl_write, read_methods, write_methods,
};
use crate::stream::AgentStream;

/// The reading half of an [`AgentStream`], borrowed by [`split`](AgentStream::split).
#[derive(Debug)]
pub struct ReadHalf<'a> {
    host: &'a Host,
    peeked: Bytes,
}

/// The writing half of an [`AgentStream`], borrowed by [`split`](AgentStream::split).
#[derive(Debug)]
pub struct WriteHalf<'a> {
    host: &'a Host,
}

impl<'a> ReadHalf<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        Self {
            host,
            peeked: Bytes::new(),
        }
    }

    fn host(&self) -> &Host {
        self.host
    }

    common_methods!();
    read_methods!();
}

impl<'a> WriteHalf<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        Self { host }
    }

    fn host(&self) -> &Host {
        self.host
    }

    common_methods!();
    write_methods!();
}

/// The reading half of an [`AgentStream`], from [`into_split`](AgentStream::into_split).
///
/// Dropping it says that the host reads no more: what the guest writes from then on, and what is
/// left unread, is discarded and [counted](crate::RingStats::discarded). When both halves are
/// dropped, the stream is.
#[derive(Debug)]
pub struct OwnedReadHalf {
    host: Arc<Host>,
    peeked: Bytes,
    stop_on_drop: bool,
}

/// The writing half of an [`AgentStream`], from [`into_split`](AgentStream::into_split).
///
/// Dropping it shuts the stream down for writing, without hanging up; see
/// [Ends](AgentStream#ends). When both halves are dropped, the stream is.
#[derive(Debug)]
pub struct OwnedWriteHalf {
    host: Arc<Host>,
    shut_down_on_drop: bool,
}

pub(crate) fn into_split(host: Host) -> (OwnedReadHalf, OwnedWriteHalf) {
    let host = Arc::new(host);
    let read = OwnedReadHalf {
        host: Arc::clone(&host),
        peeked: Bytes::new(),
        stop_on_drop: true,
    };
    let write = OwnedWriteHalf {
        host,
        shut_down_on_drop: true,
    };
    (read, write)
}

impl OwnedReadHalf {
    fn host(&self) -> &Host {
        &self.host
    }

    /// Puts the two halves together again.
    ///
    /// # Errors
    ///
    /// [`ReuniteError`] with both halves in it, if they are not of the same stream.
    pub fn reunite(self, other: OwnedWriteHalf) -> Result<AgentStream, ReuniteError> {
        if !Arc::ptr_eq(&self.host, &other.host) {
            return Err(ReuniteError(self, other));
        }
        let host = Arc::clone(&self.host);
        other.forget();
        self.forget();
        let host = Arc::into_inner(host).expect("a stream has two halves, and both are gone");
        Ok(AgentStream::from_host(host))
    }

    /// Drops this half without saying that the host reads no more: what the guest writes stays
    /// until the ring is full, as long as the other half lives.
    pub fn forget(mut self) {
        self.stop_on_drop = false;
    }

    common_methods!();
    read_methods!();
}

impl OwnedWriteHalf {
    fn host(&self) -> &Host {
        &self.host
    }

    /// Puts the two halves together again.
    ///
    /// # Errors
    ///
    /// [`ReuniteError`] with both halves in it, if they are not of the same stream.
    pub fn reunite(self, other: OwnedReadHalf) -> Result<AgentStream, ReuniteError> {
        other.reunite(self)
    }

    /// Drops this half without shutting the stream down for writing.
    pub fn forget(mut self) {
        self.shut_down_on_drop = false;
    }

    common_methods!();
    write_methods!();
}

impl Drop for OwnedReadHalf {
    fn drop(&mut self) {
        // Before the ring sweeps, so that its storage returns to the ring.
        drop(mem::take(&mut self.peeked));
        if self.stop_on_drop {
            self.host.shared().host_stop_reading();
        }
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.shut_down_on_drop {
            self.host.shared().host_shut_down();
        }
    }
}

impl_as_host!(ReadHalf<'_>);
impl_as_host!(WriteHalf<'_>);
impl_as_host!(OwnedReadHalf);
impl_as_host!(OwnedWriteHalf);
impl_read!(ReadHalf<'_>);
impl_read!(OwnedReadHalf);
impl_write!(WriteHalf<'_>);
impl_write!(OwnedWriteHalf);

/// Two halves that are not of the same stream, from [`OwnedReadHalf::reunite`].
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the halves are of different streams: reunite those of one `into_split`")
    }
}

impl Error for ReuniteError {}

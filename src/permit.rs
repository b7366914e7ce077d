//! Room in the ring that is set aside for one write.

use std::io::{self, IoSlice};
use std::mem;
use std::panic::{RefUnwindSafe, UnwindSafe};

use bytes::Bytes;

use crate::error::Error;
use crate::shared::{Admit, ConsoleSharedState};
#[cfg(doc)]
use crate::stream::AgentStream;

/// Room for one write, set aside by [`AgentStream::reserve`] or [`AgentStream::try_reserve`].
///
/// No other write gets this room until you use the permit or drop it. What you do not use is given back. So do not wait for room
/// while you hold a permit: the room that you wait for may be your own. A permit that you [`forget`](std::mem::forget) takes its
/// room away for good.
///
/// # Examples
///
/// A frame that contains the time at which it is sent:
///
/// ```
/// use std::io::IoSlice;
/// use std::time::{SystemTime, UNIX_EPOCH};
///
/// # use tokio::io::AsyncReadExt;
/// # use tokio_krun::{AgentStream, test_util::Guest};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let body = b"hello";
/// let permit = stream.reserve(8 + body.len()).await?;
/// // From here on nothing waits, so the time is right.
/// let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_be_bytes();
/// permit.write_all_vectored(&[IoSlice::new(&now), IoSlice::new(body)])?;
/// # let mut received = [0; 13];
/// # agent.read_exact(&mut received).await?;
/// # assert_eq!(&received[8..], body);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping the permit gives the room back"]
pub struct Permit<'a> {
    shared: &'a ConsoleSharedState,
    length: usize,
}

impl<'a> Permit<'a> {
    /// Of room that was just claimed.
    pub(crate) fn of_claimed(shared: &'a ConsoleSharedState, length: usize) -> Self {
        Self { shared, length }
    }

    /// How many bytes it has room for.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, _port) = AgentStream::pair()?;
    /// let permit = stream.try_reserve(100)?;
    /// assert_eq!(permit.length(), 100);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Writes all of `bytes`, at once.
    ///
    /// # Errors
    ///
    /// Nothing is written then:
    ///
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) if `bytes` are more than the permit is for.
    /// - [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the stream was shut down, hung up or closed, or the guest has gone.
    ///
    /// # Examples
    ///
    /// ```
    /// # use std::io::ErrorKind;
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, _port) = AgentStream::pair()?;
    /// stream.try_reserve(100)?.write_all(b"less than that")?; // the rest is given back
    ///
    /// let error = stream.try_reserve(4)?.write_all(b"more than that").unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::InvalidInput);
    /// # assert_eq!(stream.stats().rx.queued, 14);
    /// # Ok(()) }
    /// ```
    pub fn write_all(self, bytes: &[u8]) -> io::Result<()> {
        self.write_all_vectored(&[IoSlice::new(bytes)])
    }

    /// Like [`write_all`](Self::write_all), from several buffers, one after another.
    ///
    /// # Errors
    ///
    /// As for [`write_all`](Self::write_all).
    ///
    /// # Examples
    ///
    /// [Above](Self#examples), and:
    ///
    /// ```
    /// # use std::io::IoSlice;
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, _port) = AgentStream::pair()?;
    /// let frame = [IoSlice::new(b"\0\x05"), IoSlice::new(b"hello")];
    /// stream.reserve(7).await?.write_all_vectored(&frame)?;
    /// # assert_eq!(stream.stats().rx.queued, 7);
    /// # Ok(()) }
    /// ```
    pub fn write_all_vectored(self, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let length = bufs
            .iter()
            .fold(0, |sum: usize, buf| sum.saturating_add(buf.len()));
        let (shared, claimed) = self.use_up(length)?;
        done(shared.host_write(bufs, claimed))
    }

    /// Like [`write_all`](Self::write_all), without a copy if that pays: see [`Chunks`](crate::Chunks#writing).
    ///
    /// # Errors
    ///
    /// As for [`write_all`](Self::write_all).
    ///
    /// # Examples
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use tokio_krun::AgentStream;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, _port) = AgentStream::pair()?;
    /// let page = Bytes::from(vec![7; 64 * 1024]);
    /// stream.reserve(page.len()).await?.write_all_bytes(page)?;
    /// # assert_eq!(stream.stats().rx.queued, 64 * 1024);
    /// # Ok(()) }
    /// ```
    pub fn write_all_bytes(self, mut bytes: Bytes) -> io::Result<()> {
        let (shared, claimed) = self.use_up(bytes.len())?;
        done(shared.host_write_bytes(&mut bytes, claimed).0)
    }

    /// For a write of `length` bytes, which uses the claim up whatever becomes of it.
    fn use_up(mut self, length: usize) -> io::Result<(&'a ConsoleSharedState, Admit)> {
        let most = mem::take(&mut self.length);
        if length > most {
            self.length = most;
            return Err(Error::TooLong { length, most }.into());
        }
        Ok((self.shared, Admit::Claimed(most as u64)))
    }
}

fn done(written: Option<io::Result<usize>>) -> io::Result<()> {
    // The room was there, so it is never refused for lack of it.
    written.map_or(Err(io::ErrorKind::WouldBlock.into()), |written| {
        written.map(drop)
    })
}

// As the stream itself. No code of the caller's runs under a lock.
impl UnwindSafe for Permit<'_> {}
impl RefUnwindSafe for Permit<'_> {}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.length > 0 {
            self.shared.host_unclaim(self.length);
        }
    }
}

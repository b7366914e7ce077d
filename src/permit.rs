//! Room in the ring that is set aside for one write.

use std::io::{self, IoSlice};

use bytes::Bytes;

use crate::error::Error;
use crate::shared::{Admit, ConsoleSharedState};
#[cfg(doc)]
use crate::stream::AgentStream;

/// Room for one write, set aside by [`AgentStream::reserve`] or [`AgentStream::try_reserve`].
///
/// No other write gets this room until you use the permit or drop it. What you do not use is given back.
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
        self.check(length)?;
        self.written(self.shared.host_write(bufs, Admit::Claimed))
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
        self.check(bytes.len())?;
        self.written(self.shared.host_write_bytes(&mut bytes, Admit::Claimed))
    }

    fn check(&self, length: usize) -> io::Result<()> {
        if length > self.length {
            return Err(Error::TooLong {
                length,
                most: self.length,
            }
            .into());
        }
        Ok(())
    }

    /// The room was there, so all was written unless writing has ended.
    fn written(&self, written: Option<io::Result<usize>>) -> io::Result<()> {
        written.map_or(Ok(()), |written| written.map(drop))
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.shared.host_unclaim(self.length);
    }
}

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
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
/// use tokio_krun::{AgentStream, test_util::Guest};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let (read, mut write) = AgentStream::split(&mut stream); // `AsyncBufReadExt` has a `split` too
/// write.write_all(b"list\n").await?;
///
/// agent.write_all(b"one\ntwo\n").await?;
/// let mut lines = read.lines();
/// assert_eq!(lines.next_line().await?.as_deref(), Some("one"));
/// assert_eq!(lines.next_line().await?.as_deref(), Some("two"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ReadHalf<'a> {
    host: &'a Host,
    peeked: Bytes,
}

/// The writing half of an [`AgentStream`], borrowed by [`split`](AgentStream::split).
///
/// # Examples
///
/// ```
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio_krun::{AgentStream, WriteHalf, test_util::Guest};
///
/// async fn ask(agent: &mut WriteHalf<'_>, question: &str) -> std::io::Result<()> {
///     agent.write_u16(question.len() as u16).await?;
///     agent.write_all(question.as_bytes()).await
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// # agent.write_u64(42).await?;
/// let (mut read, mut write) = stream.split();
/// let (_, uptime) = tokio::try_join!(ask(&mut write, "uptime"), read.read_u64())?;
/// assert_eq!(uptime, 42);
/// # Ok(()) }
/// ```
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
///
/// # Examples
///
/// ```
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::{AgentStream, test_util::Guest};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let (read, mut write) = stream.into_split();
/// drop(read); // whatever the agent says does not matter, and must not hold it up
///
/// agent.write_all(b"chatter").await?;
/// guest.drained().await;
/// assert_eq!(write.stats().tx.discarded, 7);
/// write.write_all(b"do this").await?; // goes on
/// # Ok(()) }
/// ```
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
///
/// # Examples
///
/// ```
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio_krun::{AgentStream, test_util::Guest};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (stream, port) = AgentStream::pair()?;
/// # let guest = Guest::boot(port);
/// # let mut agent = guest.open()?;
/// let (mut read, mut write) = stream.into_split();
/// write.write_all(b"report, then power off").await?;
/// drop(write); // no more requests; the agent can still answer
///
/// agent.write_all(b"all is well").await?;
/// # guest.drained().await;
/// # guest.power_off().await;
/// let mut report = String::new();
/// read.read_to_string(&mut report).await?;
/// assert_eq!(report, "all is well");
/// # Ok(()) }
/// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// // A handshake in which both sides speak first.
    /// let (mut read, mut write) = stream.into_split();
    /// let hello = tokio::spawn(async move { write.write_u8(1).await.map(|()| write) });
    /// agent.write_u8(2).await?;
    /// assert_eq!(read.read_u8().await?, 2);
    ///
    /// let mut stream = read.reunite(hello.await??)?;
    /// stream.hang_up();
    /// # Ok(()) }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::AsyncWriteExt;
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// let (read, write) = stream.into_split();
    /// read.forget();
    ///
    /// agent.write_all(b"chatter").await?;
    /// guest.drained().await;
    /// let tx = write.stats().tx;
    /// assert_eq!((tx.queued, tx.discarded), (7, 0));
    /// # Ok(()) }
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # use tokio_krun::{AgentStream, test_util::Guest};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (stream, port) = AgentStream::pair()?;
    /// # let guest = Guest::boot(port);
    /// # let mut agent = guest.open()?;
    /// # agent.write_u8(2).await?;
    /// let (mut read, mut write) = stream.into_split();
    /// let version = tokio::spawn(async move { read.read_u8().await.map(|version| (version, read)) });
    /// write.write_u8(1).await?;
    ///
    /// let (version, read) = version.await??;
    /// assert_eq!(version, 2);
    /// let stream = write.reunite(read)?;
    /// # Ok(()) }
    /// ```
    pub fn reunite(self, other: OwnedReadHalf) -> Result<AgentStream, ReuniteError> {
        other.reunite(self)
    }

    /// Drops this half without shutting the stream down for writing.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio::io::Interest;
    /// use tokio_krun::AgentStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, _port) = AgentStream::pair()?;
    /// let (read, write) = stream.into_split();
    /// write.forget();
    /// assert!(!read.ready(Interest::WRITABLE).await?.is_write_closed());
    ///
    /// let (stream, _port) = AgentStream::pair()?;
    /// let (read, write) = stream.into_split();
    /// drop(write);
    /// assert!(read.ready(Interest::WRITABLE).await?.is_write_closed());
    /// # Ok(()) }
    /// ```
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
///
/// # Examples
///
/// ```
/// use tokio_krun::{AgentStream, ReuniteError};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (first, _port) = AgentStream::pair()?;
/// let (second, _port) = AgentStream::pair()?;
/// let (read, write) = first.into_split();
/// let (other_read, other_write) = second.into_split();
///
/// // Nothing is lost but the time.
/// let ReuniteError(read, other_write) = read.reunite(other_write).unwrap_err();
/// let first = read.reunite(write)?;
/// let second = other_read.reunite(other_write)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the halves are of different streams: reunite those of one `into_split`")
    }
}

impl Error for ReuniteError {}

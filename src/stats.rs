//! Counters of what the rings have done, for your metrics.

/// A snapshot of both directions, from [`AgentStream::stats`](crate::AgentStream::stats) or
/// [`PortHandle::stats`](crate::PortHandle::stats).
///
/// A snapshot is cheap: it loads a few counters that the rings keep anyway. It loads them one after
/// another, so while bytes move they may not agree to the byte.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncWriteExt;
/// use tokio_krun::{AgentStream, Stats};
///
/// /// Why nothing moves.
/// fn diagnose(stats: Stats) -> &'static str {
///     match (stats.tx.queued, stats.rx.queued) {
///         (0, 0) => "both sides are silent",
///         (0, _) => "the guest does not read",
///         (_, _) => "the host does not read",
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// stream.write_all(b"request").await?;
/// assert_eq!(diagnose(stream.stats()), "the guest does not read");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// From the guest to the host.
    pub tx: RingStats,
    /// From the host to the guest.
    pub rx: RingStats,
}

/// One direction's part of [`Stats`]. Totals count from the creation of the stream. Only `bytes` goes on from where it was in a
/// [restored](crate::Options::restore) one.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncWriteExt;
/// use tokio_krun::{AgentStream, Options, RingStats};
///
/// fn percent_full(ring: RingStats) -> u64 {
///     ring.queued * 100 / Options::DEFAULT_CAPACITY as u64
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// stream.write_all(&[0; 1024 * 1024]).await?; // nobody reads yet
/// assert_eq!(percent_full(stream.stats().rx), 25);
/// assert_eq!(percent_full(stream.stats().tx), 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingStats {
    /// Bytes that count against the [capacity](crate::Options::capacity) now: those in the ring, and
    /// those in chunks that were read without a copy and are still held. Zero once both ends are gone.
    pub queued: u64,
    /// The highest value that `queued` has had.
    pub high_water: u64,
    /// Total bytes read, without the discarded ones.
    pub bytes: u64,
    /// Total wakes of a sleeping reader.
    pub data_wakes: u64,
    /// Total wakes of a sleeping writer.
    pub room_wakes: u64,
    /// Total writes that found no room.
    pub full: u64,
    /// Total bytes that were accepted and that nobody will read.
    ///
    /// They were left in the ring when the reader went away, or were written after that. The guest's
    /// bytes that found no room while the port was [quiesced](crate::PortHandle::quiesce), or within the
    /// [stall timeout](crate::Options::stall_timeout), count too, and so do all that followed them.
    pub discarded: u64,
}

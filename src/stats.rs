//! What the rings have done, for a program's own metrics.

/// A snapshot of both directions, from [`AgentStream::stats`](crate::AgentStream::stats) or
/// [`PortHandle::stats`](crate::PortHandle::stats).
///
/// Cheap: a few loads of counters that are kept anyway. They are read one after another, so while
/// bytes move they need not agree with each other to the byte.
///
/// # Examples
///
/// ```
/// # use tokio::io::AsyncWriteExt;
/// use tokio_krun::{AgentStream, Stats};
///
/// /// What to look at when nothing moves.
/// fn blame(stats: Stats) -> &'static str {
///     match (stats.tx.queued, stats.rx.queued) {
///         (0, 0) => "nobody has anything to say",
///         (0, _) => "the guest does not read",
///         (_, _) => "the host does not read",
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// # let (mut stream, port) = AgentStream::pair()?;
/// stream.write_all(b"request").await?;
/// assert_eq!(blame(stream.stats()), "the guest does not read");
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

/// One direction's part of [`Stats`]. The totals are since the stream was created.
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
    /// Bytes that count against the [capacity](crate::Options::capacity) now: in the ring, or in
    /// chunks that were read without a copy and are still held.
    pub queued: u64,
    /// Chunks in the ring now.
    pub chunks_queued: usize,
    /// The most there have been of `queued`.
    pub high_water: u64,
    /// Bytes that were read, in total; not those that were discarded.
    pub bytes: u64,
    /// Chunks that reading has come to, in total. Each took a slot.
    pub chunks: u64,
    /// How often a sleeping reader was woken, in total.
    pub data_wakes: u64,
    /// How often a sleeping writer was woken, in total.
    pub room_wakes: u64,
    /// How often a write found no room, in total.
    pub full: u64,
    /// Bytes that were accepted and that nobody will read, in total: left, or written, after the
    /// reader had gone, or, of the guest's, without room while
    /// [quiesced](crate::PortHandle::quiesce).
    pub discarded: u64,
}

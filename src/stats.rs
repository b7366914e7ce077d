//! What the rings have done, for a program's own metrics.

/// A snapshot of both directions, from [`AgentStream::stats`](crate::AgentStream::stats) or
/// [`PortHandle::stats`](crate::PortHandle::stats).
///
/// Cheap: a few loads of counters that are kept anyway. They are read one after another, so while
/// bytes move they need not agree with each other to the byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// From the guest to the host.
    pub tx: RingStats,
    /// From the host to the guest.
    pub rx: RingStats,
}

/// One direction's part of [`Stats`]. The totals are since the stream was created.
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

//! What both ends share: the two rings, the signals between them, and who is still there.
//!
//! Everything is named from the guest's side, as virtio's queues are: `tx_ring` holds what the guest transmitted,
//! `rx_ring` what it will receive. Each ring has two signals: there is something to read, and there is room again.
//!
//! [`Ring`] moves bytes and wakes nobody, [`Signal`] wakes and knows of no bytes. This file joins them: each
//! operation of a side moves bytes first and then signals the other side. An operation that finds nothing returns
//! `None`; its caller arms a signal and tries again before it sleeps.
//!
//! What a signal is made of comes from [`sys`]. Nothing here knows a descriptor, a handle or tokio.

#![deny(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod checkpoint;
mod held;
mod latch;
#[cfg(all(test, tokio_krun_loom))]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "krun's threads do not run models"
)]
mod models;
mod ring;
mod signal;
mod workers;

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use std::{fmt, hint, mem};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use crate::error::Error;
use crate::foreign;
use crate::options::Options;
use crate::stats::{RingStats, Stats};
use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};
use crate::sys;
use crate::trace::Trace;
pub(crate) use checkpoint::Captured;
use held::Held;
use latch::Latch;
pub(crate) use ring::{Admit, Chunk, Given, RingState};
use ring::{ReadChunk, Refused, Ring, USUAL_CHUNK};
pub(crate) use signal::{Signal, Wake};
#[cfg(any(test, feature = "test-util"))]
pub(crate) use workers::Worker;
pub(crate) use workers::Workers;

/// A small capacity is cut into this many chunks.
const LEAST_CHUNKS: usize = 8;

pub(crate) struct ConsoleSharedState {
    tx_ring: Ring,
    rx_ring: Ring,
    /// To the host: the guest has transmitted, or opened its port.
    pub(crate) tx_data: Signal<Arc<sys::TxData>>,
    /// To the guest: its next transmission fits.
    pub(crate) tx_room: Signal<sys::TxRoom>,
    /// To the guest: there is something to receive.
    pub(crate) rx_data: Signal<sys::RxData>,
    /// To the host: its next write fits.
    pub(crate) rx_room: Signal<Arc<sys::RxRoom>>,
    /// To the host, by the same wake: the guest has read up to `drain_mark`.
    pub(crate) rx_drained: Signal<Arc<sys::RxRoom>>,
    /// The lowest position in `rx_ring` that a task waits for the guest to reach; `u64::MAX` for none.
    drain_mark: AtomicU64,
    /// The guest is to read the end of the file after the last byte.
    hung_up: AtomicBool,
    /// The stream was dropped or closed.
    host_ended: AtomicBool,
    /// Whether the host hangs up when it ends.
    hang_up_on_drop: bool,
    /// krun has called.
    guest_opened: AtomicBool,
    /// The guest's writes must not wait; see [`PortHandle::quiesce`](crate::PortHandle::quiesce).
    quiesced: AtomicBool,
    /// How many checkpoints there are, which quiesce the port as well.
    checkpoints: AtomicU64,
    /// Those that a checkpoint waits for.
    pub(crate) workers: Workers,
    /// krun has opened the pipe.
    #[cfg(windows)]
    is_piped: AtomicBool,
    /// How long a side that finds nothing looks again before it sleeps.
    busy_poll: Duration,
    /// How long a guest's write waits for room; see [`Options::stall_timeout`](crate::Options::stall_timeout).
    stall_timeout: Option<Duration>,
    host_gone: Latch,
    /// `true` once the guest has gone.
    guest_gone: watch::Sender<bool>,
    /// The turn to wait for room that is set aside: one task of the host's after another.
    pub(crate) turn: Semaphore,
    /// What is left for handles once the rings are gone.
    last_stats: Arc<OnceLock<Stats>>,
    trace: Trace,
}

impl ConsoleSharedState {
    /// By `options` that were validated.
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        let capacity = options.capacity;
        // With too few chunks, the one that is being read would be a large part of the ring.
        let chunk_size = USUAL_CHUNK.min(capacity.div_ceil(LEAST_CHUNKS));
        let rx_room = Arc::new(sys::RxRoom::new()?);
        Ok(Self {
            tx_ring: Ring::new(capacity, chunk_size),
            rx_ring: Ring::new(capacity, chunk_size),
            tx_data: Signal::new(Arc::new(sys::TxData::new()?)),
            tx_room: Signal::new(sys::TxRoom::new()?),
            rx_data: Signal::new(sys::RxData::new()?),
            rx_drained: Signal::new(Arc::clone(&rx_room)),
            rx_room: Signal::new(rx_room),
            drain_mark: AtomicU64::new(u64::MAX),
            hung_up: AtomicBool::new(false),
            host_ended: AtomicBool::new(false),
            hang_up_on_drop: options.hang_up_on_drop,
            guest_opened: AtomicBool::new(false),
            quiesced: AtomicBool::new(false),
            checkpoints: AtomicU64::new(0),
            workers: Workers::default(),
            #[cfg(windows)]
            is_piped: AtomicBool::new(false),
            busy_poll: options.busy_poll,
            stall_timeout: options.stall_timeout,
            host_gone: Latch::default(),
            guest_gone: watch::Sender::new(false),
            turn: Semaphore::new(1),
            last_stats: Arc::default(),
            trace: Trace::new(options.label.clone()),
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            tx: RingStats {
                data_wakes: self.tx_data.signals(),
                room_wakes: self.tx_room.signals(),
                ..self.tx_ring.stats()
            },
            rx: RingStats {
                data_wakes: self.rx_data.signals(),
                room_wakes: self
                    .rx_room
                    .signals()
                    .saturating_add(self.rx_drained.signals()),
                ..self.rx_ring.stats()
            },
        }
    }

    /// How many bytes each direction holds.
    pub(crate) fn capacity(&self) -> usize {
        self.rx_ring.capacity()
    }

    /// For a side that has found no room, or nothing to read.
    pub(crate) fn look_again(&self) -> LookAgain {
        LookAgain {
            looks: 0,
            limit: self.busy_poll,
            began: None,
        }
    }

    /// For the host, which has found nothing to read.
    pub(crate) fn host_looks_again(&self) -> LookAgain {
        self.reader_looks_again(&self.tx_ring)
    }

    /// For the guest, which has found nothing to read.
    #[cfg(unix)]
    pub(crate) fn guest_looks_again(&self) -> LookAgain {
        LookAgain {
            limit: Duration::ZERO,
            ..self.reader_looks_again(&self.rx_ring)
        }
    }

    fn reader_looks_again(&self, ring: &Ring) -> LookAgain {
        LookAgain {
            looks: if ring.is_worth_another_look() {
                LOOKS
            } else {
                0
            },
            ..self.look_again()
        }
    }

    /// Whether the guest's writes must not wait from now on.
    pub(crate) fn set_quiesced(&self, quiesced: bool) {
        self.quiesced.store(quiesced, Ordering::Relaxed);
        self.tx_room.notify();
        self.trace
            .lifecycle(if quiesced { "quiesced" } else { "resumed" });
    }

    /// The port is quiesced until [`end_checkpoint`](Self::end_checkpoint).
    pub(crate) fn begin_checkpoint(&self) {
        self.checkpoints.fetch_add(1, Ordering::Relaxed);
        self.tx_room.notify();
        self.trace.lifecycle("a checkpoint begins");
    }

    pub(crate) fn end_checkpoint(&self) {
        self.checkpoints.fetch_sub(1, Ordering::Relaxed);
        self.trace.lifecycle("a checkpoint ends");
    }

    fn is_quiesced(&self) -> bool {
        self.quiesced.load(Ordering::Relaxed) || self.checkpoints.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn guest_gone(&self) -> GuestGone {
        GuestGone(self.guest_gone.subscribe())
    }

    /// Set once the rings are gone.
    pub(crate) fn last_stats(&self) -> Arc<OnceLock<Stats>> {
        Arc::clone(&self.last_stats)
    }

    /// For the exit hook. Blocks until the host has stopped reading or `limit` is over.
    pub(crate) fn wait_until_host_stops_reading(&self, limit: Duration) {
        if !self.host_gone.wait(limit) {
            self.trace
                .warning("the exit hook's limit is over, and the stream was not dropped");
        }
    }
}

/// The host reads what the guest transmitted.
impl ConsoleSharedState {
    /// Copies up to `limit` bytes to `sink`, `Some(0)` at the end. `limit` is not zero.
    pub(crate) fn host_read(
        &self,
        limit: usize,
        sink: impl FnMut(&[u8]),
    ) -> Option<io::Result<usize>> {
        if self.has_host_ended() {
            return Some(Ok(0));
        }
        let (read, _given) = self.tx_ring.read(limit, sink);
        let read = read?;
        self.offer_tx_room();
        Some(self.unless_cut_off(read == 0, read))
    }

    /// The next chunk, without a copy if that pays; no bytes at the end.
    pub(crate) fn host_read_bytes(self: &Arc<Self>) -> Option<io::Result<Bytes>> {
        if self.has_host_ended() {
            return Some(Ok(Bytes::new()));
        }
        let bytes = match self.tx_ring.read_chunk()? {
            ReadChunk::Copied(bytes) => bytes,
            ReadChunk::Held(chunk) => Bytes::from_owner(Held::new(chunk, self)),
        };
        self.offer_tx_room();
        Some(self.unless_cut_off(bytes.is_empty(), bytes))
    }

    /// A handle to the next chunk, which stays unread; no bytes at the end.
    pub(crate) fn host_peek(&self) -> Option<io::Result<Chunk>> {
        if self.has_host_ended() {
            return Some(Ok(Chunk::Given(Bytes::new())));
        }
        let chunk = self.tx_ring.peek()?;
        Some(self.unless_cut_off(chunk.rest().is_empty(), chunk))
    }

    /// The end is an error if bytes were lost there.
    fn unless_cut_off<T>(&self, is_end: bool, read: T) -> io::Result<T> {
        if is_end && self.tx_ring.is_cut_off() {
            return Err(Error::CutOff.into());
        }
        Ok(read)
    }

    /// Counts bytes that [`host_peek`](Self::host_peek) showed as read.
    pub(crate) fn host_consume(&self, count: usize) {
        self.tx_ring.consume(count);
        self.offer_tx_room();
    }

    /// Whether there are bytes, `Some(false)` at the end.
    pub(crate) fn host_is_readable(&self) -> Option<bool> {
        if self.has_host_ended() {
            return Some(false);
        }
        self.tx_ring.is_readable()
    }

    /// Whether the guest writes no more, or the host reads no more. What was written before may be unread.
    pub(crate) fn has_reading_ended(&self) -> bool {
        self.tx_ring.is_closed() || self.has_host_ended()
    }

    /// Whether the stream was closed.
    pub(crate) fn has_host_ended(&self) -> bool {
        // Relaxed: the fence of the signal in `host_end` makes sure that one look finds this.
        self.host_ended.load(Ordering::Relaxed)
    }

    /// How many bytes are there to read.
    pub(crate) fn host_unread(&self) -> usize {
        // Another task may read between the two numbers that this comes from. There are never more than twice the capacity.
        let most = self.capacity().saturating_mul(2);
        usize::try_from(self.tx_ring.unread()).map_or(most, |unread| unread.min(most))
    }

    /// For a task that sleeps until there is something to read: an idle stream keeps no storage.
    pub(crate) fn host_stops_looking(&self) {
        self.tx_ring.let_go_of_storage();
    }

    fn offer_tx_room(&self) {
        self.tx_room
            .notify_if(|| self.tx_ring.is_worth_waking_writer());
    }

    /// Whether the guest has opened its port: `Some(false)` if it never will, or the host has closed the stream.
    pub(crate) fn host_sees_guest(&self) -> Option<bool> {
        // First, so that a guest that opened its port and then went counts as one that opened it.
        let has_ended = self.has_reading_ended();
        if self.guest_opened.load(Ordering::Relaxed) {
            return Some(true);
        }
        has_ended.then_some(false)
    }

    /// The host reads no more: what the guest still writes is discarded.
    pub(crate) fn host_stop_reading(&self) {
        let unread = self.tx_ring.abandon();
        self.tx_room.notify();
        self.host_gone.set();
        drop(unread);
    }

    /// The stream is dropped or closed.
    ///
    /// Both directions end before anybody is woken, as some wakes run the caller's code.
    pub(crate) fn host_end(&self) {
        self.rx_ring.close();
        let is_news = self.hang_up_on_drop && !self.hung_up.swap(true, Ordering::Relaxed);
        let unread = self.tx_ring.abandon();
        self.host_ended.store(true, Ordering::Relaxed);
        self.host_gone.set();
        self.rx_room.notify();
        self.tx_room.notify();
        self.tx_data.notify();
        // Late, as it may run an agent of the in-process guest.
        self.rx_data.notify();
        self.end_turns();
        drop(unread);
        if is_news {
            self.trace.lifecycle("the host hangs up");
        }
    }
}

/// The host writes what the guest will receive.
impl ConsoleSharedState {
    /// Copies what `admit` allows.
    pub(crate) fn host_write(
        &self,
        sources: &[IoSlice<'_>],
        admit: Admit,
    ) -> Option<io::Result<usize>> {
        self.host_wrote(self.rx_ring.write(sources, admit), admit)
    }

    /// Takes what `admit` allows from the front of `bytes`, without a copy if that pays. Returns the bytes that were copied,
    /// too: dropping them may run the caller's code.
    pub(crate) fn host_write_bytes(
        &self,
        bytes: &mut Bytes,
        admit: Admit,
    ) -> (Option<io::Result<usize>>, Bytes) {
        let (written, copied) = self.rx_ring.write_bytes(bytes, admit);
        (self.host_wrote(written, admit), copied)
    }

    fn host_wrote(
        &self,
        written: Result<usize, Refused>,
        admit: Admit,
    ) -> Option<io::Result<usize>> {
        if written.is_ok() {
            self.rx_data.notify_after_fence();
        }
        if matches!(admit, Admit::Claimed(_)) {
            self.offer_unclaimed_room();
        }
        Self::host_outcome(written)
    }

    fn host_outcome<T>(outcome: Result<T, Refused>) -> Option<io::Result<T>> {
        match outcome {
            Ok(written) => Some(Ok(written)),
            Err(Refused::Full) => None,
            Err(Refused::Closed) => Some(Err(Error::ShutDown.into())),
            Err(Refused::Abandoned) => Some(Err(Error::GuestGone.into())),
        }
    }

    /// Whether there is room, `Some(false)` if there never will be.
    pub(crate) fn host_is_writable(&self) -> Option<bool> {
        if self.rx_ring.is_closed() || self.rx_ring.is_abandoned() {
            return Some(false);
        }
        self.rx_ring.has_room().then_some(true)
    }

    /// Sets room for `length` bytes aside, if there is room.
    pub(crate) fn host_try_claim(&self, length: usize) -> Option<io::Result<()>> {
        self.host_claimed(self.rx_ring.try_claim(length))
    }

    /// The same for a task that waits: from its first call on, no other write gets the room, until it gets it or
    /// [gives up](Self::host_gives_up_claim). Only one task at a time may do so.
    pub(crate) fn host_claim(&self, length: usize) -> Option<io::Result<()>> {
        self.host_claimed(self.rx_ring.claim(length))
    }

    fn host_claimed(&self, claimed: Result<(), Refused>) -> Option<io::Result<()>> {
        Self::host_outcome(claimed)
    }

    pub(crate) fn host_gives_up_claim(&self) {
        if self.rx_ring.give_up_claim() {
            self.offer_unclaimed_room();
        }
    }

    /// Gives claimed room back.
    pub(crate) fn host_unclaim(&self, length: usize) {
        self.rx_ring.unclaim(length);
        self.offer_unclaimed_room();
    }

    /// Sets aside all room for one long write, once no claim is left, or ends that.
    pub(crate) fn host_set_exclusive(&self, exclusive: bool) {
        self.rx_ring.set_exclusive(exclusive);
        self.offer_unclaimed_room();
    }

    /// After a fence, to the host's own tasks: others may use the room now.
    fn offer_unclaimed_room(&self) {
        self.rx_room
            .notify_if_after_fence(|| self.rx_ring.has_room_to_offer());
    }

    /// The position after everything written so far.
    pub(crate) fn host_written(&self) -> u64 {
        self.rx_ring.end_position()
    }

    /// Whether the guest has read everything before `position`, an error if it never will. Until then there will be
    /// a signal, if `rx_drained` was armed **before** the call.
    pub(crate) fn host_is_drained(&self, position: u64) -> Option<io::Result<()>> {
        self.drain_mark.fetch_min(position, Ordering::Relaxed);
        // Pairs with the fence in `offer_rx_room`: after it the guest's side sees the mark, or this sees what the
        // guest has read. The arming came before, so whoever clears the mark also signals.
        fence(Ordering::SeqCst);
        Some(match self.rx_ring.has_read_to(position)? {
            true => Ok(()),
            false => Err(Error::GuestGone.into()),
        })
    }

    /// Ends the host's writing without telling the guest.
    pub(crate) fn host_shut_down(&self) {
        self.rx_ring.close();
        // A task that waits for room learns that there will be none.
        self.rx_room.notify();
        self.end_turns();
    }

    /// Lets every task go on that waits for its turn: writing has ended, so each fails.
    fn end_turns(&self) {
        foreign::run(|| self.turn.close());
    }

    /// Ends the host's writing: after the last byte the guest reads the end of the file.
    pub(crate) fn host_hang_up(&self) {
        self.rx_ring.close();
        // Relaxed: see `guest_read`.
        let had_hung_up = self.hung_up.swap(true, Ordering::Relaxed);
        self.rx_room.notify();
        self.rx_data.notify();
        self.end_turns();
        if !had_hung_up {
            self.trace.lifecycle("the host hangs up");
        }
    }
}

/// The guest's side. krun's threads call it, so nothing here panics.
impl ConsoleSharedState {
    /// To be called before anything else, as krun calls only once the guest has opened its port.
    pub(crate) fn mark_guest_opened(&self) {
        if !self.guest_opened.load(Ordering::Relaxed)
            && !self.guest_opened.swap(true, Ordering::Relaxed)
        {
            self.tx_data.notify();
            self.trace.lifecycle("the guest has opened its port");
        }
    }

    /// Fills `target` as far as there are bytes: `None` if there are none yet, `Some(0)` at the end. `target` is not
    /// empty.
    pub(crate) fn guest_read(&self, mut target: &mut [u8]) -> Option<usize> {
        let (read, given) = self.rx_ring.read(target.len(), |bytes| {
            // The ring hands out no more than it was asked for, so the target is never short.
            if let Some((head, tail)) = mem::take(&mut target).split_at_mut_checked(bytes.len()) {
                head.copy_from_slice(bytes);
                target = tail;
            }
        });
        let read = read?;
        // Relaxed: the end that `read` found has ordered everything before it, and the fence of the signal in
        // `host_hang_up` makes sure that one look finds this. A host that only shut down has not hung up.
        if read == 0 && !self.hung_up.load(Ordering::Relaxed) {
            return None;
        }
        self.offer_rx_room();
        drop(given);
        Some(read)
    }

    /// For a thread that sleeps until there is something to read: an idle stream keeps no storage.
    pub(crate) fn guest_stops_looking(&self) {
        self.rx_ring.let_go_of_storage();
    }

    /// Whether there is something to read, or the end.
    #[cfg(unix)]
    pub(crate) fn guest_may_read(&self) -> bool {
        self.rx_ring.has_unread() || self.hung_up.load(Ordering::Relaxed)
    }

    fn offer_rx_room(&self) {
        self.rx_room
            .notify_if(|| self.rx_ring.is_worth_waking_writer());
        self.rx_drained
            .notify_if_after_fence(|| self.passes_drain_mark());
    }

    /// Whether a task waits for what was just read; it sets its mark anew if it goes on waiting.
    fn passes_drain_mark(&self) -> bool {
        let mark = self.drain_mark.load(Ordering::Relaxed);
        mark != u64::MAX
            && self.rx_ring.has_read_to(mark).is_some()
            // Also if it is another mark by now: a lower one was read as well, and hides this one.
            && self.drain_mark.swap(u64::MAX, Ordering::Relaxed) != u64::MAX
    }

    /// Copies all of `source`, or a ringful of more than that: `None` if it does not fit yet. `source` is not empty.
    #[cfg_attr(
        windows,
        allow(dead_code, reason = "only the in-process guest writes like this there")
    )]
    pub(crate) fn guest_write(&self, source: &[u8]) -> Option<usize> {
        self.guest_write_as(Admit::Whole, source)
    }

    /// Copies as much of `source` as fits: `None` if nothing fits yet. `source` is not empty.
    #[cfg(windows)]
    pub(crate) fn guest_write_part(&self, source: &[u8]) -> Option<usize> {
        self.guest_write_as(Admit::Part, source)
    }

    fn guest_write_as(&self, admit: Admit, source: &[u8]) -> Option<usize> {
        let admit = if self.is_quiesced() {
            Admit::Quiesced
        } else {
            admit
        };
        let written = self.tx_ring.write(&[IoSlice::new(source)], admit);
        if written.is_ok() {
            self.tx_data.notify_after_fence();
        }
        match written {
            Ok(written) => {
                self.tx_ring.want(0);
                Some(written)
            }
            Err(Refused::Full) => {
                let part = admit == Admit::Part;
                self.tx_ring.want(if part { 1 } else { source.len() });
                None
            }
            Err(Refused::Closed | Refused::Abandoned) => {
                self.tx_ring.discard(source.len());
                Some(source.len())
            }
        }
    }

    /// Whether the write that [`guest_write`](Self::guest_write) last refused may now succeed.
    pub(crate) fn guest_may_write(&self) -> bool {
        self.is_quiesced() || self.tx_ring.has_wanted_room()
    }

    /// How long a write may wait for room while the host does not read.
    pub(crate) fn stall_timeout(&self) -> Option<Duration> {
        self.stall_timeout
    }

    /// How much the host has read, for [`guest_ends_if_stalled`](Self::guest_ends_if_stalled).
    pub(crate) fn host_progress(&self) -> u64 {
        self.tx_ring.released()
    }

    /// After a wait of the stall timeout: ends the guest's writing, and returns `true`, if the host has read nothing since
    /// it was at `progress`. There may also be room by now that was not worth a wake.
    pub(crate) fn guest_ends_if_stalled(&self, progress: u64) -> bool {
        let is_stalled = !self.guest_may_write() && self.host_progress() == progress;
        if is_stalled {
            self.guest_stalled();
        }
        is_stalled
    }

    /// A write has waited for too long: the host reads what is in the ring and then an error, and what the guest writes is
    /// discarded.
    fn guest_stalled(&self) {
        self.tx_ring.cut_off();
        self.tx_data.notify_after_fence();
        self.trace
            .lifecycle("the guest's writes are discarded, as the host has not read");
    }

    /// The guest reads no more. What it has written is still read, until it [ends](Self::guest_end).
    ///
    /// `before_wakes` comes before anybody is woken, as some wakes run the caller's code.
    #[cfg(windows)]
    pub(crate) fn guest_stop_reading(&self, before_wakes: impl FnOnce()) -> Given {
        let unread = self.rx_ring.abandon();
        before_wakes();
        self.wake_host_writers();
        unread
    }

    /// Whether the stream is gone and has left nothing for the guest.
    #[cfg(windows)]
    pub(crate) fn has_host_left_nothing(&self) -> bool {
        self.has_host_ended() && !self.rx_ring.has_unread()
    }

    fn wake_host_writers(&self) {
        self.rx_room.notify();
        self.rx_drained.notify_after_fence();
    }

    /// The guest, or krun's end of the port, has gone: the host reads what is left and then the end. Returns the host's
    /// bytes that the guest has not taken; [`report_guest_end`](Self::report_guest_end) follows.
    ///
    /// Both directions end before anybody is woken, as some wakes run the caller's code.
    pub(crate) fn guest_end(&self) -> Given {
        // First, so that writes fail once the end was read.
        let unread = self.rx_ring.abandon();
        self.tx_ring.close();
        self.tx_data.notify_after_fence();
        self.wake_host_writers();
        unread
    }

    /// Tells those who wait for the guest's end, and the subscriber: the caller's code.
    pub(crate) fn report_guest_end(&self) {
        let mut had_gone = true;
        self.end_turns();
        foreign::run(|| had_gone = self.guest_gone.send_replace(true));
        if !had_gone {
            self.trace.lifecycle("the guest has gone");
        }
    }

    /// The same for the exit hook, which also says whom it waits for.
    pub(crate) fn report_exit(&self) {
        self.report_guest_end();
        if !self.host_gone.wait(Duration::ZERO) {
            self.trace
                .lifecycle("the exit hook waits until the stream is dropped");
        }
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// krun has opened the pipe, and may keep bytes for the guest from now on.
    #[cfg(windows)]
    pub(crate) fn mark_piped(&self) {
        self.is_piped.store(true, Ordering::Relaxed);
    }

    /// A client of another process came in place of krun.
    #[cfg(windows)]
    pub(crate) fn guest_was_a_stranger(&self) {
        self.trace
            .lifecycle("a client of another process was turned away");
    }
}

/// To wait for the guest's end.
#[derive(Clone)]
pub(crate) struct GuestGone(watch::Receiver<bool>);

impl GuestGone {
    pub(crate) async fn wait(mut self) {
        // The sender goes with the rings, and so after the guest.
        let _ = foreign::guarded(self.0.wait_for(|gone| *gone)).await;
    }
}

impl Drop for ConsoleSharedState {
    fn drop(&mut self) {
        // A model that has failed must take no more steps.
        if cfg!(all(test, tokio_krun_loom)) && std::thread::panicking() {
            return;
        }
        let mut last = self.stats();
        // Chunks that are still held count no longer.
        (last.tx.queued, last.rx.queued) = (0, 0);
        let _ = self.last_stats.set(last);
    }
}

impl fmt::Debug for ConsoleSharedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Channel");
        self.trace.fields(&mut f);
        f.field("tx_queued", &self.tx_ring.queued())
            .field("rx_queued", &self.rx_ring.queued())
            .field("guest_opened", &self.guest_opened)
            .field("guest_gone", &self.tx_ring.is_closed())
            .field("hung_up", &self.hung_up)
            .finish_non_exhaustive()
    }
}

/// How often a side that finds nothing looks again before it sleeps.
pub(crate) struct LookAgain {
    /// So many times at least.
    looks: u32,
    /// And for so long, see [`Options::busy_poll`](crate::Options::busy_poll).
    limit: Duration,
    began: Option<Instant>,
}

/// The looks of a reader that was well fed. They take about a microsecond; a sleep and a wake take more, on both sides.
const LOOKS: u32 = 16;

thread_local! {
    /// When this thread last spun in vain.
    static SPUN_IN_VAIN: Cell<Option<Instant>> = const { Cell::new(None) };
}

impl LookAgain {
    /// Spins for a moment: `false` once it is time to sleep.
    ///
    /// A thread that has just spun in vain for the time limit does not do so again: a task that polls many quiet streams in one
    /// turn holds its thread up once, and not once for each.
    pub(crate) fn again(&mut self) -> bool {
        if let Some(left) = self.looks.checked_sub(1) {
            self.looks = left;
            hint::spin_loop();
            return true;
        }
        if self.limit.is_zero() {
            return false;
        }
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        let since = |then| now.saturating_duration_since(then);
        if began == now
            && SPUN_IN_VAIN
                .get()
                .is_some_and(|end| since(end) < self.limit)
        {
            return false;
        }
        hint::spin_loop();
        if since(began) < self.limit {
            return true;
        }
        SPUN_IN_VAIN.set(Some(now));
        false
    }
}

#[cfg(all(test, not(tokio_krun_loom)))]
#[allow(clippy::unwrap_used, reason = "krun's threads do not run tests")]
mod tests {
    use super::*;

    /// Whether a side that finds nothing looks again, and again after that.
    fn looks_again(busy_poll: Duration) -> [bool; 2] {
        let mut options = Options::new();
        options.busy_poll = busy_poll;
        let shared = ConsoleSharedState::new(&options).unwrap();
        let mut look = shared.look_again();
        [look.again(), look.again()]
    }

    #[test]
    fn side_that_finds_nothing_looks_again_only_with_busy_poll() {
        assert_eq!(looks_again(Duration::ZERO), [false, false]);
        assert_eq!(looks_again(Duration::MAX), [true, true]);
    }
}

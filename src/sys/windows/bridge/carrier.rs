//! The task that carries bytes between the pipe and the rings.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::windows::named_pipe::NamedPipeServer;
use tokio::sync::watch;

use crate::shared::ConsoleSharedState;
use crate::sys::windows::{pipe, until};
#[cfg(feature = "test-util")]
use crate::test_util::Taken;

/// The most bytes that are read from the pipe or written to it at once: a descriptor of a Linux guest.
const PIECE: usize = 32 * 1024;

/// How long the guest must have written nothing before the pipe closes at a hang-up. krun's thread would spin with a write
/// that fails; once krun has found the pipe closed, the guest's kernel lets the guest write no more.
const QUIET: Duration = Duration::from_millis(500);

/// However the task ends, dropping this closes the pipe and then ends the guest's side.
pub(super) struct Carrier {
    server: NamedPipeServer,
    guest: GuestSide,
}

/// Dropping it ends the guest's side, and then runs the caller's code.
struct GuestSide {
    shared: Arc<ConsoleSharedState>,
    #[cfg(feature = "test-util")]
    taken: Arc<Taken>,
}

impl Drop for GuestSide {
    fn drop(&mut self) {
        let unread = self.shared.guest_end();
        #[cfg(feature = "test-util")]
        self.taken.end();
        self.shared.report_guest_end();
        drop(unread);
    }
}

impl Carrier {
    pub(super) fn new(server: NamedPipeServer, shared: Arc<ConsoleSharedState>) -> Self {
        Self {
            server,
            guest: GuestSide {
                shared,
                #[cfg(feature = "test-util")]
                taken: Arc::default(),
            },
        }
    }

    #[cfg(feature = "test-util")]
    pub(super) fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.guest.taken)
    }

    pub(super) async fn run(self, mut ending: watch::Receiver<bool>) {
        let nobody_is_left = first(ended(&mut ending), self.host_left_nothing());
        match first(self.connect(), nobody_is_left).await {
            First::Left(Ok(())) => {}
            // The pipe cannot be connected, or one of its ends has gone.
            First::Left(Err(_)) | First::Right(_) => return,
        }
        self.guest.shared.mark_piped();
        self.guest.shared.mark_guest_opened();
        let mut inbound = Inbound {
            carrier: &self,
            piece: vec![0; PIECE],
            unpushed: 0..0,
        };
        match first(inbound.until_ended(&mut ending), self.write_to_guest()).await {
            First::Left(()) => {}
            First::Right(()) => inbound.until_quiet(&mut ending).await,
        }
    }

    /// Waits for a client that is this process.
    async fn connect(&self) -> io::Result<()> {
        loop {
            self.server.connect().await?;
            if pipe::client_is_this_process(&self.server) {
                return Ok(());
            }
            let disconnected = self.server.disconnect();
            self.guest.shared.guest_was_a_stranger();
            disconnected?;
        }
    }

    /// Waits until the stream is gone and has left nothing for the guest.
    async fn host_left_nothing(&self) {
        let shared = &self.guest.shared;
        let look = || shared.has_host_left_nothing().then_some(());
        until(&shared.tx_room, look).await;
    }

    /// Carries the host's bytes to the pipe. Returns once the host has hung up and the pipe has taken them all.
    async fn write_to_guest(&self) {
        let shared = &self.guest.shared;
        let mut piece = vec![0; PIECE];
        loop {
            let look = || {
                let read = shared.guest_read(&mut piece);
                if read.is_none() {
                    shared.guest_stops_looking();
                }
                read
            };
            let length = until(&shared.rx_data, look).await;
            let bytes = piece.split_at(length).0;
            if self.write(bytes).await.is_err() {
                // krun's end has gone: what it had written is still to be read.
                let unread = shared.guest_stop_reading(|| {});
                let shared = Arc::clone(shared);
                // Elsewhere: it runs the caller's code, and this task goes on to read.
                tokio::task::spawn_blocking(move || {
                    shared.report_guest_end();
                    drop(unread);
                });
                return pending().await;
            }
            // The end. With no bytes to write, `write` has only waited until the pipe had taken all earlier ones.
            if length == 0 {
                return;
            }
        }
    }

    /// Waits until the pipe has taken `bytes`, and until it is writable again, which may be a moment later.
    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            self.server.writable().await?;
            // Never writes zero bytes: a reader would take that for end of file.
            if bytes.is_empty() {
                return Ok(());
            }
            match self.start_write(bytes) {
                Ok(length) => bytes = bytes.split_at(length).1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts to write the beginning of `bytes`, and returns how much. The pipe is writable again once that was written.
    fn start_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut started = Err(io::ErrorKind::WouldBlock.into());
        // A write that was started leaves tokio's readiness as it is, and only the next write would find out. So this
        // takes the readiness away. If the write has already ended, the readiness that this brought stays: tokio takes
        // away only what there was before the call.
        let _ = self.server.try_io(Interest::WRITABLE, || {
            started = self.server.try_write(bytes);
            Err::<(), _>(io::ErrorKind::WouldBlock.into())
        });
        started
    }
}

/// Carries the guest's bytes from the pipe.
struct Inbound<'a> {
    carrier: &'a Carrier,
    piece: Vec<u8>,
    /// The part of `piece` that is not in the ring yet. Kept here as `until_ended` may be dropped while it waits for room.
    unpushed: Range<usize>,
}

/// The result of one read.
enum Read {
    Taken,
    NotReady,
    /// It was [cancelled](pipe::cancel_read): the pipe is empty.
    Empty,
    /// krun's end has gone.
    Ended,
}

impl Inbound<'_> {
    /// Returns once krun's end has gone, or once the guest has ended and the pipe was read to its end.
    async fn until_ended(&mut self, ending: &mut watch::Receiver<bool>) {
        loop {
            match self.read() {
                Read::Taken => self.push().await,
                Read::NotReady => {
                    match first(self.carrier.server.readable(), ended(ending)).await {
                        First::Left(Ok(())) => {}
                        First::Left(Err(_)) => return,
                        First::Right(()) => return self.until_empty().await,
                    }
                }
                Read::Empty | Read::Ended => return,
            }
        }
    }

    /// Returns once the guest has written nothing for a while, or has ended and the pipe was read to its end.
    async fn until_quiet(&mut self, ending: &mut watch::Receiver<bool>) {
        // Not tokio's timer, which the runtime may not have. One sleep at a time, whatever the guest does meanwhile.
        let sleep = |time| tokio::task::spawn_blocking(move || thread::sleep(time));
        let mut sleeping = sleep(QUIET);
        self.push().await;
        let mut wrote_last = Instant::now();
        loop {
            match self.read() {
                Read::Taken => {
                    self.push().await;
                    wrote_last = Instant::now();
                }
                Read::NotReady => {
                    let quiet_or_ended = first(&mut sleeping, ended(ending));
                    match first(self.carrier.server.readable(), quiet_or_ended).await {
                        First::Left(Ok(())) => {}
                        First::Left(Err(_)) => return,
                        First::Right(First::Right(())) => return self.until_empty().await,
                        First::Right(First::Left(_)) => {
                            match QUIET.checked_sub(wrote_last.elapsed()) {
                                None | Some(Duration::ZERO) => return,
                                Some(left) => sleeping = sleep(left),
                            }
                        }
                    }
                }
                Read::Empty | Read::Ended => return,
            }
        }
    }

    /// Returns once the pipe is empty. It may cancel a write that is under way.
    async fn until_empty(&mut self) {
        self.push().await;
        loop {
            match self.read() {
                Read::Taken => self.push().await,
                Read::NotReady => {
                    // How the read ends shows whether the pipe is empty, or whether bytes were read but not reported yet.
                    pipe::cancel_read(&self.carrier.server);
                    if self.carrier.server.readable().await.is_err() {
                        return;
                    }
                }
                Read::Empty | Read::Ended => return,
            }
        }
    }

    fn read(&mut self) -> Read {
        match self.carrier.server.try_read(&mut self.piece) {
            Ok(0) => Read::Ended,
            Ok(read) => {
                self.unpushed = 0..read;
                Read::Taken
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::NotReady,
            Err(error) if pipe::is_cancelled(&error) => Read::Empty,
            Err(_) => Read::Ended,
        }
    }

    /// Waits until everything that was read is in the ring.
    async fn push(&mut self) {
        let shared = &self.carrier.guest.shared;
        while !self.unpushed.is_empty() {
            let bytes = self.piece.get(self.unpushed.clone()).unwrap_or_default();
            match shared.guest_write_part(bytes) {
                Some(written) => {
                    self.unpushed.start += written;
                    #[cfg(feature = "test-util")]
                    self.carrier.guest.taken.add(written);
                }
                None => self.wait_for_room().await,
            }
        }
    }
}

impl Inbound<'_> {
    async fn wait_for_room(&self) {
        let shared = &self.carrier.guest.shared;
        let may_write = || shared.guest_may_write().then_some(());
        let Some(limit) = shared.stall_timeout() else {
            return until(&shared.tx_room, may_write).await;
        };
        loop {
            let before = shared.host_progress();
            let room = until(&shared.tx_room, may_write);
            let has_room = tokio::time::timeout(limit, room).await.is_ok();
            if has_room || shared.guest_ends_if_stalled(before) {
                return;
            }
        }
    }
}

/// Waits until the guest has ended.
async fn ended(ending: &mut watch::Receiver<bool>) {
    if ending.wait_for(|ending| *ending).await.is_err() {
        // Nobody is left to end it.
        pending().await
    }
}

/// The output of the future that was ready first.
enum First<L, R> {
    Left(L),
    Right(R),
}

/// Drops the other future.
async fn first<L, R>(left: impl Future<Output = L>, right: impl Future<Output = R>) -> First<L, R> {
    let mut left = pin!(left);
    let mut right = pin!(right);
    poll_fn(|cx| {
        if let Poll::Ready(output) = left.as_mut().poll(cx) {
            return Poll::Ready(First::Left(output));
        }
        right.as_mut().poll(cx).map(First::Right)
    })
    .await
}

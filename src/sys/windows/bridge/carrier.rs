//! The task that carries bytes between the pipe and the rings.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::io::Interest;
use tokio::net::windows::named_pipe::NamedPipeServer;
use tokio::sync::watch;

#[cfg(feature = "test-util")]
use super::Taken;
use crate::shared::ConsoleSharedState;
use crate::sys::windows::pipe;
use crate::sys::windows::task_wake::until;

/// The most that is given to the pipe at once: tokio copies it.
const PIECE: usize = 64 * 1024;

/// How much is read before a hang-up: what the pipe, tokio and a write of krun's may hold, and some. A
/// guest that never stops must not put off the hang-up for ever.
const LAST_WORDS: usize = 4 * pipe::PIPE_BUFFER as usize;

/// However the task ends, dropping this closes the pipe and ends the guest's side.
pub(super) struct Carrier {
    server: NamedPipeServer,
    shared: Arc<ConsoleSharedState>,
    #[cfg(feature = "test-util")]
    taken: Arc<Taken>,
}

impl Carrier {
    pub(super) fn new(server: NamedPipeServer, shared: Arc<ConsoleSharedState>) -> Self {
        Self {
            server,
            shared,
            #[cfg(feature = "test-util")]
            taken: Arc::default(),
        }
    }

    #[cfg(feature = "test-util")]
    pub(super) fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.taken)
    }

    pub(super) async fn run(self, mut ending: watch::Receiver<bool>) {
        match first(self.connect(), ended(&mut ending)).await {
            First::Left(Ok(())) => {}
            // It cannot be connected, or nobody is to come any more.
            First::Left(Err(_)) | First::Right(()) => return,
        }
        self.shared.guest_calls();
        let mut inbound = Inbound {
            carrier: &self,
            scratch: Vec::new(),
        };
        match first(inbound.until_ended(&mut ending), self.write_to_guest()).await {
            First::Left(()) => {}
            First::Right(()) => inbound.until_empty(LAST_WORDS).await,
        }
    }

    /// Waits for a client that is this process.
    async fn connect(&self) -> io::Result<()> {
        loop {
            self.server.connect().await?;
            if pipe::client_is_this_process(&self.server) {
                return Ok(());
            }
            self.shared.guest_was_a_stranger();
            self.server.disconnect()?;
        }
    }

    /// Carries the host's bytes to the pipe, and returns once the host has hung up and the pipe has
    /// them all.
    ///
    /// Never writes nothing, which a reader takes for the end of the file.
    async fn write_to_guest(&self) {
        let shared = &self.shared;
        loop {
            let next = || shared.guest_peek(|bytes| self.start_write(bytes));
            let result = match until(&shared.rx_data, next).await {
                Ok(0) => return,
                Ok(length) => self
                    .server
                    .writable()
                    .await
                    .map(|()| shared.guest_consume(length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.server.writable().await
                }
                Err(error) => Err(error),
            };
            if result.is_err() {
                // krun's end has gone: what it had written is still to be read.
                shared.guest_stop_reading();
                return pending().await;
            }
        }
    }

    /// Starts to write the beginning of `bytes`, which are not none, and says how much; the pipe is
    /// writable again when that has been written, and not before.
    fn start_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.split_at(bytes.len().min(PIECE)).0;
        let mut started = Err(io::ErrorKind::WouldBlock.into());
        // A write that was started leaves the readiness as it is, and the next one would find out
        // that it was not. So the readiness is taken away here. Not that of the write's end, should
        // it have come already: tokio takes away only what there was before the call.
        let _ = self.server.try_io(Interest::WRITABLE, || {
            started = self.server.try_write(piece);
            Err::<(), _>(io::ErrorKind::WouldBlock.into())
        });
        started
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.shared.guest_end();
        #[cfg(feature = "test-util")]
        self.taken.end();
    }
}

/// Carries the guest's bytes from the pipe.
struct Inbound<'a> {
    carrier: &'a Carrier,
    /// For what is read when nobody will read it.
    scratch: Vec<u8>,
}

/// What one read has come to.
enum Read {
    Taken(usize),
    /// There is no room for the guest's bytes.
    Full,
    NotReady,
    /// It was [cancelled](pipe::cancel_read): the pipe is empty.
    Empty,
    /// krun's end has gone.
    Ended,
}

impl Inbound<'_> {
    /// Returns once krun's end has gone, or is said to end and the pipe was read to its end.
    async fn until_ended(&mut self, ending: &mut watch::Receiver<bool>) {
        loop {
            match self.read() {
                Read::Taken(_) => {}
                Read::Full => self.wait_for_room().await,
                Read::NotReady => {
                    match first(self.carrier.server.readable(), ended(ending)).await {
                        First::Left(Ok(())) => {}
                        First::Left(Err(_)) => return,
                        First::Right(()) => return self.until_empty(usize::MAX).await,
                    }
                }
                Read::Empty | Read::Ended => return,
            }
        }
    }

    /// Returns once the pipe is empty, or `limit` bytes were read. No write may be under way that
    /// matters.
    async fn until_empty(&mut self, limit: usize) {
        let mut left = limit;
        while left > 0 {
            match self.read() {
                Read::Taken(read) => left = left.saturating_sub(read),
                Read::Full => self.wait_for_room().await,
                Read::NotReady => {
                    // Whether the pipe is empty, or what was read has not been reported yet, shows in
                    // how the read ends.
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
        let Carrier { server, shared, .. } = self.carrier;
        match shared.guest_write_from(|target| server.try_read_buf(target), &mut self.scratch) {
            None => Read::Full,
            Some(Ok(0)) => Read::Ended,
            Some(Ok(read)) => {
                #[cfg(feature = "test-util")]
                self.carrier.taken.add(read);
                Read::Taken(read)
            }
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Read::NotReady,
            Some(Err(error)) if pipe::is_cancelled(&error) => Read::Empty,
            Some(Err(_)) => Read::Ended,
        }
    }

    async fn wait_for_room(&self) {
        let shared = &self.carrier.shared;
        until(&shared.tx_room, || shared.guest_may_write().then_some(())).await;
    }
}

/// Waits until the guest is said to end.
async fn ended(ending: &mut watch::Receiver<bool>) {
    if ending.wait_for(|ending| *ending).await.is_err() {
        // Nobody is left who could say so.
        pending().await
    }
}

/// Which of two futures was ready first.
enum First<L, R> {
    Left(L),
    Right(R),
}

/// Drops the other one.
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

//! How a carry goes on: step by step in both directions.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::{coop, yield_now};

use super::{Carry, CarryError, Ended};
use crate::error::Error;

impl<S: AsyncRead + AsyncWrite + Unpin> Carry<S> {
    pub(super) async fn carry_on(&mut self) -> Result<Ended, CarryError> {
        if self.lost_client.is_none() {
            match poll_fn(|cx| self.poll_both(cx)).await {
                // A client may send its last request and close its socket, without reading what the guest sends. That may
                // be found here first.
                Err(CarryError::Client(error)) if !self.to_guest.has_ended => {
                    self.lost_client = Some(error);
                    // A guest that waits for room to write may not read.
                    self.stream.host().stop_reading();
                }
                Err(CarryError::Client(_)) if self.has_client_ended() => return Ok(Ended::Client),
                result => return result,
            }
        }
        // Lets the runtime notice what has reached the socket by now.
        yield_now().await;
        poll_fn(|cx| self.poll_last_bytes(cx)).await;
        match self.lost_client.take() {
            // A TCP socket that was reset says so once. A read then looks like an end, though bytes may be lost.
            Some(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(CarryError::Client(error))
            }
            Some(error) if !self.has_client_ended() => Err(CarryError::Client(error)),
            // The guest has all that the client wrote: an end like any other.
            _ => Ok(Ended::Client),
        }
    }

    /// The guest is hung up for this reason.
    fn has_client_ended(&self) -> bool {
        self.to_client.rest.is_some() && self.lost_guest.is_none()
    }

    /// Takes steps in both directions in turn, so that neither uses up the task's budget alone.
    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ended, CarryError>> {
        let (mut guest_waits, mut client_waits) = (false, false);
        while !(guest_waits && client_waits) {
            if !client_waits {
                client_waits = match self.poll_to_guest(cx) {
                    Poll::Ready(Err(CarryError::Guest(error))) => {
                        self.lost_guest = Some(error);
                        self.to_guest.has_ended = true;
                        // The client reads all that came before.
                        self.to_client.rest = Some(self.stream.host().unread());
                        true
                    }
                    polled => polled?.is_pending(),
                };
                // The end of this direction may end the other, too.
                guest_waits &= self.to_client.rest.is_none();
            }
            if !guest_waits {
                match self.poll_to_client(cx) {
                    Poll::Ready(Ok(None)) => {}
                    Poll::Ready(Ok(Some(ended))) => return Poll::Ready(Ok(ended)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => guest_waits = true,
                }
            }
        }
        Poll::Pending
    }

    /// After a write to the client has failed: carries what the client sends until it ends or pauses.
    fn poll_last_bytes(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.to_guest.has_ended {
            if ready!(self.poll_room(cx)).is_err() {
                break;
            }
            match self.poll_client(cx) {
                Poll::Ready(_) => {}
                Poll::Pending => {
                    // The socket waits for the client, unless the task has used up its budget.
                    drop(ready!(coop::poll_proceed(cx)));
                    break;
                }
            }
        }
        Poll::Ready(())
    }

    fn poll_to_guest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CarryError>> {
        ready!(self.poll_room(cx)).map_err(CarryError::Guest)?;
        self.poll_client(cx).map_err(CarryError::Client)
    }

    /// Writes to the stream what was read, and then waits for room, so that the client waits while the guest does not read.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let to_guest = &mut self.to_guest;
        while !to_guest.has_ended && !to_guest.unwritten().is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, to_guest.unwritten())) {
                Ok(written) => {
                    to_guest.range.start += written;
                    self.carried.to_guest += written as u64;
                }
                // No failure: the other direction comes to its end.
                Err(error) if is_guest_gone(&error) => to_guest.has_ended = true,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if to_guest.has_ended {
            return Poll::Ready(Ok(()));
        }
        self.stream.poll_write_ready(cx)
    }

    /// One read from the client.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let to_guest = &mut self.to_guest;
        if to_guest.has_ended {
            return Poll::Pending;
        }
        let mut buf = ReadBuf::new(&mut to_guest.buf);
        let read = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf));
        to_guest.range = 0..buf.filled().len();
        // Also by a failure: what is read after it may look like an end.
        to_guest.has_ended = read.is_err() || to_guest.range.is_empty();
        read?;
        if to_guest.has_ended {
            if self.hangs_up {
                self.stream.hang_up();
                // The guest can write no more. What it had written by now still goes to the client.
                self.to_client.rest = Some(self.stream.host().unread());
            } else {
                self.stream.host().shut_down();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// One write to the client, or the end.
    fn poll_to_client(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Ended>, CarryError>> {
        let (to_client, mut socket) = (&mut self.to_client, Pin::new(&mut self.socket));
        to_client.take_chunks(&self.stream, cx);
        if !to_client.chunks.is_empty() {
            let written = ready!(to_client.poll_write(socket, cx)).map_err(CarryError::Client)?;
            if written == 0 {
                let error = io::ErrorKind::WriteZero.into();
                return Poll::Ready(Err(CarryError::Client(error)));
            }
            self.carried.from_guest += written as u64;
            return Poll::Ready(Ok(None));
        }
        if to_client.needs_flush {
            ready!(socket.as_mut().poll_flush(cx)).map_err(CarryError::Client)?;
            to_client.needs_flush = false;
        }
        match to_client.end.take() {
            None => Poll::Pending,
            Some(Err(error)) => Poll::Ready(Err(CarryError::Guest(error))),
            Some(Ok(ended)) => {
                if let Some(error) = self.lost_guest.take() {
                    return Poll::Ready(Err(CarryError::Guest(error)));
                }
                to_client.end = Some(Ok(ended));
                ready!(socket.poll_shutdown(cx)).map_err(CarryError::Client)?;
                Poll::Ready(Ok(Some(ended)))
            }
        }
    }
}

fn is_guest_gone(error: &io::Error) -> bool {
    let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
    matches!(reason, Some(Error::GuestGone))
}

//! The bytes that were taken from one side and are not yet written to the other.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use super::Ended;
use crate::error::Error;
use crate::stream::AgentStream;

/// The most chunks that one write to the client gathers.
const MOST_CHUNKS: usize = 16;

/// No further chunk is taken from the ring once this many bytes wait for the client.
const ENOUGH_FOR_A_WRITE: usize = 256 * 1024;

/// The most bytes that are read from the client at once: a chunk of the ring.
const READ_SIZE: usize = 64 * 1024;

/// The guest's bytes that are on the way to the client.
#[derive(Default)]
pub(super) struct ToClient {
    pub(super) chunks: VecDeque<Bytes>,
    /// The bytes of all chunks.
    length: usize,
    pub(super) needs_flush: bool,
    /// Once nothing more goes to the guest: how many bytes are still to be taken from the ring.
    pub(super) rest: Option<usize>,
    /// What comes after the chunks.
    pub(super) end: Option<io::Result<Ended>>,
}

impl fmt::Debug for ToClient {
    /// Shows no payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.length)
    }
}

impl ToClient {
    pub(super) fn new() -> Self {
        Self {
            // The socket may hold what was written to it before, such as by a carry that was taken apart.
            needs_flush: true,
            ..Self::default()
        }
    }

    /// Takes what one write can use.
    pub(super) fn take_chunks(&mut self, stream: &AgentStream, cx: &mut Context<'_>) {
        while self.end.is_none()
            && self.chunks.len() < MOST_CHUNKS
            && self.length < ENOUGH_FOR_A_WRITE
        {
            if self.rest == Some(0) {
                self.end = Some(Ok(Ended::Client));
                return;
            }
            match stream.host().poll_read_bytes(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(error)) => self.end = Some(Err(error)),
                Poll::Ready(Ok(chunk)) if chunk.is_empty() => {
                    // Closed by a `PortHandle`: the guest has not ended.
                    let is_closed = stream.host().is_closed();
                    self.end = Some(if is_closed {
                        Err(Error::ShutDown.into())
                    } else {
                        Ok(Ended::Guest)
                    });
                }
                Poll::Ready(Ok(chunk)) => {
                    self.rest = self.rest.map(|rest| rest.saturating_sub(chunk.len()));
                    self.length += chunk.len();
                    self.chunks.push_back(chunk);
                }
            }
        }
    }

    /// Writes from the front of the chunks, and drops those that are written.
    pub(super) fn poll_write(
        &mut self,
        socket: Pin<&mut impl AsyncWrite>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); MOST_CHUNKS];
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
        }
        let written = ready!(if socket.is_write_vectored() {
            let filled = self.chunks.len().min(MOST_CHUNKS);
            socket.poll_write_vectored(cx, &slices[..filled])
        } else {
            socket.poll_write(cx, &slices[0])
        })?;
        self.needs_flush = true;
        self.length = self.length.saturating_sub(written);
        let mut written_of_rest = written;
        while let Some(chunk) = self.chunks.front_mut().filter(|_| written_of_rest > 0) {
            let now = written_of_rest.min(chunk.len());
            written_of_rest -= now;
            if now < chunk.len() {
                chunk.advance(now);
            } else {
                self.chunks.pop_front();
            }
        }
        Poll::Ready(Ok(written))
    }
}

/// The client's bytes that are on the way to the guest.
pub(super) struct ToGuest {
    pub(super) buf: Box<[u8]>,
    /// What of `buf` is not written yet.
    pub(super) range: Range<usize>,
    /// Nothing more is read from the client.
    pub(super) has_ended: bool,
}

impl fmt::Debug for ToGuest {
    /// Shows no payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.range.len())
    }
}

impl Default for ToGuest {
    fn default() -> Self {
        Self {
            buf: vec![0; READ_SIZE].into(),
            range: 0..0,
            has_ended: false,
        }
    }
}

impl ToGuest {
    pub(super) fn unwritten(&self) -> &[u8] {
        &self.buf[self.range.clone()]
    }
}

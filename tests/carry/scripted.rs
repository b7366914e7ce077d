//! A client's socket that does what a test says.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read from the socket next.
pub(crate) enum Read {
    Bytes(Vec<u8>),
    /// As many bytes as are asked for, again and again.
    Flood,
    End,
    Error(io::ErrorKind),
}

/// What happens to the next write.
#[derive(Clone, Copy)]
pub(crate) enum Write {
    /// It takes at most this many bytes.
    Takes(usize),
    Error(io::ErrorKind),
}

/// What the test does with the socket, and what it sees.
#[derive(Default)]
pub(crate) struct Script {
    /// When it is empty, a read waits.
    pub(crate) reads: VecDeque<Read>,
    /// When it is empty, a write takes everything.
    pub(crate) writes: VecDeque<Write>,
    /// Writes wait.
    pub(crate) is_full: bool,
    /// Flushes wait.
    pub(crate) is_slow: bool,
    pub(crate) is_vectored: bool,
    /// What was written and flushed.
    pub(crate) arrived: Vec<u8>,
    pub(crate) unflushed: Vec<u8>,
    /// The number of buffers in each write.
    pub(crate) buffers: Vec<usize>,
    pub(crate) is_shut_down: bool,
    wakers: Vec<Waker>,
}

#[derive(Clone, Default)]
pub(crate) struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    /// Changes the script, and wakes the carry.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        let mut script = self.0.lock().unwrap();
        let result = change(&mut script);
        let wakers = std::mem::take(&mut script.wakers);
        drop(script);
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    pub(crate) fn reads(&self, reads: impl IntoIterator<Item = Read>) {
        self.with(|script| script.reads.extend(reads));
    }

    pub(crate) fn arrived(&self) -> Vec<u8> {
        self.0.lock().unwrap().arrived.clone()
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut script = self.0.lock().unwrap();
        match script.reads.pop_front() {
            None => {
                script.wakers.push(cx.waker().clone());
                return Poll::Pending;
            }
            Some(Read::Bytes(mut bytes)) => {
                let rest = bytes.split_off(bytes.len().min(buf.remaining()));
                buf.put_slice(&bytes);
                if !rest.is_empty() {
                    script.reads.push_front(Read::Bytes(rest));
                }
            }
            Some(Read::Flood) => {
                buf.initialize_unfilled();
                buf.advance(buf.remaining());
                script.reads.push_front(Read::Flood);
            }
            Some(Read::End) => script.reads.push_front(Read::End),
            Some(Read::Error(kind)) => return Poll::Ready(Err(kind.into())),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut script = self.0.lock().unwrap();
        if script.is_full {
            script.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        script.buffers.push(bufs.len());
        let most = match script.writes.pop_front() {
            None => usize::MAX,
            Some(Write::Takes(most)) => most,
            Some(Write::Error(kind)) => return Poll::Ready(Err(kind.into())),
        };
        let bytes: Vec<u8> = bufs
            .iter()
            .flat_map(|buf| buf.iter().copied())
            .take(most)
            .collect();
        script.unflushed.extend_from_slice(&bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().unwrap().is_vectored
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let script = &mut *self.0.lock().unwrap();
        if script.is_slow {
            script.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        script.arrived.append(&mut script.unflushed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().unwrap().is_shut_down = true;
        Poll::Ready(Ok(()))
    }
}

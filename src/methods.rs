//! The methods that the stream and its halves have in common, written and documented once. Each
//! type gives `self.host()`.

macro_rules! read_methods {
    () => {
        /// Waits until there is something to read, or the end of the file.
        ///
        /// Usually followed by [`try_read`](Self::try_read). It may return although a read then
        /// finds nothing, if another task was faster. Any number of tasks may wait; all are woken.
        ///
        /// # Errors
        ///
        /// If the stream's runtime has shut down.
        ///
        /// # Cancel safety
        ///
        /// Cancel safe: nothing is read.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::io::ErrorKind;
        ///
        /// # use tokio::io::AsyncWriteExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let mut agent = guest.open()?;
        /// agent.write_all(b"hello").await?;
        /// let mut buf = [0; 64];
        /// let read = loop {
        ///     stream.readable().await?;
        ///     match stream.try_read(&mut buf) {
        ///         Err(error) if error.kind() == ErrorKind::WouldBlock => {} // another task was faster
        ///         read => break read?,
        ///     }
        /// };
        /// assert_eq!(&buf[..read], b"hello");
        /// # Ok(()) }
        /// ```
        pub async fn readable(&self) -> std::io::Result<()> {
            self.ready(tokio::io::Interest::READABLE).await.map(drop)
        }

        /// Polls for something to read, or the end of the file. Wakes the last task that polled
        /// for reading, by this or by a read.
        ///
        /// # Errors
        ///
        /// If the stream's runtime has shut down.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::future::poll_fn;
        /// use std::task::Poll;
        ///
        /// # use tokio::io::AsyncWriteExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (quiet, _port) = AgentStream::pair()?;
        /// # let (stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let mut agent = guest.open()?;
        /// // Which of several agents has something to say?
        /// let streams = [quiet, stream];
        /// agent.write_all(b"hello").await?;
        /// let speaks = poll_fn(|cx| {
        ///     let ready = |stream: &AgentStream| stream.poll_read_ready(cx).is_ready();
        ///     streams.iter().position(ready).map_or(Poll::Pending, Poll::Ready)
        /// });
        /// assert_eq!(speaks.await, 1);
        /// # Ok(()) }
        /// ```
        pub fn poll_read_ready(
            &self,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            self.host().poll_read_ready(cx)
        }

        /// Reads what there is, without waiting, across chunks. `Ok(0)` is the end of the file, or
        /// an empty `buf`.
        ///
        /// # Errors
        ///
        /// [`WouldBlock`](std::io::ErrorKind::WouldBlock) if there is nothing yet.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::io::ErrorKind;
        ///
        /// # use tokio::io::AsyncWriteExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let mut agent = guest.open()?;
        /// let mut buf = [0; 64];
        /// let nothing = stream.try_read(&mut buf).unwrap_err();
        /// assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        ///
        /// agent.write_all(b"two ").await?;
        /// agent.write_all(b"writes").await?;
        /// guest.drained().await;
        /// let read = stream.try_read(&mut buf)?;
        /// assert_eq!(&buf[..read], b"two writes");
        /// # Ok(()) }
        /// ```
        pub fn try_read(&self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.host().try_read(buf)
        }

        /// As [`try_read`](Self::try_read), into a buffer that advances and may grow. One call reads no more
        /// than it has room for without growing; a buffer without room grows first (a `Vec` or `BytesMut`
        /// by 64 bytes), so give it the capacity that a read is to have.
        ///
        /// # Errors
        ///
        /// [`WouldBlock`](std::io::ErrorKind::WouldBlock) if there is nothing yet.
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
        /// let mut received = Vec::new();
        /// for part in ["comes in ", "two parts"] {
        ///     agent.write_all(part.as_bytes()).await?;
        ///     guest.drained().await;
        ///     stream.try_read_buf(&mut received)?;
        /// }
        /// assert_eq!(received, b"comes in two parts");
        /// # Ok(()) }
        /// ```
        pub fn try_read_buf<B: bytes::BufMut>(&self, buf: &mut B) -> std::io::Result<usize> {
            self.host().try_read_buf(buf)
        }

        /// As [`try_read`](Self::try_read), into several buffers, one after another.
        ///
        /// # Errors
        ///
        /// [`WouldBlock`](std::io::ErrorKind::WouldBlock) if there is nothing yet.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::io::IoSliceMut;
        ///
        /// # use tokio::io::AsyncWriteExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let mut agent = guest.open()?;
        /// agent.write_all(b"\0\x05hello").await?;
        /// guest.drained().await;
        ///
        /// let (mut header, mut body) = ([0; 2], [0; 64]);
        /// let mut bufs = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut body)];
        /// assert_eq!(stream.try_read_vectored(&mut bufs)?, 7);
        /// assert_eq!(u16::from_be_bytes(header), 5);
        /// assert_eq!(&body[..5], b"hello");
        /// # Ok(()) }
        /// ```
        pub fn try_read_vectored(
            &self,
            bufs: &mut [std::io::IoSliceMut<'_>],
        ) -> std::io::Result<usize> {
            self.host().try_read_vectored(bufs)
        }

        /// Waits until the guest has opened its port.
        ///
        /// krun does not tell. It starts its worker threads when a program in the guest opens the
        /// port for the first time, so this is the first call of one of them; what was written
        /// before is kept. Whether the port is still open cannot be seen.
        ///
        /// On Windows there is nothing to see but that krun has opened the pipe, which it does when
        /// the VM starts.
        ///
        /// # Errors
        ///
        /// [`BrokenPipe`](std::io::ErrorKind::BrokenPipe) if the guest has gone without opening
        /// it; or if the stream's runtime has shut down.
        ///
        /// # Cancel safety
        ///
        /// Cancel safe.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::io::ErrorKind;
        /// use std::time::Duration;
        ///
        /// use tokio::time::timeout;
        ///
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// let (stream, port) = AgentStream::pair()?;
        /// let guest = Guest::boot(port);
        /// let agent = guest.open()?;
        /// timeout(Duration::from_secs(60), stream.guest_opened()).await??;
        ///
        /// // A VM that ends before its agent has started.
        /// let (stream, port) = AgentStream::pair()?;
        /// drop(Guest::boot(port));
        /// let error = stream.guest_opened().await.unwrap_err();
        /// assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        /// # Ok(()) }
        /// ```
        pub async fn guest_opened(&self) -> std::io::Result<()> {
            self.host().guest_opened().await
        }

        /// Whether the guest has opened its port; see [`guest_opened`](Self::guest_opened).
        ///
        /// # Examples
        ///
        /// ```
        /// use std::time::Duration;
        ///
        /// use tokio::time::timeout;
        ///
        /// # use tokio::io::AsyncReadExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (mut stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// let limit = Duration::from_millis(20);
        /// if timeout(limit, stream.read_u8()).await.is_err() {
        ///     let why = match stream.has_guest_opened() {
        ///         true => "the agent does not answer",
        ///         false => "the agent has not opened its port",
        ///     };
        ///     assert_eq!(why, "the agent has not opened its port");
        /// }
        /// # Ok(()) }
        /// ```
        #[must_use]
        pub fn has_guest_opened(&self) -> bool {
            self.host().shared().host_sees_guest() == Some(true)
        }
    };
}

macro_rules! write_methods {
    () => {
        /// Waits until there is room to write, or the stream takes no more.
        ///
        /// Usually followed by [`try_write`](Self::try_write). It may return although a write then
        /// finds no room, if another task was faster. Any number of tasks may wait; all are woken,
        /// once half of the capacity is free.
        ///
        /// # Errors
        ///
        /// If the stream's runtime has shut down.
        ///
        /// # Cancel safety
        ///
        /// Cancel safe: nothing is written.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::io::ErrorKind;
        ///
        /// # use tokio::io::AsyncReadExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let mut agent = guest.open()?;
        /// let mut rest = &b"request"[..];
        /// while !rest.is_empty() {
        ///     stream.writable().await?;
        ///     match stream.try_write(rest) {
        ///         Err(error) if error.kind() == ErrorKind::WouldBlock => {} // another task was faster
        ///         written => rest = &rest[written?..],
        ///     }
        /// }
        /// let mut received = [0; 7];
        /// agent.read_exact(&mut received).await?;
        /// assert_eq!(&received, b"request");
        /// # Ok(()) }
        /// ```
        pub async fn writable(&self) -> std::io::Result<()> {
            self.ready(tokio::io::Interest::WRITABLE).await.map(drop)
        }

        /// Polls for room to write. Wakes the last task that polled for writing, by this or by a
        /// write.
        ///
        /// # Errors
        ///
        /// If the stream's runtime has shut down.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::future::poll_fn;
        /// use std::task::Poll;
        ///
        /// # use tokio_krun::AgentStream;
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (busy, _busy_port) = AgentStream::pair()?;
        /// # let (idle, _idle_port) = AgentStream::pair()?;
        /// // Which of several agents can take more work?
        /// while busy.try_write(&[0; 64 * 1024]).is_ok() {}
        /// let streams = [busy, idle];
        /// let takes_more = poll_fn(|cx| {
        ///     let ready = |stream: &AgentStream| stream.poll_write_ready(cx).is_ready();
        ///     streams.iter().position(ready).map_or(Poll::Pending, Poll::Ready)
        /// });
        /// assert_eq!(takes_more.await, 1);
        /// # Ok(()) }
        /// ```
        pub fn poll_write_ready(
            &self,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            self.host().poll_write_ready(cx)
        }

        /// Writes what there is room for, without waiting.
        ///
        /// # Errors
        ///
        /// - [`WouldBlock`](std::io::ErrorKind::WouldBlock) if there is no room.
        /// - [`BrokenPipe`](std::io::ErrorKind::BrokenPipe) if the stream was shut down or hung
        ///   up, or the guest has gone.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::io::ErrorKind;
        ///
        /// use tokio_krun::{AgentStream, Options};
        ///
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// let (stream, port) = AgentStream::pair()?;
        /// let message = vec![0; 5 * 1024 * 1024];
        /// let written = stream.try_write(&message)?;
        /// assert_eq!(written, Options::DEFAULT_CAPACITY);
        ///
        /// // Nobody in the guest reads yet.
        /// let error = stream.try_write(&message[written..]).unwrap_err();
        /// assert_eq!(error.kind(), ErrorKind::WouldBlock);
        /// # Ok(()) }
        /// ```
        pub fn try_write(&self, buf: &[u8]) -> std::io::Result<usize> {
            self.try_write_vectored(&[std::io::IoSlice::new(buf)])
        }

        /// As [`try_write`](Self::try_write), from several buffers, one after another.
        ///
        /// # Errors
        ///
        /// As for [`try_write`](Self::try_write).
        ///
        /// # Examples
        ///
        /// ```
        /// use std::io::IoSlice;
        ///
        /// # use tokio::io::AsyncReadExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let mut agent = guest.open()?;
        /// let body = b"hello";
        /// let header = (body.len() as u16).to_be_bytes();
        /// let bufs = [IoSlice::new(&header), IoSlice::new(body)];
        /// assert_eq!(stream.try_write_vectored(&bufs)?, 7);
        ///
        /// let mut received = [0; 7];
        /// agent.read_exact(&mut received).await?;
        /// assert_eq!(&received, b"\0\x05hello");
        /// # Ok(()) }
        /// ```
        pub fn try_write_vectored(&self, bufs: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
            self.host().try_write(bufs)
        }

        /// Waits until the guest's device has taken everything that was written before this call:
        /// what `tcdrain(3)` is to a terminal.
        /// The call is its first poll, as of each `async` function.
        ///
        /// Flushing does not wait for that; see [Flushing](crate::AgentStream#flushing). It still
        /// does not say that a program in the guest has read it: bytes taken may lie in the
        /// buffers of the guest's kernel, and krun takes them also while the port is closed.
        ///
        /// # Errors
        ///
        /// [`BrokenPipe`](std::io::ErrorKind::BrokenPipe) if the guest has gone; or if the stream's
        /// runtime has shut down.
        ///
        /// # Cancel safety
        ///
        /// Cancel safe.
        ///
        /// # Examples
        ///
        /// ```
        /// # use tokio::io::AsyncWriteExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (mut stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let agent = guest.open()?;
        /// stream.write_all(b"prepare for a checkpoint").await?;
        /// stream.drained().await?;
        /// // Nothing of it is left on this side.
        /// assert_eq!(stream.stats().rx.queued, 0);
        /// # Ok(()) }
        /// ```
        pub async fn drained(&self) -> std::io::Result<()> {
            self.host().drained().await
        }

        /// Hangs up: the guest reads everything that was written and then the end of the file, for
        /// good. Returns at once; further writes fail with
        /// [`BrokenPipe`](std::io::ErrorKind::BrokenPipe).
        ///
        /// Reads go on, but the guest's kernel lets it write no more: a blocking write in the guest
        /// does not return. A conversation is ended without that by `shutdown`, or by the two ends'
        /// own protocol.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::io::ErrorKind;
        ///
        /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (mut stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let mut agent = guest.open()?;
        /// stream.write_all(b"goodbye").await?;
        /// stream.hang_up();
        ///
        /// let mut heard = String::new();
        /// agent.read_to_string(&mut heard).await?; // to the end of the file
        /// assert_eq!(heard, "goodbye");
        /// let error = stream.write_all(b"one more thing").await.unwrap_err();
        /// assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        /// # Ok(()) }
        /// ```
        pub fn hang_up(&mut self) {
            self.host().shared().host_hang_up();
        }
    };
}

macro_rules! common_methods {
    () => {
        /// Waits until the stream is ready in one of the ways of `interest`, and says in which.
        ///
        /// As for tokio's streams, being ready includes having ended: a read or write then returns
        /// at once, with the end of the file or an error.
        ///
        /// # Errors
        ///
        /// If the stream's runtime has shut down;
        /// [`InvalidInput`](std::io::ErrorKind::InvalidInput) if `interest` is in neither reading nor
        /// writing, as nothing else ever happens here.
        ///
        /// # Cancel safety
        ///
        /// Cancel safe: nothing is read or written.
        ///
        /// # Examples
        ///
        /// ```
        /// use tokio::io::Interest;
        ///
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let agent = guest.open()?;
        /// let ready = stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
        /// assert!(ready.is_writable() && !ready.is_readable()); // the agent has said nothing yet
        ///
        /// guest.power_off().await;
        /// let ready = stream.ready(Interest::READABLE).await?;
        /// assert!(ready.is_read_closed());
        /// # Ok(()) }
        /// ```
        pub async fn ready(
            &self,
            interest: tokio::io::Interest,
        ) -> std::io::Result<tokio::io::Ready> {
            self.host().ready(interest).await
        }

        /// What the rings have done so far.
        ///
        /// # Examples
        ///
        /// ```
        /// # use tokio::io::AsyncWriteExt;
        /// # use tokio_krun::{AgentStream, test_util::Guest};
        /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
        /// # let (mut stream, port) = AgentStream::pair()?;
        /// # let guest = Guest::boot(port);
        /// # let agent = guest.open()?;
        /// stream.write_all(b"request").await?;
        /// stream.drained().await?;
        /// let stats = stream.stats();
        /// assert_eq!(stats.rx.bytes, 7); // to the guest, which has taken them
        /// assert_eq!(stats.rx.queued, 0);
        /// assert_eq!(stats.tx.bytes, 0); // no answer yet
        /// # Ok(()) }
        /// ```
        #[must_use]
        pub fn stats(&self) -> crate::Stats {
            self.host().shared().stats()
        }
    };
}

/// `AsyncRead` and `AsyncBufRead` for a type with `host()` and a field `peeked`.
macro_rules! impl_read {
    ($type:ty) => {
        impl crate::chunks::ReadChunks for $type {}

        impl tokio::io::AsyncRead for $type {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                self.host().poll_read(cx, buf)
            }
        }

        impl tokio::io::AsyncBufRead for $type {
            fn poll_fill_buf(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<&[u8]>> {
                let this = self.get_mut();
                this.peeked = std::task::ready!(this.host().poll_peek(cx))?;
                std::task::Poll::Ready(Ok(&this.peeked))
            }

            fn consume(self: std::pin::Pin<&mut Self>, amount: usize) {
                let this = self.get_mut();
                // Before the ring lets go of it, so that its storage returns to the ring now.
                this.peeked = bytes::Bytes::new();
                this.host().shared().host_consume(amount);
            }
        }
    };
}

/// `AsyncWrite` for a type with `host()`.
macro_rules! impl_write {
    ($type:ty) => {
        impl crate::chunks::WriteChunks for $type {}

        impl tokio::io::AsyncWrite for $type {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                self.host().poll_write(cx, &[std::io::IoSlice::new(buf)])
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                self.host().poll_write(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                _cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                _cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                self.host().shared().host_shut_down();
                std::task::Poll::Ready(Ok(()))
            }
        }
    };
}

macro_rules! impl_as_host {
    ($type:ty) => {
        impl crate::chunks::sealed::AsHost for $type {
            fn as_host(&self) -> &crate::host::Host {
                self.host()
            }
        }
    };
}

pub(crate) use {common_methods, impl_as_host, impl_read, impl_write, read_methods, write_methods};

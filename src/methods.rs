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
        pub async fn readable(&self) -> std::io::Result<()> {
            self.ready(tokio::io::Interest::READABLE).await.map(drop)
        }

        /// Polls for something to read, or the end of the file. Wakes the last task that polled
        /// for reading, by this or by a read.
        ///
        /// # Errors
        ///
        /// If the stream's runtime has shut down.
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
        pub fn try_read(&self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.host().try_read(buf)
        }

        /// As [`try_read`](Self::try_read), into a buffer that advances and may grow.
        ///
        /// # Errors
        ///
        /// [`WouldBlock`](std::io::ErrorKind::WouldBlock) if there is nothing yet.
        pub fn try_read_buf<B: bytes::BufMut>(&self, buf: &mut B) -> std::io::Result<usize> {
            self.host().try_read_buf(buf)
        }

        /// As [`try_read`](Self::try_read), into several buffers, one after another.
        ///
        /// # Errors
        ///
        /// [`WouldBlock`](std::io::ErrorKind::WouldBlock) if there is nothing yet.
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
        pub async fn guest_opened(&self) -> std::io::Result<()> {
            self.host().guest_opened().await
        }

        /// Whether the guest has opened its port; see [`guest_opened`](Self::guest_opened).
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
        pub async fn writable(&self) -> std::io::Result<()> {
            self.ready(tokio::io::Interest::WRITABLE).await.map(drop)
        }

        /// Polls for room to write. Wakes the last task that polled for writing, by this or by a
        /// write.
        ///
        /// # Errors
        ///
        /// If the stream's runtime has shut down.
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
        pub fn try_write(&self, buf: &[u8]) -> std::io::Result<usize> {
            self.try_write_vectored(&[std::io::IoSlice::new(buf)])
        }

        /// As [`try_write`](Self::try_write), from several buffers, one after another.
        ///
        /// # Errors
        ///
        /// As for [`try_write`](Self::try_write).
        pub fn try_write_vectored(&self, bufs: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
            self.host().try_write(bufs)
        }

        /// Waits until the guest's device has taken everything that was written before this call:
        /// what `tcdrain(3)` is to a terminal.
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
        pub async fn ready(
            &self,
            interest: tokio::io::Interest,
        ) -> std::io::Result<tokio::io::Ready> {
            self.host().ready(interest).await
        }

        /// What the rings have done so far.
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

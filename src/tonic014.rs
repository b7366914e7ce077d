//! The ends of the channel as connections of a tonic server.
//!
//! A client needs nothing of this: its connector gives tonic the stream, once, in hyper-util's `TokioIo`.
//!
//! ```
//! use std::future::ready;
//! use std::io;
//!
//! use hyper_util::rt::TokioIo;
//! use tokio_krun::AgentStream;
//! use tonic::transport::{Channel, Endpoint, Error};
//! use tower::service_fn;
//!
//! async fn connect(stream: AgentStream) -> Result<Channel, Error> {
//!     let mut stream = Some(stream);
//!     let connector = service_fn(move |_| {
//!         let io = stream.take().map(TokioIo::new);
//!         ready(io.ok_or(io::Error::from(io::ErrorKind::NotConnected)))
//!     });
//!     // The address is for the headers alone.
//!     Endpoint::from_static("http://agent").connect_with_connector(connector).await
//! }
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let (stream, port) = AgentStream::pair().unwrap();
//! # assert!(connect(stream).await.is_ok());
//! # drop(port);
//! # }
//! ```

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tonic::transport::server::Connected;

use crate::stream::AgentStream;

/// What a tonic server accepts on the channel: one connection, and the end when that has ended.
///
/// So [`serve_with_incoming`](tonic::transport::Server::serve_with_incoming) serves for as long as
/// the other end is there, and then returns. With a plain stream of one connection it would return as
/// soon as it had taken it, and a program that ends then would cut the connection off.
///
/// It is for either side: an [`AgentStream`] on the host, a
/// [`VirtioPort`](https://docs.rs/tokio-krun/latest/tokio_krun/agent/struct.VirtioPort.html) in the guest.
///
/// # Examples
///
/// ```no_run
/// # async fn serve<S>(service: S, stream: tokio_krun::AgentStream) -> Result<(), tonic::transport::Error>
/// # where
/// #     S: tower::Service<hyper::Request<tonic::body::Body>, Response = hyper::Response<tonic::body::Body>>
/// #         + Clone + Send + 'static,
/// #     S::Future: Send,
/// #     S::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
/// # {
/// use tokio_krun::tonic014::Incoming;
/// use tonic::transport::Server;
///
/// Server::builder()
///     .serve_with_incoming(service, Incoming::new(stream))
///     .await
/// # }
/// ```
#[derive(Debug)]
#[must_use = "it does nothing unless a server takes it"]
pub struct Incoming<T> {
    connection: Option<Connection<T>>,
    ended: Option<oneshot::Receiver<Infallible>>,
}

impl<T> Incoming<T> {
    /// The one connection is `io`.
    ///
    /// # Examples
    ///
    /// ```
    /// use futures::StreamExt;
    /// use tokio_krun::AgentStream;
    /// use tokio_krun::tonic014::Incoming;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
    /// let (stream, port) = AgentStream::pair()?;
    /// let mut incoming = Incoming::new(stream);
    /// let connection = incoming.next().await;
    /// assert!(connection.is_some());
    /// // No other comes, and the end only when this one is dropped.
    /// drop(connection);
    /// assert!(incoming.next().await.is_none());
    /// # Ok(()) }
    /// ```
    pub fn new(io: T) -> Self {
        let (open, ended) = oneshot::channel();
        Self {
            connection: Some(Connection { io, _open: open }),
            ended: Some(ended),
        }
    }
}

impl<T: Unpin> Stream for Incoming<T> {
    type Item = Result<Connection<T>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(connection) = this.connection.take() {
            return Poll::Ready(Some(Ok(connection)));
        }
        if let Some(ended) = &mut this.ended {
            // Nothing is ever sent: an error says that the connection was dropped.
            let _ = ready!(Pin::new(ended).poll(cx));
            this.ended = None;
        }
        Poll::Ready(None)
    }
}

/// The connection of an [`Incoming`]: `T` itself, and its end is noticed.
///
/// # Examples
///
/// ```
/// use futures::StreamExt;
/// use tokio::io::AsyncWriteExt;
/// use tokio_krun::AgentStream;
/// use tokio_krun::tonic014::Incoming;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
/// let (stream, port) = AgentStream::pair()?;
/// let Some(Ok(mut connection)) = Incoming::new(stream).next().await else {
///     panic!("there is one");
/// };
/// connection.write_all(b"to the guest").await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Connection<T> {
    io: T,
    /// Dropped with it.
    _open: oneshot::Sender<Infallible>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: Connected> Connected for Connection<T> {
    type ConnectInfo = T::ConnectInfo;

    fn connect_info(&self) -> T::ConnectInfo {
        self.io.connect_info()
    }
}

/// There is nothing to tell: the one peer is the VM's guest.
impl Connected for AgentStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// There is nothing to tell: the one peer is the VM's host.
#[cfg(all(feature = "agent", target_os = "linux", not(tokio_krun_loom)))]
impl Connected for crate::agent::VirtioPort {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// For a test of a server that runs in a guest.
#[cfg(feature = "test-util")]
impl Connected for crate::test_util::GuestPort {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

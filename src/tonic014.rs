//! gRPC over the port: [`Incoming`] gives a tonic 0.14 server its one connection.
//!
//! A server takes a stream of connections, and there is only one connection here. Given a plain stream
//! of one connection, tonic's `serve_with_incoming` returns as soon as it has accepted that connection.
//! Your program would then end under a connection that is still open. [`Incoming`] ends only when the
//! connection has ended. Its own page shows a server.
//!
//! The feature is called `tonic014` so that the next tonic can stand beside it.
//!
//! # Clients
//!
//! A client needs neither `Incoming` nor this feature. Its connector wraps the stream in hyper-util's
//! `TokioIo` and gives it to tonic once:
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
//!     // tonic only puts this address into the headers.
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

/// The incoming connections of a tonic server: one connection, then the end once it has ended.
///
/// Pass it to tonic's
/// [`serve_with_incoming`](https://docs.rs/tonic/0.14/tonic/transport/server/struct.Server.html#method.serve_with_incoming).
/// That call then serves until the connection ends, and returns. With a plain stream of one connection,
/// it would return as soon as it has accepted that connection. If your program then ended, it would cut
/// the connection off.
///
/// It works on either side: with an [`AgentStream`] on the host, and with a
/// [`VirtioPort`](https://docs.rs/tokio-krun/latest/tokio_krun/agent/struct.VirtioPort.html) in the
/// guest.
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
#[must_use = "it does nothing until you pass it to a server"]
pub struct Incoming<T> {
    connection: Option<Connection<T>>,
    ended: Option<oneshot::Receiver<Infallible>>,
}

impl<T> Incoming<T> {
    /// Creates the incoming connections of a server whose one connection is `io`.
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
    /// // There is no second one. `incoming` ends once the first is dropped.
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
            // Nothing is ever sent, so this completes when the connection is dropped.
            let _ = ready!(Pin::new(ended).poll(cx));
            this.ended = None;
        }
        Poll::Ready(None)
    }
}

/// The connection that [`Incoming`] yields: a `T` whose drop ends the `Incoming`.
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
///     panic!("no connection");
/// };
/// connection.write_all(b"to the guest").await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Connection<T> {
    io: T,
    /// Closes when the connection is dropped; [`Incoming`] waits for that.
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

/// Has no connection information: the only peer is the VM's guest.
impl Connected for AgentStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Has no connection information: the only peer is the host.
#[cfg(any(feature = "test-util", all(feature = "agent", target_os = "linux")))]
impl Connected for crate::agent::VirtioPort {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

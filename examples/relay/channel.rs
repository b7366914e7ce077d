//! The host's end of the channel that the streams share.

use std::future::poll_fn;
use std::task::Poll;

use tokio::sync::{mpsc, oneshot};
use yamux::{Connection, ConnectionError, Stream};

/// All that moves on the channel moves in here: opens a stream for each who asks, and closes the channel when
/// nobody can ask any more.
pub async fn drive<T>(
    mut connection: Connection<T>,
    mut asked: mpsc::Receiver<oneshot::Sender<Stream>>,
) -> Result<(), ConnectionError>
where
    T: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    let mut next = None;
    poll_fn(|cx| {
        loop {
            if next.is_none() {
                match asked.poll_recv(cx) {
                    Poll::Ready(None) => return connection.poll_close(cx),
                    Poll::Ready(ask) => next = ask,
                    Poll::Pending => {}
                }
            }
            if next.is_some()
                && let Poll::Ready(stream) = connection.poll_new_outbound(cx)
                && let Some(ask) = next.take()
            {
                // Whoever asked may have gone: then the stream is dropped, and so closed.
                let _ = ask.send(stream?);
                continue;
            }
            match connection.poll_next_inbound(cx) {
                // The agent is not to open any.
                Poll::Ready(Some(Ok(uninvited))) => drop(uninvited),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

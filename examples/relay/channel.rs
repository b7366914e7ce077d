//! The host's end of the channel that all streams share.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tokio_krun::AgentStream;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, ConnectionError, DEFAULT_CREDIT, Mode, Stream};

use super::local;

/// A client's request for a stream.
pub type Request = oneshot::Sender<Stream>;

/// How many clients the relay serves at once. yamux opens at most 256 streams that the agent has not
/// answered yet, so this must be less.
pub const CLIENTS: usize = 128;

pub fn config() -> Config {
    // One stream too many ends the connection for all clients. A stream counts until its last frame
    // is sent, perhaps long after its client hung up. So leave room for the 256 unanswered streams,
    // for those that the agent has answered, and for more.
    const STREAMS: usize = 4 * CLIENTS;
    let mut config = Config::default();
    config.set_max_num_streams(STREAMS);
    // The minimum that yamux requires. More would let windows grow.
    config.set_max_connection_receive_window(Some(STREAMS * DEFAULT_CREDIT as usize));
    config
}

/// Moves all bytes of the channel. Opens a stream for each request, and closes the channel once every
/// sender of requests is dropped. Fails with `Closed` if the agent closes the channel first.
pub async fn drive(
    stream: AgentStream,
    mut requests: mpsc::Receiver<Request>,
    grace: Duration,
) -> Result<(), ConnectionError> {
    let mut connection = Connection::new(stream.compat(), config(), Mode::Client);
    let mut next = None;
    poll_fn(|cx| {
        loop {
            // This comes first, because it also removes streams that have ended. A new stream is first
            // polled in the next turn.
            match connection.poll_next_inbound(cx)? {
                // The agent must not open streams.
                Poll::Ready(Some(uninvited)) => {
                    drop(uninvited);
                    continue;
                }
                Poll::Ready(None) if requests.is_closed() => return Poll::Ready(Ok(())),
                Poll::Ready(None) => return Poll::Ready(Err(ConnectionError::Closed)),
                Poll::Pending => {}
            }
            if next.is_none() {
                match requests.poll_recv(cx) {
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Ready(request) => next = request,
                    Poll::Pending => return Poll::Pending,
                }
            }
            let Poll::Ready(stream) = connection.poll_new_outbound(cx)? else {
                return Poll::Pending;
            };
            // If the client hung up meanwhile, this drops the stream, which closes it.
            let _ = next.take().map(|request: Request| request.send(stream));
        }
    })
    .await?;
    // An agent that does not read misses the close, so do not wait for it.
    let close = poll_fn(|cx| connection.poll_close(cx));
    let closed = tokio::time::timeout(grace, close).await;
    closed.map_err(io::Error::from)?
}

/// Copies between a client and its stream. An error affects no other client. Dropping `client` closes
/// its connection.
pub async fn carry(mut client: local::Accepted, requests: mpsc::Sender<Request>) -> Option<()> {
    let (request, answer) = oneshot::channel();
    // Both fail once the agent has hung up.
    requests.send(request).await.ok()?;
    let mut stream = answer.await.ok()?.compat();
    // A stream's first data announces it to the agent; its end alone does not. So send an empty
    // write: the client may end its direction at once, or wait for the agent to speak first.
    let _nothing = stream.write(&[]).await.ok()?;
    let copied = local::copy(&mut client, &mut stream).await;
    drop(client);
    // Dropping the stream tells the agent to stop, unless this direction has already ended cleanly.
    // Then the agent would wait for room forever, so read and discard the rest.
    if copied.is_err() && stream.get_ref().is_write_closed() {
        tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .ok()?;
    }
    Some(())
}

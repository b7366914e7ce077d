//! The host's end of the channel that the streams share.

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

pub type Ask = oneshot::Sender<Stream>;

/// So many at once. yamux opens up to 256 streams that the agent has not said anything on: this must be less.
pub const CLIENTS: usize = 128;

pub fn config() -> Config {
    // One too many ends the connection for all, and a stream counts until its last frame is sent, which may be
    // long after its client has gone: so there is room for the 256, for those that the agent had answered, and more.
    const STREAMS: usize = 4 * CLIENTS;
    let mut config = Config::default();
    config.set_max_num_streams(STREAMS);
    // What there has to be; any more would let windows grow.
    config.set_max_connection_receive_window(Some(STREAMS * DEFAULT_CREDIT as usize));
    config
}

/// All that moves on the channel moves in here: opens a stream for each who asks, and closes the channel when
/// nobody can ask any more. `Closed` if the agent does so before.
pub async fn drive(
    stream: AgentStream,
    mut asked: mpsc::Receiver<Ask>,
    grace: Duration,
) -> Result<(), ConnectionError> {
    let mut connection = Connection::new(stream.compat(), config(), Mode::Client);
    let mut next = None;
    poll_fn(|cx| {
        loop {
            // First, as it also forgets the streams that are no more. A new stream is heard only in the next turn.
            match connection.poll_next_inbound(cx)? {
                // The agent is not to open any.
                Poll::Ready(Some(uninvited)) => {
                    drop(uninvited);
                    continue;
                }
                Poll::Ready(None) if asked.is_closed() => return Poll::Ready(Ok(())),
                Poll::Ready(None) => return Poll::Ready(Err(ConnectionError::Closed)),
                Poll::Pending => {}
            }
            if next.is_none() {
                match asked.poll_recv(cx) {
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Ready(ask) => next = ask,
                    Poll::Pending => return Poll::Pending,
                }
            }
            let Poll::Ready(stream) = connection.poll_new_outbound(cx)? else {
                return Poll::Pending;
            };
            // Whoever asked may have gone: then the stream is dropped, and so closed.
            let _ = next.take().map(|ask: Ask| ask.send(stream));
        }
    })
    .await?;
    // An agent that does not read does not hear it, and is not waited for.
    let close = poll_fn(|cx| connection.poll_close(cx));
    let closed = tokio::time::timeout(grace, close).await;
    closed.map_err(io::Error::from)?
}

/// Copies between a client and a stream of its own. An error is theirs alone; a client that is dropped sees its end.
pub async fn carry(mut client: local::Accepted, asks: mpsc::Sender<Ask>) -> Option<()> {
    let (ask, answer) = oneshot::channel();
    // Either fails when the agent has gone.
    asks.send(ask).await.ok()?;
    let mut stream = answer.await.ok()?.compat();
    // The agent hears of a stream with its first data, not with its end. So there is some, of no bytes: a client may
    // send nothing and end its direction, or wait for the agent to begin.
    let _nothing = stream.write(&[]).await.ok()?;
    let copied = local::copy(&mut client, &mut stream).await;
    drop(client);
    // Dropping the stream tells the agent to stop, but not if this direction has ended in order: then it would wait
    // for room for ever. So the rest is read, for nobody.
    if copied.is_err() && stream.get_ref().is_write_closed() {
        tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .ok()?;
    }
    Some(())
}

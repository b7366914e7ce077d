//! The agent in the guest: the same code in a VM and in-process.

use std::io;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use crate::protocol::{Answer, Ask, PART, Request, content, framed};

/// Answers requests until it is told to stop, or the host hangs up. Calls `begin` before it carries out a request.
///
/// # Errors
///
/// If the port fails, or the host sends what is no request.
pub async fn serve<P>(port: P, mut begin: impl FnMut(&Ask) -> io::Result<()>) -> io::Result<()>
where
    P: AsyncRead + AsyncWrite + Unpin,
{
    let mut frames = framed(port);
    let (mut requests, mut bytes) = (0, 0);
    while let Some(request) = frames.next().await.transpose()? {
        match Request::decode(&request)? {
            Request::Ask(ask) => {
                begin(&ask)?;
                // A sleep of no time takes a millisecond.
                if ask.work_ms > 0 {
                    sleep(Duration::from_millis(ask.work_ms.into())).await;
                }
                for offset in (0..ask.size as usize).step_by(PART) {
                    let len = PART.min(ask.size as usize - offset);
                    frames
                        .feed(Answer::Part(content(ask.key, offset, len)).encode())
                        .await?;
                }
                requests += 1;
                bytes += u64::from(ask.size);
                frames.send(Answer::Done.encode()).await?;
            }
            Request::Status => {
                frames
                    .send(Answer::Status { requests, bytes }.encode())
                    .await?
            }
            Request::Stop => {
                let words = format!("goodbye after {requests} requests");
                frames.send(Answer::Goodbye(words).encode()).await?;
                // A VM that powers off takes along what krun has not read yet. The host hangs up once it has the words.
                while frames.next().await.transpose()?.is_some() {}
                return Ok(());
            }
        }
    }
    Ok(())
}

//! One client's session.

use std::future::pending;
use std::time::Duration;
use std::{fmt, io};

use bytes::Buf;
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::timeout;
use tokio_util::codec::FramedRead;

use super::frame::{self, Frame, Kind, Lane};
use super::ports::Ports;
use super::queue::{Receiver, Sender, queue};

/// What a client may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of its data that wait for the agent.
    pub to_agent: usize,
    /// Bytes that wait for the client, from each port.
    pub to_client: usize,
    /// How long it may take nothing of what waits for it.
    pub stall: Duration,
}

/// Why a client has left.
#[derive(Debug)]
pub enum Left {
    /// It ended its connection between two frames.
    Finished,
    /// Its connection ended in the middle of a frame, or failed.
    Vanished(io::Error),
    /// It took nothing for this long and was cut off.
    Stalled(Duration),
    /// It broke the protocol and was cut off.
    Invalid(io::Error),
    /// It sent a frame that its port can never hold, and was cut off.
    TooLong { length: usize, capacity: usize },
    /// The agent made no room for its frame for this long.
    AgentStalled(Duration),
    /// The VM is ending. The client has received all that the agent had sent it.
    AgentGone,
    /// The port failed.
    Failed(io::Error),
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("it has finished"),
            Self::Vanished(error) => write!(f, "it has vanished: {error}"),
            Self::Stalled(limit) => write!(f, "it took nothing for {limit:?} and was cut off"),
            Self::Invalid(error) => write!(f, "it broke the protocol and was cut off: {error}"),
            Self::TooLong { length, capacity } => {
                write!(
                    f,
                    "it sent a frame of {length} bytes, and the port holds {capacity}"
                )
            }
            Self::AgentStalled(limit) => write!(f, "the agent made no room for {limit:?}"),
            Self::AgentGone => f.write_str("the VM is ending"),
            Self::Failed(error) => write!(f, "the port failed: {error}"),
        }
    }
}

/// What waits for the client.
pub struct Inbox {
    pub control: Receiver,
    pub data: Receiver,
}

/// Carries frames between the client and the agent until either has gone.
///
/// The session's three parts wait for different things, so none holds up another: the client's control frames pass its
/// own data that waits for the agent.
pub async fn serve<C>(number: u32, socket: C, limits: Limits, ports: Ports, inbox: Inbox) -> Left
where
    C: AsyncRead + AsyncWrite,
{
    let (from_client, to_client) = tokio::io::split(socket);
    let (sender, waiting) = queue(limits.to_agent);
    let to_agent = async {
        let parts = tokio::try_join!(
            receive(number, from_client, &ports, sender),
            forward(waiting, &ports)
        );
        match parts {
            Ok(_) => Left::Finished,
            // The agent's last words may still be on their way to the client.
            Err(Left::AgentGone) => pending().await,
            Err(left) => left,
        }
    };
    let left = tokio::select! {
        left = to_agent => left,
        left = send(inbox, to_client, limits.stall) => left,
    };
    // The agent need not work for this client any longer. If the agent has gone, nobody cares.
    let news = Frame::new(number, Kind::Left, left.to_string().as_bytes());
    let _ = ports.send(&news).await;
    left
}

/// Reads the client's frames, to the end of its direction. Passes control frames on, and queues data.
async fn receive<C: AsyncRead>(
    number: u32,
    from_client: ReadHalf<C>,
    ports: &Ports,
    data: Sender,
) -> Result<(), Left> {
    let mut frames = FramedRead::new(from_client, frame::codec());
    while let Some(bytes) = frames.next().await {
        let frame = bytes
            .and_then(Frame::try_from)
            .map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => Left::Invalid(error),
                _ => Left::Vanished(error),
            })?;
        if frame.client() != number || !matches!(frame.kind(), Kind::Control | Kind::Data) {
            let error = "this client may not send such a frame";
            return Err(Left::Invalid(io::Error::other(error)));
        }
        match frame.kind().lane() {
            Lane::Control => ports.send(&frame).await?,
            Lane::Data => drop(data.send(frame).await),
        }
    }
    Ok(())
}

/// Passes the client's data on to the agent.
async fn forward(mut data: Receiver, ports: &Ports) -> Result<(), Left> {
    while let Some(queued) = data.next().await {
        ports.send(&queued.frame).await?;
    }
    Ok(())
}

/// Writes what waits for the client, control frames first. A frame that has begun is finished first.
async fn send<C: AsyncWrite>(
    mut inbox: Inbox,
    mut to_client: WriteHalf<C>,
    stall: Duration,
) -> Left {
    loop {
        let queued = tokio::select! {
            biased;
            Some(queued) = inbox.control.next() => queued,
            Some(queued) = inbox.data.next() => queued,
            else => return Left::AgentGone,
        };
        let mut bytes = &queued.frame.bytes()[..];
        while bytes.has_remaining() {
            match timeout(stall, to_client.write_buf(&mut bytes)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0)) => return Left::Vanished(io::ErrorKind::WriteZero.into()),
                Ok(Err(error)) => return Left::Vanished(error),
                Err(_) => return Left::Stalled(stall),
            }
        }
    }
}

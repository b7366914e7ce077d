//! The two ports to the agent. Sessions share the writing halves; a task owns each reading half.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;
use tokio_krun::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::FramedRead;

use super::Clients;
use super::client::Left;
use super::frame::{self, Frame, Lane};

/// Towards the agent.
#[derive(Clone)]
pub struct Ports {
    pub control: Arc<OwnedWriteHalf>,
    pub data: Arc<OwnedWriteHalf>,
    /// How long the agent may leave no room for a frame.
    pub stall: Duration,
}

impl Ports {
    /// Sends the whole frame or nothing of it.
    ///
    /// Frames get their room in the order of these calls. So clients that send at once take turns.
    pub async fn send(&self, frame: &Frame) -> Result<(), Left> {
        let port = match frame.kind().lane() {
            Lane::Control => &self.control,
            Lane::Data => &self.data,
        };
        let length = frame.bytes().len();
        // If the limit passes, nothing was written and no room is held.
        let room = timeout(self.stall, port.reserve(length)).await;
        let room = room.map_err(|_| Left::AgentStalled(self.stall))?;
        room.and_then(|room| room.write_all_bytes(frame.bytes().clone()))
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => Left::AgentGone,
                io::ErrorKind::InvalidInput => Left::TooLong {
                    length,
                    capacity: port.capacity(),
                },
                _ => Left::Failed(error),
            })
    }
}

/// Gives the agent's frames to their clients, until the agent's end of file. Then returns its half, which keeps the
/// process alive until you drop it: see `AgentPort::exit_hook`.
pub async fn deliver(
    port: OwnedReadHalf,
    lane: Lane,
    clients: Clients,
) -> io::Result<OwnedReadHalf> {
    let mut frames = FramedRead::new(port, frame::codec());
    while let Some(bytes) = frames.next().await.transpose()? {
        let frame = Frame::try_from(bytes)?;
        if frame.kind().lane() != lane {
            let error = format!("a frame for {lane:?} on the wrong port: {:?}", frame.kind());
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        // A client that has left gets nothing.
        if let Some(outbox) = clients.outbox(frame.client(), lane) {
            // While this client's budget is used up, the other frames of this port wait too. Its stall limit bounds
            // that, and the other port goes on.
            let _has_left = !outbox.send(frame).await;
        }
    }
    Ok(frames.into_inner())
}

//! A queue of frames with a budget in bytes: its sender waits for room.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::frame::{Frame, MAX_FRAME};

/// What a frame takes of the budget is a multiple of this, so that small frames pay for their place in the queue.
const UNIT: usize = 4096;

/// Makes a queue. It has room for one frame of any size, even if `budget` is less.
pub fn queue(budget: usize) -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let units = budget.max(MAX_FRAME).div_ceil(UNIT);
    let room = Arc::new(Semaphore::new(units));
    let frames = Sender {
        frames: sender,
        room: Arc::clone(&room),
    };
    (
        frames,
        Receiver {
            frames: receiver,
            room,
        },
    )
}

#[derive(Clone)]
pub struct Sender {
    frames: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
}

impl Sender {
    /// Waits for room. Returns whether there is still a receiver.
    pub async fn send(&self, frame: Frame) -> bool {
        let units = frame.bytes().len().div_ceil(UNIT) as u32;
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(units).await else {
            return false;
        };
        self.frames.send(Queued { frame, _room: room }).is_ok()
    }
}

/// A frame that takes of the queue's budget until you drop it.
pub struct Queued {
    pub frame: Frame,
    _room: OwnedSemaphorePermit,
}

/// A stream of the queued frames. Dropping it ends the senders' waits.
pub struct Receiver {
    frames: mpsc::UnboundedReceiver<Queued>,
    room: Arc<Semaphore>,
}

impl Stream for Receiver {
    type Item = Queued;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Queued>> {
        self.frames.poll_recv(cx)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.room.close();
    }
}

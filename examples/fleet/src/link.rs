//! One agent as its callers see it.
//!
//! The agent does one request at a time. The next few wait in a queue; a caller whose request finds it full waits too, or
//! is told that the VM is busy. An answer's parts go to its caller through a short channel, so a caller that does not read
//! holds the agent up (the channel, the socket and the ring fill) until the caller's time limit, and then no longer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::protocol::{Answer, Request, framed};

/// How many requests wait for one agent.
pub const QUEUE: usize = 4;

/// How many parts of an answer wait for its caller.
const PARTS: usize = 4;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub words: String,
    /// Whether an agent may have carried it out. If not, you may ask another one.
    pub perhaps_carried_out: bool,
}

impl Failure {
    pub fn never_sent(words: impl Into<String>) -> Self {
        Self {
            words: words.into(),
            perhaps_carried_out: false,
        }
    }

    pub fn perhaps(words: impl Into<String>) -> Self {
        Self {
            words: words.into(),
            perhaps_carried_out: true,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = if self.perhaps_carried_out {
            "perhaps carried out"
        } else {
            "not carried out"
        };
        write!(f, "{} ({outcome})", self.words)
    }
}

impl std::error::Error for Failure {}

/// A request on its way to an agent.
pub struct Job {
    request: Request,
    deadline: Instant,
    parts: mpsc::Sender<Answer>,
    claimed: Claim,
}

/// Who claims a request first has it: `drive`, to send it, or its caller, to take it back unsent.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn is_mine(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    fn give_up(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The agent's queue, for its callers.
#[derive(Clone)]
pub struct Agent(mpsc::Sender<Job>);

/// The queue's other end, for [`drive`].
pub struct Jobs {
    queue: mpsc::Receiver<Job>,
    /// The first: the last connection could not send it.
    unsent: Option<Job>,
}

impl Jobs {
    async fn next(&mut self) -> Option<Job> {
        match self.unsent.take() {
            Some(job) => Some(job),
            None => self.queue.recv().await,
        }
    }
}

impl Agent {
    pub fn new() -> (Self, Jobs) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let unsent = None;
        (Self(sender), Jobs { queue, unsent })
    }

    /// Queues a request. Waits for room until `deadline`, which is also the answer's.
    ///
    /// # Errors
    ///
    /// If there is no room by then, or the VM is shut down.
    pub async fn request(&self, request: Request, deadline: Instant) -> Result<Reply, Failure> {
        match timeout_at(deadline, self.0.reserve()).await {
            Ok(Ok(room)) => Ok(Reply::of(request, deadline, |job| room.send(job))),
            Ok(Err(_)) => Err(Failure::never_sent("the VM is shut down")),
            Err(_) => Err(Failure::never_sent("the VM was busy until the time limit")),
        }
    }

    /// Queues a request if there is room now.
    pub fn try_request(&self, request: Request, deadline: Instant) -> Option<Reply> {
        let room = self.0.try_reserve().ok()?;
        Some(Reply::of(request, deadline, |job| room.send(job)))
    }
}

/// An answer that comes in parts. Dropping it discards the rest.
pub struct Reply {
    parts: mpsc::Receiver<Answer>,
    deadline: Instant,
    claimed: Claim,
}

impl Reply {
    fn of(request: Request, deadline: Instant, queue: impl FnOnce(Job)) -> Self {
        let (sender, parts) = mpsc::channel(PARTS);
        let claimed = Claim::default();
        queue(Job {
            request,
            deadline,
            parts: sender,
            claimed: claimed.clone(),
        });
        Self {
            parts,
            deadline,
            claimed,
        }
    }

    /// The next part. After the one that [is the last](Answer::is_last), do not call it again.
    ///
    /// # Errors
    ///
    /// At once if the VM dies; at the deadline if it does not answer.
    pub async fn next(&mut self) -> Result<Answer, Failure> {
        let words = match timeout_at(self.deadline, self.parts.recv()).await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => "the VM has ended",
            Err(_) => "no answer within the time limit",
        };
        Err(Failure {
            words: words.into(),
            perhaps_carried_out: !self.claimed.is_mine(),
        })
    }

    /// The whole answer to [`Request::Ask`].
    ///
    /// # Errors
    ///
    /// As for [`next`](Self::next), or if the agent refuses.
    pub async fn whole(mut self) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        loop {
            match self.next().await? {
                Answer::Part(part) if whole.is_empty() => whole = part.into(),
                Answer::Part(part) => whole.extend_from_slice(&part),
                Answer::Done => return Ok(whole.freeze()),
                Answer::Refused(words) => return Err(Failure::perhaps(words)),
                _ => {
                    return Err(Failure::perhaps(
                        "the agent's answer is none to the request",
                    ));
                }
            }
        }
    }
}

/// How an agent's connection ended.
#[derive(Debug)]
pub enum Ended {
    /// The agent has said its last words, or has closed without any. Returning hangs it up, for which it then waits.
    Closed(Option<String>),
    /// The agent owed an answer and sent nothing for the stall limit.
    Stalled,
    /// It failed, in words.
    Failed(String),
}

/// Carries out the queue's requests one by one, until the connection ends.
///
/// What is in the queue then stays there for the next connection, and so does a request that could not be sent. The request
/// that is being carried out fails.
///
/// Calls `heard` with each answer but the last words, before its caller has it.
pub async fn drive<S>(
    socket: S,
    jobs: &mut Jobs,
    stall: Duration,
    mut heard: impl FnMut(&Answer),
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut frames = framed(socket);
    loop {
        let job = tokio::select! {
            Some(job) = jobs.next() => job,
            frame = frames.next() => return unasked(frame),
        };
        if Instant::now() >= job.deadline || job.parts.is_closed() || !job.claimed.is_mine() {
            continue;
        }
        if let Err(error) = frames.send(job.request.encode()).await {
            // The agent has not got all of it, so it does not carry it out.
            if !frames.write_buffer().is_empty() {
                job.claimed.give_up();
                jobs.unsent = Some(job);
            }
            // It may have said before why it had to go.
            return match timeout(stall, frames.next()).await {
                Ok(frame) => unasked(frame),
                Err(_) => Ended::Failed(error.to_string()),
            };
        }
        // An agent may have much to finish before its last words. Whoever tells it to stop limits that.
        let stall = if job.request == Request::Stop {
            Duration::MAX
        } else {
            stall
        };
        loop {
            let answer = match timeout(stall, frames.next()).await {
                Err(_) => return Ended::Stalled,
                Ok(None) => return Ended::Closed(None),
                Ok(Some(frame)) => match decode(frame) {
                    Ok(answer) => answer,
                    Err(error) => return Ended::Failed(error.to_string()),
                },
            };
            let last_words = if let Answer::Goodbye(words) = &answer {
                Some(words.clone())
            } else {
                heard(&answer);
                None
            };
            let is_last = answer.is_last();
            // A caller that has gone, or does not read by its limit: the rest is read and discarded.
            let _ = timeout_at(job.deadline, job.parts.send(answer)).await;
            if last_words.is_some() {
                return Ended::Closed(last_words);
            }
            if is_last {
                break;
            }
        }
    }
}

/// Unasked, an agent only closes, or says why it has to go.
fn unasked(frame: Option<std::io::Result<BytesMut>>) -> Ended {
    match frame.map(decode).transpose() {
        Ok(None) => Ended::Closed(None),
        Ok(Some(Answer::Goodbye(words))) => Ended::Closed(Some(words)),
        Ok(Some(_)) => Ended::Failed("the agent speaks without being asked".into()),
        Err(error) => Ended::Failed(error.to_string()),
    }
}

fn decode(frame: std::io::Result<BytesMut>) -> std::io::Result<Answer> {
    Answer::decode(frame?.freeze())
}

//! Requests from 1 B to 4 MiB, and counts that must add up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as StdInstant};

use futures::{StreamExt, stream};
use tokio::time::Instant;

use crate::link::Failure;
use crate::nats::{Caller, Repeat};
use crate::protocol::{Ask, LONGEST_ANSWER, content};
use crate::supervisor::Fleet;

/// Where the requests go.
#[derive(Clone)]
pub enum Target {
    Here(Arc<Fleet>),
    Nats(Caller, Repeat),
}

impl Target {
    async fn ask(&self, ask: Ask, limit: Duration) -> Result<bytes::Bytes, Failure> {
        let deadline = Instant::now() + limit;
        match self {
            Self::Here(fleet) => fleet.ask(None, ask, deadline).await?.whole().await,
            Self::Nats(caller, repeat) => caller.ask(None, ask, deadline, *repeat).await,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Load {
    pub requests: u64,
    pub at_once: usize,
    pub limit: Duration,
    /// The answers' size; without it, from 1 B to 4 MiB, each power of two as often as the next.
    pub size: Option<u32>,
    /// The first request's key; the others' follow.
    pub first_key: u64,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Counts {
    pub asked: u64,
    pub answered: u64,
    /// Answers whose bytes are not those that were asked for.
    pub wrong: u64,
    pub bytes: u64,
    /// In words, and how often.
    pub failed: BTreeMap<String, u64>,
    pub took: Duration,
    /// The longest time from a request to its answer or failure.
    pub longest: Duration,
}

impl Counts {
    pub fn add_up(&self) -> bool {
        self.wrong == 0 && self.asked == self.answered + self.failed.values().sum::<u64>()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        write!(
            f,
            "{} asked, {} answered, {} wrong; ",
            self.asked, self.answered, self.wrong
        )?;
        write!(
            f,
            "{} MiB in {seconds:.1} s; the longest took {:?}",
            self.bytes >> 20,
            self.longest
        )?;
        for (words, count) in &self.failed {
            write!(f, "\n{count} failed: {words}")?;
        }
        Ok(())
    }
}

/// Sends the load. `done` counts what has been answered or has failed so far.
pub async fn run(target: &Target, load: &Load, done: &AtomicU64) -> Counts {
    let begun = StdInstant::now();
    let one = |number: u64| async move {
        let key = load.first_key + number;
        let size = load.size.unwrap_or_else(|| any_size(key));
        let asked = StdInstant::now();
        let answer = target
            .ask(
                Ask {
                    key,
                    size,
                    work_ms: 0,
                },
                load.limit,
            )
            .await;
        done.fetch_add(1, Ordering::Relaxed);
        // Compared here, so that no more answers are kept than are asked for at once.
        let right =
            answer.map(|bytes| (bytes == content(key, 0, size as usize), bytes.len() as u64));
        (right, asked.elapsed())
    };
    let mut counts = Counts {
        asked: load.requests,
        ..Counts::default()
    };
    let mut answers = stream::iter(0..load.requests)
        .map(one)
        .buffer_unordered(load.at_once);
    while let Some((answer, took)) = answers.next().await {
        counts.longest = counts.longest.max(took);
        match answer {
            Ok((right, bytes)) => {
                counts.answered += 1;
                counts.wrong += u64::from(!right);
                counts.bytes += bytes;
            }
            Err(failure) => *counts.failed.entry(failure.to_string()).or_default() += 1,
        }
    }
    counts.took = begun.elapsed();
    counts
}

/// Depends on the key alone, so that a run can be repeated. The first two are the least and the most.
fn any_size(key: u64) -> u32 {
    match key {
        0 => 1,
        1 => LONGEST_ANSWER,
        key => {
            let mut random = fastrand::Rng::with_seed(key);
            let most = 1 << random.u32(0..=LONGEST_ANSWER.ilog2());
            random.u32(most / 2 + 1..=most)
        }
    }
}

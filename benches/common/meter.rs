//! Measuring: work lasts for a slice of time or a number of bytes, and its receiver counts the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// How long the work lasts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Span {
    /// This long, after an unmeasured warm-up of a quarter of it.
    Time(Duration),
    /// Until the messages have carried this many bytes.
    Bytes(u64),
}

/// What a measurement found, for each second of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    /// Bytes per second.
    pub(crate) rate: f64,
    /// Seconds of CPU time per second, of all threads of this process.
    pub(crate) cpu: f64,
    /// Context switches per second, of all threads.
    pub(crate) switches: f64,
}

impl Flow {
    fn since(start: &Start, bytes: f64) -> Self {
        let seconds = start.time.elapsed().as_secs_f64();
        let now = Used::now();
        Self {
            rate: bytes / seconds,
            cpu: (now.cpu - start.used.cpu) / seconds,
            switches: (now.switches - start.used.switches) / seconds,
        }
    }

    /// Joins the two directions, which were measured at the same time. Each counted the whole process.
    pub(crate) fn with_other_way(self, other: Self) -> Self {
        Self {
            rate: self.rate + other.rate,
            cpu: (self.cpu + other.cpu) / 2.0,
            switches: (self.switches + other.switches) / 2.0,
        }
    }
}

/// The start of a measurement.
struct Start {
    time: Instant,
    used: Used,
}

impl Start {
    fn now() -> Self {
        Self {
            used: Used::now(),
            time: Instant::now(),
        }
    }
}

/// What this process has used until now: all of its threads, also those that have ended.
struct Used {
    cpu: f64,
    switches: f64,
}

impl Used {
    fn now() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("Linux always answers");
        let cpu = usage.user_time() + usage.system_time();
        Self {
            cpu: cpu.num_microseconds() as f64 / 1e6,
            switches: (usage.voluntary_context_switches() + usage.involuntary_context_switches())
                as f64,
        }
    }
}

/// How long the unmeasured start of a slice lasts.
fn warm_up(slice: Duration) -> Duration {
    slice / 4
}

/// Counts the bytes that arrive, and tells the sender when to stop.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Shared>);

struct Shared {
    span: Span,
    stop: AtomicBool,
    /// How much was sent in all, known before the last message is sent.
    sent: AtomicU64,
}

impl Meter {
    pub(crate) fn new(span: Span) -> Self {
        Self(Arc::new(Shared {
            span,
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(u64::MAX),
        }))
    }

    pub(crate) fn sender(&self) -> Sending {
        Sending {
            meter: self.clone(),
            sent: 0,
        }
    }

    pub(crate) fn receiver(&self) -> Receiving {
        Receiving {
            meter: self.clone(),
            received: 0,
            start: Start::now(),
            clock: match self.0.span {
                Span::Time(slice) => Some(Clock::new(slice)),
                Span::Bytes(_) => None,
            },
            flow: None,
        }
    }
}

pub(crate) struct Sending {
    meter: Meter,
    sent: u64,
}

impl Sending {
    /// Call it before you send a message. Returns `false` if this message is the last one.
    pub(crate) fn more_after(&mut self, bytes: usize) -> bool {
        self.sent += bytes as u64;
        let stop = match self.meter.0.span {
            Span::Time(_) => self.meter.0.stop.load(Ordering::Relaxed),
            Span::Bytes(all) => self.sent >= all,
        };
        if stop {
            self.meter.0.sent.store(self.sent, Ordering::Release);
        }
        !stop
    }
}

pub(crate) struct Receiving {
    meter: Meter,
    received: u64,
    start: Start,
    /// `None` once the flow is known.
    clock: Option<Clock>,
    flow: Option<Flow>,
}

impl Receiving {
    /// Call it after you receive a message. Returns `false` after the last one.
    pub(crate) fn more_after(&mut self, bytes: usize) -> bool {
        self.received += bytes as u64;
        let Some(clock) = &mut self.clock else {
            return self.received < self.meter.0.sent.load(Ordering::Acquire);
        };
        self.flow = clock.add(bytes);
        if self.flow.is_some() {
            self.clock = None;
            self.meter.0.stop.store(true, Ordering::Relaxed);
        }
        true
    }

    pub(crate) fn flow(self) -> Flow {
        self.flow
            .unwrap_or_else(|| Flow::since(&self.start, self.received as f64))
    }
}

/// Measures one slice of time, after its warm-up.
pub(crate) struct Clock {
    slice: Duration,
    start: Start,
    bytes: usize,
    since_look: usize,
    warm: bool,
}

impl Clock {
    /// Bytes between two looks at the clock, because a look costs as much as a small read.
    const LOOK_EVERY: usize = 128 * 1024;

    pub(crate) fn new(slice: Duration) -> Self {
        Self {
            slice,
            start: Start::now(),
            bytes: 0,
            since_look: 0,
            warm: false,
        }
    }

    /// What the slice measured, once it is over.
    pub(crate) fn add(&mut self, bytes: usize) -> Option<Flow> {
        self.bytes += bytes;
        self.since_look += bytes;
        if self.since_look < Self::LOOK_EVERY {
            return None;
        }
        self.since_look = 0;
        let elapsed = self.start.time.elapsed();
        if !self.warm && elapsed >= warm_up(self.slice) {
            (self.start, self.bytes, self.warm) = (Start::now(), 0, true);
            return None;
        }
        (self.warm && elapsed >= self.slice).then(|| Flow::since(&self.start, self.bytes as f64))
    }
}

/// Measures each round trip. There is always at least one, even if the machine pauses for longer than
/// the slice.
pub(crate) struct Trips {
    span: Span,
    began: Instant,
    times: Vec<Duration>,
}

impl Trips {
    /// Bytes of a request and of its answer.
    pub(crate) const MESSAGE: usize = 64;

    pub(crate) fn new(span: Span) -> Self {
        Self {
            span,
            began: Instant::now(),
            times: Vec::with_capacity(1 << 16),
        }
    }

    /// Starts the next trip and returns the current time, or `None` once the span is over.
    pub(crate) fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let is_over = !self.times.is_empty()
            && match self.span {
                Span::Time(slice) => now - self.began >= self.warm_up() + slice,
                Span::Bytes(all) => (self.times.len() * Self::MESSAGE) as u64 >= all,
            };
        (!is_over).then_some(now)
    }

    /// Ends the trip that began at `sent`. It counts unless it began during the warm-up.
    pub(crate) fn add(&mut self, sent: Instant) {
        if sent - self.began >= self.warm_up() {
            self.times.push(sent.elapsed());
        }
    }

    fn warm_up(&self) -> Duration {
        match self.span {
            Span::Time(slice) => warm_up(slice),
            Span::Bytes(_) => Duration::ZERO,
        }
    }

    /// The times, at least one.
    pub(crate) fn times(self) -> Vec<Duration> {
        self.times
    }
}

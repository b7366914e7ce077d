//! How work is measured: it goes on for a slice of time, or for so many bytes, and counts at its
//! receiver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a piece of work goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Span {
    /// A quarter of it comes before, unmeasured, to warm up.
    Time(Duration),
    /// Of the messages' bytes.
    Bytes(u64),
}

/// Of a slice, before what is measured begins.
fn warm_up(slice: Duration) -> Duration {
    slice / 4
}

/// Counts at the receiver, and tells the sender when it is enough.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Shared>);

struct Shared {
    span: Span,
    stop: AtomicBool,
    /// Set before the sender's last message is sent.
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
            began: Instant::now(),
            clock: match self.0.span {
                Span::Time(slice) => Some(Rate::new(slice)),
                Span::Bytes(_) => None,
            },
            rate: None,
        }
    }
}

pub(crate) struct Sending {
    meter: Meter,
    sent: u64,
}

impl Sending {
    /// To be called before each message; `false` for the last one.
    pub(crate) fn goes_on_after(&mut self, bytes: usize) -> bool {
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
    began: Instant,
    /// Until there is a rate.
    clock: Option<Rate>,
    rate: Option<f64>,
}

impl Receiving {
    /// To be called after each message; `false` after the last one.
    pub(crate) fn goes_on_after(&mut self, bytes: usize) -> bool {
        self.received += bytes as u64;
        let Some(clock) = &mut self.clock else {
            return self.received < self.meter.0.sent.load(Ordering::Acquire);
        };
        self.rate = clock.add(bytes);
        if self.rate.is_some() {
            self.clock = None;
            self.meter.0.stop.store(true, Ordering::Relaxed);
        }
        true
    }

    /// Bytes a second.
    pub(crate) fn rate(self) -> f64 {
        self.rate
            .unwrap_or_else(|| self.received as f64 / self.began.elapsed().as_secs_f64())
    }
}

/// The rate of one slice of time, after its warm-up.
pub(crate) struct Rate {
    slice: Duration,
    began: Instant,
    bytes: usize,
    since_look: usize,
    warm: bool,
}

impl Rate {
    /// Looking at the clock costs as much as a small read.
    const LOOK_EVERY: usize = 128 * 1024;

    pub(crate) fn new(slice: Duration) -> Self {
        Self {
            slice,
            began: Instant::now(),
            bytes: 0,
            since_look: 0,
            warm: false,
        }
    }

    /// Bytes a second, once the slice is over.
    pub(crate) fn add(&mut self, bytes: usize) -> Option<f64> {
        self.bytes += bytes;
        self.since_look += bytes;
        if self.since_look < Self::LOOK_EVERY {
            return None;
        }
        self.since_look = 0;
        let elapsed = self.began.elapsed();
        if !self.warm && elapsed >= warm_up(self.slice) {
            (self.began, self.bytes, self.warm) = (Instant::now(), 0, true);
            return None;
        }
        (self.warm && elapsed >= self.slice).then(|| self.bytes as f64 / elapsed.as_secs_f64())
    }
}

/// The time of each round trip. There is always one, however slow: a machine can stand still for
/// longer than a slice.
pub(crate) struct Trips {
    span: Span,
    began: Instant,
    times: Vec<Duration>,
}

impl Trips {
    /// The bytes of a small request, and of its answer.
    pub(crate) const MESSAGE: usize = 64;

    pub(crate) fn new(span: Span) -> Self {
        Self {
            span,
            began: Instant::now(),
            times: Vec::with_capacity(1 << 16),
        }
    }

    /// When the next trip begins, which is now, until it is over.
    pub(crate) fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let is_over = !self.times.is_empty()
            && match self.span {
                Span::Time(slice) => now - self.began >= self.warm_up() + slice,
                Span::Bytes(all) => (self.times.len() * Self::MESSAGE) as u64 >= all,
            };
        (!is_over).then_some(now)
    }

    /// One that ends now; it counts if it began when all was warm.
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

    /// Not empty.
    pub(crate) fn times(self) -> Vec<Duration> {
        self.times
    }
}

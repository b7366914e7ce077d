//! Lifecycle events of a stream, with the feature `tracing`. They never contain payload.

use std::sync::atomic::{AtomicU64, Ordering};

/// The stream that an event is about.
#[derive(Debug)]
pub(crate) struct Trace {
    /// A number that is unique in this process.
    stream: u64,
}

impl Trace {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let trace = Self {
            stream: NEXT.fetch_add(1, Ordering::Relaxed),
        };
        trace.lifecycle("created");
        trace
    }

    /// Runs the subscriber, which is the caller's code: see [`foreign`](crate::foreign).
    pub(crate) fn lifecycle(&self, event: &'static str) {
        #[cfg(feature = "tracing")]
        crate::foreign::run(|| tracing::debug!(stream = self.stream, "{event}"));
        #[cfg(not(feature = "tracing"))]
        let _ = (self.stream, event);
    }
}

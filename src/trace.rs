//! Lifecycle events of a stream, with the feature `tracing`. They never contain payload.

/// The stream that an event is about.
#[derive(Debug)]
pub(crate) struct Trace {
    /// A number that is unique in this process.
    #[cfg(feature = "tracing")]
    stream: u64,
}

impl Trace {
    pub(crate) fn new() -> Self {
        #[cfg(feature = "tracing")]
        {
            use std::sync::atomic::{AtomicU64, Ordering};
            static NEXT: AtomicU64 = AtomicU64::new(1);
            let stream = NEXT.fetch_add(1, Ordering::Relaxed);
            crate::foreign::run(|| tracing::debug!(stream, "created"));
            Self { stream }
        }
        #[cfg(not(feature = "tracing"))]
        Self {}
    }

    /// Runs the subscriber, which is the caller's code: see [`foreign`](crate::foreign).
    #[cfg_attr(not(feature = "tracing"), expect(clippy::unused_self))]
    pub(crate) fn lifecycle(&self, event: &'static str) {
        #[cfg(feature = "tracing")]
        crate::foreign::run(|| tracing::debug!(stream = self.stream, "{event}"));
        #[cfg(not(feature = "tracing"))]
        let _ = event;
    }
}

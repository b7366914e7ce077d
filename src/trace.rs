//! Lifecycle events of a stream, with the feature `tracing`. They never contain payload.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The stream that an event is about.
pub(crate) struct Trace {
    /// A number that is unique in this process.
    stream: u64,
    /// The user's word for the stream; see [`Options::label`](crate::Options::label).
    label: Option<Arc<str>>,
}

/// Emits an event at `$level`.
///
/// Runs the subscriber, which is the caller's code: see [`foreign`](crate::foreign).
macro_rules! event {
    ($trace:expr, $level:ident, $($field:tt)*) => {
        #[cfg(feature = "tracing")]
        crate::foreign::run(|| {
            // A field without a value is left out.
            tracing::$level!(stream = $trace.stream, label = $trace.label.as_deref(), $($field)*);
        });
    };
}

#[cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, reason = "only events use them")
)]
impl Trace {
    pub(crate) fn new(label: Option<Arc<str>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let trace = Self {
            stream: NEXT.fetch_add(1, Ordering::Relaxed),
            label,
        };
        trace.lifecycle("created");
        trace
    }

    pub(crate) fn lifecycle(&self, event: &'static str) {
        event!(self, debug, "{event}");
    }

    /// For what the user will want to know without asking for it.
    pub(crate) fn warning(&self, event: &'static str) {
        event!(self, warn, "{event}");
    }

    #[cfg(feature = "msb_krun")]
    pub(crate) fn attached(&self, port: &str) {
        event!(self, debug, port, "attached");
    }

    /// Adds what tells this stream from others.
    pub(crate) fn fields(&self, f: &mut fmt::DebugStruct<'_, '_>) {
        f.field("stream", &self.stream);
        if let Some(label) = &self.label {
            f.field("label", label);
        }
    }
}

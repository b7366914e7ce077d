//! Running the caller's code: the drop of its `Bytes`, its wakers, its `tracing` subscriber.
//!
//! Such code may come back to the same stream, block, or panic. So it runs while no lock of ours is held, and after every
//! end and wake that it could hold up. `docs/architecture.md` lists every place.

use std::panic::{self, AssertUnwindSafe};

/// Runs the caller's code. Its panic ends here, as it must not reach krun's threads.
pub(crate) fn run(code: impl FnOnce()) {
    let _ = panic::catch_unwind(AssertUnwindSafe(code));
}

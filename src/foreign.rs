//! Running the caller's code: the drop of its `Bytes`, its wakers, its `tracing` subscriber.
//!
//! Such code may use the same stream, block, or panic. So it runs while no lock of ours is held, and after every
//! end and wake that it could hold up. `docs/architecture.md` lists every place.

use std::future::poll_fn;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

/// Runs the caller's code. Its panic ends here, as it must not reach krun's threads.
pub(crate) fn run(code: impl FnOnce()) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(code)) {
        // Dropping it may panic again.
        if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            mem::forget(again);
        }
    }
}

/// A future whose task is woken by code of the caller's that may panic. Wakers are woken one after another, and the panic of
/// one must not keep the others from being woken.
pub(crate) async fn guarded<F: Future>(future: F) -> F::Output {
    struct Guarded(Waker);

    impl Wake for Guarded {
        fn wake(self: Arc<Self>) {
            run(|| self.0.wake_by_ref());
        }
    }

    let mut future = pin!(future);
    poll_fn(|cx| {
        let waker = Arc::new(Guarded(cx.waker().clone())).into();
        future.as_mut().poll(&mut Context::from_waker(&waker))
    })
    .await
}

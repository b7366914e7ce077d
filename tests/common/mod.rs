//! Shared by the test files. Asserts nothing about the crate.

#![allow(dead_code)] // each test file uses only a part

use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;
use std::{process, thread};

use tokio_krun::test_util::Guest;
use tokio_krun::{AgentPort, AgentStream, Options};

/// The smallest capacity: a few chunks, quick to fill.
pub(crate) const SMALL: usize = Options::MIN_CAPACITY;

/// `count`, or a sixteenth of it under Miri, which is about a thousand times slower.
pub(crate) const fn many(count: usize) -> usize {
    if cfg!(miri) { count / 16 } else { count }
}

/// krun's end of the port. On Windows a test cannot call krun's end, so this is the guest's end of the rings.
#[cfg(unix)]
pub(crate) use tokio_krun::AgentConsoleBackend as Backend;
#[cfg(windows)]
pub(crate) use tokio_krun::test_util::RingEnd as Backend;

#[cfg(unix)]
pub(crate) fn backend(port: AgentPort) -> Backend {
    port.into_backend()
}

#[cfg(windows)]
pub(crate) fn backend(port: AgentPort) -> Backend {
    Backend::new(port)
}

/// A guest in which two threads call the port, as krun's do: what these tests are about.
pub(crate) fn boot(port: AgentPort) -> Guest {
    Guest::builder().port("agent", port).threads(true).boot()
}

/// A stream and krun's end of it. No worker thread runs: the test itself plays krun.
pub(crate) fn pair() -> (AgentStream, Backend) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    (stream, backend(port))
}

/// Runs `test`, and aborts the process if it hangs, so that a lost wake is a failure and not a job that never ends.
/// Watches from another thread, because the test may block its runtime.
pub(crate) async fn watchdog<F: Future>(test: F) -> F::Output {
    let _deadline = deadline();
    test.await
}

/// Like [`watchdog`], for blocking code. Watches until you drop the sender.
pub(crate) fn deadline() -> mpsc::Sender<()> {
    let test = thread::current().name().unwrap_or("?").to_owned();
    deadline_unless_it_moves(format!("the test {test}"), || 0)
}

/// Like [`deadline`], for work of any length. Aborts only if `progress` stays the same.
pub(crate) fn deadline_unless_it_moves(
    what: String,
    progress: impl Fn() -> u64 + Send + 'static,
) -> mpsc::Sender<()> {
    let (done, wait) = mpsc::channel();
    if cfg!(miri) {
        return done; // Miri is slow, and reports a deadlock itself.
    }
    thread::spawn(move || {
        // Two minutes, as 12 waits of ten seconds. If the machine is suspended, that counts as one wait.
        let (mut before, mut turns) = (progress(), 0);
        while wait.recv_timeout(Duration::from_secs(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
            let now = progress();
            turns = if now == before { turns + 1 } else { 0 };
            if turns == 12 {
                // Not `eprintln!`: the test harness captures that for its report, which an abort prevents.
                let _ = writeln!(io::stderr(), "{what} hangs");
                process::abort();
            }
            before = now;
        }
    });
    done
}

/// Returns true in a process that runs only the test `name`. Otherwise starts such a process, and returns false once
/// the test has passed there.
///
/// For tests of what the whole process shares: limits, descriptors, memory, signals.
pub(crate) fn is_alone(name: &str) -> bool {
    const ALONE: &str = "TOKIO_KRUN_TEST_ALONE";
    // Miri cannot start a process.
    if cfg!(miri) || std::env::var_os(ALONE).is_some() {
        return true;
    }
    let child = process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&child.stdout);
    // The exit status alone is not enough: a name that matches no test succeeds too.
    let passed = child.status.success() && stdout.contains("1 passed");
    assert!(
        passed,
        "{name}, alone: {}\n{stdout}{}",
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
    false
}

/// Adds one to `pending_polls` each time that a poll of `operation` returns `Pending`.
pub(crate) async fn counted<F: Future>(pending_polls: &AtomicU64, operation: F) -> F::Output {
    let mut operation = pin!(operation);
    poll_fn(|cx| {
        let polled = operation.as_mut().poll(cx);
        pending_polls.fetch_add(u64::from(polled.is_pending()), Ordering::Relaxed);
        polled
    })
    .await
}

/// Polls `operation` until it is ready, or drops it at the `polls`th poll that returns `Pending`.
pub(crate) async fn cancelled_at<F: Future>(polls: usize, operation: F) -> Option<F::Output> {
    let mut operation = pin!(operation);
    let mut left = polls;
    let output = poll_fn(|cx| match operation.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            left -= 1;
            if left == 0 {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        }
    })
    .await;
    if output.is_none() {
        // Gives a turn to the task that can make it ready.
        tokio::task::yield_now().await;
    }
    output
}

/// Pseudorandom bytes, so that a lost, repeated or misplaced byte shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

pub(crate) fn is_would_block<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// The test is done with krun's part for now. At the guest's end of the rings nobody is counted.
pub(crate) fn leave(_backend: &Backend) {
    #[cfg(unix)]
    _backend.leave();
}

/// Writes from the guest until the ring is full, and returns how many bytes fitted. The stream must be alive:
/// once it is dropped, the ring never fills.
pub(crate) fn fill(backend: &Backend) -> usize {
    let mut filled = 0;
    while let Ok(written) = backend.write(&[7; 1024]) {
        filled += written;
    }
    filled
}

/// Starts a thread, and returns once it sleeps, so that a wake cannot come too early.
#[cfg(all(target_os = "linux", not(miri)))]
pub(crate) fn asleep<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let (sender, receiver) = mpsc::channel();
    let handle = thread::spawn(move || {
        sender.send(rustix::thread::gettid()).unwrap();
        work()
    });
    let thread = receiver.recv().unwrap().as_raw_nonzero();
    let status = format!("/proc/self/task/{thread}/status");
    let sleeps = |status: String| status.lines().any(|line| line.starts_with("State:\tS"));
    // The thread has work to do first, and cannot report that it sleeps.
    while !handle.is_finished() && !std::fs::read_to_string(&status).is_ok_and(sleeps) {
        thread::yield_now();
    }
    handle
}

/// Elsewhere a test cannot see whether a thread sleeps, so this returns at once.
#[cfg(any(not(target_os = "linux"), miri))]
pub(crate) fn asleep<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(work)
}

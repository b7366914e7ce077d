//! What several test files need; it asserts nothing about the crate.

#![allow(dead_code)] // each test file uses its own part

use std::future::{Future, poll_fn};
use std::io::{self, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;
use std::{process, thread};

use tokio_krun::{AgentPort, AgentStream, Options};

/// The least capacity, in a few chunks: quick to fill.
pub(crate) const SMALL: usize = Options::MIN_CAPACITY;

/// Many of something: fewer under Miri, which takes some thousand times as long for each.
pub(crate) const fn many(count: usize) -> usize {
    if cfg!(miri) { count / 16 } else { count }
}

/// krun's end, or the guest's end of the rings where krun has no end that can be called.
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

/// A stream and krun's end of it, with no worker: the test plays krun.
pub(crate) fn pair() -> (AgentStream, Backend) {
    let (stream, port) = Options::new().capacity(SMALL).create().unwrap();
    (stream, backend(port))
}

/// Ends the process if a test hangs: a lost wake is a failure, not a night at the machine. From a
/// thread of its own, as the test may hang its runtime.
pub(crate) async fn watchdog<F: Future>(test: F) -> F::Output {
    let _deadline = deadline();
    test.await
}

/// The same for what is not async, until it is dropped.
pub(crate) fn deadline() -> mpsc::Sender<()> {
    let test = thread::current().name().unwrap_or("?").to_owned();
    deadline_unless_it_moves(format!("the test {test}"), || 0)
}

/// The same for what takes as long as it takes, and counts in `progress`.
pub(crate) fn deadline_unless_it_moves(
    what: String,
    progress: impl Fn() -> u64 + Send + 'static,
) -> mpsc::Sender<()> {
    let (done, wait) = mpsc::channel();
    if cfg!(miri) {
        return done; // Miri is slow, and says itself when all threads wait for each other.
    }
    thread::spawn(move || {
        // Two minutes, but in turns: a machine that was stopped for as long has had one of them.
        let (mut before, mut turns) = (progress(), 0);
        while wait.recv_timeout(Duration::from_secs(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
            let now = progress();
            turns = if now == before { turns + 1 } else { 0 };
            if turns == 12 {
                // Not `eprintln!`: what the test's threads print is kept back for a report that never comes.
                let _ = writeln!(io::stderr(), "{what} hangs");
                process::abort();
            }
            before = now;
        }
    });
    done
}

/// Whether this is a process in which only the test `name` runs. If not, it has been run in one, and has passed.
///
/// For what is the whole process's: its limits, its descriptors, its memory, its signals.
pub(crate) fn is_alone(name: &str) -> bool {
    const ALONE: &str = "TOKIO_KRUN_TEST_ALONE";
    // Miri starts no process.
    if cfg!(miri) || std::env::var_os(ALONE).is_some() {
        return true;
    }
    let child = process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    // A name that is no test's would pass as well.
    let passed = child.status.success() && said.contains("1 passed");
    assert!(
        passed,
        "{name}, alone: {}\n{said}{}",
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
    false
}

/// Counts in `vain` how often `operation` was polled and was not ready.
pub(crate) async fn counted<F: Future>(vain: &AtomicU64, operation: F) -> F::Output {
    let mut operation = pin!(operation);
    poll_fn(|cx| {
        let polled = operation.as_mut().poll(cx);
        vain.fetch_add(u64::from(polled.is_pending()), Ordering::Relaxed);
        polled
    })
    .await
}

/// Polls `operation` until it is ready, or drops it when it waits for the `polls`th time.
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
        // Whoever is to make it ready needs a turn.
        tokio::task::yield_now().await;
    }
    output
}

/// Bytes in which each position is recognisable.
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

/// Writes from the guest until the ring is full, and says how much fitted. The host must be there:
/// when it has gone the ring is never full.
pub(crate) fn fill(backend: &Backend) -> usize {
    let mut filled = 0;
    while let Ok(written) = backend.write(&[7; 1024]) {
        filled += written;
    }
    filled
}

/// Starts a thread, and returns once it sleeps: what is to wake it has not come too early.
#[cfg(all(target_os = "linux", not(miri)))]
pub(crate) fn asleep<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let (say, thread) = mpsc::channel();
    let handle = thread::spawn(move || {
        say.send(rustix::thread::gettid()).unwrap();
        work()
    });
    let thread = thread.recv().unwrap().as_raw_nonzero();
    let status = format!("/proc/self/task/{thread}/status");
    let sleeps = |status: String| status.lines().any(|line| line.starts_with("State:\tS"));
    // It has work to do first, and no way to say that it is asleep.
    while !handle.is_finished() && !std::fs::read_to_string(&status).is_ok_and(sleeps) {
        thread::yield_now();
    }
    handle
}

/// Elsewhere a thread cannot be seen to sleep.
#[cfg(any(not(target_os = "linux"), miri))]
pub(crate) fn asleep<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(work)
}

//! What else may go wrong: no descriptors left, signals in the middle of a wait, a wake for nothing, a panic
//! under a lock, a stream that comes to another runtime.

mod common;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use common::{SMALL, pattern, watchdog};
use futures::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::runtime::Builder;
use tokio_krun::test_util::Guest;
use tokio_krun::{AgentStream, Chunks};
use tokio_test::{assert_pending, assert_ready};

/// It waits on the runtime that it was created on, wherever it is used.
#[test]
fn a_stream_works_on_another_runtime_than_its_own() {
    let home = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()
        .unwrap();
    let (mut stream, port) = home.block_on(async { AgentStream::pair() }).unwrap();
    let guest = Guest::boot(port);
    let mut agent = guest.open().unwrap();
    let echo = std::thread::spawn(move || {
        let elsewhere = Builder::new_current_thread().enable_all().build().unwrap();
        elsewhere.block_on(async {
            let mut buffer = vec![0; 1000];
            loop {
                match agent.read(&mut buffer).await.unwrap() {
                    0 => return,
                    read => agent.write_all(&buffer[..read]).await.unwrap(),
                }
            }
        });
    });
    let sent = pattern(10_000);
    for _ in 0..3 {
        // A new runtime each time, with nothing of the stream's on it.
        let away = Builder::new_current_thread().enable_time().build().unwrap();
        let mut received = vec![0; sent.len()];
        away.block_on(watchdog(async {
            tokio::task::yield_now().await;
            stream.write_all(&sent).await.unwrap();
            stream.read_exact(&mut received).await.unwrap();
        }));
        assert!(received == sent);
    }
    stream.hang_up();
    echo.join().unwrap();
}

/// The runtime goes while a stream, and a task that waits for it, are alive; and the guest goes on.
#[test]
fn a_runtime_that_goes_with_streams_alive_leaves_the_guest_an_end() {
    let _deadline = common::deadline();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (mut stream, port) = runtime.block_on(async { AgentStream::pair() }).unwrap();
    let guest = Guest::boot(port);
    let mut agent = guest.open().unwrap();
    runtime.spawn(async move {
        let mut buffer = [0; 10];
        while let Ok(1..) = stream.read(&mut buffer).await {}
    });
    let elsewhere = Builder::new_current_thread().enable_all().build().unwrap();
    elsewhere.block_on(async { agent.write_all(b"hello").await.unwrap() });
    runtime.shutdown_timeout(Duration::from_secs(60));
    // The task was dropped, and with it the stream.
    elsewhere.block_on(async { assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0) });
}

/// Tasks of another runtime wait when the stream's own goes: each is told, whatever it waits for. On Windows
/// waiting needs no runtime.
#[cfg(unix)]
#[test]
fn who_waits_elsewhere_when_the_streams_runtime_goes_gets_an_error() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use common::{backend, counted};
    use tokio_krun::Options;

    let _deadline = common::deadline();
    let home = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()
        .unwrap();
    let created = || Options::new().capacity(SMALL).create_on(home.handle());
    let away = Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let waiting = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    let mut ends = Vec::new();
    for way in 0..8 {
        // One stream each: what is polled has one waker a direction.
        let (mut stream, port) = created().unwrap();
        ends.push(backend(port));
        let full = vec![1; SMALL];
        assert_eq!(stream.try_write(&full).unwrap(), SMALL);
        let waiting = Arc::clone(&waiting);
        tasks.push(away.spawn(async move {
            let wait = async {
                match way {
                    0 => stream.read(&mut [0; 8]).await.map(drop),
                    1 => stream.fill_buf().await.map(drop),
                    2 => Chunks::new(&mut stream).next().await.unwrap().map(drop),
                    3 => stream.readable().await,
                    4 => stream.guest_opened().await,
                    5 => stream.write(&[1; 8]).await.map(drop),
                    6 => stream.writable().await,
                    _ => stream.drained().await,
                }
            };
            counted(&waiting, wait).await.unwrap_err()
        }));
    }
    while waiting.load(Ordering::Relaxed) < tasks.len() as u64 {
        std::thread::yield_now();
    }
    assert!(tasks.iter().all(|task| !task.is_finished()));
    home.shutdown_timeout(Duration::from_secs(60));
    for (way, task) in tasks.into_iter().enumerate() {
        let error = futures::executor::block_on(task).unwrap();
        // Not one of an end that the guest has made.
        assert_eq!(error.kind(), std::io::ErrorKind::Other, "{way}: {error}");
    }
    drop(ends);
}

/// A wake that nothing has changed for is no end, no error, and no bytes.
#[tokio::test]
async fn a_wake_for_nothing_ends_no_wait() {
    watchdog(async {
        for way in 0..6 {
            let (mut stream, backend) = common::pair();
            let check = async |wait: std::pin::Pin<&mut (dyn Future<Output = ()> + Send)>| {
                let mut wait = tokio_test::task::spawn(wait);
                // Polled without a wake.
                for _ in 0..3 {
                    assert_pending!(wait.poll());
                }
                // The first time that krun calls is a wake for who waits for the guest, and so for this one.
                assert!(backend.read(&mut [0; 8]).is_err());
                while !wait.is_woken() {
                    tokio::task::yield_now().await;
                }
                for _ in 0..3 {
                    assert_pending!(wait.poll());
                }
                backend.write(b"x").unwrap();
                while !wait.is_woken() {
                    tokio::task::yield_now().await;
                }
                assert_ready!(wait.poll());
            };
            match way {
                0 => {
                    check(pin!(async {
                        assert_eq!(stream.read_u8().await.unwrap(), b'x');
                    }))
                    .await;
                }
                1 => {
                    check(pin!(async {
                        assert_eq!(stream.fill_buf().await.unwrap(), b"x");
                    }))
                    .await;
                }
                2 => {
                    check(pin!(async {
                        let chunk = Chunks::new(&mut stream).next().await;
                        assert_eq!(chunk.unwrap().unwrap(), "x");
                    }))
                    .await;
                }
                3 => check(pin!(async { stream.readable().await.unwrap() })).await,
                4 => {
                    check(pin!(async {
                        let ready = stream.ready(Interest::READABLE).await.unwrap();
                        assert_eq!(ready, tokio::io::Ready::READABLE);
                    }))
                    .await;
                }
                _ => {
                    check(pin!(async {
                        std::future::poll_fn(|cx| stream.poll_read_ready(cx))
                            .await
                            .unwrap();
                    }))
                    .await;
                }
            }
            assert!(matches!(stream.stats().tx.bytes, 0 | 1));
        }
    })
    .await;
}

/// The signal for bytes that were taken in another way is still there when the next wait begins.
#[tokio::test]
async fn a_wake_for_what_was_taken_meanwhile_ends_no_wait() {
    watchdog(async {
        let (mut stream, backend) = common::pair();
        for round in 1..=20 {
            let mut buffer = [0; 8];
            {
                let mut read = tokio_test::task::spawn(stream.read(&mut buffer));
                assert_pending!(read.poll());
                backend.write(b"x").unwrap();
            }
            assert_eq!(stream.try_read(&mut buffer).unwrap(), 1);
            // With a turn of the driver, and without.
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut read = tokio_test::task::spawn(stream.read(&mut buffer));
            for _ in 0..3 {
                assert_pending!(read.poll());
                tokio::task::yield_now().await;
            }
            backend.write(b"y").unwrap();
            while !read.is_woken() {
                tokio::task::yield_now().await;
            }
            assert_eq!(assert_ready!(read.poll()).unwrap(), 1);

            // And of room that was used meanwhile.
            let full = vec![1; SMALL];
            assert_eq!(stream.try_write(&full).unwrap(), SMALL);
            assert_pending!(tokio_test::task::spawn(stream.write(b"z")).poll());
            assert_eq!(backend.read(&mut vec![0; SMALL]).unwrap(), SMALL);
            assert_eq!(stream.try_write(&full).unwrap(), SMALL);
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for _ in 0..3 {
                assert_pending!(tokio_test::task::spawn(stream.write(b"z")).poll());
                tokio::task::yield_now().await;
            }
            assert_eq!(backend.read(&mut vec![0; SMALL]).unwrap(), SMALL);
        }
    })
    .await;
}

/// A buffer of the caller's that panics when it is told that bytes were written.
#[derive(Default)]
struct Bomb(Vec<u8>);

// SAFETY: the place is the vector's own, and no byte of it ever counts as written.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl bytes::BufMut for Bomb {
    fn remaining_mut(&self) -> usize {
        self.0.remaining_mut()
    }

    fn chunk_mut(&mut self) -> &mut bytes::buf::UninitSlice {
        self.0.chunk_mut()
    }

    unsafe fn advance_mut(&mut self, _: usize) {
        panic!("the caller's buffer")
    }
}

/// Bytes of the caller's that panic when they are dropped.
struct Owner(&'static [u8]);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        panic!("the caller's bytes")
    }
}

/// Whoever runs code of the caller's under the host's locks leaves them poisoned. krun's thread, which takes them
/// next, must neither panic nor find a byte less.
#[tokio::test]
async fn a_panic_under_a_lock_loses_nothing_and_does_not_reach_krun() {
    watchdog(async {
        let (mut stream, backend) = common::pair();
        let sent = pattern(SMALL);
        let (first, rest) = sent.split_at(5000);
        backend.write(first).unwrap();
        for _ in 0..2 {
            let read = AssertUnwindSafe(|| stream.try_read_buf(&mut Bomb::default()));
            assert!(std::panic::catch_unwind(read).is_err());
        }
        // krun's thread goes on: at the open chunk, with a new one, and to where the ring is full.
        let backend = std::thread::spawn({
            let rest = rest.to_vec();
            move || {
                for part in rest.chunks(1000) {
                    assert_eq!(backend.write(part).unwrap(), part.len());
                }
                assert!(common::is_would_block(&backend.write(&[0])));
                backend
            }
        })
        .join()
        .unwrap();
        let mut received = vec![0; SMALL];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == sent);

        // The same lock, when krun's thread has to take it: once the host has gone.
        backend.write(first).unwrap();
        let read = AssertUnwindSafe(|| stream.try_read_buf(&mut Bomb::default()));
        assert!(std::panic::catch_unwind(read).is_err());
        let (read, mut write) = stream.into_split();
        drop(read);
        assert_eq!(write.stats().tx.discarded, first.len() as u64);
        assert_eq!(backend.write(rest).unwrap(), rest.len());
        assert_eq!(write.stats().tx.discarded, sent.len() as u64);
        write.write_all(b"still here").await.unwrap();
        assert_eq!(backend.read(&mut [0; 100]).unwrap(), 10);
    })
    .await;
}

/// Few bytes are copied, and their owner is dropped at once; many are dropped by krun's thread.
#[tokio::test]
async fn bytes_that_panic_when_they_are_dropped_are_sent_and_do_not_reach_krun() {
    watchdog(async {
        let (stream, backend) = common::pair();
        let mut chunks = Chunks::new(stream);
        let mut buffer = vec![0; SMALL];
        for owned in [&b"few"[..], &[7; SMALL / 8], b"few"] {
            // krun waits.
            assert!(common::is_would_block(&backend.read(&mut buffer)));
            let send = AssertUnwindSafe(chunks.send(Bytes::from_owner(Owner(owned))));
            let result = send.catch_unwind().await;
            assert_eq!(result.is_err(), owned.len() < SMALL / 16);
            assert_eq!(backend.read(&mut buffer).unwrap(), owned.len());
            assert!(buffer.starts_with(owned));
            assert!(common::is_would_block(&backend.read(&mut buffer)));
            // Nor does it spoil what comes next, either way.
            chunks.send(Bytes::from_static(b"next")).await.unwrap();
            assert_eq!(backend.read(&mut buffer).unwrap(), 4);
            backend.write(b"y").unwrap();
            assert_eq!(chunks.next().await.unwrap().unwrap(), "y");
        }
    })
    .await;
}

/// Whoever sleeps on the other side is woken for bytes that are in the ring, whatever happens after they came there.
#[tokio::test]
async fn krun_is_woken_for_few_bytes_that_panic_when_they_are_dropped() {
    let (stream, backend) = common::pair();
    let mut chunks = Chunks::new(stream);
    let mut buffer = [0; 100];
    assert!(common::is_would_block(&backend.read(&mut buffer)));
    let send = AssertUnwindSafe(chunks.send(Bytes::from_owner(Owner(b"few"))));
    assert!(send.catch_unwind().await.is_err());
    let stats = chunks.get_ref().stats().rx;
    assert_eq!(stats.queued, 3);
    assert_eq!(stats.data_wakes, 1, "krun sleeps on bytes that are there");
}

#[cfg(target_os = "linux")]
mod linux {
    use std::cell::Cell;
    use std::fs::{self, File};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use crate::common::{asleep, backend, counted};
    use rustix::process::{Resource, getrlimit, setrlimit};
    use tokio_krun::{Error, Options};

    use super::*;

    /// Limits are the whole process's, so the test is a process of its own.
    #[test]
    #[cfg_attr(miri, ignore = "Miri starts no process")]
    fn without_descriptors_there_is_a_clear_error_and_nothing_left_behind() {
        let name = "linux::without_descriptors_there_is_a_clear_error_and_nothing_left_behind";
        if !common::is_alone(name) {
            return;
        }
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let _entered = runtime.enter();
        // What the first one opens for all.
        drop(AgentStream::pair().unwrap());
        let open = || fs::read_dir("/proc/self/fd").unwrap().count() - 1;
        // The limit is one of numbers, so there must be no gap among them.
        let mut fillers = Vec::new();
        while fillers
            .last()
            .is_none_or(|last: &File| (last.as_raw_fd() as usize) < open() - 1)
        {
            fillers.push(File::open("/dev/null").unwrap());
        }
        let before = open();
        let mut refused = 0;
        for spare in 0.. {
            let mut limit = getrlimit(Resource::Nofile);
            // The list of the open ones is read with one more.
            limit.current = Some((before + spare) as u64);
            setrlimit(Resource::Nofile, limit).unwrap();
            let created = AgentStream::pair();
            limit.current = limit.maximum;
            setrlimit(Resource::Nofile, limit).unwrap();
            match created {
                Ok(ends) => {
                    assert_eq!(open(), before + spare);
                    drop(ends);
                    assert_eq!(open(), before);
                    break;
                }
                Err(error) => {
                    let Error::Os(source) = &error else {
                        panic!("{error:?}");
                    };
                    let number = rustix::io::Errno::MFILE.raw_os_error();
                    assert_eq!(source.raw_os_error(), Some(number));
                    assert_eq!(io::Error::from(error).raw_os_error(), Some(number));
                    assert_eq!(open(), before, "left behind with {spare} to spare");
                    refused += 1;
                }
            }
        }
        assert!(refused >= 3, "a stream has three descriptors or more");
    }

    /// A thread that is sent signals, and how many of them it has handled.
    #[derive(Clone, Copy)]
    struct Target {
        thread: libc::pthread_t,
        handled: &'static AtomicU64,
    }

    thread_local! {
        static HANDLED: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
    }

    impl Target {
        #[expect(unsafe_code, reason = "std does not say which thread this is")]
        fn this_thread() -> Self {
            static COUNTS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let handled = &COUNTS[NEXT.fetch_add(1, Ordering::Relaxed)];
            HANDLED.set(Some(handled));
            Self {
                // SAFETY: it asks for nothing.
                thread: unsafe { libc::pthread_self() },
                handled,
            }
        }

        /// Interrupts whatever the thread is at.
        #[expect(unsafe_code, reason = "std sends no signals")]
        fn signal(&self) {
            // SAFETY: no thread of this test is joined, or left by its runtime, before the last signal to it.
            let result = unsafe { libc::pthread_kill(self.thread, libc::SIGUSR1) };
            assert_eq!(result, 0);
        }

        /// The same `count` times, each once the last one has been handled.
        fn interrupt(&self, count: u64) {
            for _ in 0..count {
                let before = self.handled.load(Ordering::Relaxed);
                self.signal();
                while self.handled.load(Ordering::Relaxed) == before {
                    thread::yield_now();
                }
            }
        }
    }

    extern "C" fn count_signal(_: libc::c_int) {
        if let Some(handled) = HANDLED.get() {
            handled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Without `SA_RESTART`: what is interrupted returns `EINTR`.
    #[expect(unsafe_code, reason = "std handles no signals")]
    fn handle_signals() {
        // SAFETY: all zeros is a valid `sigaction`: no flags, and no signals blocked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = count_signal as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the handler takes no lock and allocates nothing.
        let result = unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) };
        assert_eq!(result, 0);
    }

    /// Whatever the crate waits in returns early for each, on every thread of the host's and on krun's TX thread;
    /// nothing is lost, doubled or given up. krun's RX thread waits in krun's own `poll(2)`, and does not
    /// survive one: so the test plays krun, and that thread only calls `read`.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no signals")]
    fn signals_in_the_middle_of_waits_change_nothing() {
        if !common::is_alone("linux::signals_in_the_middle_of_waits_change_nothing") {
            return;
        }
        handle_signals();
        for workers in 1..=2 {
            signals_to(workers);
        }
    }

    fn signals_to(workers: usize) {
        const SIGNALS: u64 = 50;
        const LENGTH: usize = 4 << 20;
        let _deadline = common::deadline();
        let (found, host) = mpsc::channel();
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .on_thread_start(move || found.send(Target::this_thread()).unwrap())
            .enable_io()
            .build()
            .unwrap();
        // One of them waits in the driver, the others for work.
        let host: Vec<Target> = (0..workers).map(|_| host.recv().unwrap()).collect();
        let interrupt_host = || host.iter().for_each(|target| target.interrupt(SIGNALS));

        let options = Options::new().capacity(SMALL).clone();
        let (mut stream, port) = options.create_on(runtime.handle()).unwrap();
        let handle = port.handle();
        let exit_hook = port.exit_hook(Duration::from_secs(600));
        let backend = Arc::new(backend(port));

        // A read that waits.
        let vain = Arc::new(AtomicU64::new(0));
        let read = runtime.spawn({
            let vain = Arc::clone(&vain);
            async move {
                let byte = counted(&vain, stream.read_u8()).await;
                (stream, byte.unwrap())
            }
        });
        while vain.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        interrupt_host();
        assert!(!read.is_finished());
        assert_eq!(vain.load(Ordering::Relaxed), 1);
        backend.write(b"x").unwrap();
        let (stream, byte) = futures::executor::block_on(read).unwrap();
        assert_eq!(byte, b'x');

        // krun's TX thread, where it waits for room.
        common::fill(&backend);
        let refused = handle.stats().tx.full;
        let (found, tx) = mpsc::channel();
        let tx_thread = asleep({
            let backend = Arc::clone(&backend);
            move || {
                found.send(Target::this_thread()).unwrap();
                backend.wait_until_writable();
                backend.write(&[8; 1000]).unwrap()
            }
        });
        let tx = tx.recv().unwrap();
        tx.interrupt(SIGNALS);
        assert!(!tx_thread.is_finished());
        assert_eq!(handle.stats().tx.full, refused);
        let (mut read, mut write) = stream.into_split();
        assert_eq!(read.try_read(&mut [0; SMALL]).unwrap(), SMALL);
        let tx_done = || tx_thread.is_finished();
        while !tx_done() {
            thread::yield_now();
        }
        assert_eq!(read.try_read(&mut [0; SMALL]).unwrap(), 1000);

        // Bytes both ways, and signals to everyone for as long as they move.
        let sent = Arc::new(pattern(LENGTH));
        let (found, krun) = mpsc::channel();
        let rx_thread = thread::spawn({
            let (backend, found) = (Arc::clone(&backend), found.clone());
            move || {
                found.send(Target::this_thread()).unwrap();
                let mut received = vec![0; LENGTH];
                let mut taken = 0;
                while taken < LENGTH {
                    match backend.read(&mut received[taken..]) {
                        Ok(read) => taken += read,
                        Err(error) => {
                            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                            // In place of krun's wait.
                            backend.read_wake_fd();
                            thread::yield_now();
                        }
                    }
                }
                received
            }
        });
        let tx_thread_2 = thread::spawn({
            let (backend, sent) = (Arc::clone(&backend), Arc::clone(&sent));
            move || {
                found.send(Target::this_thread()).unwrap();
                let mut rest = &sent[..];
                while !rest.is_empty() {
                    match backend.write(&rest[..rest.len().min(32 * 1024)]) {
                        Ok(written) => rest = &rest[written..],
                        Err(error) => {
                            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                            backend.wait_until_writable();
                        }
                    }
                }
            }
        });
        let targets: Vec<Target> = krun.iter().take(2).chain(host.iter().copied()).collect();
        let before: Vec<u64> = counts(&targets);
        let stop = Arc::new(AtomicBool::new(false));
        let sender = thread::spawn({
            let (stop, targets) = (Arc::clone(&stop), targets.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    targets.iter().for_each(Target::signal);
                    thread::yield_now();
                }
            }
        });
        // Each handles one before any can come to its end.
        targets.iter().for_each(|target| target.interrupt(1));
        let writer = runtime.spawn({
            let sent = Arc::clone(&sent);
            async move {
                write.write_all(&sent).await.unwrap();
                write
            }
        });
        let reader = runtime.spawn(async move {
            let mut received = vec![0; LENGTH];
            read.read_exact(&mut received).await.unwrap();
            (read, received)
        });
        let (read, received) = futures::executor::block_on(reader).unwrap();
        let write = futures::executor::block_on(writer).unwrap();
        while !rx_thread.is_finished() || !tx_thread_2.is_finished() {
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap();
        for (before, after) in before.iter().zip(counts(&targets)) {
            assert!(after > *before, "a thread that no signal has reached");
        }
        assert!(received == *sent);
        assert!(rx_thread.join().unwrap() == *sent);
        tx_thread_2.join().unwrap();
        assert_eq!(tx_thread.join().unwrap(), 1000);

        // The VM's last step, which waits for the host.
        let (found, last) = mpsc::channel();
        let last_step = asleep(move || {
            found.send(Target::this_thread()).unwrap();
            exit_hook(0);
        });
        last.recv().unwrap().interrupt(SIGNALS);
        assert!(!last_step.is_finished());
        drop((read, write));
        last_step.join().unwrap();
    }

    fn counts(targets: &[Target]) -> Vec<u64> {
        let counts = targets
            .iter()
            .map(|target| target.handled.load(Ordering::Relaxed));
        counts.collect()
    }
}

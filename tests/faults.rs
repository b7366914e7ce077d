//! Other faults: no descriptors left, signals during a wait, wakes without a reason, panics under a lock, streams
//! on another runtime.

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

/// A stream waits on the runtime that it was created on, even if you use it on another.
#[test]
fn stream_works_on_another_runtime() {
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
        // Each round uses a new runtime that knows nothing of the stream.
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

/// The runtime shuts down while a task waits for a stream. The guest keeps running.
#[test]
fn runtime_shutdown_gives_guest_end_of_file() {
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
    // The runtime dropped the task, and with it the stream.
    elsewhere.block_on(async { assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0) });
}

/// A stream's runtime shuts down while tasks of another runtime wait for the stream. Each wait fails. Not on Windows:
/// there a wait needs no runtime.
#[cfg(unix)]
#[test]
fn runtime_shutdown_fails_waits_on_another_runtime() {
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
    for operation in 0..8 {
        // Each task has its own stream, because each direction keeps only one waker for polls.
        let (mut stream, port) = created().unwrap();
        ends.push(backend(port));
        let full = vec![1; SMALL];
        assert_eq!(stream.try_write(&full).unwrap(), SMALL);
        let waiting = Arc::clone(&waiting);
        tasks.push(away.spawn(async move {
            let wait = async {
                match operation {
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
    for (operation, task) in tasks.into_iter().enumerate() {
        let error = futures::executor::block_on(task).unwrap();
        // The kind must not suggest that the guest ended.
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::Other,
            "{operation}: {error}"
        );
    }
    drop(ends);
}

/// A wake without a reason causes no end of file, no error and no bytes.
#[tokio::test]
async fn wake_without_reason_ends_no_wait() {
    watchdog(async {
        for operation in 0..6 {
            let (mut stream, backend) = common::pair();
            let check = async |wait: std::pin::Pin<&mut (dyn Future<Output = ()> + Send)>| {
                let mut wait = tokio_test::task::spawn(wait);
                // Polls without a wake.
                for _ in 0..3 {
                    assert_pending!(wait.poll());
                }
                // krun's first call wakes every task that waits for the guest, so it wakes this one too.
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
            match operation {
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

/// If `try_read` takes the bytes, their signal is still there when the next wait begins.
#[tokio::test]
async fn stale_wake_ends_no_wait() {
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
            // Tokio's driver gets a turn in every other round.
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

            // The same for the signal of room that `try_write` has used.
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

/// A caller's buffer that panics in `advance_mut`.
#[derive(Default)]
struct Bomb(Vec<u8>);

// SAFETY: the memory is the vector's own, and none of it ever counts as written.
#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
unsafe impl bytes::BufMut for Bomb {
    fn remaining_mut(&self) -> usize {
        self.0.remaining_mut()
    }

    fn chunk_mut(&mut self) -> &mut bytes::buf::UninitSlice {
        self.0.chunk_mut()
    }

    unsafe fn advance_mut(&mut self, _: usize) {
        panic!("from the caller's buffer")
    }
}

/// A caller's bytes that panic in their `drop`.
struct Owner(&'static [u8]);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        panic!("from the caller's bytes")
    }
}

/// The caller's code runs under the host's locks, so its panic poisons them. krun's thread takes them next. It must not
/// panic and must not lose a byte.
#[tokio::test]
async fn panic_under_lock_loses_nothing_and_does_not_reach_krun() {
    watchdog(async {
        let (mut stream, backend) = common::pair();
        let sent = pattern(SMALL);
        let (first, rest) = sent.split_at(5000);
        backend.write(first).unwrap();
        for _ in 0..2 {
            let read = AssertUnwindSafe(|| stream.try_read_buf(&mut Bomb::default()));
            assert!(std::panic::catch_unwind(read).is_err());
        }
        // krun's thread fills the open chunk, then new ones, until the ring is full.
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

        // Once the read half is dropped, krun's thread must take that same lock.
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

/// A small item is copied and dropped by the sender. krun's thread drops a large one.
#[tokio::test]
async fn bytes_that_panic_in_drop_arrive_and_do_not_reach_krun() {
    watchdog(async {
        let (stream, backend) = common::pair();
        let mut chunks = Chunks::new(stream);
        let mut buffer = vec![0; SMALL];
        for owned in [&b"few"[..], &[7; SMALL / 8], b"few"] {
            // krun finds nothing and waits.
            assert!(common::is_would_block(&backend.read(&mut buffer)));
            let send = AssertUnwindSafe(chunks.send(Bytes::from_owner(Owner(owned))));
            let result = send.catch_unwind().await;
            assert_eq!(result.is_err(), owned.len() < SMALL / 16);
            assert_eq!(backend.read(&mut buffer).unwrap(), owned.len());
            assert!(buffer.starts_with(owned));
            assert!(common::is_would_block(&backend.read(&mut buffer)));
            // The panic does not disturb the next bytes, in either direction.
            chunks.send(Bytes::from_static(b"next")).await.unwrap();
            assert_eq!(backend.read(&mut buffer).unwrap(), 4);
            backend.write(b"y").unwrap();
            assert_eq!(chunks.next().await.unwrap().unwrap(), "y");
        }
    })
    .await;
}

/// Once bytes are in the ring, the other side is woken for them, even if the sender panics afterwards.
#[tokio::test]
async fn small_item_that_panics_in_drop_wakes_krun() {
    let (stream, backend) = common::pair();
    let mut chunks = Chunks::new(stream);
    let mut buffer = [0; 100];
    assert!(common::is_would_block(&backend.read(&mut buffer)));
    let send = AssertUnwindSafe(chunks.send(Bytes::from_owner(Owner(b"few"))));
    assert!(send.catch_unwind().await.is_err());
    let stats = chunks.get_ref().stats().rx;
    assert_eq!(stats.queued, 3);
    assert_eq!(stats.data_wakes, 1, "krun sleeps while bytes are queued");
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

    /// Limits apply to the whole process, so the test runs in its own.
    #[test]
    #[cfg_attr(miri, ignore = "Miri cannot start a process")]
    fn pair_without_descriptors_fails_clearly_and_leaks_nothing() {
        let name = "linux::pair_without_descriptors_fails_clearly_and_leaks_nothing";
        if !common::is_alone(name) {
            return;
        }
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let _entered = runtime.enter();
        // The first stream opens what all streams share.
        drop(AgentStream::pair().unwrap());
        // Reading the directory takes a descriptor too, which does not count.
        let open = || fs::read_dir("/proc/self/fd").unwrap().count() - 1;
        // The limit applies to a descriptor's number, so fill the gaps between the numbers in use.
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
                    assert_eq!(open(), before, "leaks a descriptor with {spare} to spare");
                    refused += 1;
                }
            }
        }
        assert!(refused >= 3, "a stream needs at least three descriptors");
    }

    /// A thread that receives signals, and how many it has handled.
    #[derive(Clone, Copy)]
    struct Target {
        thread: libc::pthread_t,
        handled: &'static AtomicU64,
    }

    thread_local! {
        static HANDLED: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
    }

    impl Target {
        #[expect(unsafe_code, reason = "std does not tell this thread's `pthread_t`")]
        fn this_thread() -> Self {
            static COUNTS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let handled = &COUNTS[NEXT.fetch_add(1, Ordering::Relaxed)];
            HANDLED.set(Some(handled));
            Self {
                // SAFETY: the call has no preconditions.
                thread: unsafe { libc::pthread_self() },
                handled,
            }
        }

        /// Sends one signal. It interrupts whatever call the thread is in.
        #[expect(unsafe_code, reason = "std cannot send a signal")]
        fn signal(&self) {
            // SAFETY: each thread gets its last signal before the test joins it or drops its runtime.
            let result = unsafe { libc::pthread_kill(self.thread, libc::SIGUSR1) };
            assert_eq!(result, 0);
        }

        /// Sends `count` signals, each once the thread has handled the one before.
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

    /// Installs the handler without `SA_RESTART`, so that an interrupted call returns `EINTR`.
    #[expect(unsafe_code, reason = "std cannot handle signals")]
    fn handle_signals() {
        // SAFETY: all zeros is a valid `sigaction`: no flags, and no signals blocked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = count_signal as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the handler takes no lock and allocates nothing.
        let result = unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) };
        assert_eq!(result, 0);
    }

    /// Signals interrupt the system calls that the crate waits in, on every thread of the host and on krun's TX thread.
    /// Nothing is lost or doubled, and no operation gives up.
    ///
    /// krun's RX thread waits in krun's own `poll(2)` and does not survive a signal. So the test plays krun, and that
    /// thread only calls `read`.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no signals")]
    fn signals_during_waits_change_nothing() {
        if !common::is_alone("linux::signals_during_waits_change_nothing") {
            return;
        }
        handle_signals();
        for workers in 1..=2 {
            check_signals(workers);
        }
    }

    fn check_signals(workers: usize) {
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
        // One worker waits in tokio's driver, the others wait for work.
        let host: Vec<Target> = (0..workers).map(|_| host.recv().unwrap()).collect();
        let interrupt_host = || host.iter().for_each(|target| target.interrupt(SIGNALS));

        let options = Options::new().capacity(SMALL).clone();
        let (mut stream, port) = options.create_on(runtime.handle()).unwrap();
        let handle = port.handle();
        let exit_hook = port.exit_hook(Duration::from_secs(600));
        let backend = Arc::new(backend(port));

        // A read waits.
        let pending = Arc::new(AtomicU64::new(0));
        let read = runtime.spawn({
            let pending = Arc::clone(&pending);
            async move {
                let byte = counted(&pending, stream.read_u8()).await;
                (stream, byte.unwrap())
            }
        });
        while pending.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        interrupt_host();
        assert!(!read.is_finished());
        assert_eq!(pending.load(Ordering::Relaxed), 1);
        backend.write(b"x").unwrap();
        let (stream, byte) = futures::executor::block_on(read).unwrap();
        assert_eq!(byte, b'x');

        // krun's TX thread waits for room.
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

        // Bytes flow both ways, and every thread gets signals all the while.
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
                            // This replaces krun's wait.
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
        // Each thread handles a signal before any of them can end.
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
            assert!(after > *before, "a thread handled no signal");
        }
        assert!(received == *sent);
        assert!(rx_thread.join().unwrap() == *sent);
        tx_thread_2.join().unwrap();
        assert_eq!(tx_thread.join().unwrap(), 1000);

        // The VM's exit hook waits for the host.
        let (found, hook) = mpsc::channel();
        let hook_thread = asleep(move || {
            found.send(Target::this_thread()).unwrap();
            exit_hook(0);
        });
        hook.recv().unwrap().interrupt(SIGNALS);
        assert!(!hook_thread.is_finished());
        drop((read, write));
        hook_thread.join().unwrap();
    }

    fn counts(targets: &[Target]) -> Vec<u64> {
        let counts = targets
            .iter()
            .map(|target| target.handled.load(Ordering::Relaxed));
        counts.collect()
    }
}

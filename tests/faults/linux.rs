//! Faults that only Linux can show: no descriptors left, and signals.

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

    // A signal does not end the exit hook's wait for the host.
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

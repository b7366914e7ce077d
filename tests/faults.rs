//! What else may go wrong: no descriptors left, signals in the middle of a wait, a stream that comes
//! to another runtime.

mod common;

use std::time::Duration;

use common::{pattern, watchdog};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;
use tokio_krun::AgentStream;
use tokio_krun::guest::Guest;

/// It waits on the runtime that it was created on, wherever it is used.
#[test]
fn a_stream_works_on_another_runtime_than_its_own() {
    let home = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()
        .unwrap();
    let (mut stream, port) = home.block_on(async { AgentStream::new() }).unwrap();
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
    let (mut stream, port) = runtime.block_on(async { AgentStream::new() }).unwrap();
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

#[cfg(target_os = "linux")]
mod linux {
    use std::env;
    use std::fs::{self, File};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::process::{Resource, Signal, getpid, getrlimit, kill_process, setrlimit};
    use tokio::signal::unix::{SignalKind, signal};
    use tokio_krun::Error;

    use super::*;

    const CHILD: &str = "TOKIO_KRUN_FAULTS_CHILD";

    /// Limits are the whole process's, so the test is a process of its own.
    #[test]
    #[cfg_attr(miri, ignore = "Miri starts no process")]
    fn without_descriptors_there_is_a_clear_error_and_nothing_left_behind() {
        if env::var_os(CHILD).is_none() {
            let name = "linux::without_descriptors_there_is_a_clear_error_and_nothing_left_behind";
            let status = Command::new(env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(CHILD, "1")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let _entered = runtime.enter();
        // What the first one opens for all.
        drop(AgentStream::new().unwrap());
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
            let created = AgentStream::new();
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

    /// `poll(2)` and the like return early for each; nothing is lost, doubled or given up.
    #[test]
    #[cfg_attr(miri, ignore = "Miri has no signals")]
    fn signals_in_the_middle_of_waits_change_nothing() {
        const LENGTH: usize = 4 << 20;
        let _deadline = common::deadline();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        // A handler, or the first would end the process.
        let mut handler = {
            let _entered = runtime.enter();
            signal(SignalKind::user_defined1()).unwrap()
        };
        let done = std::sync::Arc::new(AtomicBool::new(false));
        let sender = std::thread::spawn({
            let done = std::sync::Arc::clone(&done);
            move || {
                while !done.load(Ordering::Relaxed) {
                    kill_process(getpid(), Signal::USR1).unwrap();
                    std::thread::yield_now();
                }
            }
        });
        runtime.block_on(async {
            handler.recv().await.unwrap();
            let options = tokio_krun::Options::new().capacity(common::SMALL);
            let (stream, port) = options.create().unwrap();
            let guest = Guest::boot(port);
            let mut agent = guest.open().unwrap();
            let echo = tokio::spawn(async move {
                let mut buffer = vec![0; 10_000];
                loop {
                    match agent.read(&mut buffer).await.unwrap() {
                        0 => return,
                        read => agent.write_all(&buffer[..read]).await.unwrap(),
                    }
                }
            });
            let sent = pattern(LENGTH);
            let (mut read, mut write) = stream.into_split();
            let writer = tokio::spawn({
                let sent = sent.clone();
                async move {
                    write.write_all(&sent).await.unwrap();
                    write
                }
            });
            let mut received = vec![0; LENGTH];
            read.read_exact(&mut received).await.unwrap();
            assert!(received == sent);
            read.reunite(writer.await.unwrap()).unwrap().hang_up();
            echo.await.unwrap();
        });
        done.store(true, Ordering::Relaxed);
        sender.join().unwrap();
    }
}

//! The contracts of `AsyncRead` and `AsyncWrite`, and whatever else you expect of a tokio stream.

mod common;

use std::future::pending;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{Backend, SMALL, backend, fill, many, pair, pattern, watchdog};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, Interest};
use tokio_krun::agent::VirtioPort;
use tokio_krun::test_util::{BlockingPort, Guest};
use tokio_krun::{
    AgentPort, AgentStream, Chunks, Error, Options, OwnedReadHalf, OwnedWriteHalf, PortHandle,
    ReadHalf, ReuniteError, RingStats, Stats, WriteHalf,
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// Auto traits are part of the API: every public type is `Send`, `Sync` and `Unpin`.
const _: () = {
    const fn assert_auto<T: Send + Sync + Unpin>() {}
    const fn assert_auto_and_static<T: Send + Sync + Unpin + 'static>() {}
    const fn assert_unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}
    assert_auto_and_static::<AgentStream>();
    assert_auto_and_static::<OwnedReadHalf>();
    assert_auto_and_static::<OwnedWriteHalf>();
    assert_auto_and_static::<ReuniteError>();
    assert_unwind_safe::<AgentStream>();
    assert_unwind_safe::<OwnedReadHalf>();
    assert_unwind_safe::<OwnedWriteHalf>();
    assert_auto::<ReadHalf<'_>>();
    assert_auto::<WriteHalf<'_>>();
    assert_auto_and_static::<Chunks<AgentStream>>();
    assert_auto::<Chunks<&mut OwnedReadHalf>>();
    assert_auto_and_static::<AgentPort>();
    assert_auto_and_static::<PortHandle>();
    assert_auto_and_static::<Backend>();
    assert_auto_and_static::<Options>();
    assert_auto_and_static::<Stats>();
    assert_auto_and_static::<RingStats>();
    assert_auto_and_static::<Error>();
    assert_auto_and_static::<Guest>();
    // ttrpc's server requires these of its connections, in the guest too.
    assert_auto_and_static::<VirtioPort>();
    assert_unwind_safe::<VirtioPort>();
    assert_auto_and_static::<BlockingPort>();
    assert_unwind_safe::<BlockingPort>();
};

/// You can await each method in a spawned task.
#[tokio::test]
async fn futures_are_send() {
    fn assert_send<T: Send>(_: T) {}
    let (mut stream, _backend) = pair();
    assert_send(stream.readable());
    assert_send(stream.writable());
    assert_send(stream.ready(Interest::READABLE));
    assert_send(stream.guest_opened());
    assert_send(stream.drained());
    assert_send(stream.fill_buf());
    assert_send(Chunks::new(stream).next());
}

async fn transfer_both_ways_at_once(options: Options) {
    const LENGTH: usize = if cfg!(miri) { 4 * SMALL } else { 8 << 20 };
    let (stream, port) = options.create().unwrap();
    let guest = common::boot(port);
    let (mut guest_read, mut guest_write) = tokio::io::split(guest.open().unwrap());
    let (mut host_read, mut host_write) = tokio::io::split(stream);
    let sent = pattern(LENGTH);
    let expected = crc32fast::hash(&sent);

    let receive_in_guest = tokio::spawn(async move {
        let mut received = vec![0; LENGTH];
        guest_read.read_exact(&mut received).await.unwrap();
        crc32fast::hash(&received)
    });
    let send_in_guest = tokio::spawn({
        let sent = sent.clone();
        async move { guest_write.write_all(&sent).await }
    });
    let send_in_host = tokio::spawn(async move { host_write.write_all(&sent).await });
    let mut received = vec![0; LENGTH];
    host_read.read_exact(&mut received).await.unwrap();

    assert_eq!(crc32fast::hash(&received), expected);
    assert_eq!(receive_in_guest.await.unwrap(), expected);
    send_in_guest.await.unwrap().unwrap();
    send_in_host.await.unwrap().unwrap();
}

#[tokio::test]
async fn carries_both_ways_at_once_on_current_thread() {
    watchdog(transfer_both_ways_at_once(Options::new().capacity(SMALL))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carries_both_ways_at_once_on_several_threads() {
    watchdog(transfer_both_ways_at_once(Options::new().capacity(SMALL))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn carries_both_ways_at_once_with_busy_poll() {
    let options = Options::new().capacity(SMALL);
    watchdog(transfer_both_ways_at_once(
        options.busy_poll(Duration::from_micros(20)),
    ))
    .await;
}

#[tokio::test]
async fn frames_of_many_sizes_are_echoed_intact() {
    watchdog(async {
        let (stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
        let codec = || {
            LengthDelimitedCodec::builder()
                .max_frame_length(1 << 20)
                .new_codec()
        };
        let mut agent = Framed::new(guest.open().unwrap(), codec());
        let echo = tokio::spawn(async move {
            while let Some(frame) = agent.next().await {
                agent.send(frame.unwrap().freeze()).await.unwrap();
            }
        });

        let mut host = Framed::new(stream, codec());
        for size in [0, 1, 2, 4095, 4096, 4097, 32_768, 32_769, many(1 << 20)] {
            let frame = Bytes::from(pattern(size));
            host.send(frame.clone()).await.unwrap();
            assert_eq!(host.next().await.unwrap().unwrap(), frame);
        }
        drop(host);
        echo.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn paused_guest_reads_nothing_until_it_is_resumed() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        guest.pause();
        stream.write_all(b"meanwhile").await.unwrap();
        // krun takes the bytes all the same.
        stream.drained().await.unwrap();
        let mut received = [0; 9];
        {
            let mut read = tokio_test::task::spawn(agent.read_exact(&mut received));
            for _ in 0..100 {
                assert_pending!(read.poll());
                tokio::task::yield_now().await;
            }
            guest.resume();
            assert!(read.is_woken());
            read.await.unwrap();
        }
        assert_eq!(&received, b"meanwhile");

        // A guest that is paused in the middle of its queue keeps the rest, and the end after it.
        stream.write_all(b"two parts").await.unwrap();
        agent.read_exact(&mut received[..4]).await.unwrap(); // "two "
        guest.pause();
        stream.hang_up();
        assert_pending!(tokio_test::task::spawn(agent.read_u8()).poll());
        guest.resume();
        let mut rest = Vec::new();
        agent.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"parts");
    })
    .await;
}

#[tokio::test]
async fn paused_guest_writes_nothing_until_it_is_resumed() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        guest.pause();
        {
            let mut write = tokio_test::task::spawn(agent.write(b"late"));
            for _ in 0..100 {
                assert_pending!(write.poll());
                tokio::task::yield_now().await;
            }
            guest.drained().await;
            let tx = stream.stats().tx;
            assert_eq!((tx.bytes, tx.queued), (0, 0));
            guest.resume();
            assert!(write.is_woken());
            assert_eq!(assert_ready_ok!(write.poll()), 4);
        }
        let mut received = [0; 4];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"late");
    })
    .await;
}

#[tokio::test]
async fn pause_keeps_nothing_back_that_guest_has_queued() {
    watchdog(async {
        // krun waits for room with the second descriptor, and the rest is in the queue.
        let (mut stream, port) = Options::new().capacity(SMALL).create().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        let sent = pattern(8 * SMALL);
        agent.write_all(&sent).await.unwrap();
        while stream.stats().tx.full == 0 {
            tokio::task::yield_now().await;
        }
        guest.pause();
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == sent);
        guest.drained().await;
        assert_pending!(tokio_test::task::spawn(agent.write(b"x")).poll());
        assert_eq!(stream.stats().tx.queued, 0);
    })
    .await;
}

#[tokio::test]
async fn single_read_returns_all_queued_chunks() {
    let (mut stream, backend) = pair();
    let sent = pattern(SMALL - 5);
    for part in sent.chunks(1000) {
        assert_eq!(backend.write(part).unwrap(), part.len());
    }

    let mut received = vec![0; SMALL];
    assert_eq!(stream.read(&mut received).await.unwrap(), sent.len());
    assert_eq!(received[..sent.len()], sent);
}

#[tokio::test]
async fn short_read_leaves_rest_for_next_read() {
    let (mut stream, backend) = pair();
    let sent = pattern(10_000);
    backend.write(&sent).unwrap();

    let mut received = Vec::new();
    let mut buffer = [0; 333];
    while received.len() < sent.len() {
        let read = stream.read(&mut buffer).await.unwrap();
        received.extend_from_slice(&buffer[..read]);
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn read_into_empty_buffer_completes_without_end_of_file() {
    let (mut stream, backend) = pair();
    assert_eq!(stream.read(&mut []).await.unwrap(), 0);
    backend.write(b"x").unwrap();
    assert_eq!(stream.read(&mut []).await.unwrap(), 0);
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn empty_write_completes_and_loses_nothing() {
    let (mut stream, backend) = pair();
    stream.write_all(b"be").await.unwrap();
    assert_eq!(stream.write(&[]).await.unwrap(), 0);
    stream.write_all(b"fore").await.unwrap();
    let mut received = [0; 16];
    assert_eq!(backend.read(&mut received).unwrap(), 6);
    assert_eq!(&received[..6], b"before");
}

#[tokio::test]
async fn guest_write_wakes_pending_read() {
    watchdog(async {
        let (mut stream, backend) = pair();
        let mut read = tokio_test::task::spawn(stream.read_u8());
        assert_pending!(read.poll());
        tokio::task::yield_now().await;
        assert!(!read.is_woken());

        backend.write(b"x").unwrap();
        while !read.is_woken() {
            tokio::task::yield_now().await;
        }
        assert_eq!(assert_ready_ok!(read.poll()), b'x');
    })
    .await;
}

#[tokio::test]
async fn pending_write_is_woken_once_guest_took_half() {
    watchdog(async {
        let (mut stream, backend) = pair();
        stream.write_all(&vec![1; SMALL]).await.unwrap();
        let mut write = tokio_test::task::spawn(stream.write(b"more"));
        assert_pending!(write.poll());

        let mut buffer = vec![0; SMALL / 2 - 1];
        assert_eq!(backend.read(&mut buffer).unwrap(), SMALL / 2 - 1);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!write.is_woken(), "woken before the guest took half");
        assert_eq!(backend.read(&mut buffer[..1]).unwrap(), 1);
        while !write.is_woken() {
            tokio::task::yield_now().await;
        }
        assert_eq!(assert_ready_ok!(write.poll()), 4);
    })
    .await;
}

#[tokio::test]
async fn write_takes_only_what_fits() {
    let (mut stream, backend) = pair();
    stream.write_all(&vec![1; SMALL - 10]).await.unwrap();
    assert_eq!(stream.write(&[2; 100]).await.unwrap(), 10);

    let mut received = vec![0; SMALL];
    assert_eq!(backend.read(&mut received).unwrap(), SMALL);
    assert_eq!(received[SMALL - 10..], [2; 10]);
}

/// If each write took a slot, the slots would run out long before the bytes: the ring has slots for about 500 chunks.
#[tokio::test]
#[cfg_attr(miri, ignore = "Miri takes too long for a million writes")]
async fn million_small_writes_fill_capacity_before_slots() {
    const WRITES: usize = 1_000_000;
    let (mut stream, port) = Options::new().capacity(16 * WRITES).create().unwrap();
    let backend = backend(port);
    for _ in 0..WRITES {
        assert_eq!(backend.write(&[7; 16]).unwrap(), 16);
    }
    let full = backend.write(&[8]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(stream.stats().tx.queued, 16 * WRITES as u64);
    let mut received = vec![0; 16 * WRITES];
    stream.read_exact(&mut received).await.unwrap();
    assert!(received.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn small_writes_share_chunks() {
    // The ring has 18 slots. If each write took one, the 19th write would wait forever.
    let (mut stream, backend) = pair();
    for byte in 0..=255 {
        assert_eq!(watchdog(stream.write(&[byte])).await.unwrap(), 1);
        assert_eq!(backend.write(&[byte]).unwrap(), 1);
    }
    let mut received = [0; 256];
    assert_eq!(stream.read(&mut received).await.unwrap(), 256);
    assert!(received.iter().copied().eq(0..=255));
    assert_eq!(backend.read(&mut received).unwrap(), 256);
    assert!(received.iter().copied().eq(0..=255));
}

#[tokio::test]
async fn cancelled_read_or_write_moves_nothing() {
    watchdog(async {
        let (mut stream, backend) = pair();
        {
            let mut read = tokio_test::task::spawn(stream.read_u8());
            assert_pending!(read.poll());
            backend.write(b"kept").unwrap();
        }
        let mut received = [0; 4];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"kept");

        stream.write_all(&vec![1; SMALL]).await.unwrap();
        {
            let mut write = tokio_test::task::spawn(stream.write(b"lost"));
            assert_pending!(write.poll());
        }
        let mut taken = vec![0; 2 * SMALL];
        assert_eq!(backend.read(&mut taken).unwrap(), SMALL);
    })
    .await;
}

#[tokio::test]
async fn flush_and_shutdown_complete_immediately() {
    let (mut stream, backend) = pair();
    stream.write_all(b"sent").await.unwrap();
    assert_ready_ok!(tokio_test::task::spawn(stream.flush()).poll());
    assert_ready_ok!(tokio_test::task::spawn(stream.shutdown()).poll());
    assert_ready_ok!(tokio_test::task::spawn(stream.shutdown()).poll());
    let mut received = [0; 8];
    assert_eq!(backend.read(&mut received).unwrap(), 4);
}

/// The guest always has more to read. A task that reads in a loop must still yield now and then.
#[tokio::test]
async fn flooded_task_yields_to_others() {
    watchdog(async {
        let (mut flooded, backend) = pair();
        let stop = Arc::new(AtomicBool::new(false));
        let reads = Arc::new(AtomicUsize::new(0));
        let reader = tokio::spawn({
            let (stop, reads) = (Arc::clone(&stop), Arc::clone(&reads));
            async move {
                while !stop.load(Ordering::Relaxed) {
                    // Keeps the ring from being empty at any read.
                    fill(&backend);
                    flooded.read_u8().await.unwrap();
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut turns = 0;
        while reads.load(Ordering::Relaxed) < many(10_000) {
            tokio::task::yield_now().await;
            turns += 1;
        }
        stop.store(true, Ordering::Relaxed);
        reader.await.unwrap();
        // Tokio's budget for one turn of a task is 128 operations.
        assert!(
            turns >= many(10_000) / 128,
            "{turns} turns during 10,000 reads"
        );
    })
    .await;
}

#[tokio::test]
async fn capacity_outside_limits_is_rejected() {
    let error = |options: Options| options.create().map(drop).unwrap_err();
    for capacity in [0, 1, SMALL - 1, (1 << 30) + 1, usize::MAX] {
        let error = error(Options::new().capacity(capacity));
        assert!(matches!(error, Error::Capacity { capacity: c, .. } if c == capacity));
        assert!(error.to_string().contains("32768 to 1073741824"), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    }
    for capacity in [SMALL, SMALL + 1, 1 << 30] {
        let created = Options::new().capacity(capacity).create();
        assert!(created.is_ok(), "{capacity} bytes");
    }
}

#[tokio::test]
async fn each_valid_size_holds_its_capacity() {
    // The last has chunks of the usual 64 KiB. Those of the others are an eighth of the capacity, rounded up.
    for capacity in [SMALL, SMALL + 1, 100_003, 530_003] {
        let (mut stream, port) = Options::new().capacity(capacity).create().unwrap();
        let backend = backend(port);
        let sent = pattern(capacity);
        for round in 0..3 {
            stream.write_all(&sent).await.unwrap();
            assert_pending!(tokio_test::task::spawn(stream.write(b"x")).poll());
            let mut received = vec![0; capacity + round];
            let half = capacity / 2;
            assert_eq!(backend.read(&mut received[..half]).unwrap(), half);
            assert_eq!(
                backend.read(&mut received[half..]).unwrap(),
                capacity - half
            );
            assert!(received.starts_with(&sent), "{capacity} bytes");
        }
    }
}

#[test]
fn pair_outside_runtime_fails_with_clear_error() {
    let error = AgentStream::pair().map(drop).unwrap_err();
    assert!(matches!(error, Error::NoRuntime));
    assert!(error.to_string().contains("runtime"), "{error}");
}

#[test]
fn runtime_without_io_driver_is_an_error_that_names_enable_io() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for created in [
        runtime.block_on(async { AgentStream::pair() }),
        Options::new().create_on(runtime.handle()),
    ] {
        let error = created.unwrap_err();
        assert!(matches!(error, Error::NoIoDriver), "{error:?}");
        assert!(error.to_string().contains("enable_io"), "{error}");
    }
}

#[cfg(unix)] // on Windows the port ends with its runtime, and the stream with it
#[test]
fn runtime_that_has_shut_down_is_an_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let handle = runtime.handle().clone();
    let (mut stream, port) = Options::new().capacity(SMALL).create_on(&handle).unwrap();
    let backend = backend(port);
    backend.write(b"x").unwrap();
    drop(runtime);
    let created = Options::new().create_on(&handle);
    assert!(matches!(created.unwrap_err(), Error::RuntimeGone));

    // What needs no wait succeeds. Reading and writing give the same error for what does.
    let mut buffer = [0; SMALL];
    let errors = futures::executor::block_on(async {
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 1);
        stream.write_all(&buffer).await.unwrap();
        [stream.read_u8().await.map(drop), stream.write_u8(0).await]
    })
    .map(Result::unwrap_err);
    for error in errors {
        assert_eq!(error.kind(), io::ErrorKind::Other);
        let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
        assert!(matches!(reason, Some(Error::RuntimeGone)), "{error:?}");
    }
}

#[test]
fn create_on_works_outside_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let (mut stream, port) = Options::new().create_on(runtime.handle()).unwrap();
    let guest = common::boot(port);
    let mut agent = guest.open().unwrap();
    runtime.block_on(watchdog(async {
        agent.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }));
}

#[test]
fn waiting_after_runtime_shut_down_fails_instead_of_hanging() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let (mut stream, port) = runtime.block_on(async { AgentStream::pair() }).unwrap();
    let backend = backend(port);
    backend.write(b"x").unwrap();
    drop(runtime);
    // Reading what is in the ring needs no runtime; waiting does.
    let read = futures::executor::block_on(stream.read_u8());
    assert_eq!(read.unwrap(), b'x');
    assert!(futures::executor::block_on(stream.read_u8()).is_err());
}

#[tokio::test]
async fn aborting_task_that_waits_in_read_drops_stream() {
    let (mut stream, backend) = pair();
    let task = tokio::spawn(async move {
        let _ = stream.read_u8().await;
        pending::<()>().await;
    });
    tokio::task::yield_now().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    // The guest reads end of file.
    assert_eq!(backend.read(&mut [0; 8]).unwrap(), 0);
}

/// Only the descriptor that krun polls. `descriptors` looks at all of them, in `/proc`.
#[cfg(unix)] // there are no descriptors on Windows
#[tokio::test]
#[cfg_attr(miri, ignore = "Miri does not support all of fcntl")]
#[expect(unsafe_code, reason = "krun's trait returns a raw descriptor")]
async fn krun_descriptor_is_close_on_exec_and_nonblocking() {
    use std::os::fd::{AsFd, BorrowedFd};

    let (_stream, backend) = pair();
    // SAFETY: the backend owns the descriptor and outlives this borrow.
    let wake = unsafe { BorrowedFd::borrow_raw(backend.read_wake_fd()) };
    let flags = rustix::io::fcntl_getfd(wake.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let mode = rustix::fs::fcntl_getfl(wake).unwrap();
    assert!(mode.contains(rustix::fs::OFlags::NONBLOCK));
}

/// Each test runs alone in a process, because other tests open and close descriptors.
#[cfg(all(target_os = "linux", not(miri)))] // needs /proc, and Miri cannot start a process
mod descriptors {
    use std::collections::BTreeMap;
    use std::fs;
    use std::process::Command;

    use futures::StreamExt;
    use tokio_krun::{AgentStream, Chunks};

    use super::{Duration, common, pair, pattern};

    /// Descriptors of a stream and krun's end of it.
    const PER_STREAM: usize = if cfg!(tokio_krun_pipe) { 6 } else { 3 };

    /// The targets of all open descriptors, by number. Leaves out the one that reads this directory.
    fn open_descriptors() -> BTreeMap<u32, String> {
        let entries = fs::read_dir("/proc/self/fd").unwrap();
        let descriptors = entries.filter_map(|entry| {
            let path = entry.unwrap().path();
            let target = fs::read_link(&path).ok()?.to_str().unwrap().to_owned();
            let number = path.file_name().unwrap().to_str().unwrap().parse();
            Some((number.unwrap(), target)).filter(|(_, target)| !target.starts_with("/proc/"))
        });
        descriptors.collect()
    }

    #[tokio::test]
    async fn dropping_stream_closes_all_three() {
        if !common::is_alone("descriptors::dropping_stream_closes_all_three") {
            return;
        }
        let before = open_descriptors();
        let both = pair();
        assert_eq!(open_descriptors().len() - before.len(), PER_STREAM);
        drop(both);
        assert_eq!(open_descriptors(), before);
    }

    #[tokio::test]
    async fn child_process_inherits_none() {
        if !common::is_alone("descriptors::child_process_inherits_none") {
            return;
        }
        let before = open_descriptors();
        let (_stream, _backend) = pair();
        let mut own = open_descriptors();
        own.retain(|number, _| !before.contains_key(number));
        assert_eq!(own.len(), PER_STREAM);
        for number in own.keys() {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            let flags = rustix::fs::OFlags::from_bits_retain(flags);
            let expected = rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
            assert!(flags.contains(expected), "{number}: {flags:?}");
        }

        // Compares targets, not numbers: the child opens files too, and may reuse the numbers.
        let in_child = || {
            let list = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
            let list = String::from_utf8(list.unwrap().stdout).unwrap();
            assert!(list.contains("/proc/"), "{list}");
            let has = |target: &String| list.lines().any(|line| line.ends_with(target));
            own.values().filter(|target| has(target)).count()
        };
        assert_eq!(in_child(), 0);
        // The check works: a duplicate without close-on-exec does appear in the child.
        let inherited = rustix::io::dup(first_descriptor(&own)).unwrap();
        assert!(in_child() > 0);
        drop(inherited);
        assert_eq!(in_child(), 0);
    }

    /// What you may keep of a stream keeps no part of its machinery alive.
    #[tokio::test]
    async fn kept_handle_hook_and_bytes_hold_none_open() {
        if !common::is_alone("descriptors::kept_handle_hook_and_bytes_hold_none_open") {
            return;
        }
        let chunk = pattern(64 * 1024);
        let before = open_descriptors();
        let mut kept = Vec::new();
        for _ in 0..50 {
            let (stream, port) = AgentStream::pair().unwrap();
            let (handle, hook) = (port.handle(), port.exit_hook(Duration::MAX));
            let backend = port.into_backend();
            assert_eq!(backend.write(&chunk).unwrap(), chunk.len());
            let mut chunks = Chunks::new(stream);
            let bytes = chunks.next().await.unwrap().unwrap();
            assert_eq!(bytes.len(), chunk.len());
            kept.push((bytes.slice(100..110), handle, hook));
            drop(bytes);
            assert_eq!(open_descriptors().len() - before.len(), PER_STREAM);
            drop(chunks);
            drop(backend);
            assert_eq!(open_descriptors(), before);
        }
        for (bytes, handle, hook) in kept {
            assert_eq!(bytes, chunk[100..110]);
            assert_eq!(handle.stats().tx.bytes, chunk.len() as u64);
            // There is nothing to wait for.
            hook(0);
        }
    }

    #[expect(unsafe_code, reason = "only the number is known")]
    fn first_descriptor(own: &BTreeMap<u32, String>) -> std::os::fd::BorrowedFd<'_> {
        let number = *own.keys().next().unwrap();
        // SAFETY: the descriptor is the stream's, which outlives the borrow.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(number as i32) }
    }
}

#[tokio::test]
async fn debug_shows_state_without_payload() {
    let (mut stream, backend) = pair();
    stream.write_all(b"secret").await.unwrap();
    backend.write(b"secret").unwrap();
    for text in [format!("{stream:?}"), format!("{backend:?}")] {
        assert!(text.contains("queued: 6"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
    let mut read = tokio_test::task::spawn(stream.read_u8());
    assert_eq!(assert_ready!(read.poll()).unwrap(), b's');
}

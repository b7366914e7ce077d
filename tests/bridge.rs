//! The Windows pipe with krun's own end of it: `msb_krun_devices`' `named_pipe`, used as krun's worker threads use it.

#![cfg(windows)] // krun opens a pipe only there

mod common;

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{env, process};

use common::{SMALL, pattern, watchdog};
use msb_krun_devices::virtio::console::port_io::{self, PortInput, PortOutput};
use msb_krun_utils::eventfd::{EFD_NONBLOCK, EventFd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio_krun::{AgentStream, Error, Options};
use tokio_test::assert_pending;
use vm_memory::VolatileSlice;

/// The most that Linux writes in one descriptor.
const TX_BUFFER: usize = 32 * 1024;
/// The size of each buffer that Linux offers the host to fill.
const RX_BUFFER: usize = 4096;

type Input = Box<dyn PortInput + Send>;
type Output = Box<dyn PortOutput + Send>;

fn krun(pipe_name: &str) -> (Input, Output) {
    port_io::named_pipe(pipe_name).unwrap()
}

/// Writes all of `bytes`. Blocks, as krun's TX thread does.
fn transmit(output: &mut Output, bytes: &[u8]) -> io::Result<()> {
    for descriptor in bytes.chunks(TX_BUFFER) {
        let mut descriptor = descriptor.to_vec();
        let length = output.write_volatile(&VolatileSlice::from(&mut descriptor[..]))?;
        assert_eq!(length, descriptor.len());
    }
    Ok(())
}

/// Reads into `received` as krun's RX thread does, until end of file, `limit` bytes or the stop event. Returns whether
/// it reached end of file.
///
/// It takes two results of 0 in a row for end of file. krun checks its queue, releases it, and only then checks whether
/// the pipe has closed. Bytes that arrive in between are still to be read. krun's own thread does not return for them:
/// see "Ends" at `AgentConsolePipeBridge`.
fn receive(input: &mut Input, received: &mut Vec<u8>, limit: usize, stop: &EventFd) -> bool {
    let mut descriptor = [0; RX_BUFFER];
    let mut ended = false;
    while received.len() < limit {
        let wanted = RX_BUFFER.min(limit - received.len());
        match input.read_volatile(&mut VolatileSlice::from(&mut descriptor[..wanted])) {
            Ok(0) if ended => return true,
            Ok(0) => ended = true,
            Ok(read) => {
                ended = false;
                received.extend_from_slice(&descriptor[..read]);
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                input.wait_until_readable(Some(stop));
                if stop.read().is_ok() {
                    return false;
                }
            }
        }
    }
    false
}

/// A stop event that nobody sends.
fn never() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// Receives everything until end of file, on a thread.
fn receive_all(mut input: Input) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut received = Vec::new();
        assert!(receive(&mut input, &mut received, usize::MAX, &never()));
        received
    })
}

/// Joins a thread without blocking the runtime, which the thread may wait for.
async fn joined<T: Send + 'static>(thread: JoinHandle<T>) -> T {
    let joined = tokio::task::spawn_blocking(move || thread.join());
    joined.await.unwrap().unwrap()
}

fn small() -> Options {
    Options::new().capacity(SMALL)
}

/// A stream, and the name of the pipe that krun opens.
fn attached(options: &Options) -> (AgentStream, String) {
    let (stream, port) = options.create().unwrap();
    (stream, port.into_bridge().into_pipe_name())
}

fn assert_broken_pipe<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

async fn check_both_directions(options: Options) {
    const LENGTH: usize = 64 << 20;
    let (stream, name) = attached(&options);
    let (mut input, mut output) = krun(&name);
    let sent = Arc::new(pattern(LENGTH));
    let expected = crc32fast::hash(&sent);
    let rx = thread::spawn(move || {
        let mut received = Vec::new();
        receive(&mut input, &mut received, LENGTH, &never());
        (crc32fast::hash(&received), input)
    });
    let tx = thread::spawn({
        let sent = Arc::clone(&sent);
        move || {
            transmit(&mut output, &sent).unwrap();
            output
        }
    });
    let (mut read, mut write) = stream.into_split();
    let host_sends = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.drained().await.unwrap();
        write
    });
    let mut received = vec![0; LENGTH];
    read.read_exact(&mut received).await.unwrap();
    assert_eq!(crc32fast::hash(&received), expected);
    let write = host_sends.await.unwrap();
    let (received, input) = joined(rx).await;
    assert_eq!(received, expected);
    let output = joined(tx).await;

    // Nothing more arrives.
    assert_pending!(tokio_test::task::spawn(read.read_u8()).poll());
    drop((input, output));
    assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0);
    drop(write);
}

#[tokio::test]
async fn both_directions_arrive_whole_on_current_thread_runtime() {
    watchdog(check_both_directions(Options::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_arrive_whole_on_multi_thread_runtime_in_small_rings() {
    watchdog(check_both_directions(small())).await;
}

#[tokio::test]
async fn bytes_written_before_krun_connects_are_kept() {
    watchdog(async {
        let (mut stream, name) = attached(&small());
        stream.write_all(&[1; SMALL]).await.unwrap();
        assert!(!stream.has_guest_opened());
        assert_pending!(tokio_test::task::spawn(stream.drained()).poll());
        let (input, _output) = krun(&name);
        stream.guest_opened().await.unwrap();
        stream.drained().await.unwrap();
        stream.hang_up();
        assert!(joined(receive_all(input)).await == [1; SMALL]);
    })
    .await;
}

#[tokio::test]
async fn stopping_and_restarting_rx_thread_loses_nothing() {
    watchdog(async {
        let (mut stream, name) = attached(&Options::new());
        let (mut input, _output) = krun(&name);
        let sent = pattern(3 << 20);
        let stop = EventFd::new(EFD_NONBLOCK).unwrap();
        stream.write_all(&sent[..1 << 20]).await.unwrap();
        let rx = thread::spawn({
            let stop = stop.try_clone().unwrap();
            move || {
                let mut received = Vec::new();
                assert!(!receive(&mut input, &mut received, usize::MAX, &stop));
                (received, input)
            }
        });
        stream.drained().await.unwrap();
        stop.write(1).unwrap();
        let (mut received, mut input) = joined(rx).await;
        stream.write_all(&sent[1 << 20..]).await.unwrap();
        let rx = thread::spawn(move || {
            receive(&mut input, &mut received, 3 << 20, &never());
            received
        });
        stream.drained().await.unwrap();
        assert!(joined(rx).await == sent);
    })
    .await;
}

#[tokio::test]
async fn host_reads_all_bytes_then_end_of_file_after_krun_disconnects() {
    watchdog(async {
        let (mut stream, name) = attached(&small());
        let (input, mut output) = krun(&name);
        // More than the ring holds.
        let sent = pattern(SMALL + 20_000);
        let tx = thread::spawn({
            let sent = sent.clone();
            move || transmit(&mut output, &sent).unwrap()
        });
        joined(tx).await;
        drop(input);
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        assert_broken_pipe(stream.write(b"too late").await);
    })
    .await;
}

#[tokio::test]
async fn pending_write_fails_when_krun_disconnects() {
    watchdog(async {
        let (mut stream, name) = attached(&small());
        // Unlike krun, this client reads nothing.
        let silent = open(&name).unwrap();
        let writer = tokio::spawn(async move {
            let error = stream.write_all(&[1; 1 << 20]).await.unwrap_err();
            (error.kind(), stream)
        });
        tokio::task::yield_now().await;
        drop(silent);
        let (kind, mut stream) = writer.await.unwrap();
        assert_eq!(kind, io::ErrorKind::BrokenPipe);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(stream.drained().await.is_err());
    })
    .await;
}

/// Starts a thread that transmits more than the ring and the pipe hold. Returns once the ring is full.
async fn transmit_too_much(stream: &AgentStream, mut output: Output) -> JoinHandle<io::Result<()>> {
    let tx = thread::spawn(move || transmit(&mut output, &vec![1; 4 << 20]));
    while stream.stats().tx.full == 0 {
        tokio::task::yield_now().await;
    }
    tx
}

#[tokio::test]
async fn dropping_stream_delivers_bytes_and_lets_krun_finish_its_write() {
    watchdog(async {
        let (mut stream, name) = attached(&small());
        let (input, output) = krun(&name);
        let tx = transmit_too_much(&stream, output).await;
        stream.write_all(b"goodbye").await.unwrap();
        drop(stream);
        assert_eq!(joined(receive_all(input)).await, b"goodbye");
        // It does not fail: krun would try it again and again.
        joined(tx).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn hang_up_keeps_bytes_that_guest_wrote_before() {
    watchdog(async {
        for _ in 0..20 {
            let (mut stream, name) = attached(&Options::new());
            let (input, mut output) = krun(&name);
            let sent = pattern(50_000);
            let tx = thread::spawn({
                let sent = sent.clone();
                move || transmit(&mut output, &sent).map(|()| output)
            });
            // The bridge had no turn, so it has read nothing from the pipe.
            let _output = tx.join().unwrap().unwrap();
            stream.write_all(b"goodbye").await.unwrap();
            stream.hang_up();
            assert_eq!(joined(receive_all(input)).await, b"goodbye");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.unwrap();
            assert!(received == sent, "{} bytes", received.len());
        }
    })
    .await;
}

#[tokio::test]
async fn hang_up_does_not_wait_for_bytes_in_virtqueue() {
    watchdog(async {
        let (mut stream, port) = AgentStream::pair().unwrap();
        let guest = common::boot(port);
        let mut agent = guest.open().unwrap();
        guest.stop_workers().await;
        agent.write_all(b"too late").await.unwrap();
        stream.hang_up();
        // The pipe closes while those bytes are still in the virtqueue.
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        guest.start_workers().unwrap();
        guest.drained().await;
        assert_eq!(agent.read(&mut [0; 8]).await.unwrap(), 0);
        assert_broken_pipe(agent.write(b"later").await);
        guest.power_off().await;
    })
    .await;
}

#[tokio::test]
async fn dropping_stream_without_hang_up_discards_and_counts_guest_writes() {
    watchdog(async {
        let (stream, port) = small().hang_up_on_drop(false).create().unwrap();
        let handle = port.handle();
        let (mut input, output) = krun(&port.into_bridge().into_pipe_name());
        let tx = transmit_too_much(&stream, output).await;
        drop(stream);
        joined(tx).await.unwrap();
        // Bytes still in the pipe after the writer has finished are discarded and counted too.
        while handle.stats().tx.discarded < 4 << 20 {
            tokio::task::yield_now().await;
        }
        // The guest reads no end of file.
        let mut byte = [0];
        let read = input.read_volatile(&mut VolatileSlice::from(&mut byte[..]));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    })
    .await;
}

#[tokio::test]
async fn quiesce_lets_waiting_krun_write_through() {
    watchdog(async {
        let (mut stream, port) = Options::new().capacity(64 * 1024).create().unwrap();
        let handle = port.handle();
        let (_input, mut output) = krun(&port.into_bridge().into_pipe_name());
        // More than the ring, the pipe and tokio hold, but no more than the quiesced ring takes.
        let sent = pattern(128 * 1024);
        let tx = thread::spawn({
            let sent = sent.clone();
            move || transmit(&mut output, &sent).map(|()| output)
        });
        while stream.stats().tx.full == 0 {
            tokio::task::yield_now().await;
        }
        handle.quiesce();
        let _output = joined(tx).await.unwrap();
        let mut received = vec![0; sent.len()];
        stream.read_exact(&mut received).await.unwrap();
        assert!(received == sent);
        assert_eq!(stream.stats().tx.discarded, 0);
    })
    .await;
}

#[tokio::test]
async fn exit_hook_waits_for_bytes_in_pipe() {
    watchdog(async {
        for _ in 0..20 {
            let (mut stream, port) = small().create().unwrap();
            let hook = port.exit_hook(Duration::MAX);
            let (_input, mut output) = krun(&port.into_bridge().into_pipe_name());
            let sent = pattern(60_000);
            let tx = thread::spawn({
                let sent = sent.clone();
                move || {
                    transmit(&mut output, &sent).unwrap();
                    output
                }
            });
            // krun stops its TX thread and then calls the hook. Its end of the pipe stays open.
            let _output = tx.join().unwrap();
            let vm = thread::spawn(move || hook(0));
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.unwrap();
            assert!(received == sent, "{} bytes", received.len());
            assert_broken_pipe(stream.write(b"too late").await);
            assert!(!vm.is_finished());
            drop(stream);
            joined(vm).await;
        }
    })
    .await;
}

fn open(name: &str) -> io::Result<std::fs::File> {
    OpenOptions::new().read(true).write(true).open(name)
}

#[tokio::test]
async fn stalled_reader_makes_writes_wait_and_cancelled_write_loses_nothing() {
    watchdog(async {
        let (mut stream, name) = attached(&small());
        let mut stalled = open(&name).unwrap();
        let sent = pattern(1 << 20);
        let mut written = 0;
        // A cancelled write has written nothing.
        while stream.stats().rx.full < 100 {
            let mut write = tokio_test::task::spawn(stream.write(&sent[written..]));
            if let std::task::Poll::Ready(result) = write.poll() {
                written += result.unwrap();
            }
            drop(write);
            tokio::task::yield_now().await;
        }
        assert!(written >= SMALL && written < sent.len(), "{written}");
        let queued = stream.stats().rx.queued;
        assert!(queued <= SMALL as u64, "{queued}");

        let mut received = vec![0; sent.len()];
        let reader = thread::spawn(move || {
            stalled.read_exact(&mut received).unwrap();
            received
        });
        stream.write_all(&sent[written..]).await.unwrap();
        assert!(joined(reader).await == sent);
    })
    .await;
}

/// The part of [`pipe_rejects_other_processes`] that runs in another process: that test starts this program again.
#[test]
fn connect_from_other_process() {
    let Ok(name) = env::var("TOKIO_KRUN_PIPE") else {
        return;
    };
    let mut pipe = open(&name).unwrap();
    let _ = pipe.write_all(b"let me in");
    let mut received = Vec::new();
    let _ = pipe.read_to_end(&mut received);
    process::exit(if received.is_empty() { 42 } else { 1 });
}

#[tokio::test]
async fn pipe_rejects_other_processes() {
    watchdog(async {
        let (mut stream, name) = attached(&Options::new());
        stream.write_all(b"secret").await.unwrap();
        for _ in 0..3 {
            let child = Command::new(env::current_exe().unwrap())
                .args(["--exact", "connect_from_other_process"])
                .env("TOKIO_KRUN_PIPE", &name)
                .spawn()
                .unwrap();
            let status = thread::spawn(move || { child }.wait());
            assert_eq!(joined(status).await.unwrap().code(), Some(42));
            assert!(!stream.has_guest_opened());
        }
        let (input, mut output) = krun(&name);
        transmit(&mut output, b"it is me").unwrap();
        let mut received = [0; 8];
        stream.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"it is me");
        drop(stream);
        assert_eq!(joined(receive_all(input)).await, b"secret");
    })
    .await;
}

#[tokio::test]
async fn pipe_names_are_unique_and_random() {
    let name = || {
        let (_stream, port) = AgentStream::pair().unwrap();
        port.into_bridge().pipe_name().to_owned()
    };
    let (first, second) = (name(), name());
    for name in [&first, &second] {
        let random = name.strip_prefix(r"\\.\pipe\tokio-krun-").unwrap();
        assert_eq!(random.len(), 32);
        assert!(random.bytes().all(|digit| digit.is_ascii_hexdigit()));
    }
    assert_ne!(first, second);
}

#[tokio::test]
async fn taken_pipe_name_is_clear_error_and_is_free_after_drop() {
    watchdog(async {
        let name = format!(r"\\.\pipe\tokio-krun-test-{}", process::id());
        let options = Options::new().pipe_name(&name);
        let (stream, port) = options.create().unwrap();
        let bridge = port.into_bridge();
        assert_eq!(bridge.pipe_name(), name);
        let error = options.create().map(drop).unwrap_err();
        assert!(matches!(&error, Error::PipeInUse { name: n, .. } if *n == name));
        assert!(error.to_string().contains(&name), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::AddrInUse);

        drop((stream, bridge));
        while options.create().is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn invalid_pipe_name_is_error() {
    let error = Options::new().pipe_name("no pipe").create();
    assert!(matches!(error.map(drop).unwrap_err(), Error::Os(_)));
}

/// The write half is alive, so the stream is: krun finds its pipe, and what was written before.
#[tokio::test]
async fn bridge_waits_for_krun_while_one_half_is_alive() {
    watchdog(async {
        let (stream, name) = attached(&small());
        let (read, mut write) = stream.into_split();
        write.write_all(b"config").await.unwrap();
        write.shutdown().await.unwrap();
        drop(read);
        tokio::task::yield_now().await;
        let (mut input, _output) = krun(&name);
        let received = thread::spawn(move || {
            let mut received = Vec::new();
            receive(&mut input, &mut received, 6, &never());
            (received, input)
        });
        assert_eq!(joined(received).await.0, b"config");
        write.drained().await.unwrap();
    })
    .await;
}

/// Nobody reads, so the bridge cannot take what is left in the pipe.
#[test]
fn stall_timeout_without_timer_is_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let options = Options::new().stall_timeout(Duration::from_secs(1));
    let error = options.create_on(runtime.handle()).unwrap_err();
    assert!(matches!(error, Error::NoTimer), "{error:?}");
    assert!(error.to_string().contains("enable_time"), "{error}");
}

#[tokio::test]
async fn exit_hook_resolves_closed_with_full_ring() {
    watchdog(async {
        let (mut stream, port) = small().create().unwrap();
        let hook = port.exit_hook(Duration::MAX);
        let (_input, output) = krun(&port.into_bridge().into_pipe_name());
        let tx = transmit_too_much(&stream, output).await;
        let vm = thread::spawn(move || hook(0));
        stream.closed().await;
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received.len() >= SMALL);
        drop(stream);
        joined(vm).await;
        let _ = joined(tx).await;
    })
    .await;
}

/// A guest that never stops writing puts off the end of a hang-up, but not that of the exit hook.
#[tokio::test]
async fn exit_hook_ends_stream_that_waits_for_quiet_guest() {
    watchdog(async {
        let (mut stream, port) = small().create().unwrap();
        let hook = port.exit_hook(Duration::MAX);
        let (_input, mut output) = krun(&port.into_bridge().into_pipe_name());
        let tx = thread::spawn(move || while transmit(&mut output, b"x").is_ok() {});
        stream.read_exact(&mut [0; 100]).await.unwrap();
        stream.hang_up();
        stream.read_exact(&mut [0; 100]).await.unwrap();
        let vm = thread::spawn(move || hook(0));
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        drop(stream);
        joined(vm).await;
        joined(tx).await;
    })
    .await;
}

#[tokio::test]
async fn dropping_stream_or_port_ends_bridge_task() {
    async fn all_have_ended() {
        while Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    }
    watchdog(async {
        // A port is dropped before it is attached.
        let (mut stream, port) = AgentStream::pair().unwrap();
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
        drop(port);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert_broken_pipe(stream.write(b"x").await);
        all_have_ended().await;

        // The stream is dropped before krun connects, whether or not that hangs up.
        for hangs_up in [true, false] {
            let options = Options::new().hang_up_on_drop(hangs_up);
            let (stream, name) = attached(&options);
            drop(stream);
            all_have_ended().await;
            assert!(OpenOptions::new().read(true).open(&name).is_err());
        }

        // The same, but it has left something for the guest.
        let (mut stream, name) = attached(&Options::new());
        stream.write_all(b"configuration").await.unwrap();
        drop(stream);
        tokio::task::yield_now().await;
        let (input, _output) = krun(&name);
        assert_eq!(joined(receive_all(input)).await, b"configuration");
        all_have_ended().await;

        // Both halves are dropped, one after the other.
        let (stream, _name) = attached(&Options::new());
        let (read, write) = stream.into_split();
        drop(read);
        tokio::task::yield_now().await;
        assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
        drop(write);
        all_have_ended().await;

        // The stream is dropped while its guest continues.
        let (stream, name) = attached(&Options::new());
        let (input, mut output) = krun(&name);
        stream.guest_opened().await.unwrap();
        drop(stream);
        all_have_ended().await;
        assert_eq!(joined(receive_all(input)).await, b"");
        assert!(transmit(&mut output, b"x").is_err());

        // The stream is dropped without hanging up, and then the guest ends.
        let (stream, name) = attached(&Options::new().hang_up_on_drop(false));
        let krun_end = krun(&name);
        stream.guest_opened().await.unwrap();
        drop(stream);
        drop(krun_end);
        all_have_ended().await;

        // The guest ends while the host continues.
        let (stream, name) = attached(&Options::new());
        drop(krun(&name));
        all_have_ended().await;
        drop(stream);
    })
    .await;
}

/// Checks that the runtime's thread is never unparked. So it runs no task, checks no timer and makes no system call.
#[test]
fn idle_bridge_never_runs() {
    let _deadline = common::deadline();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let metrics = runtime.metrics();
    let counts = || {
        (
            metrics.worker_park_unpark_count(0),
            metrics.worker_total_busy_duration(0),
        )
    };

    // One stream has nothing to carry, the other has a full ring and a full pipe.
    let (mut idle, port) = small().create_on(runtime.handle()).unwrap();
    let (mut input, mut output) = krun(&port.into_bridge().into_pipe_name());
    transmit(&mut output, b"x").unwrap();
    runtime.block_on(async {
        idle.write_all(b"x").await.unwrap();
        idle.read_u8().await.unwrap();
    });
    receive(&mut input, &mut Vec::new(), 1, &never());
    let idle = runtime.spawn(async move { idle.read_u8().await });
    let (full, port) = small().create_on(runtime.handle()).unwrap();
    let name = port.into_bridge().into_pipe_name();
    let _silent = open(&name).unwrap();
    let full = runtime.spawn(async move {
        let (_read, mut write) = full.into_split();
        write.write_all(&[1; 1 << 20]).await
    });

    // Wait until the runtime is idle. Two seconds allow for a thread that the system delays.
    let mut before = counts();
    loop {
        thread::sleep(Duration::from_secs(2));
        if before == counts() {
            break;
        }
        before = counts();
    }
    thread::sleep(Duration::from_secs(2));
    assert_eq!(counts(), before);
    assert!(!idle.is_finished() && !full.is_finished());
    runtime.shutdown_background();
}

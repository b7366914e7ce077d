//! Tests what each side sees when the other ends, as the table in `AgentStream`'s documentation
//! says. Each test sends the agent commands over a second port; `agent/src/remote.rs` lists them.

use std::fmt::Display;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio_krun::{AgentPort, AgentStream, Options};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tokio_util::codec::{Framed, LinesCodec};

use super::pattern::{FROM_GUEST, FROM_HOST};
use super::scenarios::{MIB, Scenario, generate};
use super::vm::{EXIT_HOOK_LIMIT, Vm};

pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("shutdown_is_invisible_to_guest", || Box::pin(shutdown())),
    (
        "hang_up_ends_guest_reads_and_writes",
        || Box::pin(hang_up()),
    ),
    ("hang_up_leaves_blocking_guest_write_stuck", || {
        Box::pin(hang_up_on_writer())
    }),
    ("dropping_stream_hangs_up_and_discards_writes", || {
        Box::pin(drop_stream())
    }),
    ("dropping_without_hang_up_discards_writes", || {
        Box::pin(drop_stream_silently())
    }),
    ("dropping_read_half_discards_guest_writes", || {
        Box::pin(drop_read_half())
    }),
    ("dropping_write_half_is_invisible_to_guest", || {
        Box::pin(drop_write_half())
    }),
    ("host_sees_guest_open_and_drain_port", || {
        Box::pin(open_and_drain())
    }),
    ("stall_timeout_lets_guest_power_off_with_full_ring", || {
        Box::pin(power_off_with_full_ring())
    }),
    ("stall_timeout_lets_exit_hook_run_with_full_ring", || {
        Box::pin(power_off_with_full_ring_and_exit_hook())
    }),
    ("stall_timeout_lets_vm_exit_with_full_ring", || {
        Box::pin(exit_with_full_ring())
    }),
];

/// The agent, under the test's control.
struct Guest {
    lines: Framed<AgentStream, LinesCodec>,
}

fn boot(port: AgentPort) -> (Vm, Guest) {
    boot_with_exit_hook(port, Some(EXIT_HOOK_LIMIT))
}

fn boot_with_exit_hook(port: AgentPort, limit: Option<Duration>) -> (Vm, Guest) {
    let (control, control_port) = AgentStream::pair().unwrap();
    let ports = [("agent", port), ("control", control_port)];
    let vm = Vm::boot_with_exit_hook("remote", ports, limit);
    let lines = Framed::new(control, LinesCodec::new());
    (vm, Guest { lines })
}

impl Guest {
    async fn ask(&mut self, command: &str) -> String {
        self.lines.send(command).await.unwrap();
        let answer = self.lines.next().await.expect("the guest is gone");
        answer.unwrap()
    }

    /// Ends the VM. Call this once you have dropped the other streams.
    async fn end(self, mut vm: Vm) {
        drop(self);
        vm.ended().await;
    }
}

async fn assert_broken_pipe(stream: &mut (impl AsyncWriteExt + Unpin)) {
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

async fn shutdown() {
    let (mut stream, port) = AgentStream::pair().unwrap();
    let (vm, mut guest) = boot(port);
    assert_eq!(guest.ask("open").await, "ok");
    stream.write_all(&generate(FROM_HOST, MIB)).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_broken_pipe(&mut stream).await;

    assert_eq!(
        guest.ask(&format!("read {MIB}")).await,
        format!("{MIB} right")
    );
    assert_eq!(guest.ask("try-read").await, "nothing");
    assert_eq!(guest.ask("ready").await, "out");
    assert_eq!(guest.ask("write 100000").await, "100000");
    let mut answer = vec![0; 100_000];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer == generate(FROM_GUEST, 100_000));

    // Reopening the port shows the guest nothing either.
    assert_eq!(guest.ask("close").await, "ok");
    assert_eq!(guest.ask("open").await, "ok");
    assert_eq!(guest.ask("try-read").await, "nothing");
    assert_eq!(guest.ask("ready").await, "out");
    drop(stream);
    guest.end(vm).await;
}

async fn hang_up() {
    let (mut stream, port) = AgentStream::pair().unwrap();
    let (vm, mut guest) = boot(port);
    assert_eq!(guest.ask("open").await, "ok");
    assert_eq!(guest.ask("write 100000").await, "100000");
    stream.write_all(&generate(FROM_HOST, MIB)).await.unwrap();
    stream.hang_up();
    assert_broken_pipe(&mut stream).await;

    assert_eq!(
        guest.ask(&format!("read {MIB}")).await,
        format!("{MIB} right")
    );
    assert_eq!(guest.ask("read 1").await, "end of file after 0");
    assert_eq!(guest.ask("wait-hang-up").await, "ok");
    for _ in 0..2 {
        assert_eq!(guest.ask("ready").await, "in hup");
        assert_eq!(guest.ask("try-read").await, "end of file");
        assert_eq!(guest.ask("try-write 100").await, "no room");
        assert_eq!(guest.ask("write 100").await, "hang-up after 0");
        assert_eq!(guest.ask("close").await, "ok");
        assert_eq!(guest.ask("open").await, "ok");
    }

    // The host can still read what the guest wrote before.
    let mut written = vec![0; 100_000];
    stream.read_exact(&mut written).await.unwrap();
    assert!(written == generate(FROM_GUEST, 100_000));
    assert_pending!(task::spawn(stream.readable()).poll());
    drop(stream);
    guest.end(vm).await;
}

async fn hang_up_on_writer() {
    const LENGTH: usize = 3 * MIB;
    let (mut stream, port) = Options::new().capacity(64 * 1024).create().unwrap();
    let (vm, mut guest) = boot(port);
    assert_eq!(guest.ask("open blocking").await, "ok");
    assert_eq!(
        guest.ask(&format!("write-in-background {LENGTH}")).await,
        "started"
    );
    // The ring is full and the host does not read, so the guest's write waits or soon will.
    vm.calls.tx_waits.notified().await;
    stream.hang_up();
    assert_eq!(guest.ask("wait-hang-up").await, "ok");

    // Making room for all of it does not help: only a part arrives.
    let mut received = vec![0; 64 * 1024];
    stream.read_exact(&mut received).await.unwrap();
    let rest = async {
        let mut more = vec![0; 64 * 1024];
        loop {
            let read = stream.read(&mut more).await.unwrap();
            received.extend_from_slice(&more[..read]);
        }
    };
    let quiet = tokio::time::timeout(Duration::from_secs(2), rest).await;
    quiet.expect_err("the loop never ends");
    println!("{} of {LENGTH} bytes arrived", received.len());
    assert!(received.len() < LENGTH);
    assert!(generate(FROM_GUEST, LENGTH).starts_with(&received));
    assert_eq!(guest.ask("background").await, "writing");
    drop(stream);
    guest.end(vm).await;
}

/// Tells the guest to write `length` bytes and reads 10,000 of them. Drops `reading` once the ring
/// is full and the guest waits. Returns the guest's answer.
async fn drop_mid_write(
    guest: &mut Guest,
    vm: &Vm,
    length: impl Display,
    mut reading: impl AsyncRead + Unpin,
) -> String {
    let command = format!("write {length}");
    let (answer, ()) = tokio::join!(guest.ask(&command), async {
        let mut received = [0; 10_000];
        reading.read_exact(&mut received).await.unwrap();
        assert!(received == generate(FROM_GUEST, 10_000)[..]);
        vm.calls.tx_waits.notified().await;
        drop(reading);
    });
    answer
}

async fn drop_stream() {
    const LENGTH: usize = 3 * MIB;
    let (mut stream, port) = Options::new().capacity(64 * 1024).create().unwrap();
    let handle = port.handle();
    let (vm, mut guest) = boot(port);
    assert_eq!(guest.ask("open").await, "ok");
    stream
        .write_all(&generate(FROM_HOST, 50_000))
        .await
        .unwrap();
    let answer = drop_mid_write(&mut guest, &vm, LENGTH, stream).await;
    println!("the guest's answer to `write {LENGTH}`: {answer}");
    let written = match answer.strip_prefix("hang-up after ") {
        Some(written) => written.parse().unwrap(),
        None => answer.parse().unwrap(),
    };
    vm.calls.assert_written(written).await;
    assert_eq!(handle.stats().tx.discarded, written - 10_000);

    assert_eq!(guest.ask("read 50000").await, "50000 right");
    assert_eq!(guest.ask("read 1").await, "end of file after 0");
    guest.end(vm).await;
}

async fn drop_stream_silently() {
    const LENGTH: u64 = 3 * MIB as u64;
    let options = Options::new().capacity(64 * 1024).hang_up_on_drop(false);
    let (mut stream, port) = options.create().unwrap();
    let handle = port.handle();
    let (vm, mut guest) = boot(port);
    assert_eq!(guest.ask("open blocking").await, "ok");
    stream
        .write_all(&generate(FROM_HOST, 50_000))
        .await
        .unwrap();
    let answer = drop_mid_write(&mut guest, &vm, LENGTH, stream).await;
    assert_eq!(answer, LENGTH.to_string());
    vm.calls.assert_written(LENGTH).await;
    assert_eq!(handle.stats().tx.discarded, LENGTH - 10_000);

    assert_eq!(guest.ask("read 50000").await, "50000 right");
    assert_eq!(guest.ask("ready").await, "out");
    assert_eq!(guest.ask("close").await, "ok");
    assert_eq!(guest.ask("open").await, "ok");
    assert_eq!(guest.ask("try-read").await, "nothing");
    assert_eq!(guest.ask("write 100000").await, "100000");
    vm.calls.assert_written(LENGTH + 100_000).await;
    assert_eq!(handle.stats().tx.discarded, LENGTH + 90_000);
    guest.end(vm).await;
}

async fn drop_read_half() {
    const LENGTH: u64 = 3 * MIB as u64;
    let (stream, port) = Options::new().capacity(64 * 1024).create().unwrap();
    let handle = port.handle();
    let (read, mut write) = stream.into_split();
    let (vm, mut guest) = boot(port);
    assert_eq!(guest.ask("open").await, "ok");
    let answer = drop_mid_write(&mut guest, &vm, LENGTH, read).await;
    assert_eq!(answer, LENGTH.to_string());
    vm.calls.assert_written(LENGTH).await;
    assert_eq!(handle.stats().tx.discarded, LENGTH - 10_000);
    assert_eq!(handle.stats().tx.queued, 0);
    assert_eq!(guest.ask("ready").await, "out");

    // The same holds for blocking writes.
    assert_eq!(guest.ask("close").await, "ok");
    assert_eq!(guest.ask("open blocking").await, "ok");
    let command = format!("write {LENGTH}");
    assert_eq!(guest.ask(&command).await, LENGTH.to_string());
    vm.calls.assert_written(2 * LENGTH).await;
    assert_eq!(handle.stats().tx.discarded, 2 * LENGTH - 10_000);

    // The host's writes go on.
    let (answer, ()) = tokio::join!(guest.ask("read 300000"), async {
        write
            .write_all(&generate(FROM_HOST, 300_000))
            .await
            .unwrap();
    });
    assert_eq!(answer, "300000 right");
    drop(write);
    assert_eq!(guest.ask("read 1").await, "end of file after 0");
    guest.end(vm).await;
}

async fn drop_write_half() {
    let (stream, port) = AgentStream::pair().unwrap();
    let (mut read, mut write) = stream.into_split();
    let (vm, mut guest) = boot(port);
    assert_eq!(guest.ask("open").await, "ok");
    write.write_all(&generate(FROM_HOST, MIB)).await.unwrap();
    drop(write);

    assert_eq!(
        guest.ask(&format!("read {MIB}")).await,
        format!("{MIB} right")
    );
    assert_eq!(guest.ask("try-read").await, "nothing");
    assert_eq!(guest.ask("ready").await, "out");
    assert_eq!(guest.ask("write 100000").await, "100000");
    let mut received = vec![0; 100_000];
    read.read_exact(&mut received).await.unwrap();
    assert!(received == generate(FROM_GUEST, 100_000));

    drop(read);
    assert_eq!(guest.ask("read 1").await, "end of file after 0");
    guest.end(vm).await;
}

async fn open_and_drain() {
    const LENGTH: usize = 512 * 1024;
    /// 32 buffers of 4 KiB, krun's default queue.
    const GUEST_HOLDS: usize = 128 * 1024;
    let (mut stream, port) = AgentStream::pair().unwrap();
    stream
        .write_all(&generate(FROM_HOST, LENGTH))
        .await
        .unwrap();
    let (vm, mut guest) = boot(port);
    let mut opened = task::spawn(stream.guest_opened());
    let mut drained = task::spawn(stream.drained());
    assert_pending!(opened.poll());
    assert_pending!(drained.poll());
    // The guest is up, but has only opened its control port.
    assert_eq!(guest.ask("hello").await, "hello");
    assert_pending!(opened.poll());
    assert!(!stream.has_guest_opened());

    assert_eq!(guest.ask("open").await, "ok");
    opened.await.unwrap();
    assert!(stream.has_guest_opened());

    // krun fills the guest's buffers and waits for more.
    vm.calls.wait_read(GUEST_HOLDS as u64).await;
    assert_eq!(guest.ask("ready").await, "in out");
    assert_eq!(stream.stats().rx.bytes, GUEST_HOLDS as u64);
    assert_pending!(drained.poll());
    // The guest reads all but the last `GUEST_HOLDS` bytes, and its buffers hold those.
    let most = LENGTH - GUEST_HOLDS;
    let answer = guest.ask(&format!("read {most}")).await;
    assert_eq!(answer, format!("{most} right"));
    drained.await.unwrap();
    assert_eq!(stream.stats().rx.bytes, LENGTH as u64);
    let answer = guest.ask(&format!("read {GUEST_HOLDS}")).await;
    assert_eq!(answer, format!("{GUEST_HOLDS} right"));
    assert_ready_ok!(task::spawn(stream.drained()).poll());
    drop(stream);
    guest.end(vm).await;
}

/// What a Linux guest passes to krun for each `write` of the agent's.
const DESCRIPTOR: u64 = 32 * 1024;
const TWO_DESCRIPTORS: usize = 64 * 1024;

/// Boots a guest that fills its ring and goes on writing. krun's TX thread then waits for room.
///
/// krun joins that thread when the VM ends, before it runs an exit observer. The host keeps the stream
/// and does not read, so only the stall timeout can end the wait.
async fn boot_with_full_ring(hook_limit: Option<Duration>) -> (AgentStream, Vm, Guest) {
    let (stream, port) = Options::new()
        .capacity(TWO_DESCRIPTORS)
        // Long enough for the guest to power off in an emulated machine.
        .stall_timeout(Duration::from_secs(3))
        .create()
        .unwrap();
    let (vm, mut guest) = boot_with_exit_hook(port, hook_limit);
    assert_eq!(guest.ask("open blocking").await, "ok");
    let command = format!("write-in-background {}", u64::MAX);
    assert_eq!(guest.ask(&command).await, "started");
    vm.calls.tx_waits.notified().await;
    (stream, vm, guest)
}

/// Reads what fitted into the ring, and then the error. Call this once krun's TX thread has ended.
async fn assert_reads_full_ring_then_error(stream: &mut AgentStream, vm: &Vm) {
    let mut received = Vec::new();
    let error = stream.read_to_end(&mut received).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert!(received == generate(FROM_GUEST, TWO_DESCRIPTORS));

    let discarded = stream.stats().tx.discarded;
    let written = vm.calls.written.load(Ordering::SeqCst);
    assert_eq!(written, TWO_DESCRIPTORS as u64 + discarded);
    // Once krun stops the port, its TX thread takes no further descriptor.
    let which = match discarded {
        DESCRIPTOR => "krun had stopped the port before the timeout passed",
        _ => "the timeout passed before krun stopped the port",
    };
    println!("{discarded} bytes were discarded: {which}");
    assert!(discarded >= DESCRIPTOR);
}

async fn power_off_with_full_ring() {
    let (mut stream, mut vm, guest) = boot_with_full_ring(None).await;
    drop(guest); // it powers off
    vm.ended().await;
    assert_reads_full_ring_then_error(&mut stream, &vm).await;
}

async fn power_off_with_full_ring_and_exit_hook() {
    let limit = Duration::from_millis(10);
    let (mut stream, mut vm, guest) = boot_with_full_ring(Some(limit)).await;
    drop(guest); // it powers off
    vm.ended().await;
    // The hook has run, as writes fail.
    assert_broken_pipe(&mut stream).await;
    assert_reads_full_ring_then_error(&mut stream, &vm).await;
}

async fn exit_with_full_ring() {
    let (mut stream, mut vm, guest) = boot_with_full_ring(Some(EXIT_HOOK_LIMIT)).await;
    vm.exit.trigger();
    // The hook ends the stream, and then waits until it is dropped.
    stream.closed().await;
    assert_broken_pipe(&mut stream).await;
    assert_reads_full_ring_then_error(&mut stream, &vm).await;
    drop((stream, guest));
    vm.ended().await;
}

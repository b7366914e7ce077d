//! Tests of whole scenarios. For each, the agent runs the guest's side (`agent/src/scenario.rs`).

use std::array;
use std::fs;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_krun::{AgentStream, Options, OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::pattern::{FROM_GUEST, FROM_HOST, Pattern};
use super::vm::{Calls, Vm};

pub(crate) type Scenario = fn() -> Pin<Box<dyn Future<Output = ()>>>;

pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("guest_greets_and_echoes", || Box::pin(echo("echo"))),
    ("frames_of_1_byte_to_1_mib_come_back_whole", || {
        Box::pin(frames())
    }),
    ("simultaneous_64_mib_each_way_arrive_intact", || {
        Box::pin(traffic())
    }),
    ("bytes_sent_before_guest_opens_port_arrive", || {
        Box::pin(late_open())
    }),
    ("bytes_krun_took_before_power_off_are_read", || {
        Box::pin(last_words())
    }),
    ("quiesce_lets_vm_exit_with_full_ring", || {
        Box::pin(exit_after_quiesce())
    }),
    ("dropping_stream_lets_vm_exit_with_full_ring", || {
        Box::pin(exit_after_drop())
    }),
    ("stalled_host_blocks_guest_without_polling", || {
        Box::pin(stall())
    }),
    ("pause_and_resume_with_full_ring_lose_nothing", || {
        Box::pin(pause_and_resume())
    }),
    (
        "four_ports_carry_traffic_at_once",
        || Box::pin(four_ports()),
    ),
    (AGENT_FAILS, || Box::pin(agent_fails())),
];

pub(crate) const AGENT_FAILS: &str = "agent_failure_fails_test";

pub(crate) const MIB: usize = 1024 * 1024;

pub(crate) fn generate(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Pattern::new(seed).fill(&mut bytes);
    bytes
}

/// The agent sends a greeting, then echoes.
pub(crate) async fn echo(scenario: &str) {
    let (mut stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot(scenario, port);
    let mut greeting = [0; 21];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello from the guest\n");

    let sent = generate(FROM_HOST, 100_000);
    stream.write_all(&sent).await.unwrap();
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).await.unwrap();
    assert!(received == sent);

    // The agent exits at end of file.
    stream.hang_up();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    drop(stream);
    vm.ended().await;
}

async fn frames() {
    let (stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot("frames", port);
    let codec = LengthDelimitedCodec::builder()
        .max_frame_length(MIB)
        .new_codec();
    let mut frames = Framed::new(stream, codec);
    for length in [1, 2, 100, 4095, 4096, 4097, 32_764, 32_768, 65_537, MIB] {
        let frame = Bytes::from(generate(length as u64, length));
        frames.send(frame.clone()).await.unwrap();
        assert!(frames.next().await.unwrap().unwrap() == frame);
    }
    frames.send(Bytes::from_static(b"bye")).await.unwrap();
    // The guest's last write before it powers off may be lost in its virtqueue. A frame that
    // arrives is whole.
    match frames.next().await {
        Some(frame) => assert_eq!(&frame.unwrap()[..], b"bye"),
        None => println!("the guest's last frame was lost in its virtqueue"),
    }
    assert!(frames.next().await.is_none());
    drop(frames);
    vm.ended().await;
}

async fn traffic() {
    let (stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot("traffic", port);
    drop(exchange(stream, 0, 64 * MIB).await);
    vm.ended().await;
}

/// Runs the host's side of the agent's `traffic` over port `number`, with `length` bytes each way.
async fn exchange(stream: AgentStream, number: u64, length: usize) -> AgentStream {
    let (mut reading, sender) = begin_exchange(stream, number, length).await;
    let mut pattern = Pattern::new(FROM_GUEST + number);
    receive(&mut reading, &mut pattern, length).await;
    end_exchange(reading, sender, length).await
}

type Sender = JoinHandle<(OwnedWriteHalf, u32)>;

async fn begin_exchange(
    mut stream: AgentStream,
    number: u64,
    length: usize,
) -> (OwnedReadHalf, Sender) {
    stream.write_u64_le(length as u64).await.unwrap();
    stream.write_u64_le(length as u64).await.unwrap();
    let (reading, mut writing) = stream.into_split();
    let sender = tokio::spawn(async move {
        let mut pattern = Pattern::new(FROM_HOST + number);
        let mut checksum = crc32fast::Hasher::new();
        let mut piece = vec![0; 60_000];
        let mut left = length;
        while left > 0 {
            let length = piece.len().min(left);
            pattern.fill(&mut piece[..length]);
            checksum.update(&piece[..length]);
            writing.write_all(&piece[..length]).await.unwrap();
            left -= length;
        }
        (writing, checksum.finalize())
    });
    (reading, sender)
}

/// Reads `length` bytes. Panics unless they are the next bytes of `pattern`.
async fn receive(reading: &mut OwnedReadHalf, pattern: &mut Pattern, length: usize) {
    let mut piece = vec![0; 60_000];
    let mut left = length;
    while left > 0 {
        let length = piece.len().min(left);
        let read = reading.read(&mut piece[..length]).await.unwrap();
        assert_ne!(read, 0, "the guest ended {left} bytes early");
        pattern
            .check(&piece[..read])
            .expect("wrong byte from the guest");
        left -= read;
    }
}

/// Compares the guest's report with what the host sent, then reads to end of file.
async fn end_exchange(mut reading: OwnedReadHalf, sender: Sender, length: usize) -> AgentStream {
    let (mut writing, checksum) = sender.await.unwrap();
    assert_eq!(reading.read_u64_le().await.unwrap(), length as u64);
    assert_eq!(reading.read_u32_le().await.unwrap(), checksum);
    assert_eq!(
        reading.read_u32_le().await.unwrap(),
        1,
        "the guest received wrong bytes"
    );
    writing.write_u8(0).await.unwrap();
    assert_eq!(reading.read(&mut [0; 8]).await.unwrap(), 0);
    reading.reunite(writing).unwrap()
}

async fn late_open() {
    let (mut stream, port) = AgentStream::pair().unwrap();
    let sent = generate(FROM_HOST, MIB);
    // All of it is in the ring before the VM exists.
    stream.write_all(&sent).await.unwrap();
    let mut vm = Vm::boot("late-open", port);
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).await.unwrap();
    assert!(received == sent);
    drop(stream);
    vm.ended().await;
}

/// The host reads every byte that krun passed on, although the guest powers off right after its
/// last write. krun loses the bytes that the guest still had queued; only krun can change that.
async fn last_words() {
    const LENGTH: usize = 4 * MIB;
    let (mut stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot("last-words", port);
    stream.write_u64_le(LENGTH as u64).await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();

    let passed_on = vm.calls.written.load(Ordering::SeqCst);
    println!(
        "read {} of {LENGTH} bytes, all that krun passed on",
        received.len()
    );
    assert_eq!(received.len() as u64, passed_on);
    assert!(generate(FROM_GUEST, LENGTH).starts_with(&received));
    // krun's default queue, 32 descriptors of 32 KiB, may be lost.
    assert!(
        received.len() >= LENGTH - MIB,
        "read only {} bytes",
        received.len()
    );
    assert_eq!(
        stream.write(b"x").await.unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
    drop(stream);
    vm.ended().await;
}

async fn exit_after_quiesce() {
    let (mut stream, port) = Options::new().capacity(64 * 1024).create().unwrap();
    let handle = port.handle();
    let mut vm = Vm::boot("flood", port);
    stream.read_u8().await.unwrap();
    // The ring is full, and the host reads nothing for now, so krun would wait forever.
    vm.calls.tx_waits.notified().await;

    handle.quiesce();
    vm.exit.trigger();
    // The host reads the guest's bytes in order, then end of file. If the guest was faster than
    // this reader, some bytes found no room; then the host reads an error instead of end of file.
    let mut received = Vec::new();
    if let Err(error) = stream.read_to_end(&mut received).await {
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_ne!(handle.stats().tx.discarded, 0);
    }
    assert!(received.len() >= 64 * 1024 - 1);
    assert!(generate(FROM_GUEST, received.len() + 1)[1..] == received);
    drop(stream);
    vm.ended().await;
    let passed_on = vm.calls.written.load(Ordering::SeqCst);
    assert_eq!(
        passed_on,
        1 + received.len() as u64 + handle.stats().tx.discarded
    );
}

async fn exit_after_drop() {
    let (mut stream, port) = Options::new().capacity(64 * 1024).create().unwrap();
    let mut vm = Vm::boot("flood", port);
    stream.read_u8().await.unwrap();
    // The ring is full, and the host reads nothing for now, so krun would wait forever.
    vm.calls.tx_waits.notified().await;

    drop(stream);
    vm.exit.trigger();
    vm.ended().await;
}

/// A field of the status that Linux reports for krun's TX thread.
fn tx_status(calls: &Calls, field: &str) -> String {
    let thread = calls.tx_thread.load(Ordering::Relaxed);
    let status = fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field));
    line.unwrap()[field.len()..].trim().to_owned()
}

/// How often krun's TX thread went to sleep, and how often it was preempted.
fn tx_switches(calls: &Calls) -> (String, String) {
    (
        tx_status(calls, "voluntary_ctxt_switches:"),
        tx_status(calls, "nonvoluntary_ctxt_switches:"),
    )
}

async fn stall() {
    const LENGTH: usize = 8 * MIB;
    let (mut stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot("stall", port);
    stream.write_u8(0).await.unwrap();
    // The ring is full, and the host reads nothing for now, so krun's TX thread waits only once.
    vm.calls.tx_waits.notified().await;
    while !tx_status(&vm.calls, "State:").starts_with('S') {
        tokio::task::yield_now().await;
    }

    let calls = || vm.calls.writes.load(Ordering::SeqCst);
    let before = (tx_switches(&vm.calls), calls());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = (tx_switches(&vm.calls), calls());
    assert_eq!(
        after, before,
        "krun's TX thread ran while the host was stalled"
    );

    let mut received = vec![0; LENGTH];
    stream.read_exact(&mut received).await.unwrap();
    assert!(received == generate(FROM_GUEST, LENGTH));
    assert_eq!(stream.read_u64_le().await.unwrap(), LENGTH as u64);
    let checksum = crc32fast::hash(&received);
    assert_eq!(stream.read_u32_le().await.unwrap(), checksum);
    let longest = stream.read_u32_le().await.unwrap();
    println!("the guest's longest write took {longest} ms");
    stream.write_u8(0).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    drop(stream);
    vm.ended().await;
}

/// A pause stops the vCPUs but not the devices. krun's TX thread keeps sleeping while the ring is
/// full. Once there is room, it passes on what the guest has queued.
async fn pause_and_resume() {
    const LENGTH: usize = 10 * MIB;
    const CAPACITY: usize = 256 * 1024;
    const ROUNDS: usize = 4;
    // More than the ring and the guest's queue hold together, so each round fills the ring again.
    const STEP: usize = 2 * MIB;
    let (stream, port) = Options::new().capacity(CAPACITY).create().unwrap();
    let mut vm = Vm::boot("traffic", port);
    let (mut reading, sender) = begin_exchange(stream, 0, LENGTH).await;
    let mut pattern = Pattern::new(FROM_GUEST);
    for round in 0..ROUNDS {
        // The guest always has more to write, so krun's TX thread waits once the ring is full.
        while reading.stats().tx.queued < CAPACITY as u64 {
            vm.calls.tx_waits.notified().await;
        }
        let generation = vm.control.pause().unwrap();
        if round % 2 == 0 {
            // The vCPU is stopped, but krun passes on what the guest has queued.
            receive(&mut reading, &mut pattern, CAPACITY).await;
            vm.control.resume(generation).unwrap();
            receive(&mut reading, &mut pattern, STEP - CAPACITY).await;
        } else {
            let before = vm.calls.written.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(vm.calls.written.load(Ordering::SeqCst), before);
            vm.control.resume(generation).unwrap();
            receive(&mut reading, &mut pattern, STEP).await;
        }
    }
    receive(&mut reading, &mut pattern, LENGTH - ROUNDS * STEP).await;
    drop(end_exchange(reading, sender, LENGTH).await);
    vm.ended().await;
}

/// Each port has its own seed, so a byte on the wrong port fails the check.
async fn four_ports() {
    const LENGTH: usize = 5 * MIB;
    let streams: [_; 4] = array::from_fn(|_| AgentStream::pair().unwrap());
    let [(s0, p0), (s1, p1), (s2, p2), (s3, p3)] = streams;
    let names = ["agent", "agent1", "agent2", "agent3"];
    let mut vm = Vm::boot_with(
        "ports",
        [
            (names[0], p0),
            (names[1], p1),
            (names[2], p2),
            (names[3], p3),
        ],
    );
    let tasks = (0..).zip([s0, s1, s2, s3]).map(|(number, stream)| {
        tokio::spawn(async move { exchange(stream, number, LENGTH).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    vm.ended().await;
}

/// Nothing fails here: only the agent's log has the failure, and `host.rs` expects to find it there.
async fn agent_fails() {
    let (stream, port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot("fail", port);
    drop(stream);
    vm.ended().await;
}

//! Tests promises of the agent's `VirtioPort` that only a real port can show
//! (`agent/src/virtio_port.rs`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_krun::{AgentStream, Options, PortHandle};

use super::scenarios::{Scenario, echo};
use super::vm::Vm;

pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("open_waits_for_port_to_appear", || Box::pin(echo("appear"))),
    ("port_shows_hang_up_without_a_read", || Box::pin(hang_up())),
    ("try_write_leaves_pending_write_its_wake", || {
        Box::pin(tries())
    }),
];

/// The agent checks what its port says: see `agent/src/virtio_port.rs`.
async fn hang_up() {
    let (mut stream, port) = AgentStream::pair().unwrap();
    let (mut control, control_port) = AgentStream::pair().unwrap();
    let handles = [port.handle(), control_port.handle()];
    let mut vm = Vm::boot_with("hang-up", [("agent", port), ("control", control_port)]);
    let mut received = [0; 12];
    let read = stream.read_exact(&mut received);
    within(&handles, "the agent's write", read).await.unwrap();
    assert_eq!(&received, b"in one write");
    assert_eq!(vm.calls.writes.load(Ordering::Relaxed), 1);

    stream.write_all(b"last").await.unwrap();
    let word = within(&handles, "word of the bytes", control.read_u8()).await;
    assert_eq!(word.unwrap(), b'r');
    drop(stream);
    let word = within(&handles, "word of the hang-up", control.read_u8()).await;
    assert_eq!(word.unwrap(), b'd');
    drop(control);
    within(&handles, "the VM's end", vm.ended()).await;
}

/// If the wait hangs, says what for, and what the ports have seen.
async fn within<T>(ports: &[PortHandle], what: &str, work: impl Future<Output = T>) -> T {
    match timeout(Duration::from_secs(60), work).await {
        Ok(done) => done,
        Err(_) => panic!(
            "waiting for {what}: {ports:?}, {:?}",
            ports.iter().map(PortHandle::stats).collect::<Vec<_>>()
        ),
    }
}

/// A `try_write` must not take the wake of a write that waits.
///
/// krun interrupts the guest only when krun must wait for room or has nothing left to do. One
/// interrupt stands for all the buffers that krun has used until then. If a `try_write` collected
/// those buffers from the driver, the interrupt would find none, and the waiting write would wait
/// on.
async fn tries() {
    const CHUNK: usize = 32 * 1024;
    let (mut stream, port) = Options::new().capacity(2 * CHUNK).create().unwrap();
    let (mut control, control_port) = AgentStream::pair().unwrap();
    let handles = [port.handle(), control_port.handle()];
    let mut vm = Vm::boot_with("tries", [("agent", port), ("control", control_port)]);
    let (mut waits, mut taken) = (0, 0);
    // This waits while the agent boots.
    let mut word = control.read_u8().await.unwrap();
    loop {
        match word {
            b'w' => waits += 1,
            b't' => taken += 1,
            _ => break,
        }
        // Leaves time for tries after krun has used a buffer and before it interrupts the guest.
        vm.calls.slow.store(true, Ordering::Relaxed);
        // This makes room for the rest of krun's current chunk, but not for the next chunk.
        stream.read_exact(&mut [0; CHUNK]).await.unwrap();
        let next = within(&handles, "the agent's write to go on", control.read_u8()).await;
        word = next.unwrap();
    }
    println!("{waits} writes waited, {taken} tries found room");
    drop((stream, control));
    vm.ended().await;
}

//! What the agent's end, `VirtioPort`, promises and only a real port can show (`agent/src/virtio_port.rs`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use tokio_krun::{AgentStream, Options};

use super::scenarios::{Scenario, echo};
use super::vm::Vm;

pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("agent_opens_the_port_when_it_appears", || {
        Box::pin(echo("appear"))
    }),
    ("agent_tries_to_write_while_a_write_waits", || {
        Box::pin(tries())
    }),
];

/// krun interrupts the guest no sooner than it has to wait for room, or has no more to do, with what it has done
/// before. If a try took that from the driver, the interrupt would find nothing, and the write would wait on.
async fn tries() {
    const CHUNK: usize = 32 * 1024;
    let (mut stream, port) = Options::new().capacity(2 * CHUNK).create().unwrap();
    let (mut control, control_port) = AgentStream::pair().unwrap();
    let mut vm = Vm::boot_with("tries", [("agent", port), ("control", control_port)]);
    let (mut waits, mut taken) = (0, 0);
    // The agent boots meanwhile.
    let mut word = control.read_u8().await.unwrap();
    loop {
        match word {
            b'w' => waits += 1,
            b't' => taken += 1,
            _ => break,
        }
        // Time for tries between what krun has done and its interrupt.
        vm.calls.slow.store(true, Ordering::Relaxed);
        // The ring has room for the rest of the chunk that krun is at, but not for the next one.
        stream.read_exact(&mut [0; CHUNK]).await.unwrap();
        let next = timeout(Duration::from_secs(60), control.read_u8()).await;
        word = next.expect("the agent's write has not ended").unwrap();
    }
    println!("{waits} writes waited, {taken} tries found room");
    drop((stream, control));
    vm.ended().await;
}

//! Idle streams and full rings cost nothing: no thread is scheduled, so none uses CPU or makes a system call.
//!
//! Linux counts each thread's context switches in `/proc/self/task/*/status`. A thread that sleeps at both ends of a
//! stretch of time, with the same count, has not run in between. The counts are exact. A longer stretch only lets a
//! defect show more often.

#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use common::SMALL;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::Options;

/// Long enough that a poll every few milliseconds, or a spin, shows many times.
const STRETCH: Duration = Duration::from_secs(2);

/// The name, state and context switches of each other thread of the process, by thread ID.
fn threads() -> BTreeMap<u32, (String, String, u64)> {
    let this = fs::read_link("/proc/thread-self").unwrap();
    let this: u32 = this.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/task").unwrap() {
        let entry = entry.unwrap();
        let id = entry.file_name().to_str().unwrap().parse().unwrap();
        // A thread that has just ended is not ours: ours live for the whole test.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        if id != this {
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap();
                line[name.len()..].trim().to_owned()
            };
            let switches = |name| field(name).parse::<u64>().unwrap();
            let total =
                switches("voluntary_ctxt_switches:") + switches("nonvoluntary_ctxt_switches:");
            threads.insert(id, (field("Name:"), field("State:"), total));
        }
    }
    threads
}

/// Waits until every other thread has slept for 200 ms: the set-up is over.
fn settle() -> BTreeMap<u32, (String, String, u64)> {
    loop {
        let before = threads();
        thread::sleep(Duration::from_millis(200));
        let after = threads();
        if before == after && after.values().all(|(_, state, _)| state.starts_with('S')) {
            return after;
        }
    }
}

/// One test, because separate tests would see each other's threads.
#[test]
fn idle_stream_and_full_rings_run_no_thread() {
    let _deadline = common::deadline();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()
        .unwrap();

    // The host waits to read, and the guest writes nothing.
    let (mut idle, port) =
        runtime.block_on(async { Options::new().capacity(SMALL).create().unwrap() });
    let idle_guest = common::boot(port);
    let mut idle_agent = idle_guest.open().unwrap();
    runtime.block_on(async {
        idle_agent.write_all(b"x").await.unwrap();
        idle.read_u8().await.unwrap();
    });
    runtime.spawn(async move { idle.read_u8().await });

    // The host does not read, and the guest writes more than the ring and its virtqueue hold:
    // krun's TX thread waits for room.
    let (_tx_full, port) =
        runtime.block_on(async { Options::new().capacity(SMALL).create().unwrap() });
    let tx_full_guest = common::boot(port);
    let mut tx_full_agent = tx_full_guest.open().unwrap();
    runtime.spawn(async move { tx_full_agent.write_all(&vec![1; 8 << 20]).await });

    // The guest does not read, and the host writes more than the ring and the guest's buffers hold.
    let (mut rx_full, port) =
        runtime.block_on(async { Options::new().capacity(SMALL).create().unwrap() });
    let rx_full_guest = common::boot(port);
    let _rx_full_agent = rx_full_guest.open().unwrap();
    runtime.spawn(async move { rx_full.write_all(&vec![1; 8 << 20]).await });

    let before = settle();
    let count = |name: &str| before.values().filter(|(n, ..)| n == name).count();
    assert_eq!((count("krun-rx"), count("krun-tx")), (3, 3), "{before:?}");
    thread::sleep(STRETCH);
    assert_eq!(threads(), before);
}

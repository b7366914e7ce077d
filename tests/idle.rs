//! What costs nothing: a thread that was not scheduled has used no CPU and made no system call.
//!
//! Linux counts each thread's switches (`/proc/self/task/*/status`). A thread that sleeps at the
//! beginning and at the end of a stretch, with the same counts, has not run in between. These are
//! exact counts; how long the stretch is decides only how much a defect would show.

#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use common::SMALL;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_krun::Options;
use tokio_krun::test_util::Guest;

/// Long enough for a poll every few milliseconds, or a spin, to show many times over.
const STRETCH: Duration = Duration::from_secs(2);

/// Name, state and switches of each other thread of the process, by its number.
fn threads() -> BTreeMap<u32, (String, String, u64)> {
    let this = fs::read_link("/proc/thread-self").unwrap();
    let this: u32 = this.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/task").unwrap() {
        let entry = entry.unwrap();
        let id = entry.file_name().to_str().unwrap().parse().unwrap();
        // A thread that ends meanwhile is none of ours: those live for the whole test.
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

/// Waits until every other thread sleeps and stays asleep for a moment: the set-up has ended.
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

/// One test, as its cases must not see each other's threads.
#[test]
fn neither_an_idle_stream_nor_a_full_ring_ever_runs() {
    let _deadline = common::deadline();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_io()
        .build()
        .unwrap();

    // A host that waits for the guest, and a guest that has nothing to say.
    let (mut idle, port) =
        runtime.block_on(async { Options::new().capacity(SMALL).create().unwrap() });
    let idle_guest = Guest::boot(port);
    let mut idle_agent = idle_guest.open().unwrap();
    runtime.block_on(async {
        idle_agent.write_all(b"x").await.unwrap();
        idle.read_u8().await.unwrap();
    });
    runtime.spawn(async move { idle.read_u8().await });

    // A host that does not read, and a guest that has more to write than the ring and its
    // virtqueue hold: krun's TX thread waits for room.
    let (_unread, port) =
        runtime.block_on(async { Options::new().capacity(SMALL).create().unwrap() });
    let full_guest = Guest::boot(port);
    let mut full_agent = full_guest.open().unwrap();
    runtime.spawn(async move { full_agent.write_all(&vec![1; 8 << 20]).await });

    // A host with more to write than the ring and the guest's buffers hold, and a guest that does
    // not read.
    let (mut unheard, port) =
        runtime.block_on(async { Options::new().capacity(SMALL).create().unwrap() });
    let deaf_guest = Guest::boot(port);
    let _deaf_agent = deaf_guest.open().unwrap();
    runtime.spawn(async move { unheard.write_all(&vec![1; 8 << 20]).await });

    let before = settle();
    let count = |name: &str| before.values().filter(|(n, ..)| n == name).count();
    assert_eq!((count("krun-rx"), count("krun-tx")), (3, 3), "{before:?}");
    thread::sleep(STRETCH);
    assert_eq!(threads(), before);
}

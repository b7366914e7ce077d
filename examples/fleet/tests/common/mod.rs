//! What the tests share. Each test has processes, a folder and, with NATS, a server of its own.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use fleet::supervisor::{Fleet, Settings, State, Status};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

/// For what takes far less.
pub const HANG: Duration = Duration::from_secs(60);

pub fn settings(vms: usize) -> Settings {
    Settings {
        vms,
        program: PathBuf::from(env!("CARGO_BIN_EXE_fleet")),
        host: "test".into(),
        microvm: false,
        nats: None,
        stall: Duration::from_secs(30),
        journal: None,
    }
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Waits until the rows are as wanted.
pub async fn rows(fleet: &Fleet, wanted: impl Fn(&[Status]) -> bool) -> Vec<Status> {
    let seen = async {
        loop {
            let rows = fleet.status();
            if wanted(&rows) {
                return rows;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(HANG, seen)
        .await
        .unwrap_or_else(|_| panic!("still {:?}", fleet.status()))
}

pub fn serving(rows: &[Status]) -> bool {
    rows.iter().all(|row| row.state == State::Serving)
}

/// How often each request was begun. It must never be more than once.
pub fn journal(path: &PathBuf) -> BTreeMap<u64, usize> {
    let mut begun = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        *begun.entry(line.parse().unwrap()).or_default() += 1;
    }
    begun
}

/// Waits until a request is being carried out.
pub async fn begun(path: &PathBuf, key: u64) {
    while !journal(path).contains_key(&key) {
        sleep(Duration::from_millis(10)).await;
    }
}

pub fn is_running(pid: u32) -> bool {
    // A zombie has ended.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

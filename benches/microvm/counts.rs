//! Reads from Linux what the threads of this process have done so far.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Sub;
use std::path::Path;
use std::process;
use std::time::Instant;

/// The trace event for the start of a system call. The kernel counts these for each thread.
const EVENT: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter";

/// Makes the kernel count from now on.
///
/// # Panics
///
/// Panics unless root runs it, with tracefs mounted, on a kernel with system call traces and histograms.
pub(crate) fn begin() {
    let trigger = "hist:keys=common_pid,id.syscall:size=8192";
    fs::write(Path::new(EVENT).join("trigger"), trigger)
        .expect("cannot trace system calls: needs root and a mounted tracefs");
}

/// The kinds of threads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thread {
    /// Only measures.
    Observer,
    Vcpu,
    /// A thread of krun or of the host. Its work is what a port costs.
    Worker,
}

impl Thread {
    fn of(id: u32, name: &str) -> Self {
        if id == process::id() {
            Self::Observer
        } else if name.contains("vcpu") {
            Self::Vcpu
        } else {
            Self::Worker
        }
    }
}

/// What this process has used. `calls`, `sleeps` and `cpu` leave out the vCPU's thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// System calls by name.
    pub(crate) calls: BTreeMap<String, f64>,
    /// How often a thread went to sleep.
    pub(crate) sleeps: f64,
    /// CPU time in seconds.
    pub(crate) cpu: f64,
    /// How often the vCPU's thread entered the guest.
    pub(crate) entries: f64,
    /// CPU time of the vCPU's thread in seconds, including the guest's.
    pub(crate) vcpu: f64,
    /// Wall-clock time in seconds.
    pub(crate) elapsed: f64,
    /// Interrupts that the guest has taken from all virtio devices.
    pub(crate) interrupts: f64,
}

impl Counts {
    /// Counts since each thread started. `elapsed` counts from `start`.
    pub(crate) fn now(start: Instant) -> Self {
        let mut counts = Self {
            elapsed: start.elapsed().as_secs_f64(),
            ..Self::default()
        };
        let mut threads = BTreeMap::new();
        for task in fs::read_dir("/proc/self/task").expect("cannot read /proc") {
            let task = task.expect("cannot read /proc").path();
            let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
            let Some(id) = task.file_name().and_then(|id| id.to_str()?.parse().ok()) else {
                continue;
            };
            let thread = Thread::of(id, &read("comm"));
            threads.insert(id, thread);
            // The first field is the nanoseconds on a CPU.
            let schedstat = read("schedstat");
            let on_cpu = schedstat
                .split(' ')
                .next()
                .and_then(|time| time.parse().ok());
            let seconds = on_cpu.map_or(0.0, |nanoseconds: f64| nanoseconds / 1e9);
            match thread {
                Thread::Observer => {}
                Thread::Vcpu => counts.vcpu += seconds,
                Thread::Worker => {
                    counts.cpu += seconds;
                    counts.sleeps += field(&read("status"), "voluntary_ctxt_switches:");
                }
            }
        }
        for (thread, name, count) in system_calls() {
            match threads.get(&thread) {
                Some(Thread::Worker) => *counts.calls.entry(name).or_default() += count,
                Some(Thread::Vcpu) if name == "ioctl" => counts.entries += count,
                Some(Thread::Vcpu | Thread::Observer) | None => {}
            }
        }
        counts
    }

    pub(crate) fn all_calls(&self) -> f64 {
        self.calls.values().sum()
    }

    /// Calls that move bytes or wakes.
    pub(crate) fn reads_and_writes(&self) -> f64 {
        let moves = ["read", "write", "readv", "writev", "recvfrom", "sendto"];
        let counts = moves.iter().filter_map(|name| self.calls.get(*name));
        counts.sum()
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(mut self, earlier: Self) -> Self {
        for (name, count) in earlier.calls {
            *self.calls.entry(name).or_default() -= count;
        }
        self.sleeps -= earlier.sleeps;
        self.cpu -= earlier.cpu;
        self.entries -= earlier.entries;
        self.vcpu -= earlier.vcpu;
        self.elapsed -= earlier.elapsed;
        self.interrupts -= earlier.interrupts;
        self
    }
}

fn field(status: &str, name: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok())
        .unwrap_or_default()
}

/// For each thread of the system: its id, the name of the call, and the count.
///
/// A line of the file looks like this: `{ common_pid:  540, id: sys_write  [  1] } hitcount:  2`
fn system_calls() -> Vec<(u32, String, f64)> {
    let table = fs::read_to_string(Path::new(EVENT).join("hist")).expect("`begin` was not called");
    assert!(
        table.contains("Dropped: 0"),
        "the kernel's table is too small for all calls"
    );
    table.lines().filter_map(system_call).collect()
}

fn system_call(line: &str) -> Option<(u32, String, f64)> {
    let (keys, count) = line.strip_prefix('{')?.split_once("} hitcount:")?;
    let mut thread = None;
    let mut name = None;
    for key in keys.split(',') {
        let (key, value) = key.split_once(':')?;
        match key.trim() {
            "common_pid" => thread = value.trim().parse().ok(),
            "id" => name = value.split('[').next(),
            _ => {}
        }
    }
    let name = name?.trim().trim_start_matches("sys_").to_owned();
    Some((thread?, name, count.trim().parse().ok()?))
}

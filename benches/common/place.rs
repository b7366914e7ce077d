//! Where things run: the core of each thread, and the runtime of the host's tasks.

use std::fmt;
use std::sync::LazyLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{Builder, Runtime};

/// Where the two sides run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cores {
    /// Wherever the scheduler puts each thread.
    Unpinned,
    /// All threads on one core.
    One,
    /// The host's runtime on one core, the VMM's threads on another.
    Two,
}

impl Cores {
    pub(crate) const ALL: [Self; 3] = [Self::Unpinned, Self::One, Self::Two];
    pub(crate) const PINNED: [Self; 2] = [Self::One, Self::Two];

    /// Places the calling thread, which belongs to the host.
    pub(crate) fn place_host(self) {
        place(match self {
            Self::Unpinned => allowed(),
            Self::One | Self::Two => core(0),
        });
    }

    /// Places the calling thread, which belongs to the VMM.
    pub(crate) fn place_vmm(self) {
        place(match self {
            Self::Unpinned => allowed(),
            Self::One => core(0),
            Self::Two => core(1),
        });
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unpinned => "unpinned",
            Self::One => "one core",
            Self::Two => "two cores",
        })
    }
}

/// The cores that this process may use.
///
/// The first call must come before any thread is placed, because a thread inherits its creator's cores.
fn allowed() -> CpuSet {
    static ALLOWED: LazyLock<CpuSet> =
        LazyLock::new(|| sched_getaffinity(None).expect("cannot read the allowed cores"));
    *ALLOWED
}

/// How many cores this process may use.
pub(crate) fn count_cores() -> usize {
    allowed().count() as usize
}

/// The `index`th core that this process may use.
fn core(index: usize) -> CpuSet {
    let cpu = (0..CpuSet::MAX_CPU)
        .filter(|cpu| allowed().is_set(*cpu))
        .nth(index)
        .expect("the benches need two cores");
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

/// Lets the calling thread run on these cores only, wherever it was placed before.
fn place(cores: CpuSet) {
    sched_setaffinity(None, &cores).expect("cannot place the thread");
}

/// The host's runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavor {
    CurrentThread,
    Workers(usize),
}

impl Flavor {
    pub(crate) const ALL: [Self; 3] = [Self::CurrentThread, Self::Workers(1), Self::Workers(2)];

    /// Builds the runtime and places the calling thread, which runs the tasks if there are no workers.
    pub(crate) fn build(self, cores: Cores) -> Runtime {
        cores.place_host();
        match self {
            Self::CurrentThread => Builder::new_current_thread().enable_io().build(),
            Self::Workers(workers) => Builder::new_multi_thread()
                .worker_threads(workers)
                .on_thread_start(move || cores.place_host())
                .enable_io()
                .build(),
        }
        .expect("cannot build the runtime")
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CurrentThread => f.pad("current"),
            Self::Workers(workers) => f.pad(&format!(
                "{workers} worker{}",
                if *workers == 1 { "" } else { "s" }
            )),
        }
    }
}

/// Raises the limit of open files. A stream needs three descriptors, a socket pair two.
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("cannot raise the limit of open files");
}

//! Where things run: the core of each thread, and the runtime of the host's tasks.

use std::fmt;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{Builder, Runtime};

/// Where the two sides run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cores {
    /// All threads on one core.
    One,
    /// The host's runtime on one core, the VMM's threads on another.
    Two,
}

impl Cores {
    pub(crate) const ALL: [Self; 2] = [Self::One, Self::Two];

    /// Pins the calling thread, which belongs to the host.
    pub(crate) fn pin_host(self) {
        pin(0);
    }

    /// Pins the calling thread, which belongs to the VMM.
    pub(crate) fn pin_vmm(self) {
        pin(match self {
            Self::One => 0,
            Self::Two => 1,
        });
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::One => "one core",
            Self::Two => "two cores",
        })
    }
}

/// Pins the calling thread to the `index`th core that this process may use.
fn pin(index: usize) {
    static ALLOWED: std::sync::LazyLock<Vec<usize>> = std::sync::LazyLock::new(|| {
        let allowed = sched_getaffinity(None).expect("cannot read the allowed cores");
        (0..CpuSet::MAX_CPU)
            .filter(|cpu| allowed.is_set(*cpu))
            .collect()
    });
    let cpu = *ALLOWED.get(index).expect("the benches need two cores");
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("cannot pin the thread");
}

/// The host's runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavor {
    CurrentThread,
    Workers(usize),
}

impl Flavor {
    pub(crate) const ALL: [Self; 3] = [Self::CurrentThread, Self::Workers(1), Self::Workers(2)];

    pub(crate) fn build(self, cores: Cores) -> Runtime {
        match self {
            Self::CurrentThread => {
                cores.pin_host();
                Builder::new_current_thread().enable_io().build()
            }
            Self::Workers(workers) => Builder::new_multi_thread()
                .worker_threads(workers)
                .on_thread_start(move || cores.pin_host())
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

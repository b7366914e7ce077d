//! What the machine is, as far as it decides the figures.

use std::fs;
use std::process::Command;

use crate::common::limit;
use crate::common::place::{Cores, count_cores};
use crate::others::percentile;
use crate::plan::Plan;
use crate::table::{Spread, long, megabytes};

pub(crate) struct Machine {
    /// Such as "AMD EPYC, 2 cores, virtual machine".
    pub(crate) processor: String,
    caches: Vec<String>,
    versions: Vec<String>,
    /// Bytes per second of two copies on two cores, through a small ring and through a large one.
    small: f64,
    large: f64,
    /// Seconds from one thread to the other.
    wake_apart: f64,
    wake_here: f64,
}

impl Machine {
    /// Fits into a private second-level cache.
    const SMALL: usize = 256 * 1024;
    /// Does not.
    const LARGE: usize = 8 * 1024 * 1024;
    const PIECE: usize = 32 * 1024;

    pub(crate) fn look(plan: &Plan) -> Self {
        let copy = |capacity| {
            limit::two_copies(Self::PIECE, Self::PIECE, capacity, Cores::Two, plan.slice).rate
        };
        // In turns: a virtual machine's cores may move.
        let copies: Vec<_> = (0..plan.rounds)
            .map(|_| (copy(Self::SMALL), copy(Self::LARGE)))
            .collect();
        let wake = |cores| {
            let trip = |_| percentile(&mut limit::futexes(cores, plan.slice), 50);
            Spread::of((0..plan.rounds).map(trip)).median / 2.0
        };
        Self {
            processor: processor(),
            caches: caches(),
            versions: versions(),
            small: Spread::of(copies.iter().map(|(small, _)| *small)).median,
            large: Spread::of(copies.iter().map(|(_, large)| *large)).median,
            wake_apart: wake(Cores::Two),
            wake_here: wake(Cores::One),
        }
    }

    /// Which chunk a ring should use next depends on this.
    pub(crate) fn kind(&self) -> &'static str {
        if self.small < 0.7 * self.large {
            "private caches"
        } else {
            "shared cache"
        }
    }

    /// At the end, as a virtual machine's cores may move to others of the host.
    pub(crate) fn compare(&self, begun: &Self) {
        println!(
            "\nTwo copies apart, at the end: {} MB/s through 256 KiB, {} MB/s through 8 MiB: {}{}",
            long(megabytes(self.small)),
            long(megabytes(self.large)),
            self.kind(),
            if self.kind() == begun.kind() {
                "."
            } else {
                ". The machine has changed meanwhile: measure again."
            }
        );
    }

    pub(crate) fn print(&self) {
        println!("# Machine\n");
        for line in [
            &self.processor,
            &self.caches.join(", "),
            &self.versions.join(", "),
        ] {
            if !line.is_empty() {
                println!("- {line}");
            }
        }
        println!(
            "- two copies apart: {} MB/s through 256 KiB, {} MB/s through 8 MiB",
            long(megabytes(self.small)),
            long(megabytes(self.large)),
        );
        println!(
            "- a wake: {:.1} µs apart, {:.1} µs on one core",
            self.wake_apart * 1e6,
            self.wake_here * 1e6,
        );
        println!("- kind: {}", self.kind());
    }
}

/// Lines of `/proc/cpuinfo` look like `model name : AMD EPYC`. Not every architecture has each.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let model = field("model name").unwrap_or(std::env::consts::ARCH);
    let flags = field("flags").unwrap_or_default();
    let is_virtual = flags.split(' ').any(|flag| flag == "hypervisor");
    format!(
        "{model}, {} cores{}",
        count_cores(),
        if is_virtual {
            " of a virtual machine"
        } else {
            ""
        }
    )
}

/// Such as `L2 1024K of cpu 0`, from the first core's directory.
fn caches() -> Vec<String> {
    let cache = |index: usize| {
        let read = |file: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
            Some(fs::read_to_string(path).ok()?.trim().to_owned())
        };
        let (level, size, shared) = (read("level")?, read("size")?, read("shared_cpu_list")?);
        let kind = match read("type").as_deref() {
            Some("Data") => "d",
            Some("Instruction") => "i",
            _ => "",
        };
        Some(format!("L{level}{kind} {size} of CPU {shared}"))
    };
    (0..8).filter_map(cache).collect()
}

fn versions() -> Vec<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    let kernel = kernel.map(|release| format!("Linux {}", release.trim()));
    let rustc = Command::new("rustc").arg("--version").output().ok();
    let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    kernel.into_iter().chain(rustc).collect()
}

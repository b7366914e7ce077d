//! The tables beside the main ones.

use std::time::Duration;

use crate::common::limit;
use crate::common::place::{Flavor, raise_descriptor_limit};
use crate::common::transport::{Duplex, HandWritten, Krun, KrunSpinning, Piper, UnixSocket};
use crate::common::vmm::Transport;
use crate::common::work::{self, Setting, Size, Work};
use crate::plan::{Plan, name};
use crate::table::{Cell, Table, measure, megabytes};

type KrunBusy = KrunSpinning<20>;

/// A rate of `T`, as a cell.
fn rate<T: Transport>(work: Work, setting: Setting) -> Cell<'static, f64> {
    Box::new(move || work::throughput::<T>(work, setting).flow.rate)
}

/// This crate with `busy_poll`, and the others with their default capacity.
pub(crate) fn defaults(plan: &Plan) {
    let title =
        "## Busy poll and default capacities: MB/s, and how many times as fast as the others";
    let columns = vec!["MB/s", "busy poll of 20 µs", "UnixStream", "hand-written"];
    let mut table = Table::new(plan, title.into(), columns);
    for setting in plan.settings() {
        // The main tables cover the other runtimes.
        if setting.flavor != Flavor::CurrentThread {
            continue;
        }
        for work in Work::ALL {
            let name = format!("{} defaults {}", name(setting), work.name());
            if !plan.selects(&name) {
                continue;
            }
            let default = Setting {
                capacity: None,
                ..setting
            };
            let cells = [
                rate::<Krun>(work, setting),
                rate::<KrunBusy>(work, setting),
                rate::<UnixSocket>(work, default),
                rate::<HandWritten>(work, default),
            ];
            table.compare(&name, megabytes, &measure(plan, &cells));
        }
    }
}

pub(crate) fn without_copy(plan: &Plan) {
    let title = "## Without the host's copy: MB/s, and how many times as fast as with it";
    let mut table = Table::new(plan, title.into(), vec!["MB/s", "stream", "UnixStream"]);
    for setting in plan.settings() {
        for work in Work::ALL {
            let chunks: Cell<'_, f64> = match work {
                Work::GuestToHost(size) => Box::new(move || work::chunks_in(size, setting).rate),
                Work::HostToGuest(size) => Box::new(move || work::chunks_out(size, setting).rate),
                Work::Both | Work::FramesIn(_) | Work::FramesOut(_) => continue,
            };
            let name = format!("{} chunks {}", name(setting), work.name());
            if plan.selects(&name) {
                let cells = [
                    chunks,
                    rate::<Krun>(work, setting),
                    rate::<UnixSocket>(work, setting),
                ];
                table.compare(&name, megabytes, &measure(plan, &cells));
            }
        }
    }
}

/// Compares trips per second, so that more is better here too, and prints the time of one.
pub(crate) fn round_trips(plan: &Plan) {
    let title = "## Round trip of 64 bytes: µs, and how many times as long the others take";
    let columns = vec![
        "µs",
        "busy poll of 20 µs",
        UnixSocket::NAME,
        HandWritten::NAME,
        Duplex::NAME,
        Piper::NAME,
        "eventfds",
        "futexes",
    ];
    let mut table = Table::new(plan, title.into(), columns);
    for setting in plan.settings() {
        let name = format!("{} round trip", name(setting));
        if !plan.selects(&name) {
            continue;
        }
        let Setting { cores, flavor, .. } = setting;
        let cells: [Cell<'_, Vec<Duration>>; 8] = [
            Box::new(|| work::round_trips::<Krun>(setting)),
            Box::new(|| work::round_trips::<KrunBusy>(setting)),
            Box::new(|| work::round_trips::<UnixSocket>(setting)),
            Box::new(|| work::round_trips::<HandWritten>(setting)),
            Box::new(|| work::round_trips::<Duplex>(setting)),
            Box::new(|| work::round_trips::<Piper>(setting)),
            Box::new(|| limit::eventfds(cores, flavor, plan.slice)),
            Box::new(|| limit::futexes(cores, plan.slice)),
        ];
        let mut times = measure(plan, &cells);
        for percent in [50, 99] {
            let rates: Vec<Vec<f64>> = times
                .iter_mut()
                .map(|rounds| {
                    let times = rounds.iter_mut();
                    times
                        .map(|times| 1.0 / percentile(times, percent))
                        .collect()
                })
                .collect();
            table.compare(&format!("{name} p{percent}"), |rate| 1e6 / rate, &rates);
        }
    }
}

/// Seconds.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100].as_secs_f64()
}

/// Compares many streams with one stream of this crate, and with as many of other transports.
pub(crate) fn streams(plan: &Plan) {
    let title = "## Many streams in one runtime, descriptors of 32 KiB: MB/s of all together, and how \
                 many times as fast as one stream and as others";
    let columns = vec!["MB/s", "one stream", UnixSocket::NAME, Piper::NAME];
    let mut table = Table::new(plan, title.into(), columns);
    raise_descriptor_limit();
    let bytes = if plan.is_quick() { 1 << 24 } else { 1 << 28 };
    for setting in plan.settings() {
        for streams in [16, 256, 1024] {
            let name = format!("{} streams {streams}", name(setting));
            if plan.selects(&name) {
                let cells: [Cell<'_, f64>; 4] = [
                    Box::new(move || work::many::<Krun>(streams, bytes, setting)),
                    Box::new(|| work::many::<Krun>(1, bytes, setting)),
                    Box::new(move || work::many::<UnixSocket>(streams, bytes, setting)),
                    Box::new(move || work::many::<Piper>(streams, bytes, setting)),
                ];
                table.compare(&name, megabytes, &measure(plan, &cells));
            }
        }
    }
}

/// The measurements behind the default capacity.
pub(crate) fn capacities(plan: &Plan) {
    let title = "## Capacity: MB/s, and how many times as fast as with the default";
    let mut table = Table::new(plan, title.into(), vec!["MB/s", "default"]);
    for setting in plan.settings() {
        for work in [
            Work::GuestToHost(4096),
            Work::GuestToHost(32 * 1024),
            Work::HostToGuest(64 * 1024),
        ] {
            for capacity in [16, 17, 18, 19, 20, 21, 23, 24].map(|power| 1 << power) {
                let size = Size(capacity);
                let name = format!("{} capacity {} at {size}", name(setting), work.name());
                if plan.selects(&name) {
                    let this = Setting {
                        capacity: Some(capacity),
                        ..setting
                    };
                    let cells = [rate::<Krun>(work, this), rate::<Krun>(work, setting)];
                    table.compare(&name, megabytes, &measure(plan, &cells));
                }
            }
        }
    }
}

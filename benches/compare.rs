//! Compares this crate with other transports for the same bytes, and with the machine's limits.
//!
//! Each row takes several rounds. A round measures every column once, one after another. The row shows
//! the median of the rounds' ratios, with the quartiles. See `benches/README.md`.

mod common;

use std::time::Duration;

use common::limit;
use common::meter::Span;
use common::place::{Cores, Flavor, raise_descriptor_limit};
use common::transport::{Duplex, HandWritten, Krun, KrunSpinning, Piper, UnixSocket};
use common::vmm::Transport;
use common::work::{self, Setting, Size, Work};

/// Bytes that each transport may hold, unless a column says otherwise: this crate's default.
const CAPACITY: usize = tokio_krun::Options::DEFAULT_CAPACITY;

type KrunBusy = KrunSpinning<20>;

struct Plan {
    rounds: usize,
    slice: Duration,
    /// Measures only the rows whose names contain all of these.
    filters: Vec<String>,
}

impl Plan {
    fn from_arguments() -> Self {
        let mut plan = Self {
            rounds: 9,
            slice: Duration::from_millis(60),
            filters: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        let number = |option: &str, arguments: &mut dyn Iterator<Item = String>| -> usize {
            arguments
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or_else(|| panic!("{option} takes a number"))
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                // `cargo bench` adds it.
                "--bench" => {}
                "--rounds" => plan.rounds = number("--rounds", &mut arguments),
                "--slice-ms" => {
                    plan.slice = Duration::from_millis(number("--slice-ms", &mut arguments) as u64);
                }
                // Only shows that everything runs. It measures too little to mean anything.
                "--quick" => (plan.rounds, plan.slice) = (1, Duration::ZERO),
                filter => plan.filters.push(filter.to_owned()),
            }
        }
        plan
    }

    fn selects(&self, name: &str) -> bool {
        self.filters.iter().all(|filter| name.contains(filter))
    }
}

/// One column of a row: its heading, and how to measure it once. More is better.
type Cell<'a> = (String, Box<dyn Fn() -> f64 + 'a>);

/// Measures all cells in each round, then prints the first cell's figure and its ratio to each other
/// cell.
fn row(plan: &Plan, name: &str, unit: &str, scale: impl Fn(f64) -> f64, cells: &[Cell<'_>]) {
    let mut figures = vec![Vec::with_capacity(plan.rounds); cells.len()];
    for round in 0..plan.rounds {
        // Each round starts with another cell.
        for index in (0..cells.len()).map(|index| (index + round) % cells.len()) {
            figures[index].push((cells[index].1)());
        }
    }
    let (first, others) = figures.split_first().expect("a row has a cell");
    print!(
        "{name:<34} {:>9.*} {unit}",
        precision(scale(median(first))),
        scale(median(first))
    );
    for ((other, _), figures) in cells[1..].iter().zip(others) {
        let mut ratios: Vec<f64> = first.iter().zip(figures).map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        let quartile = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
        print!(
            " | {other} {:.2} ({:.2}–{:.2})",
            quartile(2),
            quartile(1),
            quartile(3)
        );
    }
    println!();
}

fn precision(figure: f64) -> usize {
    if figure < 100.0 { 1 } else { 0 }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}

fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100].as_secs_f64()
}

fn main() {
    let plan = Plan::from_arguments();
    println!(
        "In-process guest. {} rounds of {:?} for each figure.\n\
         Ratio: first figure / named column, median (quartiles).",
        plan.rounds, plan.slice
    );
    throughput(&plan);
    copies(&plan);
    round_trips(&plan);
    streams(&plan);
    capacities(&plan);
}

fn settings(plan: &Plan) -> impl Iterator<Item = Setting> {
    let slice = plan.slice;
    Cores::ALL.into_iter().flat_map(move |cores| {
        Flavor::ALL.into_iter().map(move |flavor| Setting {
            cores,
            flavor,
            capacity: Some(CAPACITY),
            span: Span::Time(slice),
        })
    })
}

fn throughput(plan: &Plan) {
    println!("\n# Throughput, MB/s; capacity 4 MiB each way unless a column says otherwise");
    for setting in settings(plan) {
        for work in Work::ALL {
            let name = format!("{} {} {}", setting.cores, setting.flavor, work.name());
            if !plan.selects(&name) {
                continue;
            }
            let default = Setting {
                capacity: None,
                ..setting
            };
            let mut cells: Vec<Cell<'_>> = vec![
                (
                    "tokio-krun".into(),
                    Box::new(|| work::throughput::<Krun>(work, setting)),
                ),
                (
                    KrunBusy::NAME.into(),
                    Box::new(|| work::throughput::<KrunBusy>(work, setting)),
                ),
                (
                    "UnixStream".into(),
                    Box::new(|| work::throughput::<UnixSocket>(work, setting)),
                ),
                (
                    "UnixStream, default buffers".into(),
                    Box::new(|| work::throughput::<UnixSocket>(work, default)),
                ),
                (
                    "hand-written".into(),
                    Box::new(|| work::throughput::<HandWritten>(work, setting)),
                ),
                (
                    "hand-written, 256 slots".into(),
                    Box::new(|| work::throughput::<HandWritten>(work, default)),
                ),
                (
                    "duplex".into(),
                    Box::new(|| work::throughput::<Duplex>(work, setting)),
                ),
                (
                    "piper".into(),
                    Box::new(|| work::throughput::<Piper>(work, setting)),
                ),
            ];
            if let Some((write, read)) = match work {
                Work::GuestToHost(size) => Some((size, 64 * 1024)),
                Work::HostToGuest(size) => Some((size, 4096)),
                _ => None,
            } {
                let (cores, slice) = (setting.cores, plan.slice);
                cells.push((
                    "two copies".into(),
                    Box::new(move || limit::two_copies(write, read, CAPACITY, cores, slice)),
                ));
            }
            row(plan, &name, "MB/s", |rate| rate / 1e6, &cells);
        }
    }
}

fn copies(plan: &Plan) {
    println!("\n# Without the host's copy, MB/s; ratios to transports with it");
    for setting in settings(plan) {
        for size in [4096, 32 * 1024] {
            let name = format!(
                "{} {} chunks g→h {}",
                setting.cores,
                setting.flavor,
                Size(size)
            );
            if plan.selects(&name) {
                row(
                    plan,
                    &name,
                    "MB/s",
                    |rate| rate / 1e6,
                    &[
                        ("chunks".into(), Box::new(|| work::chunks_in(size, setting))),
                        (
                            "stream".into(),
                            Box::new(|| work::throughput::<Krun>(Work::GuestToHost(size), setting)),
                        ),
                        (
                            "UnixStream".into(),
                            Box::new(|| {
                                work::throughput::<UnixSocket>(Work::GuestToHost(size), setting)
                            }),
                        ),
                    ],
                );
            }
        }
        for size in [4096, 16 * 1024, 64 * 1024] {
            let name = format!(
                "{} {} chunks h→g {}",
                setting.cores,
                setting.flavor,
                Size(size)
            );
            if plan.selects(&name) {
                row(
                    plan,
                    &name,
                    "MB/s",
                    |rate| rate / 1e6,
                    &[
                        (
                            "chunks".into(),
                            Box::new(|| work::chunks_out(size, setting)),
                        ),
                        (
                            "stream".into(),
                            Box::new(|| work::throughput::<Krun>(Work::HostToGuest(size), setting)),
                        ),
                        (
                            "UnixStream".into(),
                            Box::new(|| {
                                work::throughput::<UnixSocket>(Work::HostToGuest(size), setting)
                            }),
                        ),
                    ],
                );
            }
        }
    }
}

/// Measures trips per second, so that more is better here too, and prints the time of one.
fn round_trips(plan: &Plan) {
    println!("\n# Round trip of 64 bytes, µs; ratio: how many times as long the other takes");
    for setting in settings(plan) {
        for percent in [50, 99] {
            let name = format!("{} {} round trip p{percent}", setting.cores, setting.flavor);
            if !plan.selects(&name) {
                continue;
            }
            let Setting { cores, flavor, .. } = setting;
            let slice = plan.slice;
            let trips = |mut times: Vec<Duration>| 1.0 / percentile(&mut times, percent);
            row(
                plan,
                &name,
                "µs",
                |rate| 1e6 / rate,
                &[
                    (
                        "tokio-krun".into(),
                        Box::new(|| trips(work::round_trips::<Krun>(setting))),
                    ),
                    (
                        KrunBusy::NAME.into(),
                        Box::new(|| trips(work::round_trips::<KrunBusy>(setting))),
                    ),
                    (
                        "UnixStream".into(),
                        Box::new(|| trips(work::round_trips::<UnixSocket>(setting))),
                    ),
                    (
                        "hand-written".into(),
                        Box::new(|| trips(work::round_trips::<HandWritten>(setting))),
                    ),
                    (
                        "duplex".into(),
                        Box::new(|| trips(work::round_trips::<Duplex>(setting))),
                    ),
                    (
                        "piper".into(),
                        Box::new(|| trips(work::round_trips::<Piper>(setting))),
                    ),
                    (
                        "eventfds".into(),
                        Box::new(|| trips(limit::eventfds(cores, flavor, slice))),
                    ),
                    (
                        "futexes".into(),
                        Box::new(|| trips(limit::futexes(cores, slice))),
                    ),
                ],
            );
        }
    }
}

/// Compares many streams with one stream of this crate, and with as many of other transports.
fn streams(plan: &Plan) {
    println!("\n# Many streams in one runtime, 32 KiB descriptors, MB/s of all together");
    raise_descriptor_limit();
    let bytes = if plan.rounds == 1 { 1 << 24 } else { 1 << 28 };
    for setting in settings(plan) {
        let name = format!("{} {} streams", setting.cores, setting.flavor);
        if !plan.selects(&name) {
            continue;
        }
        for streams in [16, 256, 1024] {
            row(
                plan,
                &format!("{name} {streams}"),
                "MB/s",
                |rate| rate / 1e6,
                &[
                    (
                        "tokio-krun".into(),
                        Box::new(move || work::many::<Krun>(streams, bytes, setting)),
                    ),
                    (
                        "one stream".into(),
                        Box::new(|| work::many::<Krun>(1, bytes, setting)),
                    ),
                    (
                        "UnixStream".into(),
                        Box::new(move || work::many::<UnixSocket>(streams, bytes, setting)),
                    ),
                    (
                        "piper".into(),
                        Box::new(move || work::many::<Piper>(streams, bytes, setting)),
                    ),
                ],
            );
        }
    }
}

/// The measurements behind the default capacity.
fn capacities(plan: &Plan) {
    println!("\n# Capacity, MB/s; ratio to the default capacity");
    for setting in settings(plan) {
        for work in [
            Work::GuestToHost(4096),
            Work::GuestToHost(32 * 1024),
            Work::HostToGuest(64 * 1024),
        ] {
            let name = format!(
                "{} {} capacity {}",
                setting.cores,
                setting.flavor,
                work.name()
            );
            if !plan.selects(&name) {
                continue;
            }
            for capacity in [16, 17, 18, 19, 20, 21, 23, 24].map(|power| 1 << power) {
                let this = Setting {
                    capacity: Some(capacity),
                    ..setting
                };
                row(
                    plan,
                    &format!("{name} at {}", Size(capacity)),
                    "MB/s",
                    |rate| rate / 1e6,
                    &[
                        (
                            "this".into(),
                            Box::new(move || work::throughput::<Krun>(work, this)),
                        ),
                        (
                            "default".into(),
                            Box::new(|| work::throughput::<Krun>(work, setting)),
                        ),
                    ],
                );
            }
        }
    }
}

//! Prints the comparison.

use std::collections::BTreeMap;

use super::counts::Counts;
use super::work::{Job, Plan};

pub(crate) struct Report<'a> {
    descriptors: u16,
    plan: &'a Plan,
    /// For each round, the counts of the stream and of the socket.
    rounds: BTreeMap<Job, Vec<[Counts; 2]>>,
}

type Figure = (&'static str, fn(&Counts) -> f64);

/// Counts. Fewer is better.
const COUNTED: [Figure; 5] = [
    ("system calls", Counts::all_calls),
    ("  reads and writes", Counts::reads_and_writes),
    ("sleeps", |counts| counts.sleeps),
    ("interrupts", |counts| counts.interrupts),
    ("guest entries", |counts| counts.entries),
];
const TIMED: [Figure; 3] = [
    ("CPU of host and krun, µs", |counts| counts.cpu * 1e6),
    ("CPU with the guest, µs", |counts| {
        (counts.cpu + counts.vcpu) * 1e6
    }),
    ("elapsed, µs", |counts| counts.elapsed * 1e6),
];

impl<'a> Report<'a> {
    pub(crate) fn new(descriptors: u16, plan: &'a Plan) -> Self {
        Self {
            descriptors,
            plan,
            rounds: BTreeMap::new(),
        }
    }

    pub(crate) fn add(&mut self, job: Job, pair: [Counts; 2]) {
        self.rounds.entry(job).or_default().push(pair);
    }

    pub(crate) fn stream_takes_no_more_calls(&self) -> bool {
        let ratios = |rounds: &Vec<[Counts; 2]>| Spread::of_ratios(rounds, Counts::all_calls);
        self.rounds
            .values()
            .all(|rounds| ratios(rounds).median <= 1.0)
    }

    pub(crate) fn print(&self) {
        println!(
            "\n# Real microVM, {} descriptors each way: {}",
            self.descriptors,
            self.plan.describe()
        );
        println!("Counts are medians. The ratio is the median of the pairs (lowest–highest).");
        println!("Times mean little if the machine is emulated.");
        for (job, rounds) in &self.rounds {
            let (name, units) = job.unit(self.plan);
            println!(
                "\n{name:<28} {:>10} {:>10}   ratio",
                "AgentStream", "UnixStream"
            );
            for (figure, of) in COUNTED.into_iter().chain(TIMED) {
                let [stream, socket] = [0, 1]
                    .map(|port| Spread::of(rounds.iter().map(|pair| of(&pair[port]) / units)));
                println!(
                    "{figure:<28} {:>10.2} {:>10.2}   {}",
                    stream.median,
                    socket.median,
                    Spread::of_ratios(rounds, of)
                );
            }
            for port in [0, 1] {
                println!(
                    "  {}: {}",
                    ["AgentStream", "UnixStream"][port],
                    by_name(rounds, port, units)
                );
            }
        }
    }
}

/// The system calls for each unit, by name, as the mean of all rounds.
fn by_name(rounds: &[[Counts; 2]], port: usize, units: f64) -> String {
    let mut calls: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, count) in rounds.iter().flat_map(|pair| &pair[port].calls) {
        *calls.entry(name).or_default() += count / units / rounds.len() as f64;
    }
    let mut calls: Vec<_> = calls
        .into_iter()
        .filter(|(_, count)| *count >= 0.005)
        .collect();
    calls.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let calls = calls
        .iter()
        .map(|(name, count)| format!("{name} {count:.2}"));
    calls.collect::<Vec<_>>().join(", ")
}

struct Spread {
    lowest: f64,
    median: f64,
    highest: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Self {
            lowest: values[0],
            median: values[values.len() / 2],
            highest: values[values.len() - 1],
        }
    }

    fn of_ratios(rounds: &[[Counts; 2]], of: fn(&Counts) -> f64) -> Self {
        Self::of(
            rounds
                .iter()
                .map(|[stream, socket]| of(stream) / of(socket)),
        )
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} ({:.2}–{:.2})",
            self.median, self.lowest, self.highest
        )
    }
}

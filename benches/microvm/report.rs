//! The table.

use std::collections::BTreeMap;

use super::counts::Counts;
use super::work::{Job, Plan};

pub(crate) struct Report<'a> {
    descriptors: u16,
    plan: &'a Plan,
    /// What each round took: by the stream, and by the other port.
    rounds: BTreeMap<Job, Vec<[Counts; 2]>>,
}

type Figure = (&'static str, fn(&Counts) -> f64);

/// Those of which there can be none too few.
const COUNTED: [Figure; 5] = [
    ("system calls", Counts::all_calls),
    ("  read and write", Counts::reads_and_writes),
    ("sleeps", |counts| counts.sleeps),
    ("interrupts", |counts| counts.interrupts),
    ("entries of the guest", |counts| counts.entries),
];
const TIMED: [Figure; 3] = [
    ("CPU, host and krun, µs", |counts| counts.cpu * 1e6),
    ("CPU, with the guest, µs", |counts| {
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

    pub(crate) fn stream_takes_fewer_calls(&self) -> bool {
        let ratios = |rounds: &Vec<[Counts; 2]>| Spread::of_ratios(rounds, Counts::all_calls);
        self.rounds
            .values()
            .all(|rounds| ratios(rounds).median <= 1.0)
    }

    pub(crate) fn print(&self) {
        println!(
            "\n# {} descriptors each way: {}",
            self.descriptors,
            self.plan.words()
        );
        println!("Medians, and the ratio's median with its least and greatest.");
        println!("Times are of an emulated machine, and say little, unless it is not.");
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

/// The system calls of all rounds, by name.
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
    least: f64,
    median: f64,
    greatest: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Self {
            least: values[0],
            median: values[values.len() / 2],
            greatest: values[values.len() - 1],
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
            self.median, self.least, self.greatest
        )
    }
}

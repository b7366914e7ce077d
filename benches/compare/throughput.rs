//! The main tables: rates, and what they cost.

use crate::common::limit;
use crate::common::transport::{Duplex, HandWritten, Krun, Piper, UnixSocket};
use crate::common::vmm::Transport;
use crate::common::work::{self, Measured, Setting, Work};
use crate::plan::{self, CAPACITY, Plan};
use crate::table::{Cell, Spread, Table, long, measure, megabytes, short};

/// This crate, then the others.
pub(crate) const TRANSPORTS: [&str; 5] = [
    Krun::NAME,
    UnixSocket::NAME,
    HandWritten::NAME,
    Duplex::NAME,
    Piper::NAME,
];

/// One row, measured.
pub(crate) struct Row {
    pub(crate) setting: Setting,
    pub(crate) work: Work,
    /// For each transport, its rounds. Then those of the two copies, if this work has them.
    measured: Vec<Vec<Measured>>,
}

impl Row {
    pub(crate) fn name(&self) -> String {
        format!("{} {}", plan::name(self.setting), self.work.name())
    }

    /// The figures of a transport, round by round.
    fn figures(&self, transport: usize, of: fn(&Measured) -> f64) -> Vec<f64> {
        self.measured[transport].iter().map(of).collect()
    }

    pub(crate) fn median(&self, transport: usize, of: fn(&Measured) -> f64) -> f64 {
        Spread::of(self.figures(transport, of)).median
    }

    pub(crate) fn ratio_to(&self, transport: usize, of: fn(&Measured) -> f64) -> Spread {
        Spread::of_ratios(&self.figures(0, of), &self.figures(transport, of))
    }

    /// The ratio to the best of the others, where each round has its own best.
    pub(crate) fn ratio_to_best(
        &self,
        of: fn(&Measured) -> f64,
        better: fn(f64, f64) -> f64,
    ) -> Spread {
        let others = (1..TRANSPORTS.len()).map(|transport| self.figures(transport, of));
        let best = others.reduce(|best, other| {
            let rounds = best.iter().zip(&other);
            rounds.map(|(best, other)| better(*best, *other)).collect()
        });
        Spread::of_ratios(&self.figures(0, of), &best.expect("there are others"))
    }

    pub(crate) fn ratio_to_copies(&self) -> Option<Spread> {
        (self.measured.len() > TRANSPORTS.len()).then(|| self.ratio_to(TRANSPORTS.len(), rate))
    }
}

/// Bytes per second.
pub(crate) fn rate(measured: &Measured) -> f64 {
    measured.flow.rate
}

/// Milliseconds of CPU time of the whole process for each GiB.
pub(crate) fn cpu(measured: &Measured) -> f64 {
    measured.flow.cpu / measured.flow.rate * 1e3 * f64::from(1 << 30)
}

/// Context switches of the whole process for each MiB.
fn switches(measured: &Measured) -> f64 {
    measured.flow.switches / measured.flow.rate * f64::from(1 << 20)
}

/// For each place and runtime, a table of rates and a table of costs.
pub(crate) fn throughput(plan: &Plan) -> Vec<Row> {
    let mut all = Vec::new();
    for setting in plan.settings() {
        let mut rates = rates_table(plan, setting);
        let mut rows: Vec<Row> = Vec::new();
        for work in Work::ALL {
            if plan.selects(&format!("{} {}", plan::name(setting), work.name())) {
                let row = measure_row(plan, setting, work);
                print_rates(&mut rates, &row);
                rows.push(row);
            }
        }
        let mut costs = costs_table(plan, setting);
        for row in &rows {
            print_costs(&mut costs, row);
        }
        all.append(&mut rows);
    }
    all
}

fn measure_row(plan: &Plan, setting: Setting, work: Work) -> Row {
    let mut cells: Vec<Cell<'_, Measured>> = vec![
        Box::new(|| work::throughput::<Krun>(work, setting)),
        Box::new(|| work::throughput::<UnixSocket>(work, setting)),
        Box::new(|| work::throughput::<HandWritten>(work, setting)),
        Box::new(|| work::throughput::<Duplex>(work, setting)),
        Box::new(|| work::throughput::<Piper>(work, setting)),
    ];
    if let Some((write, read)) = work.copies() {
        cells.push(Box::new(move || Measured {
            flow: limit::two_copies(write, read, CAPACITY, setting.cores, plan.slice),
            wakes: None,
        }));
    }
    Row {
        setting,
        work,
        measured: measure(plan, &cells),
    }
}

fn rates_table(plan: &Plan, setting: Setting) -> Table<'_> {
    let mut columns = vec!["MB/s"];
    columns.extend(&TRANSPORTS[1..]);
    columns.extend(["two copies", "best of the others"]);
    Table::new(
        plan,
        format!(
            "## {}: MB/s, and how many times as fast as the others; 4 MiB each way",
            plan::name(setting)
        ),
        columns,
    )
}

fn print_rates(table: &mut Table<'_>, row: &Row) {
    let mut cells = vec![long(megabytes(row.median(0, rate)))];
    for other in 1..TRANSPORTS.len() {
        cells.push(table.ratio(row.ratio_to(other, rate)));
    }
    let copies = row.ratio_to_copies();
    cells.push(copies.map_or("–".into(), |ratio| table.ratio(ratio)));
    cells.push(table.ratio(row.ratio_to_best(rate, f64::max)));
    table.row(&row.work.name(), cells);
}

fn costs_table(plan: &Plan, setting: Setting) -> Table<'_> {
    let mut columns = vec!["CPU ms/GiB"];
    columns.extend(&TRANSPORTS[1..]);
    columns.extend([
        "best of the others",
        "switches/MiB",
        "fewest of the others",
        "wakes/MiB",
    ]);
    Table::new(
        plan,
        format!(
            "## {}: CPU time of the process, and how many times as much as the others",
            plan::name(setting)
        ),
        columns,
    )
}

fn print_costs(table: &mut Table<'_>, row: &Row) {
    let mut cells = vec![long(row.median(0, cpu))];
    for other in 1..TRANSPORTS.len() {
        cells.push(table.ratio(row.ratio_to(other, cpu)));
    }
    cells.push(table.ratio(row.ratio_to_best(cpu, f64::min)));
    let others = (1..TRANSPORTS.len()).map(|other| row.median(other, switches));
    cells.push(short(row.median(0, switches)));
    cells.push(short(others.fold(f64::INFINITY, f64::min)));
    let wakes = row.median(0, |measured| measured.wakes.unwrap_or_default());
    cells.push(short(wakes));
    table.row(&row.work.name(), cells);
}

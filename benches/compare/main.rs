//! Compares this crate with other transports for the same bytes, and with the machine's limits.
//!
//! Each row takes several rounds. A round measures every column once, one after another. The row shows
//! the median of the rounds' ratios, with the quartiles. See `benches/README.md`.

#[path = "../common/mod.rs"]
mod common;

mod chart;
mod machine;
mod others;
mod plan;
mod summary;
mod table;
mod throughput;

use machine::Machine;
use plan::Plan;

fn main() {
    let plan = Plan::from_arguments();
    let machine = Machine::look(&plan);
    machine.print();
    println!(
        "\nIn-process guest. {} rounds of {:?} for each figure.\n\
         Ratios are medians of the rounds (quartiles).",
        plan.rounds, plan.slice
    );
    let rows = throughput::throughput(&plan);
    if let Some(path) = &plan.svg {
        chart::draw(path, &rows, &machine).expect("cannot draw the chart");
    }
    others::round_trips(&plan);
    others::defaults(&plan);
    others::without_copy(&plan);
    others::streams(&plan);
    others::capacities(&plan);
    summary::print(&rows);
    Machine::look(&plan).compare(&machine);
}

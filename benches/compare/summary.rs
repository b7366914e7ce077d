//! Says at the end of a run where this crate is ahead, and where it is behind.

use crate::table::short;
use crate::throughput::{Row, TRANSPORTS, cpu, rate};

const UNIX_STREAM: usize = 1;
const PIPER: usize = 4;

pub(crate) fn print(rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    println!("\n## Summary of {} rows\n", rows.len());
    let best = |row: &Row| Some(row.ratio_to_best(rate, f64::max).median);
    let cheapest = |row: &Row| Some(row.ratio_to_best(cpu, f64::min).median);
    let to = |other: usize| move |row: &Row| row.ratio_to(other, rate).median;
    let (to_unix, to_piper) = (to(UNIX_STREAM), to(PIPER));
    let copies = |row: &Row| Some(row.ratio_to_copies()?.median);

    at_least("the best of the others", 1.0, rows, best);
    let all = rows.len();
    let frugal = rows.iter().filter(|row| cheapest(row) <= Some(1.0)).count();
    println!("- CPU time at most 1.0 of the best of the others: {frugal} of {all}");
    extreme("  highest", rows, cheapest, |one, other| one > other);
    at_least(TRANSPORTS[PIPER], 1.3, rows, |row| Some(to_piper(row)));
    let large = |row: &Row| (row.work.size() >= 32 * 1024).then(|| to_unix(row));
    extreme("- UnixStream, from 32 KiB: lowest", rows, large, lower);
    let small = |row: &Row| (row.work.size() == 4096).then(|| to_unix(row));
    extreme("- UnixStream, 4 KiB: lowest", rows, small, lower);
    at_least("two copies", 0.75, rows, copies);
}

fn at_least(what: &str, least: f64, rows: &[Row], ratio: impl Fn(&Row) -> Option<f64>) {
    let ratios: Vec<f64> = rows.iter().filter_map(&ratio).collect();
    let reached = ratios.iter().filter(|ratio| **ratio >= least).count();
    println!(
        "- at least {least:?} of {what}: {reached} of {}",
        ratios.len()
    );
    extreme("  lowest", rows, ratio, lower);
}

fn lower(one: f64, other: f64) -> bool {
    one < other
}

/// Prints the row whose figure comes before all others.
fn extreme(
    what: &str,
    rows: &[Row],
    figure: impl Fn(&Row) -> Option<f64>,
    before: fn(f64, f64) -> bool,
) {
    let figures = rows.iter().filter_map(|row| Some((figure(row)?, row)));
    let first = figures.reduce(|one, other| if before(other.0, one.0) { other } else { one });
    if let Some((figure, row)) = first {
        println!("{what} {}, {}", short(figure), row.name());
    }
}

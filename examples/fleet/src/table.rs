//! The live table. On a terminal it is redrawn in place. Elsewhere a row is printed when its state changes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use crate::supervisor::{State, Status};

/// The most rows on a terminal; the rest are summed up.
const ROWS: usize = 24;

#[derive(Default)]
pub struct Table {
    drawn: usize,
    before: Vec<(State, u32)>,
}

impl Table {
    /// Shows the rows. `line` is the line below.
    ///
    /// # Errors
    ///
    /// If standard output fails.
    pub fn show(&mut self, rows: &[Status], line: &str) -> io::Result<()> {
        let text = if io::stdout().is_terminal() {
            self.redraw(rows, line)
        } else {
            self.changes(rows)
        };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn redraw(&mut self, rows: &[Status], line: &str) -> String {
        let mut text = String::new();
        if self.drawn > 0 {
            let _ = write!(text, "\x1b[{}A", self.drawn);
        }
        let mut lines = vec![header()];
        lines.extend(rows.iter().take(ROWS).map(row));
        if rows.len() > ROWS {
            lines.push(format!("… and {} more", rows.len() - ROWS));
        }
        lines.push(total(rows, line));
        for line in &lines {
            // Cut, not wrapped, so that the number of lines is known.
            let _ = writeln!(text, "{}\x1b[K", line.chars().take(110).collect::<String>());
        }
        self.drawn = lines.len();
        text
    }

    fn changes(&mut self, rows: &[Status]) -> String {
        let mut text = if self.before.is_empty() {
            header() + "\n"
        } else {
            String::new()
        };
        for (i, status) in rows.iter().enumerate() {
            let now = (status.state, status.restarts);
            if self.before.get(i) != Some(&now) {
                let _ = writeln!(text, "{}", row(status));
            }
        }
        self.before = rows
            .iter()
            .map(|status| (status.state, status.restarts))
            .collect();
        text
    }
}

fn header() -> String {
    format!(
        "{:<16} {:<9} {:>8} {:>10} {:>7} {:>8}  last end",
        "VM", "state", "process", "requests", "MiB", "restarts"
    )
}

fn row(status: &Status) -> String {
    let state = match status.state {
        State::Starting => "starting",
        State::Serving => "serving",
        State::Waiting => "waiting",
        State::Stopped => "stopped",
    };
    let pid = status.pid.map_or("–".into(), |pid| pid.to_string());
    let mib = status.mib.map_or("–".into(), |mib| format!("{mib:.1}"));
    let Status {
        name,
        requests,
        restarts,
        reason,
        ..
    } = status;
    format!("{name:<16} {state:<9} {pid:>8} {requests:>10} {mib:>7} {restarts:>8}  {reason}")
}

/// The sums, and `line`.
pub fn total(rows: &[Status], line: &str) -> String {
    let serving = rows
        .iter()
        .filter(|status| status.state == State::Serving)
        .count();
    let requests: u64 = rows.iter().map(|status| status.requests).sum();
    let restarts: u32 = rows.iter().map(|status| status.restarts).sum();
    let mib = rows
        .iter()
        .filter_map(|status| status.mib)
        .fold(0.0, |sum, mib| sum + mib);
    let vms = format!("{serving} of {}", rows.len());
    format!(
        "{vms:<16} {:<9} {:>8} {requests:>10} {mib:>7.1} {restarts:>8}  {line}",
        "serving", ""
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_printed_again_when_its_state_changes() {
        let status = |state| Status {
            name: "vm-0".into(),
            state,
            pid: Some(7),
            requests: 1,
            mib: None,
            restarts: 0,
            reason: String::new(),
        };
        let mut table = Table::default();
        assert!(
            table
                .changes(&[status(State::Starting)])
                .contains("starting")
        );
        assert_eq!(table.changes(&[status(State::Starting)]), "");
        assert!(table.changes(&[status(State::Serving)]).contains("serving"));
    }
}

//! Measures in rounds, and prints tables.

use crate::plan::Plan;

/// Measures one column of a row once.
pub(crate) type Cell<'a, T> = Box<dyn Fn() -> T + 'a>;

/// Measures all cells in each round. Returns the rounds of each cell.
pub(crate) fn measure<T>(plan: &Plan, cells: &[Cell<'_, T>]) -> Vec<Vec<T>> {
    let mut measured: Vec<Vec<T>> = cells.iter().map(|_| Vec::new()).collect();
    for round in 0..plan.rounds {
        // Each round starts with another cell.
        for index in (0..cells.len()).map(|index| (index + round) % cells.len()) {
            measured[index].push(cells[index]());
        }
    }
    measured
}

/// The quartiles of some figures.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    low: f64,
    pub(crate) median: f64,
    high: f64,
}

impl Spread {
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let quartile = |quarter: usize| figures[(figures.len() - 1) * quarter / 4];
        Self {
            low: quartile(1),
            median: quartile(2),
            high: quartile(3),
        }
    }

    /// Divides round by round.
    pub(crate) fn of_ratios(ours: &[f64], theirs: &[f64]) -> Self {
        Self::of(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs))
    }
}

/// A table in Markdown, padded so that it also reads well in a terminal. Prints each row at once.
pub(crate) struct Table<'a> {
    plan: &'a Plan,
    title: String,
    columns: Vec<&'a str>,
    has_header: bool,
}

impl<'a> Table<'a> {
    /// The first column is the row's name.
    pub(crate) fn new(plan: &'a Plan, title: String, columns: Vec<&'a str>) -> Self {
        Self {
            plan,
            title,
            columns,
            has_header: false,
        }
    }

    /// A table without rows prints nothing.
    pub(crate) fn row(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        if !self.has_header {
            println!("\n{}\n", self.title);
            self.line("", self.columns.iter().map(|&column| column.to_owned()));
            println!("|{}", " --- |".repeat(self.columns.len() + 1));
            self.has_header = true;
        }
        self.line(name, cells);
    }

    fn line(&self, name: &str, cells: impl IntoIterator<Item = String>) {
        print!("| {name:<16} |");
        for (cell, column) in cells.into_iter().zip(&self.columns) {
            // A ratio with its quartiles needs 16.
            let width = column
                .chars()
                .count()
                .max(if self.plan.markdown { 6 } else { 16 });
            print!(" {cell:>width$} |");
        }
        println!();
    }

    pub(crate) fn ratio(&self, ratio: Spread) -> String {
        let Spread { low, median, high } = ratio;
        if self.plan.markdown {
            short(median)
        } else {
            format!("{} ({}–{})", short(median), short(low), short(high))
        }
    }

    /// A row's first figure, and its ratios to the other columns.
    pub(crate) fn compare(&mut self, name: &str, scale: impl Fn(f64) -> f64, figures: &[Vec<f64>]) {
        let (first, others) = figures.split_first().expect("a row has a cell");
        let figure = long(scale(Spread::of(first.iter().copied()).median));
        let ratios = others
            .iter()
            .map(|other| self.ratio(Spread::of_ratios(first, other)));
        let cells: Vec<String> = std::iter::once(figure).chain(ratios).collect();
        self.row(name, cells);
    }
}

/// A ratio or a small count.
pub(crate) fn short(figure: f64) -> String {
    let digits = if figure < 9.995 { 2 } else { 0 };
    format!("{figure:.digits$}")
}

/// A figure with a unit, such as `24,989` or `5.2`.
pub(crate) fn long(figure: f64) -> String {
    if figure < 99.95 {
        return format!("{figure:.1}");
    }
    let mut digits = format!("{figure:.0}");
    let mut comma = digits.len();
    while comma > 3 {
        comma -= 3;
        digits.insert(comma, ',');
    }
    digits
}

pub(crate) fn megabytes(rate: f64) -> f64 {
    rate / 1e6
}

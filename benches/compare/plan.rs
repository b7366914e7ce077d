//! What to measure, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::meter::Span;
use crate::common::place::{Cores, Flavor};
use crate::common::work::Setting;

/// Bytes that each transport may hold, unless a column says otherwise: this crate's default.
pub(crate) const CAPACITY: usize = tokio_krun::Options::DEFAULT_CAPACITY;

pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
    /// Prints the tables without quartiles, as `benches/README.md` has them.
    pub(crate) markdown: bool,
    /// Where to draw the chart.
    pub(crate) svg: Option<PathBuf>,
    /// Measures only the rows whose names contain all of these.
    filters: Vec<String>,
}

impl Plan {
    pub(crate) fn from_arguments() -> Self {
        let mut plan = Self {
            rounds: 9,
            slice: Duration::from_millis(60),
            markdown: false,
            svg: None,
            filters: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.unwrap_or_else(|| panic!("{argument} takes a value"))
            };
            let number = |text: String| -> u64 {
                text.parse()
                    .unwrap_or_else(|_| panic!("not a number: {text}"))
            };
            match argument.as_str() {
                // `cargo bench` adds it.
                "--bench" => {}
                "--rounds" => plan.rounds = number(value()).max(1) as usize,
                "--slice-ms" => plan.slice = Duration::from_millis(number(value())),
                // Only shows that everything runs. It measures too little to mean anything.
                "--quick" => (plan.rounds, plan.slice) = (1, Duration::ZERO),
                "--markdown" => plan.markdown = true,
                "--svg" => plan.svg = Some(value().into()),
                option if option.starts_with("--") => panic!("there is no option {option}"),
                filter => plan.filters.push(filter.to_owned()),
            }
        }
        plan
    }

    pub(crate) fn is_quick(&self) -> bool {
        self.slice.is_zero()
    }

    pub(crate) fn selects(&self, name: &str) -> bool {
        self.filters.iter().all(|filter| name.contains(filter))
    }

    /// All places and runtimes.
    pub(crate) fn settings(&self) -> impl Iterator<Item = Setting> + use<> {
        let span = Span::Time(self.slice);
        Cores::ALL.into_iter().flat_map(move |cores| {
            Flavor::ALL.into_iter().map(move |flavor| Setting {
                cores,
                flavor,
                capacity: Some(CAPACITY),
                span,
            })
        })
    }
}

/// The first words of a row's name.
pub(crate) fn name(setting: Setting) -> String {
    format!("{} {}", setting.cores, setting.flavor)
}

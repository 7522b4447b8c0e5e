//! Plain against preloaded, round by round. Absolute times of two runs mean nothing on a shared machine; what was measured in
//! turn in one run can be compared, with the spread of the rounds beside it.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::figures::{Figures, Latency, median, middle};

/// What is made of the plain and the preloaded value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Judged {
    /// Rates: how many times the plain one.
    #[default]
    Rate,
    /// Times: how many times faster than plain.
    Latency,
    /// Costs: how many times the plain one, where less is better.
    Cost,
    /// Costs: how much more than plain, where less is better.
    Extra,
    /// The preloaded value as it is, where less is better.
    Level,
}

impl Judged {
    fn of(self, plain: f64, preloaded: f64) -> f64 {
        match self {
            Self::Rate | Self::Cost => preloaded / plain,
            Self::Latency => plain / preloaded,
            Self::Extra => preloaded - plain,
            Self::Level => preloaded,
        }
    }

    /// Whether more is better.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::Rate | Self::Latency)
    }

    /// Whether the result has no unit.
    pub(crate) fn is_ratio(self) -> bool {
        matches!(self, Self::Rate | Self::Latency | Self::Cost)
    }
}

/// What a result has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bar {
    /// Less is a fault.
    pub must: f64,
    /// What we are after.
    pub aim: f64,
}

/// One line of the table, before it is measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What is measured.
    pub name: String,
    /// Unit of the values.
    pub unit: String,
    /// What is made of them.
    pub judged: Judged,
    /// What that has to reach.
    pub bar: Option<Bar>,
    /// The curve of the plot that it is a point of, and its size in bytes.
    pub point: Option<(String, usize)>,
}

/// Plain and preloaded, measured next to each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Round {
    /// Without the library.
    pub plain: Figures,
    /// With it.
    pub preloaded: Figures,
}

/// A measured line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// What was measured.
    #[serde(flatten)]
    pub row: Row,
    /// In the order they were measured.
    pub rounds: Vec<Round>,
}

/// Measures `rows`, which one run of `one` tells all of, `rounds` times plain and preloaded in turn. Every other round begins
/// preloaded, so that a machine that grows slower favours neither.
///
/// # Errors
/// The first round that failed.
pub(crate) fn measure(rows: &[Row], rounds: usize, mut one: impl FnMut(bool) -> Result<Vec<Figures>>) -> Result<Vec<Comparison>> {
    let name = rows.first().map_or("", |row| row.name.as_str());
    let mut number = 0;
    pairs(rows, rounds, || {
        let mut run =
            |preloaded: bool| one(preloaded).with_context(|| format!("{name}, {}", if preloaded { "preloaded" } else { "plain" }));
        number += 1;
        if number % 2 == 1 {
            let plain = run(false)?;
            return Ok((plain, run(true)?));
        }
        let preloaded = run(true)?;
        Ok((run(false)?, preloaded))
    })
}

/// Measures `rounds` rounds of what tells both sides by itself, plain and preloaded, a figure for each of the rows.
///
/// # Errors
/// A measurement that fails, or that tells another number of figures.
pub(crate) fn pairs(
    rows: &[Row],
    rounds: usize,
    mut both: impl FnMut() -> Result<(Vec<Figures>, Vec<Figures>)>,
) -> Result<Vec<Comparison>> {
    let mut done: Vec<_> = rows.iter().map(|row| Comparison { row: row.clone(), rounds: Vec::new() }).collect();
    for _ in 0..rounds {
        let (plain, preloaded) = both()?;
        for (how, figures) in [("plain", &plain), ("preloaded", &preloaded)] {
            let name = rows.first().map_or("", |row| row.name.as_str());
            ensure!(figures.len() == rows.len(), "{name}, {how}: {} figures for {} lines", figures.len(), rows.len());
        }
        for ((comparison, plain), preloaded) in done.iter_mut().zip(plain).zip(preloaded) {
            comparison.rounds.push(Round { plain, preloaded });
        }
    }
    Ok(done)
}

impl Comparison {
    /// The result: of the medians where it is a ratio, else the median of the rounds' results.
    pub(crate) fn result(&self) -> f64 {
        match self.row.judged {
            Judged::Extra | Judged::Level => median(&self.results()),
            ratio => ratio.of(self.plain(), self.preloaded()),
        }
    }

    /// Least and greatest result of any round.
    pub(crate) fn spread(&self) -> (f64, f64) {
        self.results().into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), one| (one.min(least), one.max(most)))
    }

    /// Median of the plain values.
    pub(crate) fn plain(&self) -> f64 {
        median(&self.all(|round| Some(round.plain.value)))
    }

    /// Median of the preloaded values.
    pub(crate) fn preloaded(&self) -> f64 {
        median(&self.all(|round| Some(round.preloaded.value)))
    }

    /// How much longer the fastest batch of all rounds took with the library.
    pub(crate) fn extra_of_the_fastest(&self) -> Option<f64> {
        let plain = self.all(|round| round.plain.least).into_iter().reduce(f64::min)?;
        Some(self.all(|round| round.preloaded.least).into_iter().reduce(f64::min)? - plain)
    }

    /// Latencies, plain and preloaded.
    pub(crate) fn latencies(&self) -> Option<(Latency, Latency)> {
        let of = |part: fn(&Round) -> Option<Latency>| middle(&self.rounds.iter().filter_map(part).collect::<Vec<_>>());
        Some((of(|round| round.plain.latency)?, of(|round| round.preloaded.latency)?))
    }

    /// CPU seconds of both ends for one message, plain and preloaded.
    pub(crate) fn cpu(&self) -> Option<(f64, f64)> {
        let plain = self.all(|round| round.plain.cpu.map(|cpu| cpu.per_message()));
        let preloaded = self.all(|round| round.preloaded.cpu.map(|cpu| cpu.per_message()));
        (!plain.is_empty() && !preloaded.is_empty()).then(|| (median(&plain), median(&preloaded)))
    }

    fn results(&self) -> Vec<f64> {
        self.all(|round| Some(self.row.judged.of(round.plain.value, round.preloaded.value)))
    }

    fn all(&self, of: impl Fn(&Round) -> Option<f64>) -> Vec<f64> {
        self.rounds.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A measured line of such plain and preloaded values.
    pub(crate) fn comparison(name: &str, judged: Judged, values: &[(f64, f64)]) -> Comparison {
        let round = |(plain, preloaded): &(f64, f64)| Round { plain: Figures::of(*plain), preloaded: Figures::of(*preloaded) };
        let row = Row { name: name.to_owned(), unit: "calls/s".to_owned(), judged, ..Row::default() };
        Comparison { row, rounds: values.iter().map(round).collect() }
    }

    fn near(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} is not {right}");
    }

    #[test]
    fn ratio_is_that_of_the_medians() {
        let one = comparison("a", Judged::Rate, &[(1.0, 8.0), (3.0, 2.0), (2.0, 6.0)]);
        near(one.result(), 3.0);
        near(one.spread().0, 2.0 / 3.0);
        near(one.spread().1, 8.0);
        near(comparison("a", Judged::Latency, &[(4.0, 2.0)]).result(), 2.0);
        near(comparison("a", Judged::Cost, &[(4.0, 2.0)]).result(), 0.5);
    }

    #[test]
    fn extra_is_the_median_of_the_differences() {
        let mut one = comparison("a", Judged::Extra, &[(1.0, 8.0), (3.0, 5.0), (2.0, 3.0)]);
        near(one.result(), 2.0);
        near(comparison("a", Judged::Level, &[(1.0, 8.0), (3.0, 5.0), (2.0, 3.0)]).result(), 5.0);
        assert_eq!(one.extra_of_the_fastest(), None);
        for (round, least) in one.rounds.iter_mut().zip([1.0, 2.0, 3.0]) {
            round.plain.least = Some(least);
            round.preloaded.least = Some(least + 0.5);
        }
        near(one.extra_of_the_fastest().unwrap(), 0.5);
    }

    #[test]
    fn every_other_round_begins_preloaded() {
        let mut order = Vec::new();
        let rows = [Row::default()];
        let done = measure(&rows, 2, |preloaded| {
            order.push(preloaded);
            Ok(vec![Figures::of(f64::from(u8::from(preloaded)))])
        })
        .unwrap();
        assert_eq!(order, [false, true, true, false]);
        assert!(done[0].rounds.iter().all(|round| round.plain.value == 0.0 && round.preloaded.value == 1.0));
        assert!(measure(&rows, 1, |_| Ok(Vec::new())).is_err());
    }
}

//! Two runs against each other. Only what lies outside the spread of the rounds counts as a change.

use anyhow::{Result, bail};

use super::report::{Report, shown_result};
use crate::comparison::Comparison;

/// Least rounds whose least and greatest result are taken for the spread.
const ROUNDS_WITH_SPREAD: usize = 3;
/// What fewer are presumed to spread by, as a part of the result.
const PRESUMED_SPREAD: f64 = 0.1;

/// What became of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Same,
    Better,
    Worse,
}

/// Prints how each result changed.
///
/// # Errors
/// One became worse, beyond the spread of its rounds.
pub(super) fn hold(earlier: &Report, later: &Report) -> Result<()> {
    println!();
    if earlier.machine != later.machine {
        let names = [&earlier.machine, &later.machine]
            .map(|machine| format!("{}, {} CPUs, Linux {}", machine.cpu, machine.cpus, machine.kernel));
        println!("The machines differ ({}), so that a change need not be the library's.\n", names.join("; then "));
    }
    println!("| measurement | earlier | spread | now | spread | change |\n| --- | ---: | ---: | ---: | ---: | --- |");
    let mut worse = Vec::new();
    for now in &later.rows {
        let Some(before) = earlier.rows.iter().find(|row| row.row.name == now.row.name) else {
            println!("| {} | | | {} | {} | new |", now.row.name, result(now), spread(now));
            continue;
        };
        let (change, text) = match change(before, now) {
            Change::Same => (Change::Same, "within the spread"),
            Change::Better => (Change::Better, "**better**"),
            Change::Worse => (Change::Worse, "**worse**"),
        };
        println!("| {} | {} | {} | {} | {} | {text} |", now.row.name, result(before), spread(before), result(now), spread(now));
        if change == Change::Worse {
            worse.push(now.row.name.as_str());
        }
    }
    if !worse.is_empty() {
        bail!("worse than in the earlier run, beyond the spread of the rounds: {}", worse.join("; "));
    }
    Ok(())
}

fn change(before: &Comparison, now: &Comparison) -> Change {
    let ((least_before, most_before), (least_now, most_now)) = (widened(before), widened(now));
    if result(before) == result(now) {
        return Change::Same; // below what is shown
    }
    match (least_now > most_before, most_now < least_before) {
        (false, false) => Change::Same,
        (more, _) if more == now.row.judged.more_is_better() => Change::Better,
        _ => Change::Worse,
    }
}

/// The spread; so few rounds that they say nothing of it get a wider one.
fn widened(one: &Comparison) -> (f64, f64) {
    let (least, most) = one.spread();
    let wider = if one.rounds.len() < ROUNDS_WITH_SPREAD { one.result().abs() * PRESUMED_SPREAD } else { 0.0 };
    (least - wider, most + wider)
}

fn result(one: &Comparison) -> String {
    shown_result(one.result(), one.row.judged, &one.row.unit)
}

fn spread(one: &Comparison) -> String {
    let (least, most) = one.spread();
    let [least, most] = [least, most].map(|value| shown_result(value, one.row.judged, &one.row.unit));
    format!("{least}…{most}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::Judged;
    use crate::comparison::tests::comparison;

    #[test]
    fn only_what_leaves_the_spread_is_a_change() {
        let before = comparison("a", Judged::Rate, &[(1.0, 2.0), (1.0, 3.0), (1.0, 2.5)]);
        let with = |values: &[(f64, f64)]| change(&before, &comparison("a", Judged::Rate, values));
        assert_eq!(with(&[(1.0, 2.9), (1.0, 9.0), (1.0, 9.0)]), Change::Same);
        assert_eq!(with(&[(1.0, 3.1), (1.0, 9.0), (1.0, 9.0)]), Change::Better);
        assert_eq!(with(&[(1.0, 1.9), (1.0, 1.0), (1.0, 1.0)]), Change::Worse);
    }

    #[test]
    fn more_of_a_cost_is_worse() {
        let before = comparison("a", Judged::Extra, &[(10.0, 11.0), (10.0, 12.0), (10.0, 11.5)]);
        assert_eq!(change(&before, &comparison("a", Judged::Extra, &[(10.0, 14.0)])), Change::Worse);
        assert_eq!(change(&before, &comparison("a", Judged::Extra, &[(10.0, 10.5)])), Change::Better);
    }

    #[test]
    fn a_single_round_is_no_spread() {
        let before = comparison("a", Judged::Rate, &[(1.0, 2.0)]);
        assert_eq!(change(&before, &comparison("a", Judged::Rate, &[(1.0, 1.9)])), Change::Same);
        assert_eq!(change(&before, &comparison("a", Judged::Rate, &[(1.0, 1.0)])), Change::Worse);
    }

    #[test]
    fn the_run_fails_only_for_what_became_worse() {
        let run = |rows: &[(&str, f64)]| Report {
            rows: rows.iter().map(|(name, value)| comparison(name, Judged::Rate, &[(1.0, *value)])).collect(),
            ..Report::default()
        };
        let earlier = run(&[("a", 2.0), ("b", 3.0)]);
        assert!(hold(&earlier, &run(&[("a", 2.0), ("b", 4.0), ("c", 0.1)])).is_ok());
        let error = hold(&earlier, &run(&[("a", 1.0), ("b", 4.0)])).unwrap_err().to_string();
        assert!(error.ends_with(": a"), "{error}");
    }
}

//! How long the survivors took to notice.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result};
use std::time::Duration;

use super::plan::{Kind, Plan};

/// Times by what the survivor was blocked in.
#[derive(Default)]
pub(super) struct Times(BTreeMap<Kind, (u64, Vec<Duration>)>);

impl Times {
    pub(super) fn add(&mut self, plan: &Plan, noticed: Option<Duration>) {
        let (rounds, times) = self.0.entry(plan.kind).or_default();
        *rounds += 1;
        times.extend(noticed);
    }

    /// All rounds.
    pub(super) fn rounds(&self) -> u64 {
        self.0.values().map(|(rounds, _)| rounds).sum()
    }
}

impl Display for Times {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut all: Vec<Duration> = Vec::new();
        for (kind, (rounds, times)) in &self.0 {
            line(f, &format!("{kind:?}"), *rounds, times.clone())?;
            all.extend(times);
        }
        line(f, "all", all.len() as u64, all)
    }
}

/// Milliseconds from the kill to the survivor's last return, half of them, 99 of 100, and the longest.
fn line(f: &mut Formatter<'_>, name: &str, rounds: u64, mut times: Vec<Duration>) -> Result {
    times.sort_unstable();
    let at = |share: f64| times.get((times.len().saturating_sub(1) as f64 * share) as usize).map(|time| time.as_secs_f64() * 1e3);
    match [0.5, 0.99, 1.0].map(at) {
        [Some(half), Some(most), Some(longest)] => {
            writeln!(
                f,
                "{name:10} {rounds:6} killed; noticed after {half:.2} ms, 99 % within {most:.2} ms, all within {longest:.2} ms"
            )
        }
        _ => writeln!(f, "{name:10} {rounds:6} killed"),
    }
}

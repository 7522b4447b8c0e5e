//! PostgreSQL's own regression tests: the whole parallel schedule, with the server, psql and pg_regress plain and then
//! preloaded. Each test must end the same, with the same differences from what it expects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};

use super::accelerated_or_not;
use super::place::Software;
use super::postgres::Cluster;
use crate::harness::same;
use crate::ledger::Counted;
use crate::mode::Mode;
use crate::process::Process;

/// Longest that a run may take; most of that is for a loaded machine.
const SUITE_DEADLINE: Duration = Duration::from_secs(240);
/// Least number of tests that must succeed, or the suite has not really run.
const LEAST: usize = 150;

/// Every trial of this module.
pub(super) fn trials(software: &Arc<Software>) -> Vec<Trial> {
    let software = Arc::clone(software);
    vec![Trial::test("postgres-regression-tests", move || compare(&software))]
}

/// What a run showed.
struct Run {
    /// How each test ended, by its name.
    outcomes: BTreeMap<String, String>,
    /// What was not as expected.
    differences: String,
    counted: Counted,
    seconds: f64,
}

fn compare(software: &Software) -> Result<(), Failed> {
    let plain = run(software, Mode::Plain)?;
    let passed = plain.outcomes.values().filter(|outcome| *outcome == "ok").count();
    if passed < LEAST {
        return Err(format!("only {passed} tests succeed without the library\n{}", plain.differences).into());
    }
    let preloaded = run(software, Mode::Both)?;
    println!(
        "postgres' regression tests: plain {passed} of {} ok in {:.0} s; preloaded {} of {} in {:.0} s, {} of {} connections accelerated",
        plain.outcomes.len(),
        plain.seconds,
        preloaded.outcomes.values().filter(|outcome| *outcome == "ok").count(),
        preloaded.outcomes.len(),
        preloaded.seconds,
        preloaded.counted.accelerated,
        preloaded.counted.selected,
    );
    same(&listed(&plain), &listed(&preloaded))?;
    accelerated_or_not(Mode::Both, &preloaded.counted)?;
    // Each test is a psql of its own, and few say too little for a ring.
    if preloaded.counted.accelerated * 2 < preloaded.counted.selected {
        return Err(format!("most connections were not accelerated: {:?}", preloaded.counted).into());
    }
    Ok(())
}

fn listed(run: &Run) -> String {
    let outcomes: String = run.outcomes.iter().map(|(name, outcome)| format!("{name}: {outcome}\n")).collect();
    outcomes + &run.differences
}

fn run(software: &Software, mode: Mode) -> Result<Run, Failed> {
    let cluster = Cluster::start(software, mode)?;
    let home = &cluster.home;
    let (inputs, output) = (home.software.regress(), home.path("output"));
    let tool = cluster.programs().join("../lib/pgxs/src/test/regress/pg_regress");
    let mut suite = cluster.client(&tool.to_string_lossy());
    let option = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    suite.args([option("bindir", cluster.programs()), option("host", &home.path("")), option("outputdir", &output)]);
    suite.args([option("dlpath", &inputs), option("inputdir", &inputs), option("schedule", &inputs.join("parallel_schedule"))]);
    suite.args(["--user=tester", "--max-concurrent-tests=20", "--dbname=regression"]);
    let start = Instant::now();
    let ended = Process::start(&mut suite)?.finish(start + SUITE_DEADLINE);
    let seconds = start.elapsed().as_secs_f64();
    // 1 is "some test failed": which, the lists say.
    if ended.late || !matches!(ended.code, Some(0 | 1)) {
        return Err(format!("{mode:?}: pg_regress: {}", ended.all()).into());
    }
    let differences = std::fs::read_to_string(output.join("regression.diffs")).unwrap_or_default();
    let counted = cluster.counted()?;
    cluster.stop()?;
    let outcomes = ended.stdout.lines().filter_map(outcome).collect();
    Ok(Run { outcomes, differences: without_places(&differences), counted, seconds })
}

/// `     boolean                      ... ok          250 ms` and `test tablespace                   ... FAILED  193 ms`.
fn outcome(line: &str) -> Option<(String, String)> {
    let (name, ended) = line.split_once(" ... ")?;
    let outcome = ended.split_whitespace().take_while(|word| word.parse::<u32>().is_err()).collect::<Vec<_>>().join(" ");
    Some((name.trim().trim_start_matches("test ").trim().to_owned(), outcome))
}

/// The headers of a difference name folders and times, which are each run's own.
fn without_places(differences: &str) -> String {
    let own = |line: &&str| !["diff ", "--- ", "+++ "].iter().any(|start| line.starts_with(start));
    differences.lines().filter(own).fold(String::new(), |text, line| text + line + "\n")
}

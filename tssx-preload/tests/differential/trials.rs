//! The trials: each kept program, then random ones in each mode, then what they have to prove together.
//!
//! A library that does nothing would differ in nothing: so a good part of the programs must have sent bytes through rings. And
//! the kernel must be the same twice: programs that are not are no test.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use libtest_mimic::{Failed, Trial};

use crate::campaign::{Campaign, Counts, rate};
use crate::census::Census;
use crate::mode::PRELOADED;
use crate::program::Program;

/// Programs where `TSSX_PROGRAMS` does not say.
const PROGRAMS: u64 = 20_000;
/// The seed where `TSSX_SEED` does not say.
const SEED: u64 = 2026;
/// Kinds of difference after which the rest is not played.
const KINDS: u64 = 40;
/// Of so many programs one may still differ with the library: CHANGELOG.md names what is known. To become none.
const ONE_IN: u64 = 20_000;
/// Programs in a thousand that may differ from themselves when played plain.
const UNCLEAR: u64 = 10;
/// Least share of programs with both ends preloaded of which bytes went through rings, in a hundred.
const ACCELERATED: u64 = 60;
/// Fewer programs prove nothing.
const ENOUGH: u64 = 1000;

static CAMPAIGN: LazyLock<Mutex<Campaign>> = LazyLock::new(|| Mutex::new(Campaign::new()));

fn campaign() -> MutexGuard<'static, Campaign> {
    CAMPAIGN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Every trial.
pub(crate) fn all() -> Vec<Trial> {
    let before = Census::take();
    let mut trials: Vec<_> = kept().into_iter().map(|path| Trial::test(name_of(&path), move || replay(&path))).collect();
    trials.push(Trial::test("random-programs", random));
    trials.push(Trial::test("random-programs-are-clear-and-accelerated", proven));
    trials.push(Trial::test("nothing-is-left-behind", move || left_behind(&before)));
    trials
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tssx-preload/tests/differential/kept")
}

/// The files of kept programs; `TSSX_KEPT` names others.
fn kept() -> Vec<PathBuf> {
    let directory = std::env::var_os("TSSX_KEPT").map_or_else(directory, PathBuf::from);
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|ending| ending == "program")).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    format!("kept::{}", path.file_stem().unwrap_or_default().to_string_lossy())
}

fn replay(path: &Path) -> Result<(), Failed> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let program = Program::parse(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut campaign = campaign();
    let different: Vec<_> = PRELOADED.into_iter().filter_map(|mode| campaign.replay(&program, mode).transpose()).collect();
    let different = different.into_iter().collect::<Result<Vec<_>, _>>()?;
    if different.is_empty() {
        return Ok(());
    }
    Err(different.iter().map(crate::campaign::Difference::text).collect::<Vec<_>>().concat().into())
}

fn random() -> Result<(), Failed> {
    let mut campaign = campaign();
    let (programs, seed, first) = (number("TSSX_PROGRAMS", PROGRAMS), number("TSSX_SEED", SEED), number("TSSX_FIRST", 0));
    let most = number("TSSX_DIFFERENCES", KINDS) as usize;
    let start = Instant::now();
    let mut signs: HashMap<String, u64> = HashMap::new();
    let mut report = String::new();
    for at in first..first.saturating_add(programs) {
        if let Some(difference) = campaign.one(seed, at, Campaign::mode_of(at)) {
            let count = signs.entry(difference.sign()).or_default();
            *count += 1;
            if *count == 1 {
                let (difference, path) = campaign.shrink_and_keep(difference);
                let text = format!("program {at} of seed {seed}, kept as {}\n{}\n", path.display(), difference.text());
                println!("{text}");
                report += &text;
            }
            if signs.len() >= most {
                break;
            }
        }
    }
    campaign.faults.iter().take(3).for_each(|fault| println!("{fault}"));
    println!("{}", summary(&campaign, seed, rate(&campaign.counts, start)));
    let mut signs: Vec<_> = signs.into_iter().collect();
    signs.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (sign, count) in &signs {
        let _ = writeln!(report, "{count} times {sign}");
    }
    let counts = campaign.counts;
    if signs.len() < most && counts.differences * ONE_IN <= counts.programs { Ok(()) } else { Err(report.into()) }
}

fn summary(campaign: &Campaign, seed: u64, rate: f64) -> String {
    let Counts { programs, steps, unclear, differences, ring_bytes, kernel_bytes, sampled, accelerated } = campaign.counts;
    let faults = campaign.faults.len();
    let mut played: Vec<_> = campaign.played.iter().map(|(word, count)| format!("{word} {count}")).collect();
    played.sort();
    format!(
        "seed {seed}: {programs} programs of {steps} steps, {rate:.0} programs/s; {differences} differ, {unclear} are not the same twice \
         when played plain, {faults} did not end\nof {sampled} looked at with the library at both ends {accelerated} sent bytes through \
         rings: {ring_bytes} bytes in rings, {kernel_bytes} in the kernel's socket\nsteps: {}",
        played.join(", ")
    )
}

fn proven() -> Result<(), Failed> {
    let counts = campaign().counts;
    if counts.unclear * 1000 > counts.programs.max(ENOUGH) * UNCLEAR {
        return Err(format!("{} of {} programs differ from themselves when played plain", counts.unclear, counts.programs).into());
    }
    if counts.programs >= ENOUGH && (counts.sampled == 0 || counts.accelerated * 100 < counts.sampled * ACCELERATED) {
        return Err(format!("only {} of {} programs sent bytes through rings", counts.accelerated, counts.sampled).into());
    }
    Ok(())
}

fn left_behind(before: &Census) -> Result<(), Failed> {
    campaign().end();
    match Census::left_since(before).as_slice() {
        [] => Ok(()),
        left => Err(format!("left behind:\n{}", left.join("\n")).into()),
    }
}

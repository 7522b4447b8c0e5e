//! The library on this kernel: cases of the behaviour tests, each plain first and then in every way that the library can be present,
//! held against the plain run and proved by the ledgers; and the two programs that move many bytes and kill many peers.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{BEHAVIOUR, INIT, LIBRARY, TEST_DEADLINE, Test};
use crate::run;
use crate::test::Tally;

/// Cases of the behaviour tests, in `tssx-preload/tests/behaviour/cases`: what depends most on the kernel.
const CASES: [&str; 11] = [
    // Every byte is checked, by every call that moves bytes.
    "every-size-arrives-whole",
    "every-call-moves-bytes",
    "bad-pointers-are-efault",
    // The end of file.
    "half-close-then-read-on",
    "end-only-after-the-last-byte",
    // A peer that is killed.
    "killed-writers-bytes-arrive",
    "killed-while-the-peer-sleeps",
    // Waiting.
    "poll-wakes-a-sleeper",
    "epoll-level-triggered",
    "epoll-edge-triggered",
    // Forked processes.
    "parent-and-child-take-turns",
];
/// Arguments of `exchange`: what an emulated machine moves in seconds, with upgrades and demotions.
const EXCHANGE: [&str; 3] = ["exchange", "--gib", "0.006"];
/// Arguments of `kills`: every kind of call that the survivor can be blocked in comes up.
const KILLS: [&str; 3] = ["kills", "--count", "24"];

pub(super) fn tests() -> Vec<Test> {
    let cases = CASES.map(|case| Test::new(format!("behaviour::{case}"), move || behaves(case)));
    let mut tests = Vec::from(cases);
    for words in [EXCHANGE, KILLS] {
        let name = words.first().copied().unwrap_or_default();
        tests.push(Test::new(format!("{name}::plain"), move || own(&words, &["--plain"])));
        tests.push(Test::new(format!("{name}::library"), move || own(&words, &["--library", LIBRARY])));
    }
    tests
}

/// All trials of a case, the plain one first.
fn behaves(case: &str) -> Result<()> {
    let mut command = Command::new(BEHAVIOUR);
    command.arg(format!("{case}::")).env("TSSX_PRELOAD", LIBRARY);
    let output = run::capture(&mut command, TEST_DEADLINE)?;
    let tally = Tally::of_harness(&output.stdout);
    let fine = output.status.success() && tally.passed > 1 && tally.failed + tally.skipped == 0;
    ensure!(fine, "{}, {tally:?} (a plain trial and others were expected)\n{}{}", output.status, output.stdout, output.stderr);
    Ok(())
}

/// A command of our own.
fn own(words: &[&str], more: &[&str]) -> Result<()> {
    let mut command = Command::new(INIT);
    let output = run::capture_success(command.args(words).args(more), TEST_DEADLINE)?;
    print!("{}", output.stdout);
    Ok(())
}

//! One end of a connection is killed at a random moment while the other is blocked in each kind of call in turn: a small run of
//! `cargo xtask kills`, which says how, plain and with the library. By hand it kills as many as you like.

use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::library::library;
use crate::process::{run, xtask};

/// Longest that a run may take; it notices a hang by itself before.
const RUN_DEADLINE: Duration = Duration::from_secs(240);
/// How many are killed in a run.
const COUNT: &str = "900";
/// One seed is one choice of paces and moments.
const SEEDS: [&str; 2] = ["1", "2"];

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    let plain = Trial::test("killed-while-the-other-end-waits::plain", || kills("1", false));
    let others = SEEDS.iter().map(|seed| Trial::test(format!("killed-while-the-other-end-waits::{seed}"), || kills(seed, true)));
    std::iter::once(plain).chain(others).collect()
}

fn kills(seed: &str, preloaded: bool) -> Result<(), Failed> {
    let mut command = xtask(&["kills", "--count", COUNT, "--seed", seed]);
    if preloaded {
        command.arg("--library").arg(library());
    } else {
        command.arg("--plain");
    }
    run(&mut command, RUN_DEADLINE)
}

//! Two processes exchange data in both directions while connections are upgraded and put back at random moments, and not a byte is
//! wrong: a small run of `cargo xtask exchange`, which says how. By hand it moves as much as you like.

use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use crate::library::library;
use crate::process::{run, xtask};

/// Longest that a run may take; it notices a stall by itself long before.
const RUN_DEADLINE: Duration = Duration::from_secs(180);
/// What a run moves, in gibibytes.
const GIB: &str = "1";
/// One seed is one choice of calls, sizes and moments.
const SEEDS: [&str; 2] = ["1", "2"];

/// Every trial of this module.
pub(crate) fn trials() -> Vec<Trial> {
    SEEDS.iter().map(|seed| Trial::test(format!("exchange-not-a-byte-wrong::{seed}"), || exchange(seed))).collect()
}

fn exchange(seed: &str) -> Result<(), Failed> {
    run(xtask(&["exchange", "--gib", GIB, "--seed", seed, "--library"]).arg(library()), RUN_DEADLINE)
}

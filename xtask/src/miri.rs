//! `cargo xtask miri`: those of tssx-core's unit tests that make no system call, interpreted by Miri, which sees what no test can: an access
//! outside of what a pointer was made from, a reference that another one contradicts, a read of what was never written, a data race.
//!
//! Every test is in one of two lists, with the reason if it is passed over: one that is in neither is an error. It takes a nightly compiler with
//! two components that not every machine can have, so it is no part of `cargo xtask test`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::test::Tally;
use crate::{build, paths, run};

/// Longest that the tests may take; they take a minute.
const DEADLINE: Duration = Duration::from_secs(900);
/// The host's clock and files are shown, for the seed; what leaks is a test's, which ends. Addresses that come from nowhere are errors.
const FLAGS: &str = "-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-strict-provenance -Zmiri-symbolic-alignment-check";
/// What installs what is missing.
const REMEDY: &str = "rustup toolchain install nightly && rustup component add --toolchain nightly miri rust-src";

/// Tests that are interpreted, by the beginnings of their names.
const INTERPRETED: [&str; 10] = [
    "diag::tests::a_reply_of_any_bytes",
    "glob::",
    "ledger::holders::tests::more_processes",
    "ledger::view::",
    "lock::tests::words_tell",
    "packets::",
    "reason::",
    "release::",
    "ring::consumer::",
    "ring::tests::",
];

/// Those that are not, and why.
const PASSED_OVER: [(&str, &str); 15] = [
    ("diag::", "asks the kernel who a socket's peer is"),
    ("in_flight::", "asks the kernel which processes live"),
    ("ledger::holders::", "asks the kernel which processes live"),
    ("ledger::slots::", "a ledger is a memfd"),
    ("lock::", "asks the kernel which thread this is, and which processes live"),
    ("remainder::", "a segment is a memfd"),
    ("rendezvous::", "sockets"),
    ("ring::threads::", "sleeps in the kernel; `sanitize` runs it"),
    ("segment::", "a segment is a memfd"),
    ("sys::", "the system calls themselves"),
    ("upgrade::", "sockets"),
    ("whereabouts::", "asks the kernel which CPU this is"),
    ("clock::", "the CPU's counter"),
    ("budget::", "the machine's memory"),
    ("doorbell::", "sockets"),
];

/// Interprets the tests.
///
/// # Errors
/// Miri is missing or has something to report, a test fails, or one is in neither list.
pub(crate) fn interpret() -> Result<()> {
    run::capture_success(miri().arg("setup"), build::BUILD_DEADLINE).with_context(|| format!("Miri is not there: {REMEDY}"))?;
    let listed = run::capture_success(tests().args(["--", "--list"]), build::BUILD_DEADLINE)?;
    let all: Vec<&str> = listed.stdout.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let (mut chosen, mut passed_over) = (Vec::new(), vec![0_usize; PASSED_OVER.len()]);
    for name in all {
        if INTERPRETED.iter().any(|beginning| name.starts_with(beginning)) {
            chosen.push(name);
        } else if let Some(place) = PASSED_OVER.iter().position(|(beginning, _)| name.starts_with(beginning)) {
            passed_over[place] += 1;
        } else {
            bail!("nobody has said whether Miri can interpret {name}: add it to one of the lists of xtask/src/miri.rs");
        }
    }
    let output = run::capture(tests().args(["--", "--exact"]).args(&chosen), DEADLINE)?;
    let tally = Tally::of_harness(&output.stdout);
    let said = format!("{}\n{}", output.stdout, output.stderr);
    ensure!(output.status.success() && tally.passed == chosen.len() && tally.passed > 0, "under Miri ({}):\n{said}", output.status);
    for ((beginning, why), count) in PASSED_OVER.iter().zip(&passed_over).filter(|(_, count)| **count > 0) {
        println!("passed over: {count:2} of {beginning:20} {why}");
    }
    println!(
        "Miri: {} of {} unit tests of tssx-core, nothing reported",
        tally.passed,
        tally.passed + passed_over.iter().sum::<usize>()
    );
    Ok(())
}

/// The command of the newest compiler, whatever runs us.
fn miri() -> Command {
    // As for ThreadSanitizer, nothing of the protocol's is written in assembly then.
    const PLAIN: &str = "--cfg=tsan";
    let mut cargo = Command::new("cargo");
    cargo.args(["+nightly", "miri"]).current_dir(paths::workspace()).env("MIRIFLAGS", FLAGS).env("RUSTFLAGS", PLAIN);
    for inherited in ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "CARGO_ENCODED_RUSTFLAGS", "CARGO"] {
        cargo.env_remove(inherited);
    }
    cargo
}

fn tests() -> Command {
    let mut cargo = miri();
    cargo.args(["test", "--package", "tssx-core", "--lib", "--target-dir"]).arg(paths::target().join("miri"));
    cargo
}

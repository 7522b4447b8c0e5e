//! `cargo xtask sanitize`: tssx-core's unit tests under the compiler's ThreadSanitizer and AddressSanitizer.
//!
//! Both see what is run, as it is compiled: ThreadSanitizer the orderings of rings and locks between real threads (`ring/threads.rs`),
//! AddressSanitizer every access of the unsafe code. The standard library is not instrumented, since that would take its source; so what its
//! own synchronisation orders is not seen, and [`NOT_OURS`] names what is reported for that reason. Nor are fences, on which no data of
//! ours rests: a doorbell's fences decide who is woken, which is the models' to check.
//!
//! That ThreadSanitizer works here at all is shown by a race that is planted and must be reported.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cargo_metadata::Message;

use crate::test::Tally;
use crate::{build, paths, run};

/// The instrumentation wants a target that is named, so that build scripts are left alone.
#[cfg(target_arch = "x86_64")]
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
#[cfg(target_arch = "aarch64")]
pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Longest that the tests may take; they take seconds.
const DEADLINE: Duration = Duration::from_secs(300);
/// The test with a race in it.
const PLANTED: &str = "ring::threads::planted_race";
/// What ThreadSanitizer ends with if it has something to report; the test harness ends with 101.
const REPORTED: i32 = 66;
/// Handed from thread to thread by the standard library and the test harness, whose synchronisation is not seen.
const NOT_OURS: &str = "race:alloc::sync::Arc<std::\nrace:test::event::CompletedTest\n";

/// Runs the tests under both.
///
/// # Errors
/// A test fails, something is reported, or the planted race is not.
pub(crate) fn sanitize() -> Result<()> {
    let threads = build("thread", &["-Cunsafe-allow-abi-mismatch=sanitizer", "--cfg=tsan"])?;
    let suppressions = paths::target().join("sanitize/not-ours");
    std::fs::write(&suppressions, NOT_OURS).with_context(|| format!("cannot write {}", suppressions.display()))?;
    let options = format!("suppressions={}:exitcode={REPORTED}", suppressions.display());
    let tests = |program: &PathBuf| {
        let mut command = Command::new(program);
        command.arg("--test-threads=1");
        command
    };
    let planted = run::capture(tests(&threads).args(["--exact", PLANTED]).env("TSAN_OPTIONS", &options), DEADLINE)?;
    let seen = planted.status.code() == Some(REPORTED) && planted.stderr.contains("data race");
    ensure!(seen, "ThreadSanitizer does not see the race of {PLANTED} ({}):\n{}", planted.status, planted.stderr);
    passes("ThreadSanitizer", tests(&threads).args(["--skip", PLANTED]).env("TSAN_OPTIONS", &options))?;

    let memory = build("address", &["-Cforce-frame-pointers=yes"])?;
    passes("AddressSanitizer", tests(&memory).env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=1"))
}

fn passes(sanitizer: &str, tests: &mut Command) -> Result<()> {
    let output = run::capture(tests, DEADLINE)?;
    let tally = Tally::of_harness(&output.stdout);
    let said = format!("{}\n{}", output.stdout, output.stderr);
    ensure!(output.status.success() && tally.passed > 0, "tssx-core's unit tests under {sanitizer} ({}):\n{said}", output.status);
    println!("{sanitizer}: {} unit tests of tssx-core, nothing reported", tally.passed);
    Ok(())
}

/// The program of the tests.
fn build(sanitizer: &str, flags: &[&str]) -> Result<PathBuf> {
    let mut cargo = Command::new(paths::cargo());
    cargo.args(["test", "--no-run", "--package", "tssx-core", "--lib", "--target", TARGET]);
    cargo.args(["--message-format", "json-render-diagnostics", "--target-dir"]).arg(paths::target().join("sanitize"));
    let sanitizer = format!("-Zsanitizer={sanitizer}");
    let flags = [&[sanitizer.as_str()], flags].concat();
    // Unstable only in how it is asked for, see hostile/sanitizer.rs.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).current_dir(paths::workspace());
    let output = run::capture_success(&mut cargo, build::BUILD_DEADLINE)?;
    let mut built = Message::parse_stream(output.stdout.as_bytes()).filter_map(|message| match message {
        Ok(Message::CompilerArtifact(artifact)) => artifact.executable,
        _ => None,
    });
    built.next().map(Into::into).context("cargo has built no tests")
}

//! `doctor`: what the tracer can do on this machine, whether the library works here, what is missing, and the remedy; or the same again of
//! a machine whose report was kept.

use anyhow::Context;

use crate::capabilities::find;
use crate::cli::{BenchEndArgs, DoctorArgs, exit};
use crate::diagnosis::Diagnosis;
use crate::output::result;
use crate::selftest::{checks, end::Task};

/// Runs the subcommand.
///
/// # Errors
/// Where what was kept cannot be read, or the result cannot be written.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    let report = if let Some(file) = &args.from { Diagnosis::load(file)? } else { Diagnosis::new(find(), checks()) };
    result(&if args.json { report.json()? } else { report.text() })?;
    Ok(match report.measures_traffic() {
        _ if report.library_fails() => exit::UNEXPECTED,
        true => 0,
        false => exit::NOTHING,
    })
}

/// One of the processes of the self-test.
///
/// # Errors
/// As [`Task::run`].
pub(crate) fn end(args: &BenchEndArgs) -> anyhow::Result<u8> {
    let task: Task = serde_json::from_str(&args.task).context("self-test-end is started by `tssx-trace doctor` alone")?;
    task.run()?;
    Ok(0)
}

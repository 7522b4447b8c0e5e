//! `doctor`: what the tracer can do on this machine, whether the library works here, what is missing, and the remedy.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;

use crate::capabilities::{Capability, Finding, find};
use crate::cli::{BenchEndArgs, DoctorArgs, exit};
use crate::mode::Mode;
use crate::output::result;
use crate::selftest::{Check, Outcome, checks, end::Task};

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    format: &'static str,
    version: u32,
    kernel: String,
    /// The mode that `--mode auto` takes; `None` if not even sockets can be listed.
    mode: Option<&'static str>,
    mode_limits: &'static [&'static str],
    capabilities: &'a [Capability],
    checks: &'a [Check],
}

/// Runs the subcommand.
///
/// # Errors
/// Where the result cannot be written.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    let capabilities = find();
    let works = |mode: &Mode| {
        capabilities.iter().any(|capability| capability.name == format!("mode {}", mode.name()) && capability.works())
    };
    let lists = capabilities.iter().any(|capability| capability.name == "unix_diag" && capability.works());
    let mode = Mode::ALL.into_iter().filter(|_| lists).find(works);
    let checks = checks();
    let report = Report {
        format: "tssx-trace doctor",
        version: 2,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        mode: mode.map(Mode::name),
        mode_limits: mode.map_or(&[], Mode::limits),
        capabilities: &capabilities,
        checks: &checks,
    };
    result(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { render(&report) })?;
    Ok(match mode {
        _ if checks.iter().any(|check| check.outcome == Outcome::Failed) => exit::UNEXPECTED,
        Some(mode) if mode.measures_traffic() => 0,
        _ => exit::NOTHING,
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

fn render(report: &Report<'_>) -> String {
    let mut text = String::new();
    for capability in report.capabilities {
        // Writing into a String cannot fail.
        let word = if capability.works() { "yes" } else { "NO " };
        let _ = writeln!(text, "{word}  {}: for {}", capability.name, capability.purpose);
        let shown = |finding: &Finding| format!("{}, {}", if finding.works { "yes" } else { "no" }, finding.detail);
        if let Some(predicted) = &capability.predicted {
            let _ = writeln!(text, "       expected: {}", shown(predicted));
        }
        if let Some(tried) = &capability.tried {
            let _ = writeln!(text, "       tried: {}", shown(tried));
        }
        if let Some(remedy) = &capability.remedy {
            let _ = writeln!(text, "       remedy: {remedy}");
        }
    }
    let _ = match report.mode {
        Some(mode) => writeln!(text, "\nLinux {}: --mode auto takes {mode}.", report.kernel),
        None => writeln!(text, "\nLinux {}: no mode works.", report.kernel),
    };
    for limit in report.mode_limits {
        let _ = writeln!(text, "Limit: {limit}.");
    }
    text.push('\n');
    for check in report.checks {
        let _ = writeln!(text, "{}: {}: {}", check.outcome.name(), check.name, check.detail);
        if let Some(remedy) = check.remedy {
            let _ = writeln!(text, "       remedy: {remedy}");
        }
    }
    text
}

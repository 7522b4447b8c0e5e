//! `doctor`: what the tracer can do on this machine, what it lacks, and the remedy.

use std::fmt::Write;

use serde::Serialize;

use crate::capabilities::{Capability, Finding, find};
use crate::cli::{DoctorArgs, exit};
use crate::mode::Mode;
use crate::output::result;

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
    let report = Report {
        format: "tssx-trace doctor",
        version: 1,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        mode: mode.map(Mode::name),
        mode_limits: mode.map_or(&[], Mode::limits),
        capabilities: &capabilities,
    };
    result(&if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { render(&report) })?;
    Ok(if mode.is_some_and(Mode::measures_traffic) { 0 } else { exit::NOTHING })
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
    text
}

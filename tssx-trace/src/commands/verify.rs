//! `verify`: watch, print each selected socket's hit rate and the reason of each miss, judge by `--min-hit-rate`.

use std::fmt::Write;

use anyhow::bail;
use serde::Serialize;

use crate::advice::{Finding, judge};
use crate::calibration::Calibration;
use crate::cli::{VerifyArgs, exit};
use crate::commands::discover::record;
use crate::cost::Cost;
use crate::gain::{Comparison, compare};
use crate::hit_rate::{SocketReport, is_same, sockets};
use crate::losses::Losses;
use crate::names::SocketName;
use crate::output::{note, plural, result, short};
use crate::recording::{Recording, ServiceRecord, summary};
use crate::screen::{Columns, Screen};
use crate::watch::{LEDGER_PERIOD, Observation, watch};

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    format: &'static str,
    version: u32,
    window_ms: u64,
    interrupted: bool,
    /// How the kernel bytes were measured, and what that cannot see.
    mode: &'static str,
    mode_limits: &'static [&'static str],
    losses: Losses,
    cost: Cost,
    min_hit_rate: Option<f64>,
    sockets: &'a [SocketReport],
    /// Only with `--before`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    gains: &'a [Comparison],
}

const COLUMNS: Columns = Columns {
    header: &[
        "SOCKET",
        "HIT RATE",
        "RING BYTES",
        "KERNEL BYTES",
        "CONNS",
        "ACCELERATED",
        "DOORBELLS",
        "SLEEPS",
        "SERVER",
        "CLIENTS",
    ],
    numeric: &[1, 2, 3, 4, 5, 6, 7],
    long: &[(0, 24), (8, 12), (9, 12), (0, 12)],
    expendable: &[6, 7, 9, 8, 4, 5],
};

/// Runs the subcommand.
///
/// # Errors
/// Where the machine lacks what tracing needs.
pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<u8> {
    let predicted_by = gain_arguments(args)?;
    let seen = watch(args.window.window(LEDGER_PERIOD, true))?;
    let mut reports = sockets(&seen, &args.sockets, &args.expect);
    let recording = record(&seen, args.window.max_sockets, false);
    reports.iter_mut().for_each(|report| report.obstacles = obstacles(&recording, &report.name));
    if !args.connections {
        reports.iter_mut().for_each(|report| report.connections.clear());
    }
    let gains = predicted_by.map(|(calibration, before)| gains(&calibration, &before, &recording, args)).unwrap_or_default();
    let text = if args.window.json { json(&seen, args, &reports, &gains)? } else { render(&seen, &reports, Screen::of_stdout()) };
    result(&text)?;
    if !args.window.json {
        result(&gains.iter().map(Comparison::text).collect::<String>())?;
    }
    seen.losses.tell(args.window.max_sockets);
    Ok(status(args, &reports, seen.losses.any()))
}

/// What keeps the library out of the programs at the ends of this socket, wholly or of some.
fn obstacles(recording: &Recording, name: &SocketName) -> Vec<Finding> {
    let is_it = |service: &&ServiceRecord| service.socket_name() == Some(name);
    let findings = recording.services.iter().filter(is_it).flat_map(|service| judge(recording, service, 0.0).findings);
    findings.filter(|finding| !finding.processes.is_empty()).collect()
}

/// Before anything is watched: whatever is to be compared must be there.
fn gain_arguments(args: &VerifyArgs) -> anyhow::Result<Option<(Calibration, Recording)>> {
    let before = args.before.as_deref().map(Recording::load).transpose()?;
    match (args.gain.calibration()?, before) {
        (Some(calibration), Some(before)) => Ok(Some((calibration, before))),
        (None, None) => Ok(None),
        (Some(_), None) => bail!("a prediction needs a recording from before: name it with --before FILE"),
        (None, Some(_)) => bail!("--before needs a calibration: --predict takes this host's, --calibration FILE another"),
    }
}

/// What was predicted, and what came of it.
fn gains(calibration: &Calibration, before: &Recording, now: &Recording, args: &VerifyArgs) -> Vec<Comparison> {
    let mut gains = compare(calibration, before, now);
    let wanted =
        |gain: &Comparison| args.sockets.is_empty() || args.sockets.iter().any(|socket| socket.to_string() == gain.display);
    gains.retain(wanted);
    gains
}

/// The exit status, with the sentence that explains it.
fn status(args: &VerifyArgs, reports: &[SocketReport], lost: bool) -> u8 {
    let is_accelerated = |name: &&SocketName| reports.iter().any(|report| report.accelerated > 0 && is_same(name, &report.name));
    let plain: Vec<_> = args.expect.iter().filter(|name| !is_accelerated(name)).collect();
    for name in &plain {
        note(&format!("{name}: no connection was accelerated within the window (`tssx-trace explain {name}` tells why)"));
    }
    let mut below = false;
    for report in reports {
        if let (Some(minimum), Some(rate)) = (args.min_hit_rate, report.hit_rate)
            && rate < minimum
        {
            note(&format!("{}: hit rate {} is below the minimum of {}", report.display, percent(rate), percent(minimum)));
            below = true;
        }
    }
    let silent = unproven(&args.sockets, reports);
    for name in &silent {
        note(&format!("{name}: no selected connection carried a byte within the window, so there is no hit rate"));
    }
    if reports.is_empty() && args.sockets.is_empty() {
        note(
            "no process with the library selected a connection within the window: start both ends with LD_PRELOAD and USE_TSSX (see `tssx-trace suggest`)",
        );
    }
    let nothing = !silent.is_empty() || (args.min_hit_rate.is_some() && reports.iter().all(|report| report.hit_rate.is_none()));
    match (plain.is_empty(), below, lost, nothing) {
        (false, ..) => exit::UNEXPECTED,
        (_, true, _, _) => exit::BELOW_MINIMUM,
        (_, _, true, _) => exit::LOST,
        (_, _, _, true) => exit::NOTHING,
        _ => 0,
    }
}

/// The sockets asked for that have no hit rate.
fn unproven<'a>(wanted: &'a [SocketName], reports: &[SocketReport]) -> Vec<&'a SocketName> {
    let proven = |name: &&SocketName| reports.iter().any(|report| report.hit_rate.is_some() && is_same(name, &report.name));
    wanted.iter().filter(|name| !proven(name)).collect()
}

fn json(seen: &Observation, args: &VerifyArgs, reports: &[SocketReport], gains: &[Comparison]) -> anyhow::Result<String> {
    let report = Report {
        format: "tssx-trace verify",
        version: 1,
        window_ms: u64::try_from(seen.elapsed.as_millis()).unwrap_or(u64::MAX),
        interrupted: seen.interrupted,
        mode: seen.mode.name(),
        mode_limits: seen.mode.limits(),
        losses: seen.losses,
        cost: seen.cost,
        min_hit_rate: args.min_hit_rate,
        sockets: reports,
        gains,
    };
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}

fn render(seen: &Observation, reports: &[SocketReport], screen: Screen) -> String {
    let mut text = String::new();
    if !reports.is_empty() {
        let rows: Vec<_> = reports.iter().map(row).collect();
        text = screen.table(&COLUMNS, &rows);
        text.push('\n');
    }
    for report in reports {
        explain(&mut text, report);
    }
    let early = if seen.interrupted { ", ended early" } else { "" };
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "{:.1} s{early}, mode {}. Hit rate: bytes through rings, by the library's ledgers, of all bytes of the selected connections; kernel bytes by eBPF, less doorbells.",
        seen.elapsed.as_secs_f64(),
        seen.mode.name()
    );
    let _ = writeln!(text, "{}", seen.cost);
    for limit in seen.mode.limits() {
        let _ = writeln!(text, "Limit of mode {}: {limit}.", seen.mode.name());
    }
    if seen.losses.any() {
        let _ = writeln!(text, "{}", screen.alarm(seen.losses.warning().trim_end()));
    }
    text
}

fn row(report: &SocketReport) -> Vec<String> {
    vec![
        report.display.clone(),
        report.hit_rate.map_or_else(|| String::from("no traffic"), percent),
        report.ring_bytes.to_string(),
        report.kernel_bytes.to_string(),
        report.selected.to_string(),
        report.accelerated.to_string(),
        report.doorbells.to_string(),
        report.sleeps.to_string(),
        summary(&report.servers),
        summary(&report.clients),
    ]
}

/// Why bytes of this socket went through the kernel socket.
fn explain(text: &mut String, report: &SocketReport) {
    if report.kernel_bytes_of_accelerated > 0 {
        let bytes = plural(report.kernel_bytes_of_accelerated, "kernel byte");
        let _ = writeln!(text, "{}: {bytes} of accelerated connections: before the upgrade, or after going back", report.display);
    }
    for count in &report.reasons {
        let connections = plural(count.connections, "connection");
        let _ =
            writeln!(text, "{}: {connections}, {} end: {}: {}", report.display, count.end.name(), count.reason, count.explanation);
    }
    for finding in &report.obstacles {
        let _ = writeln!(text, "{}: {}; remedy: {}", report.display, finding.sentence(), finding.remedy);
    }
    for bypass in &report.bypassed {
        let who = summary(&bypass.processes);
        let connections = plural(bypass.connections, "connection");
        let (sent, received) = (plural(bypass.sent_bytes, "byte"), bypass.received_bytes);
        let _ = writeln!(
            text,
            "{}: PAST THE LIBRARY: {who} ({} end, {connections}): {sent} sent, {received} received by raw system calls, io_uring, or a descriptor that it was given",
            report.display,
            bypass.end.name()
        );
    }
    if report.ring_full > 0 {
        let _ = writeln!(text, "{}: a ring was full {}", report.display, plural(report.ring_full, "time"));
    }
    if report.not_selected > 0 {
        let connections = plural(report.not_selected, "connection");
        let bytes = short(report.not_selected_bytes as f64);
        let _ = writeln!(
            text,
            "{}: {connections} with the library at neither end ({bytes} bytes, not in the hit rate)",
            report.display
        );
    }
    if report.disagreements > 0 {
        let connections = plural(report.disagreements, "closed connection");
        let _ = writeln!(
            text,
            "{}: {connections} of which one end says it read more than the other wrote: do not trust these figures",
            report.display
        );
    }
}

/// A rate as a percentage, rounded down: 100% means all.
fn percent(rate: f64) -> String {
    format!("{:.2}%", (rate * 10_000.0).floor() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_never_rounded_up() {
        assert_eq!(percent(1.0), "100.00%");
        assert_eq!(percent(0.999_999), "99.99%");
        assert_eq!(percent(0.0), "0.00%");
    }
}

//! `verify`: watch, or read what was kept of a window; print each selected socket's hit rate and the reason of each miss; judge by
//! `--min-hit-rate` and `--expect`.

use anyhow::bail;

use crate::advice::{Finding, judge};
use crate::calibration::Calibration;
use crate::cli::{VerifyArgs, exit};
use crate::commands::discover::record;
use crate::gain::{Comparison, compare};
use crate::hit_rate::{is_same, sockets};
use crate::names::SocketName;
use crate::output::{note, result};
use crate::recording::{Recording, ServiceRecord};
use crate::screen::Screen;
use crate::verification::{Verification, percent};
use crate::watch::{LEDGER_PERIOD, watch};

/// Runs the subcommand.
///
/// # Errors
/// Where the machine lacks what tracing needs, or what was kept cannot be read.
pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<u8> {
    let report = if let Some(file) = &args.from { replay(args, Verification::load(file)?) } else { observe(args)? };
    result(&if args.window.json { report.json()? } else { report.text(Screen::of_stdout()) })?;
    report.losses.tell(report.max_sockets);
    Ok(status(args, &report))
}

fn observe(args: &VerifyArgs) -> anyhow::Result<Verification> {
    let predicted_by = gain_arguments(args)?;
    let seen = watch(args.window.window(LEDGER_PERIOD, true))?;
    let mut report = Verification::new(&seen, args.window.max_sockets);
    report.min_hit_rate = args.min_hit_rate;
    report.sockets = sockets(&seen, &args.sockets, &args.expect);
    let recording = record(&seen, args.window.max_sockets, false);
    for socket in &mut report.sockets {
        socket.obstacles = obstacles(&recording, &socket.name);
        if !args.connections {
            socket.connections.clear();
        }
    }
    report.gains = predicted_by.map(|(calibration, before)| gains(&calibration, &before, &recording, args)).unwrap_or_default();
    Ok(report)
}

/// What was kept, as far as it is asked for.
fn replay(args: &VerifyArgs, mut report: Verification) -> Verification {
    report.min_hit_rate = args.min_hit_rate.or(report.min_hit_rate);
    if !args.sockets.is_empty() {
        report.sockets.retain(|socket| args.sockets.iter().chain(&args.expect).any(|name| *name == socket.name));
        report.gains.retain(|gain| is_wanted(args, gain));
    }
    report
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
    gains.retain(|gain| is_wanted(args, gain));
    gains
}

fn is_wanted(args: &VerifyArgs, gain: &Comparison) -> bool {
    args.sockets.is_empty() || args.sockets.iter().any(|socket| socket.to_string() == gain.display)
}

/// The exit status, with the sentence that explains it.
fn status(args: &VerifyArgs, report: &Verification) -> u8 {
    let reports = &report.sockets;
    // What this host's files are now says nothing of those of then.
    let same: fn(&SocketName, &SocketName) -> bool = if args.from.is_some() { PartialEq::eq } else { is_same };
    let is_accelerated = |name: &&SocketName| reports.iter().any(|report| report.accelerated > 0 && same(name, &report.name));
    let plain: Vec<_> = args.expect.iter().filter(|name| !is_accelerated(name)).collect();
    for name in &plain {
        note(&format!("{name}: no connection was accelerated within the window (`tssx-trace explain {name}` tells why)"));
    }
    let mut below = false;
    for socket in reports {
        if let (Some(minimum), Some(rate)) = (report.min_hit_rate, socket.hit_rate)
            && rate < minimum
        {
            note(&format!("{}: hit rate {} is below the minimum of {}", socket.display, percent(rate), percent(minimum)));
            below = true;
        }
    }
    let proven = |name: &&SocketName| reports.iter().any(|report| report.hit_rate.is_some() && same(name, &report.name));
    let silent: Vec<_> = args.sockets.iter().filter(|name| !proven(name)).collect();
    for name in &silent {
        note(&format!("{name}: no selected connection carried a byte within the window, so there is no hit rate"));
    }
    if reports.is_empty() && args.sockets.is_empty() {
        note(
            "no process with the library selected a connection within the window: start both ends with LD_PRELOAD and USE_TSSX (see `tssx-trace suggest`)",
        );
    }
    let nothing = !silent.is_empty() || (report.min_hit_rate.is_some() && reports.iter().all(|report| report.hit_rate.is_none()));
    match (plain.is_empty(), below, report.losses.any(), nothing) {
        (false, ..) => exit::UNEXPECTED,
        (_, true, _, _) => exit::BELOW_MINIMUM,
        (_, _, true, _) => exit::LOST,
        (_, _, _, true) => exit::NOTHING,
        _ => 0,
    }
}

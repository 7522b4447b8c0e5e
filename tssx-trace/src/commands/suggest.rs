//! `suggest`: from a recording to an environment, with the reasons as comments. Reads one file, runs nothing.

use std::path::Path;

use anyhow::{Context, bail};

use crate::cli::{Advised, SuggestArgs, exit};
use crate::library;
use crate::output::{note, plural, result};
use crate::proposal::{Limits, Proposal};
use crate::recording::Recording;

/// Runs the subcommand.
///
/// # Errors
/// Where there is no recording to read or no library to name.
pub(crate) fn run(args: &SuggestArgs) -> anyhow::Result<u8> {
    if args.unit.is_some() && args.format != Advised::Systemd {
        bail!("--unit names a unit of systemd: add --format systemd");
    }
    let recording = Recording::load(&args.from)?;
    if !recording.head.measures_traffic() {
        bail!(
            "{} was recorded in mode {}, which measures no traffic: record again where another mode works (`tssx-trace doctor` says which)",
            args.from.display(),
            recording.head.mode
        );
    }
    if let Some(lost) = lost(&recording, args.max_losses)
        && !args.accept_losses
    {
        note(&format!(
            "error: {} misses {lost}: record again as the messages of `discover` say, or take what there is with --accept-losses",
            args.from.display()
        ));
        return Ok(exit::LOST);
    }
    let calibration = args.gain.calibration()?;
    let library = library_of(&recording)?;
    let proposal = Proposal::new(&recording, library, Limits { min_calls: args.min_calls, possible: args.possible });
    let proposal = Proposal { calibration: calibration.as_ref(), ..proposal };
    let text = match args.format {
        Advised::Shell => proposal.shell()?,
        Advised::Systemd => proposal.systemd(args.unit.as_deref()).with_context(|| {
            format!(
                "no selected socket has an end in the unit {}: see the units without --unit",
                args.unit.as_deref().unwrap_or_default()
            )
        })?,
        Advised::Compose => proposal.compose(),
        Advised::Json => proposal.json()?,
    };
    result(&text)?;
    if proposal.patterns().is_empty() {
        note(
            "nothing to suggest: no socket of the recording would gain (the comments say why); was there traffic while `discover` watched?",
        );
        return Ok(exit::NOTHING);
    }
    Ok(0)
}

/// The library to name: the one that TSSX_PRELOAD names, else the one that was looked for while recording, else what is found now.
fn library_of(recording: &Recording) -> anyhow::Result<String> {
    let recorded = recording.head.library.clone().filter(|_| !library::is_named());
    let Some(path) = recorded else { return Ok(library::find()?.to_string_lossy().into_owned()) };
    if !Path::new(&path).exists() {
        note(&format!("warning: {path}, which the recording names, is not on this machine"));
    }
    Ok(path)
}

/// What a recording misses, if it is more than the share `most` of calls or of connections.
fn lost(recording: &Recording, most: f64) -> Option<String> {
    let losses = &recording.head.losses;
    let services = || recording.services.iter().chain(&recording.unnamed);
    let calls =
        [losses.map_full_calls, losses.no_memory_calls, losses.refused_calls, losses.unreadable_calls, losses.missed_events];
    let connections =
        [losses.uncounted_connections, losses.overwritten_connections, losses.unplaced_connections, losses.untold_sockets];
    let sum = |counts: &[u64]| counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    [
        (sum(&calls), services().filter_map(|service| service.calls).sum::<u64>(), "call"),
        (sum(&connections), services().map(|service| service.connections).sum(), "connection"),
    ]
    .into_iter()
    .find_map(|(lost, counted, noun)| {
        let share = lost as f64 / (lost as f64 + counted as f64);
        (lost > 0 && share > most).then(|| format!("{}, {:.1}% of all", plural(lost, noun), share * 100.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::Losses;
    use crate::recording::samples::{busy, recording_of};

    #[test]
    fn losses_count_by_their_share_of_calls_or_of_connections() {
        let mut recording = recording_of(vec![busy(b"/run/x")]);
        assert_eq!(lost(&recording, 0.0), None);
        recording.head.losses = Losses { missed_events: 5, ..Losses::default() };
        assert_eq!(lost(&recording, 0.01), None);
        assert_eq!(lost(&recording, 0.001).as_deref(), Some("5 calls, 0.5% of all"));
        recording.head.losses = Losses { untold_sockets: 1, ..Losses::default() };
        assert_eq!(lost(&recording, 0.01).as_deref(), Some("1 connection, 50.0% of all"));
    }
}

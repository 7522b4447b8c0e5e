//! `explain`: why a socket, or the sockets of a process, are not accelerated; live, or from a recording without privilege.

use crate::cli::{ExplainArgs, exit};
use crate::commands::discover::record;
use crate::explanation::Explanation;
use crate::output::{note, result};
use crate::recording::Recording;
use crate::screen::Screen;
use crate::watch::{LEDGER_PERIOD, watch};

/// Runs the subcommand.
///
/// # Errors
/// Where the machine lacks what tracing needs, or the recording cannot be read.
pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<u8> {
    let recording = match &args.from {
        Some(file) => Recording::load(file)?,
        None => record(&watch(args.window.window(LEDGER_PERIOD, false))?, args.window.max_sockets, false),
    };
    let explanation = Explanation::new(&recording, args.subject.clone(), args.min_calls);
    let found = !explanation.sockets.is_empty();
    if args.window.json {
        result(&explanation.json()?)?;
    } else if found {
        result(&explanation.text(Screen::of_stdout()))?;
    }
    recording.head.losses.tell(recording.head.tracer.max_sockets);
    if !found {
        note(&format!(
            "{}: no such socket, or no socket of that process, within the window: is it running? `tssx-trace discover --all` lists them",
            args.subject
        ));
        return Ok(exit::NOTHING);
    }
    Ok(if recording.head.losses.any() { exit::LOST } else { 0 })
}

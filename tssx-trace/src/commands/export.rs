//! `export`: watches without end and serves what it sees as metrics; or once, and prints them.

use crate::cli::exit;
use crate::cli::export::ExportArgs;
use crate::export::{Exporter, http};
use crate::mode::{Mode, Wanted};
use crate::output::{note, result};
use crate::preflight;
use crate::watch::{FOR_EVER, LEDGER_PERIOD, Window, watch, watch_with};

/// Runs the subcommand.
///
/// # Errors
/// Where the place to serve at is taken, or nothing can be watched.
pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<u8> {
    let mut window = args.window().window(LEDGER_PERIOD, false);
    if window.probe.mode == Wanted(None)
        && let Err(missing) = preflight::check_privileges()
    {
        note(&format!("{missing:#}; without them: lists of sockets, and statistics of the processes that may be looked into"));
        window.probe.mode = Wanted(Some(Mode::Snapshots));
    }
    let (mut exporter, desk) = Exporter::new(usize::try_from(args.max_names)?, preflight::privileges());
    let Some(place) = &args.listen else {
        let seen = watch(window)?;
        result(&exporter.text(&seen)?)?;
        seen.losses.tell(window.probe.max_sockets);
        return Ok(if seen.losses.any() { exit::LOST } else { 0 });
    };
    let (listener, removal, shown) = place.listen()?;
    http::start(listener, desk)?;
    note(&format!("serving {shown}"));
    let seen = watch_with(Window { duration: None, ..window }, Some((FOR_EVER, &mut exporter)))?;
    drop(removal);
    seen.losses.tell(window.probe.max_sockets);
    Ok(0)
}

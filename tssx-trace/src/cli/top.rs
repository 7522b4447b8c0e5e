//! The options of `top`.

use std::time::Duration;

use clap::Args;

use super::WindowArgs;
use super::parse::parse_duration;
use crate::filter::Filter;
use crate::top::Column;
use crate::watch::Window;

#[derive(Debug, Args)]
#[command(
    mut_arg("json", |json| json.hide(true)),
    mut_arg("duration", |duration| duration.help("End the view after this time: 500ms, 5s, 2m [default: until q]")),
    after_help = "\
CALLS/S and BYTES/S: what both ends sent in the last interval. HIT: the share of these bytes that went through shared memory, of the sockets
of which the library selected a connection. CONNS: connections that are open; a socket without one is dim, and gone after 10 s.
ACCELERATED: yes, or the reason, of all since the start. RECENT: bytes of the last intervals, each row to its own scale.
`-`: not measured. A narrow terminal loses columns.

Keys: ← → sort by another column, r reverse, / type a filter (Enter keeps it, Esc ends it), ↑ ↓ PgUp PgDn Home End scroll, q quit.

Examples:
  sudo tssx-trace top
  sudo tssx-trace top --interval 2s --comm 'redis*' --sort calls

Exit status: 0 done; 1 could not do it, or standard output is no terminal; 3 some traffic could not be counted."
)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) window: WindowArgs,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub(crate) interval: Duration,
    #[command(flatten)]
    pub(crate) filter: Filter,
    /// Column to sort by at first
    #[arg(long, value_enum, value_name = "COLUMN", default_value_t = Column::Bytes)]
    pub(crate) sort: Column,
}

impl TopArgs {
    /// What to watch: without an end unless one is given.
    pub(crate) fn window(&self, ledger_period: Duration) -> Window {
        Window { duration: self.window.duration, ..self.window.window(ledger_period, false) }
    }
}

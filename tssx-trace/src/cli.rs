//! The command line: what clap reads, and the help texts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::explanation::Subject;
use crate::filter::{Filter, Sort};
use crate::mode::{Wanted, parse_wanted};
use crate::names::SocketName;
use crate::probe::ProbeOptions;
use crate::recording::DEFAULT_PATH;
use crate::report::Selection;
use crate::watch::Window;

/// Exit statuses, as documented in the help text.
pub(crate) mod exit {
    /// The command could not do its work.
    pub(crate) const FAILED: u8 = 1;
    /// Something was seen but could not be counted: the figures are lower bounds.
    pub(crate) const LOST: u8 = 3;
    /// A hit rate is below the minimum asked for.
    pub(crate) const BELOW_MINIMUM: u8 = 4;
    /// There was nothing to judge or to suggest.
    pub(crate) const NOTHING: u8 = 5;
    /// A socket that was expected to be accelerated is not.
    pub(crate) const UNEXPECTED: u8 = 6;
}

const AFTER_HELP: &str = "\
Examples:
  sudo tssx-trace discover                 watch for 5 seconds, print and record every Unix socket's traffic
  tssx-trace suggest > tssx.env            propose which sockets to accelerate
  set -a; . ./tssx.env; set +a             take the proposal into a shell, then start server and client from it
  tssx-trace run --socket /run/x.sock -- CMD   start one command accelerated
  sudo tssx-trace explain /run/x.sock      tell why that socket is not accelerated
  sudo tssx-trace verify                   measure how much of the traffic really is accelerated

Exit status: 0 done; 1 could not do it (the message says what is missing); 2 wrong usage; 3 some traffic could not be
counted; 4 a hit rate is below --min-hit-rate; 5 nothing to judge or to suggest; 6 a socket of --expect is not accelerated.";

/// Finds the Unix sockets worth accelerating with TSSX and proves afterwards that they are.
#[derive(Debug, Parser)]
#[command(name = "tssx-trace", version, after_help = AFTER_HELP, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch every Unix socket of this host: who talks to whom, how much, how (needs root, or what doctor names)
    Discover(DiscoverArgs),
    /// Propose USE_TSSX for the sockets that gain, from a recording; prints an environment file
    Suggest(SuggestArgs),
    /// Measure the fast-path hit rate of each selected socket, and the reason of each miss (needs root, or what doctor names)
    Verify(VerifyArgs),
    /// Tell why a socket, or the sockets of a process, are not accelerated, and what to do (needs root, or --from)
    Explain(ExplainArgs),
    /// Start a command with the library and a selection of sockets
    Run(RunArgs),
    /// Show what the tracer can do on this machine, what it lacks, and the remedy
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Every mode is tried for real: its programs are loaded, attached and taken away again.

Exit status: 0 traffic can be measured; 5 only snapshots work, or nothing.")]
pub(crate) struct DoctorArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// How long to watch where nothing else is asked for.
const DEFAULT_DURATION: Duration = Duration::from_secs(5);

/// The window and the probe.
#[derive(Debug, Args)]
pub(crate) struct WindowArgs {
    /// How long to watch: 500ms, 5s, 2m; Ctrl-C ends it early and still reports [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// How to measure: auto takes the first of tp_btf, fexit, syscalls and snapshots that works here (see `tssx-trace doctor`)
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = parse_wanted)]
    pub(crate) mode: Wanted,
    /// How many pairs of one socket and one process the kernel can count within the window; one that is used on several CPUs takes as
    /// much room as several, for which there is room up to four times over
    #[arg(long, value_name = "N", default_value_t = tssx_ebpf::TRAFFIC_ENTRIES, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub(crate) max_sockets: u32,
    /// Bytes of the ring buffer by which the kernel tells of processes that begin to use Unix sockets: a power of two
    #[arg(long, value_name = "N", default_value_t = tssx_ebpf::ARRIVALS_BYTES, value_parser = parse_ring_bytes)]
    pub(crate) ring_bytes: u32,
    /// Print what the kernel programs log, for diagnosis
    #[arg(long, hide = true)]
    pub(crate) kernel_log: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

impl WindowArgs {
    /// The window, with that time between two looks for ledgers; with `needs_traffic`, a mode without traffic is refused.
    pub(crate) fn window(&self, ledger_period: Duration, needs_traffic: bool) -> Window {
        let probe = ProbeOptions {
            mode: self.mode,
            needs_traffic,
            max_sockets: self.max_sockets,
            ring_bytes: self.ring_bytes,
            log: self.kernel_log,
            closer: false,
        };
        Window { duration: Some(self.duration.unwrap_or(DEFAULT_DURATION)), closer: None, ledger_period, probe }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Calls are sending calls of either end and bytes are what they sent, so each message counts once, where it was sent.
Errors, end of file and MSG_PEEK do not count. Connections made before the start are found by name too. Filters and order
are those of the report: the recording always holds everything. `-`, in JSON null: not measured.

Examples:
  sudo tssx-trace discover --duration 30s
  sudo tssx-trace discover --follow --interval 2s --comm 'redis*' --sort rate
  tssx-trace discover --from /run/tssx/discover.json --socket '/run/*' --sort connections
  sudo tssx-trace discover --json | jq '.services[] | select(.calls > 0) | .display'
  sudo tssx-trace discover --follow --format jsonl | jq 'select(.record == \"rate\") | .interval_calls'

Exit status: 0 done; 1 could not do it; 3 some traffic could not be counted, in a replay too.")]
pub(crate) struct DiscoverArgs {
    #[command(flatten)]
    pub(crate) window: WindowArgs,
    /// Write the recording here instead of to /run/tssx/discover.json
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Print the report of this recording instead of watching; needs no privilege
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "duration", "follow", "interval", "mode", "max_sockets", "ring_bytes", "pairs", "kernel_log", "closer"])]
    pub(crate) from: Option<PathBuf>,
    /// Show sockets without a connection too
    #[arg(long)]
    pub(crate) all: bool,
    /// List each connection in the recording and the JSON: who called at each end, and whether its bytes balance
    #[arg(long)]
    pub(crate) pairs: bool,
    /// How long, from the start, to look closer: passed descriptors and credentials, splice and sendfile, time from data to receive;
    /// meanwhile every system call of the host is slower. 0: not at all
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_part)]
    pub(crate) closer: Duration,
    /// How to print the report; --json is short for json
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Table, conflicts_with = "json")]
    pub(crate) format: Format,
    /// Show each interval as it ends, until Ctrl-C or the end of --duration, then the report of the whole time
    #[arg(long, conflicts_with = "json")]
    pub(crate) follow: bool,
    /// Length of an interval of --follow
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration, requires = "follow")]
    pub(crate) interval: Duration,
    #[command(flatten)]
    pub(crate) filter: Filter,
    /// Order of the report, the largest first [default: bytes, with --follow rate]
    #[arg(long, value_enum, value_name = "ORDER")]
    pub(crate) sort: Option<Sort>,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// One document
    Json,
    /// One document on each line: the window, then each socket; with --follow each interval too
    Jsonl,
}

impl DiscoverArgs {
    /// The format, by either option.
    pub(crate) fn format(&self) -> Format {
        if self.window.json { Format::Json } else { self.format }
    }

    /// What to watch: with --follow without an end unless one is given.
    pub(crate) fn window(&self, ledger_period: Duration) -> Window {
        let mut window = self.window.window(ledger_period, false);
        window.closer = Some(self.closer).filter(|time| !time.is_zero());
        window.probe.closer = window.closer.is_some();
        if self.follow { Window { duration: self.window.duration, ..window } } else { window }
    }

    /// What to show, in the order for this report.
    pub(crate) fn selection(&self) -> Selection {
        let sort = self.sort.unwrap_or(if self.follow { Sort::Rate } else { Sort::Bytes });
        Selection { filter: self.filter.clone(), sort }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each socket gets a verdict, recommended, possible or blocked, with the reasons and the remedies as comments. Only what is
recommended is selected. The output is a file of KEY=\"value\" lines that a shell can source and systemd can take as EnvironmentFile=:
  tssx-trace suggest > tssx.env
  set -a; . ./tssx.env; set +a; redis-server --unixsocket /run/redis.sock
  tssx-trace suggest --format systemd --unit redis.service > /etc/systemd/system/redis.service.d/tssx.conf
  tssx-trace suggest --format json | jq '.sockets[] | {display, level, codes: [.findings[].code]}'

Needs no privilege. The same recording always gives the same bytes.

Exit status: 0 something is selected; 1 could not do it; 3 the recording misses too much; 5 nothing to suggest.")]
pub(crate) struct SuggestArgs {
    /// The recording to read
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub(crate) from: PathBuf,
    /// Leave out sockets with fewer sending calls per second
    #[arg(long, value_name = "RATE", default_value_t = 10.0)]
    pub(crate) min_calls: f64,
    /// Select sockets that are only possible too, as far as they had traffic
    #[arg(long)]
    pub(crate) possible: bool,
    /// What to print: a file for shells and EnvironmentFile=, drop-ins, an extension of compose.yaml, or JSON
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Advised::Shell)]
    pub(crate) format: Advised,
    /// With --format systemd, print the drop-in of this unit alone
    #[arg(long, value_name = "UNIT")]
    pub(crate) unit: Option<String>,
    /// The share of calls or connections that may have gone uncounted: 0.01 or 1%
    #[arg(long, value_name = "RATE", default_value = "1%", value_parser = parse_rate)]
    pub(crate) max_losses: f64,
    /// Advise from a recording that misses more, too
    #[arg(long)]
    pub(crate) accept_losses: bool,
}

/// How advice is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Advised {
    /// KEY="value" lines
    Shell,
    /// One drop-in for each unit
    Systemd,
    /// An extension that services merge
    Compose,
    /// One document
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Shows both ends side by side with what decides, the verdict of `suggest`, and each reason with its code and remedy. It watches first, so that
traffic and who calls are known; a recording of `discover` has the same.

Examples:
  sudo tssx-trace explain /run/redis.sock
  tssx-trace explain --from /run/tssx/discover.json @name
  sudo tssx-trace explain $(pidof psql) --json | jq '.sockets[].findings[] | {code, end, remedy}'

Exit status: 0 explained; 1 could not do it; 3 some traffic could not be counted; 5 no such socket or process was seen.")]
pub(crate) struct ExplainArgs {
    /// A socket, by path or as @name, or a process by its number (a file named 123 is ./123)
    #[arg(value_name = "SOCKET|PID")]
    pub(crate) subject: Subject,
    /// Explain by this recording instead of watching; needs no privilege
    #[arg(long, value_name = "FILE", conflicts_with_all = ["duration", "mode", "max_sockets", "ring_bytes", "kernel_log"])]
    pub(crate) from: Option<PathBuf>,
    /// Sending calls per second below which a socket does not gain
    #[arg(long, value_name = "RATE", default_value_t = 10.0)]
    pub(crate) min_calls: f64,
    #[command(flatten)]
    pub(crate) window: WindowArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The hit rate of a connection is its bytes through rings divided by all its bytes: the first from the library's
statistics, the rest from the kernel programs, less the library's own doorbell bytes.

Examples:
  sudo tssx-trace verify --min-hit-rate 99% /run/redis.sock
  sudo tssx-trace verify --duration 30s --json
  sudo tssx-trace verify --expect /run/redis.sock --min-hit-rate 99% > /dev/null || alert

Exit status, the first that applies: 6 a socket of --expect has no accelerated connection; 4 a hit rate is below the minimum;
3 some traffic could not be counted; 5 no selected connection carried a byte although --min-hit-rate or a socket was given; 0 else.")]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) window: WindowArgs,
    /// Exit with status 4 if a socket's hit rate is lower: 0.99 or 99%
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) min_hit_rate: Option<f64>,
    /// Exit with status 6 unless a connection of this socket is accelerated; may be repeated, and leaves no other socket out
    #[arg(long, value_name = "SOCKET")]
    pub(crate) expect: Vec<SocketName>,
    /// With --json, list each selected connection
    #[arg(long, requires = "json")]
    pub(crate) connections: bool,
    /// Only these sockets: a path, or @name for an abstract one
    #[arg(value_name = "SOCKET")]
    pub(crate) sockets: Vec<SocketName>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Without --socket and --env the selection is USE_TSSX of the environment. The library is found through TSSX_PRELOAD,
beside tssx-trace, or in the system's library directories; an LD_PRELOAD that is already set is kept behind it.

Examples:
  tssx-trace run --socket /run/redis.sock -- redis-server --unixsocket /run/redis.sock
  tssx-trace run --env tssx.env -- redis-benchmark -s /run/redis.sock")]
pub(crate) struct RunArgs {
    /// A socket to accelerate, as in USE_TSSX: a path, a glob, or @name; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub(crate) socket: Vec<String>,
    /// Take USE_TSSX and the other TSSX_ variables from a file that `suggest` printed
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    pub(crate) env: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// `500ms`, `5s`, `2m`, or seconds without a unit.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: write 500ms, 5s or 2m");
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let factor = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        _ => return Err(wrong()),
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err(String::from("the time must be between 1ms and one day"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A time as [`parse_duration`] reads it, or 0.
fn parse_part(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

/// A power of two, and a page at least: what the kernel takes as the size of a ring buffer.
fn parse_ring_bytes(text: &str) -> Result<u32, String> {
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX);
    let wrong = || format!("`{text}` is no size of a ring buffer: write a power of two from {page} to {}", 1 << 30);
    text.parse().ok().filter(|bytes: &u32| bytes.is_power_of_two() && (page..=1 << 30).contains(bytes)).ok_or_else(wrong)
}

/// `0.99` or `99%`.
fn parse_rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no rate: write 0.99 or 99%");
    let rate = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map_err(|_| wrong())? / 100.0,
        None => text.parse::<f64>().map_err(|_| wrong())?,
    };
    if (0.0..=1.0).contains(&rate) { Ok(rate) } else { Err(String::from("the rate must be between 0 and 1 (0% and 100%)")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn times_and_rates_are_read_with_their_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        for wrong in ["", "s", "5 parsecs", "-1s", "0", "NaN"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_ring_bytes("65536"), Ok(65536));
        for wrong in ["0", "1", "65537", "-4096", "x"] {
            assert!(parse_ring_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_rate("99%"), Ok(0.99));
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for wrong in ["99", "-1%", "x", "NaN", ""] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}

//! The command line: what clap reads, and the help texts.

pub(crate) mod exit;
pub(crate) mod export;
mod parse;
mod top;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::parse::{parse_duration, parse_part, parse_rate, parse_ring_bytes};
pub(crate) use self::top::TopArgs;
use crate::calibration::Calibration;
use crate::explanation::Subject;
use crate::filter::{Filter, Sort};
use crate::mode::{Wanted, parse_wanted};
use crate::names::SocketName;
use crate::probe::ProbeOptions;
use crate::recording::DEFAULT_PATH;
use crate::report::Selection;
use crate::watch::Window;

const AFTER_HELP: &str = "\
Examples:
  sudo tssx-trace discover                 watch for 5 seconds, print and record every Unix socket's traffic
  tssx-trace suggest > tssx.env            propose which sockets to accelerate
  set -a; . ./tssx.env; set +a             take the proposal into a shell, then start server and client from it
  tssx-trace run --socket /run/x.sock -- CMD   start one command accelerated
  sudo tssx-trace explain /run/x.sock      tell why that socket is not accelerated
  sudo tssx-trace top                      watch traffic and hit rates live
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
    /// Show sockets by traffic in the terminal as it happens, with keys to sort and filter (needs root, or what doctor names)
    Top(TopArgs),
    /// Tell why a socket, or the sockets of a process, are not accelerated, and what to do (needs root, or --from)
    Explain(ExplainArgs),
    /// Serve metrics for Prometheus: traffic by rings and by the kernel, connections, reasons, losses (needs root, or what doctor names)
    Export(export::ExportArgs),
    /// Start a command with the library and a selection of sockets
    Run(RunArgs),
    /// Show what the tracer can do on this machine, and by a self-test that the library works; what is missing, with the remedy
    Doctor(DoctorArgs),
    /// Measure on this host what rings save, by size of the message, and keep the figures
    Bench(BenchArgs),
    /// Print a man page, or write all of them
    Man(ManArgs),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
    /// One of the two processes of a measurement
    #[command(hide = true)]
    BenchEnd(BenchEndArgs),
    /// One of the processes of a self-test
    #[command(hide = true)]
    SelfTestEnd(BenchEndArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Round trips, by read and by epoll, and streams of messages from 1 byte to 1 MiB, and round trips between which the ends
compute: each over a plain Unix socket and through the library's rings in turn, in processes of its own, on the first two CPUs. Takes about 20 s and no privilege; what else
runs meanwhile disturbs it.
The figures go to $XDG_CACHE_HOME/tssx/calibration.json; without that variable to ~/.cache/tssx/calibration.json, as root to
/var/cache/tssx/calibration.json. tssx-trace/schema/calibration-1.json describes the file.

Examples:
  tssx-trace bench
  tssx-trace bench --rounds 9 --output host.json
  tssx-trace bench --from host.json
  tssx-trace bench --json | jq '.points[] | select(.bytes == 64) | .saved_ns.median'

Exit status: 0 done; 1 could not do it, or the library did not accelerate (the message says why).")]
pub(crate) struct BenchArgs {
    /// Keep the figures here
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Print the figures that this file keeps instead of measuring
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "rounds", "time"])]
    pub(crate) from: Option<PathBuf>,
    /// How often each measurement is made, plain and with rings in turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Length of one measurement
    #[arg(long, value_name = "TIME", default_value = "30ms", value_parser = parse_duration)]
    pub(crate) time: Duration,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tssx-trace man | man -l -
  tssx-trace man --directory /usr/local/share/man/man1

Exit status: 0 done; 1 could not do it.")]
pub(crate) struct ManArgs {
    /// Write one file for the program and one for each subcommand here
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tssx-trace completions bash > /etc/bash_completion.d/tssx-trace
  tssx-trace completions zsh > ~/.zfunc/_tssx-trace

Exit status: 0 done; 1 could not do it.")]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct BenchEndArgs {
    /// What to do, as JSON
    pub(crate) task: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Every mode is tried for real: its programs are loaded, attached and taken away again. The library is looked for where `run` does, loaded, and
tested: two processes exchange messages over a socket of their own, with the TSSX_ variables of this environment, and the library's statistics
and the kernel programs must show that rings carried them.

Examples:
  sudo tssx-trace doctor
  sudo tssx-trace doctor --json | jq '.checks[] | select(.outcome != \"ok\")'
  tssx-trace doctor --from report.json

Exit status, the first that applies: 6 the library is missing, does not fit or does not accelerate; 5 only snapshots work, or nothing; 0 else.")]
pub(crate) struct DoctorArgs {
    /// Print this report of `doctor --json` again, perhaps of another machine, instead of looking; needs no privilege
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
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
        let (mode, max_sockets, ring_bytes, log) = (self.mode, self.max_sockets, self.ring_bytes, self.kernel_log);
        let probe = ProbeOptions { mode, needs_traffic, max_sockets, ring_bytes, log, closer: false };
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

/// Predictions by a calibration.
#[derive(Debug, Args)]
pub(crate) struct GainArgs {
    /// Say what each socket would gain by this host's calibration (see `tssx-trace bench`)
    #[arg(long)]
    predict: bool,
    /// The same by this calibration
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
}

impl GainArgs {
    /// The calibration that is asked for.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub(crate) fn calibration(&self) -> anyhow::Result<Option<Calibration>> {
        let wanted = self.predict || self.calibration.is_some();
        wanted.then(|| Calibration::named_or_of_host(self.calibration.as_deref())).transpose()
    }
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
recommended is selected. The output is a file of KEY=\"value\" lines that a shell can source and systemd can take as EnvironmentFile=.

Examples:
  tssx-trace suggest > tssx.env
  set -a; . ./tssx.env; set +a; redis-server --unixsocket /run/redis.sock
  tssx-trace suggest --format systemd --unit redis.service > /etc/systemd/system/redis.service.d/tssx.conf
  tssx-trace suggest --format json | jq '.sockets[] | {display, level, codes: [.findings[].code]}'

With --predict the comments, and JSON, tell what each socket would gain on this host, from least to most:
  tssx-trace bench && tssx-trace suggest --predict

Needs no privilege. The same recording, and calibration, always gives the same bytes.

Exit status: 0 something is selected; 1 could not do it; 3 the recording misses too much; 5 nothing to suggest.")]
pub(crate) struct SuggestArgs {
    /// The recording to read
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub(crate) from: PathBuf,
    #[command(flatten)]
    pub(crate) gain: GainArgs,
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
  sudo tssx-trace verify --before plain.json --predict /run/redis.sock
  sudo tssx-trace verify --json > report.json; tssx-trace verify --from report.json --min-hit-rate 99%
  sudo tssx-trace verify --expect /run/redis.sock --min-hit-rate 99% > /dev/null || alert

Exit status, the first that applies: 6 a socket of --expect has no accelerated connection; 4 a hit rate is below the minimum;
3 some traffic could not be counted; 5 no selected connection carried a byte although --min-hit-rate or a socket was given; 0 else.")]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) window: WindowArgs,
    /// Print and judge this report of `verify --json` instead of watching; needs no privilege. Its own minimum holds unless another is given
    #[arg(long, value_name = "FILE", conflicts_with_all = ["duration", "mode", "max_sockets", "ring_bytes", "kernel_log", "before", "predict", "calibration", "connections"])]
    pub(crate) from: Option<PathBuf>,
    /// Exit with status 4 if a socket's hit rate is lower: 0.99 or 99%
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) min_hit_rate: Option<f64>,
    /// Print what was predicted from this recording, made before the sockets were accelerated, beside what came of it
    #[arg(long, value_name = "FILE")]
    pub(crate) before: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) gain: GainArgs,
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
  tssx-trace run --env tssx.env -- redis-benchmark -s /run/redis.sock

Exit status: that of the command; 1 it could not be started.")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

//! The arguments of `export`.

use std::time::Duration;

use clap::Args;

use super::WindowArgs;
use super::parse::parse_duration;
use crate::export::place::Place;
use crate::mode::{Wanted, parse_wanted};

#[derive(Debug, Args)]
#[command(after_help = "\
Each scrape of /metrics looks at what was seen since the start; counters never go back, whatever ends meanwhile. Each byte counts
once, where it was sent. The hit rate of a socket is, of what both grew by:
  sum(tssx_ring_sent_bytes_total) / (sum(tssx_ring_sent_bytes_total) + sum(tssx_kernel_sent_bytes_total{selected=\"true\"})
    - sum(tssx_doorbell_sent_bytes_total))
What is not measured is absent. Without the privilege for kernel programs there is no tssx_kernel_sent_bytes_total, and of other users'
processes no statistics, so that `selected` is \"unknown\": a message, tssx_trace_privilege_held and tssx_trace_limit_info say what is missing.
Whoever can connect can read the names of sockets: there is no password.
In mode syscalls the records of sockets that have ended are kept: a service that runs for long needs a larger --max-sockets there.

Examples:
  sudo tssx-trace export --listen 127.0.0.1:9437
  sudo tssx-trace export --listen /run/tssx/metrics.sock & curl --unix-socket /run/tssx/metrics.sock http://x/metrics
  sudo tssx-trace export --once --duration 10s

Exit status: 0 ended by a signal, or printed; 1 could not do it; 3 (--once) some traffic could not be counted.")]
pub(crate) struct ExportArgs {
    /// Serve here: an IP address and a port, or the absolute path of a Unix socket
    #[arg(long, value_name = "PLACE", required_unless_present = "once", conflicts_with = "once")]
    pub(crate) listen: Option<Place>,
    /// Watch for --duration, print the metrics and end
    #[arg(long)]
    pub(crate) once: bool,
    /// How long to watch with --once: 500ms, 5s, 2m [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "once")]
    duration: Option<Duration>,
    /// How many names of sockets get metrics of their own; those that come later count together as `(other)`
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) max_names: u32,
    /// How to measure, as with discover
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = parse_wanted)]
    mode: Wanted,
    /// How many pairs of one socket and one process the kernel can count at the same time
    #[arg(long, value_name = "N", default_value_t = tssx_ebpf::TRAFFIC_ENTRIES, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    max_sockets: u32,
}

impl ExportArgs {
    /// As the other commands have it.
    pub(crate) fn window(&self) -> WindowArgs {
        WindowArgs {
            duration: self.duration,
            mode: self.mode,
            max_sockets: self.max_sockets,
            ring_bytes: tssx_ebpf::ARRIVALS_BYTES,
            kernel_log: false,
            json: false,
        }
    }
}

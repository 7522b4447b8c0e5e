//! What watching itself cost: processor time of the tracer, time of its programs in the kernel, memory of their maps.

use std::fmt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::preflight::kernel_is_since;
use crate::probe::Probe;

/// The cost of one window; `None` is not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Processor time of the tracer's own process, user and system, milliseconds.
    pub(crate) own_cpu_ms: Option<f64>,
    /// Mean time of one run of a kernel program, nanoseconds. Sampled: the kernel measures only while sockets are listed, four times
    /// a second, because measuring costs as much as a program does.
    pub(crate) event_ns: Option<f64>,
    /// Runs of which that is the mean.
    pub(crate) sampled_events: Option<u64>,
    /// Memory that the maps take at the end of the window, as the kernel counts it, bytes. Before Linux 6.4 it does not count but
    /// multiplies sizes.
    pub(crate) map_bytes: Option<u64>,
}

impl fmt::Display for Cost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: Option<String>| value.unwrap_or_else(|| String::from("not measured"));
        let own = shown(self.own_cpu_ms.map(|value| format!("{value:.0} ms")));
        let event = self.event_ns.zip(self.sampled_events);
        let event = shown(event.map(|(value, runs)| format!("{value:.0} ns (mean of {runs} sampled)")));
        let maps = shown(self.map_bytes.map(|value| format!("{} KiB", value / 1024)));
        write!(out, "Cost: own CPU time {own}; kernel time for each event {event}; memory of maps {maps}.")
    }
}

/// First release of Linux that counts what a map takes.
const COUNTS_MAPS_SINCE: (u32, u32) = (6, 4);

/// Measures a window.
pub(crate) struct Meter {
    began: Duration,
}

impl Meter {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self { began: own_time() }
    }

    /// The cost until now. Before the probe is detached.
    pub(crate) fn cost(&self, probe: &Probe) -> Cost {
        let sampled = probe.run_time().ok().filter(|(_, runs)| *runs > 0);
        Cost {
            own_cpu_ms: Some(rounded(own_time().saturating_sub(self.began).as_secs_f64() * 1000.0)),
            event_ns: sampled.map(|(time, runs)| rounded(time.as_nanos() as f64 / runs as f64)),
            sampled_events: sampled.map(|(_, runs)| runs),
            map_bytes: if probe.mode().hooks().is_empty() { Some(0) } else { map_bytes() },
        }
    }
}

/// To a tenth: no more is known, and a number of more than fifteen digits does not come back from JSON as it was.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn own_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Memory of every map that this process has open, as the kernel tells in fdinfo; `None` if it does not.
fn map_bytes() -> Option<u64> {
    if !kernel_is_since(COUNTS_MAPS_SINCE) {
        return None;
    }
    let entries = std::fs::read_dir("/proc/self/fdinfo").ok()?;
    let texts = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.filter_map(|text| memory_of_map(&text)).reduce(u64::saturating_add)
}

/// The memory of the map that a descriptor's fdinfo is of.
fn memory_of_map(text: &str) -> Option<u64> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    field("map_type:")?;
    field("memlock:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_comes_back_from_json_as_it_was() {
        for value in [16_439_f64 / 171.0, 287.758_934, 1e9 / 3.0, 0.04] {
            let text = serde_json::to_string(&rounded(value)).expect("text");
            assert_eq!(serde_json::from_str::<f64>(&text).expect("a number").to_bits(), rounded(value).to_bits(), "{text}");
        }
    }

    #[test]
    fn only_maps_count_and_what_is_not_known_is_not_zero() {
        assert_eq!(memory_of_map("pos:\t0\nmap_type:\t5\nmax_entries:\t4\nmemlock:\t8192\n"), Some(8192));
        assert_eq!(memory_of_map("pos:\t0\nprog_type:\t26\nmemlock:\t4096\n"), None);
        crate::mutations::each(b"pos:\t0\nmap_type:\t5\nmax_entries:\t4\nmemlock:\t8192\n", 5000, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            assert!(memory_of_map(&text).is_none() || (text.contains("map_type:") && text.contains("memlock:")));
        });
        assert_eq!(Cost::default().to_string().matches("not measured").count(), 3);
    }
}

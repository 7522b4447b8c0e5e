//! The report for people: a table of the sockets, and below it a sentence for whatever kept bytes on the kernel's sockets.

use std::fmt::Write;

use super::Verification;
use crate::gain::Comparison;
use crate::hit_rate::SocketReport;
use crate::output::{plural, short};
use crate::recording::summary;
use crate::screen::{Columns, Screen};

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

impl Verification {
    /// What the terminal has room for.
    pub(crate) fn text(&self, screen: Screen) -> String {
        let mut text = String::new();
        if !self.sockets.is_empty() {
            let rows: Vec<_> = self.sockets.iter().map(row).collect();
            text = screen.table(&COLUMNS, &rows);
            text.push('\n');
        }
        for report in &self.sockets {
            explain(&mut text, report);
        }
        let early = if self.interrupted { ", ended early" } else { "" };
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{:.1} s{early}, mode {}. Hit rate: bytes through rings, by the library's ledgers, of all bytes of the selected connections; kernel bytes by eBPF, less doorbells.",
            self.window_ms as f64 / 1000.0,
            self.mode
        );
        let _ = writeln!(text, "{}", self.cost);
        for limit in &self.mode_limits {
            let _ = writeln!(text, "Limit of mode {}: {limit}.", self.mode);
        }
        if self.losses.any() {
            let _ = writeln!(text, "{}", screen.alarm(self.losses.warning().trim_end()));
        }
        text.extend(self.gains.iter().map(Comparison::text));
        text
    }
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
pub(crate) fn percent(rate: f64) -> String {
    let hundredths = rate * 10_000.0;
    // What a decimal number lacks as a binary one is not to cost a digit.
    let is_whole = (hundredths - hundredths.round()).abs() <= hundredths * f64::EPSILON;
    format!("{:.2}%", if is_whole { hundredths.round() } else { hundredths.floor() } / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_never_rounded_up() {
        assert_eq!(percent(1.0), "100.00%");
        assert_eq!(percent(0.999_999), "99.99%");
        assert_eq!(percent(0.0), "0.00%");
        assert_eq!(percent(1.0 - 1e-15), "99.99%");
        (0..=10_000).for_each(|part| {
            let rate = f64::from(part) / 10_000.0;
            assert_eq!(percent(rate), format!("{}.{:02}%", part / 100, part % 100));
        });
    }
}

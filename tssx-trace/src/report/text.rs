//! The report as a table, and the sentences below it.

use std::fmt::Write;

use super::Report;
use crate::evidence::Evidence;
use crate::hit_rate::hit_rate;
use crate::inventory::Kind;
use crate::output::{plural, short};
use crate::places::FileState;
use crate::recording::{Head, ServiceRecord, summary};
use crate::screen::{Columns, Screen};

const COLUMNS: Columns = Columns {
    header: &["SOCKET", "SERVER", "CLIENTS", "CONNS", "CALLS", "CALLS/S", "BYTES", "BYTES/S", "MEAN", "ACCELERATED"],
    numeric: &[3, 4, 5, 6, 7, 8],
    // Names last of all beyond what tells them apart.
    long: &[(0, 24), (1, 12), (2, 12), (0, 12)],
    expendable: &[8, 4, 2, 6, 1, 3],
};

/// Calls and bytes of a service in the time that its rates are about, and that time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recent {
    pub(crate) calls: Option<u64>,
    pub(crate) bytes: Option<u64>,
    /// Of `bytes`, what went through rings.
    pub(crate) ring_bytes: Option<u64>,
    pub(crate) time_ms: u64,
}

impl Recent {
    /// A count of that time as a rate per second.
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        count as f64 * 1000.0 / self.time_ms.max(1) as f64
    }

    /// The share of the bytes that went through rings; `None` where none moved, or none was measured.
    pub(crate) fn hit_rate(&self) -> Option<f64> {
        let ring = self.ring_bytes?;
        hit_rate(ring, self.bytes?.saturating_sub(ring))
    }

    /// This and what another service did in the same time; what is known of either is kept.
    pub(crate) fn with(self, other: Self) -> Self {
        let add = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).reduce(u64::saturating_add);
        Self {
            calls: add(self.calls, other.calls),
            bytes: add(self.bytes, other.bytes),
            ring_bytes: add(self.ring_bytes, other.ring_bytes),
            time_ms: self.time_ms,
        }
    }
}

impl Report<'_> {
    /// The report of a whole window.
    pub(crate) fn text(&self, all: bool, screen: Screen) -> String {
        let time_ms = self.recording.head.window_ms;
        let totals = |service: &ServiceRecord| Recent {
            calls: service.calls,
            bytes: service.bytes,
            ring_bytes: service.ring_bytes,
            time_ms,
        };
        let text = self.text_with(all, screen, totals);
        // Not told of an interval: what moves while the queues are listed balances at the next one.
        text + &self.recording.head.conservation.warning()
    }

    /// The same with rates of another time.
    pub(crate) fn text_with(&self, all: bool, screen: Screen, recent: impl Fn(&ServiceRecord) -> Recent) -> String {
        let streams = || self.services.iter().filter(|service| service.kind == Kind::Stream);
        let shown = streams().filter(|service| all || service.connections > 0);
        let rows: Vec<_> = shown.map(|service| row(service, recent(service))).collect();
        let mut text = if rows.is_empty() {
            let which = if self.view.filter.is_empty() { "" } else { " that the filter admits" };
            format!("No Unix stream socket with a name{which} had a connection.\n")
        } else {
            screen.table(&COLUMNS, &rows)
        };
        text.push('\n');
        for service in streams().filter(|service| all || service.connections > 0) {
            let obstacles = service.evidence.as_ref().map(Evidence::obstacles).unwrap_or_default();
            if !obstacles.is_empty() {
                let _ = writeln!(text, "Stays on the kernel socket in part: {}: {}.", service.display, obstacles.join(", "));
            }
        }
        sentence(&mut text, &self.recording.head);
        self.tell_left_out(&mut text, all);
        let losses = &self.recording.head.losses;
        if losses.any() {
            let _ = writeln!(text, "{}", screen.alarm(losses.warning().trim_end()));
        } else {
            text.push_str("Lost: nothing.\n");
        }
        text
    }

    fn tell_left_out(&self, text: &mut String, all: bool) {
        let idle = self.services.iter().filter(|service| service.kind == Kind::Stream && service.connections == 0 && !all);
        let others = self.services.iter().filter(|service| service.kind != Kind::Stream);
        for (count, noun, what) in [
            (idle.count() as u64, "listening stream socket", "without a connection (--all shows them)"),
            (others.count() as u64, "named socket", "of another type than stream (in the recording only)"),
        ] {
            if count > 0 {
                let _ = writeln!(text, "Not shown: {} {what}.", plural(count, noun));
            }
        }
        for unnamed in self.unnamed.iter().filter(|unnamed| unnamed.connections > 0) {
            let what = match unnamed.kind {
                Kind::Unknown => "closed before seen by name",
                _ => "without a name (socketpair)",
            };
            let counted = match (unnamed.calls, unnamed.bytes) {
                (Some(calls), Some(bytes)) => format!("{}, {}", plural(calls, "call"), plural(bytes, "byte")),
                _ => String::from("traffic not counted"),
            };
            let _ = writeln!(text, "Not shown: {} {what}: {counted}.", plural(unnamed.connections, "connection"));
        }
        if !self.view.filter.is_empty() {
            let sockets = plural(self.view.sockets_left_out, "socket");
            let connections = plural(self.view.connections_left_out, "connection");
            let _ = writeln!(text, "Left out by the filter: {sockets} and {connections} (the recording has them).");
        }
    }
}

fn sentence(text: &mut String, head: &Head) {
    let seconds = head.window_ms as f64 / 1000.0;
    let early = if head.interrupted { ", ended early" } else { "" };
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "{seconds:.1} s{early}, mode {}. CALLS: sends of both ends; BYTES: what they sent; -: not measured.",
        head.mode
    );
    if let Some(time) = head.closer_ms {
        let _ = writeln!(
            text,
            "Passed descriptors and credentials, splice and wake-ups: in the first {:.1} s only.",
            time as f64 / 1000.0
        );
    }
    for limit in &head.mode_limits {
        let _ = writeln!(text, "Limit of mode {}: {limit}.", head.mode);
    }
    let _ = writeln!(text, "{}", head.cost);
}

fn row(service: &ServiceRecord, recent: Recent) -> Vec<String> {
    let number = |count: Option<u64>| count.map_or_else(dash, |count| count.to_string());
    let rate = |count: Option<u64>| count.map_or_else(dash, |count| short(recent.per_second(count)));
    vec![
        shown(service),
        summary(&service.servers),
        summary(&service.clients),
        service.connections.to_string(),
        number(service.calls),
        rate(recent.calls),
        number(service.bytes),
        rate(recent.bytes),
        service.mean_size().map_or_else(dash, short),
        accelerated(service),
    ]
}

/// The name, and what became of its file.
fn shown(service: &ServiceRecord) -> String {
    match service.file.as_ref().map(|file| file.state) {
        Some(FileState::Deleted) => format!("{} (deleted)", service.display),
        Some(FileState::Replaced) => format!("{} (replaced)", service.display),
        _ => service.display.clone(),
    }
}

fn dash() -> String {
    String::from("-")
}

fn accelerated(service: &ServiceRecord) -> String {
    let bytes = || service.ring_bytes.map_or_else(dash, |bytes| short(bytes as f64));
    match (service.accelerated, service.connections) {
        (0, _) if service.selected == 0 => String::from("no"),
        (0, _) => String::from("no (selected)"),
        (some, all) if some == all => format!("yes, {} ring bytes", bytes()),
        (some, all) => format!("{some} of {all}, {} ring bytes", bytes()),
    }
}

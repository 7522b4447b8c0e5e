//! Everything that is measured, with what it has to reach.

use crate::comparison::{Bar, Judged, Row};
use crate::workload::calls::CALLS;

use super::own::{Cpus, Own};
use super::tracer::OPERATIONS;

/// What is measured together because one run tells all of it.
pub(super) struct Scenario {
    /// The lines of the table that it makes.
    pub rows: Vec<Row>,
    /// How.
    pub kind: Kind,
}

/// How a scenario is measured.
pub(super) enum Kind {
    /// By a workload of ours.
    Own(Own),
    /// By one of ours that tells plain and preloaded figures by itself.
    Both(Own),
    /// By redis-benchmark's GET.
    Redis { clients: u32 },
    /// By pgbench's prepared SELECT.
    Pgbench { clients: u32 },
    /// By looking at connections on which nothing is said.
    Idle { connections: usize },
    /// By the tracer, beside operations that it sees and others.
    Watched { closer: bool },
}

impl Scenario {
    /// What a person reads while it is measured.
    pub(super) fn name(&self) -> String {
        match self.rows.as_slice() {
            [only] => only.name.clone(),
            [first, ..] => format!("{} (and {} more)", first.name, self.rows.len() - 1),
            [] => String::new(),
        }
    }
}

fn row(name: impl Into<String>, unit: &str, judged: Judged, bar: Option<(f64, f64)>) -> Row {
    let bar = bar.map(|(must, aim)| Bar { must, aim });
    Row { name: name.into(), unit: unit.to_owned(), judged, bar, point: None }
}

fn rate(name: impl Into<String>, unit: &str, bar: Option<(f64, f64)>, own: Own) -> Scenario {
    Scenario { rows: vec![row(name, unit, Judged::Rate, bar)], kind: Kind::Own(own) }
}

/// The curves of the plot.
pub(super) const CURVES: [&str; 2] = ["blocking round trip", "stream"];

fn on_curve(mut scenario: Scenario, curve: usize, size: usize) -> Scenario {
    for row in &mut scenario.rows {
        row.point = CURVES.get(curve).map(|name| ((*name).to_owned(), size));
    }
    scenario
}

/// Every scenario.
pub(super) fn all() -> Vec<Scenario> {
    let mut all = sizes();
    all.extend(many());
    all.extend([1, 100, 10_000].map(paced));
    all.push(calls());
    all.extend([(1, "1 client"), (50, "50 clients")].map(|(clients, text)| {
        let bar = Some(if clients == 1 { (2.5, 4.0) } else { (1.8, 2.5) });
        Scenario { rows: vec![row(format!("redis GET, {text}"), "requests/s", Judged::Rate, bar)], kind: Kind::Redis { clients } }
    }));
    all.extend([(1, "1 client"), (8, "8 clients")].map(|(clients, text)| {
        let bar = (clients == 1).then_some((1.25, 1.5));
        Scenario {
            rows: vec![row(format!("pgbench -S, prepared, {text}"), "transactions/s", Judged::Rate, bar)],
            kind: Kind::Pgbench { clients },
        }
    }));
    all.push(idle(10_000));
    all.extend([false, true].map(watched));
    all
}

/// One connection, by size of the message.
fn sizes() -> Vec<Scenario> {
    let mut all = Vec::new();
    for size in [1, 64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        let bar = (size == 64).then_some((12.0, 20.0));
        let name = format!("{} round trip, blocking", shown_size(size));
        let own = Own { size, ..Own::new("echo-server", "echo-client") };
        all.push(on_curve(rate(name, "round trips/s", bar, own), 0, size));
    }
    for (size, bar) in [
        (64, Some((10.0, 20.0))),
        (1 << 10, None),
        (4 << 10, Some((3.0, 4.0))),
        (16 << 10, None),
        (64 << 10, Some((1.5, 2.0))),
        (256 << 10, None),
        (1 << 20, Some((1.2, 1.5))),
    ] {
        let own = Own { size, ..Own::new("stream-server", "stream-client") };
        all.push(on_curve(rate(format!("stream, writes of {}", shown_size(size)), "bytes/s", bar, own), 1, size));
    }
    all
}

/// Many connections, few CPUs, short connections.
fn many() -> Vec<Scenario> {
    let echo = Own::new("echo-server", "echo-client");
    let short = Own::new("short-server", "short-client");
    let mut all = Vec::new();
    for (connections, text, bar) in [
        (1, "1 connection", Some((5.0, 10.0))),
        (50, "50 connections", Some((3.0, 5.0))),
        (1000, "1000 connections", Some((1.8, 3.0))),
        (5000, "5000 connections", None),
    ] {
        let own = Own { connections, ..Own::new("epoll-server", "many-client") };
        all.push(rate(format!("epoll echo, {text}"), "echoes/s", bar, own));
    }
    let all_at_once = Own { connections: 1000, cold: true, ..Own::new("epoll-server", "many-client") };
    all.push(rate("epoll echo, 1000 connections that begin at once", "echoes/s", None, all_at_once));
    for (name, server) in [("poll", "poll-server"), ("select", "select-server")] {
        let own = Own { connections: 50, ..Own::new(server, "many-client") };
        all.push(rate(format!("{name} echo, 50 connections"), "echoes/s", None, own));
    }
    let bar = Some((0.95, 1.1));
    all.push(rate("64 B round trip, both ends on one CPU", "round trips/s", bar, Own { cpus: Cpus::One, ..echo }));
    let crowded = Own { cpus: Cpus::Both, clients: 8, longer: 2, ..echo };
    all.push(rate("64 B round trip, 8 pairs on 2 CPUs", "round trips/s", bar, crowded));
    all.push(rate("connect, request, close", "connections/s", Some((0.95, 0.98)), short));
    all
}

fn paced(rate: u32) -> Scenario {
    let name = |what: &str| format!("{rate} message{}/s with think time, {what}", if rate == 1 { "" } else { "s" });
    let own = Own { rate, longer: 2, ..Own::new("echo-server", "paced-client") };
    let latency = row(name("median latency"), "µs", Judged::Latency, Some((0.95, 0.95)));
    Scenario { rows: vec![latency, row(name("CPU time"), "µs/message", Judged::Cost, Some((1.3, 1.1)))], kind: Kind::Own(own) }
}

fn calls() -> Scenario {
    let line = |(name, ..): &(&str, _, _)| row(format!("plain call: {name}"), "ns", Judged::Extra, Some((3.0, 1.0)));
    let own = Own { server: None, longer: 3, ..Own::new("", "plain-calls") };
    Scenario { rows: CALLS.iter().map(line).collect(), kind: Kind::Both(own) }
}

fn idle(connections: usize) -> Scenario {
    let name = |what: &str| format!("{connections} idle connections, {what}");
    Scenario {
        rows: vec![
            // Less than what shows as 0.0.
            row(name("CPU in 10 s"), "%", Judged::Level, Some((0.05, 0.05))),
            row(name("memory of both ends"), "KiB/connection", Judged::Extra, None),
        ],
        kind: Kind::Idle { connections },
    }
}

fn watched(closer: bool) -> Scenario {
    let line = |name: &&str| {
        let bar = match name {
            _ if closer || name.contains("connect") => None,
            _ if name.contains("Unix") => Some((1.05, 1.01)),
            _ => Some((1.01, 1.01)),
        };
        let how = if closer { "looked at closer" } else { "watched" };
        row(format!("{how} by the tracer: {name}"), "ns", Judged::Cost, bar)
    };
    Scenario { rows: OPERATIONS.iter().map(line).collect(), kind: Kind::Watched { closer } }
}

/// A size as a person says it.
pub(super) fn shown_size(size: usize) -> String {
    match size {
        1_048_576.. => format!("{} MiB", size >> 20),
        1024.. => format!("{} KiB", size >> 10),
        _ => format!("{size} B"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_is_there_once() {
        let all = all();
        let names: Vec<_> = all.iter().flat_map(|scenario| &scenario.rows).map(|row| row.name.as_str()).collect();
        assert_eq!(names.len(), names.iter().collect::<HashSet<_>>().len(), "{names:?}");
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        assert_eq!([1, 64, 1024, 65_536, 1 << 20].map(shown_size), ["1 B", "64 B", "1 KiB", "64 KiB", "1 MiB"]);
    }
}

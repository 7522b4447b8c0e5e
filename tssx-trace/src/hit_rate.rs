//! From joined connections to hit rates: how much of each selected socket's traffic went through rings, and why the
//! rest did not.
//!
//! The ring bytes come from the ledgers and the kernel bytes from the kernel programs: two sources that know nothing of
//! each other. The library's own bytes on the kernel socket (doorbells) are taken off. The ledgers are read just after the
//! programs begin and just before they end, so doorbells at the edges of the window count as kernel bytes: a rate is too
//! low by a few bytes rather than too high.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use tssx_core::ledger::layout::SLOT_CLOSED;
use tssx_core::reason::Reason;

use crate::advice::{Finding, Side};
use crate::bypass::{self, Bypass};
use crate::inventory::Kind;
use crate::join::{Connection, End, describe, make_absolute, services};
use crate::names::SocketName;
use crate::recording::ProcessRecord;
use crate::watch::Observation;

/// One socket name's hit rate over the window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SocketReport {
    pub(crate) name: SocketName,
    /// The name as text, for people.
    pub(crate) display: String,
    /// `ring_bytes / (ring_bytes + kernel_bytes)`; `None` if the selected connections moved no byte.
    pub(crate) hit_rate: Option<f64>,
    /// Bytes of the selected connections through rings, both directions, each counted once.
    pub(crate) ring_bytes: u64,
    /// Program bytes of the same connections through the kernel socket, as the kernel programs counted them.
    pub(crate) kernel_bytes: u64,
    /// Of these, what accelerated connections moved: before they were upgraded, or after they went back.
    pub(crate) kernel_bytes_of_accelerated: u64,
    /// `kernel_bytes` as the library counted it. More in `kernel_bytes` went past the library, or fell between the edges.
    pub(crate) library_kernel_bytes: u64,
    /// Connections of the window that a library selected at one end or both.
    pub(crate) selected: u64,
    /// Of these, how many moved bytes through a ring.
    pub(crate) accelerated: u64,
    /// Connections of the same name that no library selected, and their bytes: no part of the hit rate.
    pub(crate) not_selected: u64,
    pub(crate) not_selected_bytes: u64,
    /// System calls that the library made to wake the other end.
    pub(crate) doorbells: u64,
    /// Times a program slept because a ring was empty or full.
    pub(crate) sleeps: u64,
    /// Times that a program found bytes or room while it spun, instead of going to sleep.
    pub(crate) spin_hits: u64,
    /// Times that a sender found its ring full.
    pub(crate) ring_full: u64,
    pub(crate) servers: Vec<ProcessRecord>,
    pub(crate) clients: Vec<ProcessRecord>,
    /// Why connections are (or went back) on the kernel socket, with the number of connections.
    pub(crate) reasons: Vec<ReasonCount>,
    /// What keeps the library out of the programs at an end, by the facts about them.
    pub(crate) obstacles: Vec<Finding>,
    /// Ends that moved bytes past their library.
    pub(crate) bypassed: Vec<Bypass>,
    /// Each selected connection; only with `--connections`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) connections: Vec<ConnectionReport>,
    /// Closed connections of which one end read more from the ring than the other wrote: a ledger lies or is broken.
    pub(crate) disagreements: u64,
}

/// One selected connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConnectionReport {
    pub(crate) accelerated: bool,
    pub(crate) server: EndReport,
    pub(crate) client: EndReport,
}

/// One end of it over the window; program bytes and calls only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EndReport {
    /// `SO_COOKIE` of the socket; 0 if it was never seen.
    pub(crate) cookie: u64,
    pub(crate) pids: Vec<u32>,
    /// Whether the end has a ledger; all below is zero if not.
    pub(crate) library: bool,
    /// Why the end is on the kernel socket, if it is.
    pub(crate) reason: Option<String>,
    pub(crate) ring_tx_bytes: u64,
    pub(crate) ring_rx_bytes: u64,
    pub(crate) kernel_tx_bytes: u64,
    pub(crate) kernel_rx_bytes: u64,
    pub(crate) doorbell_tx_calls: u64,
    pub(crate) doorbell_rx_calls: u64,
    pub(crate) sleeps: u64,
}

/// How many connections have one reason at one end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ReasonCount {
    pub(crate) end: Side,
    /// The library's reason, or `no-library` where the end has no ledger.
    pub(crate) reason: String,
    pub(crate) explanation: String,
    pub(crate) connections: u64,
}

/// Every stream socket that a library selected, or those in `wanted` where that is not empty; and every one in `also` that was seen at all.
pub(crate) fn sockets(seen: &Observation, wanted: &[SocketName], also: &[SocketName]) -> Vec<SocketReport> {
    let mut reports = Vec::new();
    for (key, service) in services(seen) {
        let Some(name) = key.name.filter(|_| key.kind == Kind::Stream) else { continue };
        let mut servers = service.listener_pids;
        servers.extend(service.connections.iter().flat_map(|connection| connection.server.pids.iter()));
        let name = make_absolute(&name, &servers).unwrap_or(name);
        let is_wanted = wanted.iter().chain(also).any(|wanted| is_same(wanted, &name));
        let is_selected = service.connections.iter().any(Connection::is_selected);
        if is_wanted || (wanted.is_empty() && is_selected) {
            reports.push(report(seen, name, &service.connections, &servers));
        }
    }
    reports
}

/// Whether two names are one socket: equal, or two paths to one file.
pub(crate) fn is_same(one: &SocketName, other: &SocketName) -> bool {
    let file = |name: &SocketName| match name {
        SocketName::Path(path) => std::fs::metadata(std::ffi::OsStr::from_bytes(path)).ok().map(|file| (file.dev(), file.ino())),
        SocketName::Abstract(_) => None,
    };
    one == other || file(one).is_some_and(|one| file(other) == Some(one))
}

fn report(seen: &Observation, name: SocketName, connections: &[Connection], servers: &BTreeSet<u32>) -> SocketReport {
    let clients = connections.iter().flat_map(|connection| connection.client.pids.iter().copied()).collect();
    let mut report = SocketReport {
        display: name.to_string(),
        name,
        hit_rate: None,
        ring_bytes: 0,
        kernel_bytes: 0,
        kernel_bytes_of_accelerated: 0,
        library_kernel_bytes: 0,
        selected: 0,
        accelerated: 0,
        not_selected: 0,
        not_selected_bytes: 0,
        doorbells: 0,
        sleeps: 0,
        spin_hits: 0,
        ring_full: 0,
        servers: describe(seen, servers),
        clients: describe(seen, &clients),
        reasons: reasons(connections),
        obstacles: Vec::new(),
        bypassed: bypass::of(seen, connections),
        connections: Vec::new(),
        disagreements: 0,
    };
    for connection in connections {
        let total = connection.total();
        if !connection.is_selected() {
            report.not_selected += 1;
            report.not_selected_bytes = report.not_selected_bytes.saturating_add(total.bytes());
            continue;
        }
        report.selected += 1;
        report.accelerated += u64::from(connection.is_accelerated());
        report.ring_bytes = report.ring_bytes.saturating_add(total.ring_bytes);
        report.kernel_bytes = report.kernel_bytes.saturating_add(total.kernel_bytes);
        if connection.is_accelerated() {
            report.kernel_bytes_of_accelerated = report.kernel_bytes_of_accelerated.saturating_add(total.kernel_bytes);
        }
        report.library_kernel_bytes = report.library_kernel_bytes.saturating_add(library_kernel_bytes(connection));
        report.doorbells = report.doorbells.saturating_add(doorbells(connection));
        let add = |sum: u64, of: fn(&End) -> u64| connection.ends().into_iter().map(of).fold(sum, u64::saturating_add);
        report.sleeps = add(report.sleeps, End::sleeps);
        report.spin_hits = add(report.spin_hits, End::spin_hits);
        report.ring_full = add(report.ring_full, End::ring_full);
        report.disagreements +=
            u64::from(disagrees(&connection.client, &connection.server) || disagrees(&connection.server, &connection.client));
        let [server, client] = connection.ends().map(|end| end_report(end, connection.is_accelerated()));
        report.connections.push(ConnectionReport { accelerated: connection.is_accelerated(), server, client });
    }
    report.hit_rate = hit_rate(report.ring_bytes, report.kernel_bytes);
    report
}

/// Why selected connections are (or went back) on the kernel socket, with the number of connections.
pub(crate) fn reasons(connections: &[Connection]) -> Vec<ReasonCount> {
    let mut counts = BTreeMap::new();
    for connection in connections.iter().filter(|connection| connection.is_selected()) {
        for (end, side) in connection.ends().into_iter().zip(Side::BOTH) {
            if let Some((reason, explanation)) = reason(end, connection.is_accelerated()) {
                *counts.entry((side.name(), reason, explanation, side)).or_insert(0) += 1;
            }
        }
    }
    let count = |((_, reason, explanation, end), connections)| ReasonCount { end, reason, explanation, connections };
    counts.into_iter().map(count).collect()
}

/// The share of rings; `None` where nothing moved: a rate of nothing is no rate.
pub(crate) fn hit_rate(ring: u64, kernel: u64) -> Option<f64> {
    let (ring, kernel) = (ring as f64, kernel as f64);
    (ring + kernel > 0.0).then(|| ring / (ring + kernel))
}

/// System calls for doorbells in both directions. Without the sender's ledger, the receiver's calls are what is known.
fn doorbells(connection: &Connection) -> u64 {
    let [server, client] = connection.ends();
    let sent = |from: &End, to: &End| from.doorbell_tx().or_else(|| to.doorbell_rx()).unwrap_or_default().0;
    sent(server, client).saturating_add(sent(client, server))
}

fn end_report(end: &End, accelerated: bool) -> EndReport {
    let calls = |pair: Option<(u64, u64)>| pair.unwrap_or_default().0;
    let bytes = |pair: Option<(u64, u64)>| pair.unwrap_or_default().1;
    EndReport {
        cookie: end.cookie,
        pids: end.pids.iter().copied().collect(),
        library: end.ledger.is_some(),
        reason: reason(end, accelerated).map(|(name, _)| name),
        ring_tx_bytes: bytes(end.ring_tx()),
        ring_rx_bytes: bytes(end.ring_rx()),
        kernel_tx_bytes: bytes(end.library_tx()),
        kernel_rx_bytes: bytes(end.library_rx()),
        doorbell_tx_calls: calls(end.doorbell_tx()),
        doorbell_rx_calls: calls(end.doorbell_rx()),
        sleeps: end.sleeps(),
    }
}

/// Program bytes through the kernel socket in both directions, by the ledgers alone.
fn library_kernel_bytes(connection: &Connection) -> u64 {
    let [server, client] = connection.ends();
    let sent = |from: &End, to: &End| from.library_tx().or_else(|| to.library_rx()).unwrap_or_default().1;
    sent(server, client).saturating_add(sent(client, server))
}

/// Whether the ledgers of a closed connection contradict each other.
fn disagrees(from: &End, to: &End) -> bool {
    let (Some(sender), Some(receiver)) = (&from.ledger, &to.ledger) else { return false };
    let closed = sender.now.state == SLOT_CLOSED && receiver.now.state == SLOT_CLOSED;
    closed && receiver.now.ring_rx_bytes > sender.now.ring_tx_bytes
}

/// Why this end is on the kernel socket, as name and explanation; `None` if it is accelerated.
fn reason(end: &End, accelerated: bool) -> Option<(String, String)> {
    let Some(ledger) = &end.ledger else {
        let explanation = "no ledger of this end was seen: it runs without the library or without this socket in USE_TSSX";
        return (!accelerated).then(|| ("no-library".into(), explanation.into()));
    };
    match Reason::from_code(ledger.now.reason) {
        Some(Reason::None) if accelerated => None,
        Some(Reason::None) => {
            Some(("undecided".into(), "selected, and not enough traffic yet or still waiting for the other end".into()))
        }
        Some(Reason::Closed) if accelerated => None,
        Some(reason) => Some((reason.name().into(), reason.explanation().into())),
        None => Some((format!("reason-{}", ledger.now.reason), "not a reason that this release knows".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_nothing_is_no_rate() {
        assert_eq!(hit_rate(0, 0), None);
        assert_eq!(hit_rate(0, 5), Some(0.0));
        assert_eq!(hit_rate(99, 1), Some(0.99));
    }

    #[test]
    fn two_paths_to_one_file_are_one_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let detour = directory.path().join("../").join(directory.path().file_name().expect("named")).join("x.sock");
        let name = |path: &std::path::Path| SocketName::Path(path.as_os_str().as_bytes().to_vec());
        assert!(is_same(&name(&path), &name(&detour)));
        assert!(!is_same(&name(&path), &name(directory.path())));
        assert!(!is_same(&SocketName::Abstract(b"x".to_vec()), &SocketName::Path(b"x".to_vec())));
    }
}

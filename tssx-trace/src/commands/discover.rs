//! `discover`: watch, print who talks to whom and how much, leave a recording.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use crate::cli::{DiscoverArgs, exit};
use crate::evidence::Evidence;
use crate::inventory::Kind;
use crate::join::{Connection, End, Flow, Place, Service, ServiceKey, describe, make_absolute, received, sent, services};
use crate::names::SocketName;
use crate::output::{note, plural, result, short, table};
use crate::pairs::PairRecord;
use crate::places::{FileRecord, FileState, locate};
use crate::recording::{FlowRecord, Recording, ServiceRecord, summary};
use crate::watch::{Observation, watch};

/// Ledgers only tell which sockets are accelerated already: no need to hurry.
const LEDGER_PERIOD: Duration = Duration::from_millis(250);

/// Runs the subcommand.
///
/// # Errors
/// Where the machine lacks what tracing needs, or the recording cannot be written.
pub(crate) fn run(args: &DiscoverArgs) -> anyhow::Result<u8> {
    let seen = watch(args.window.window(LEDGER_PERIOD, false))?;
    let recording = record(&seen, args.pairs);
    let text = if args.window.json { recording.to_json()? } else { render(&recording, args.all) };
    result(&text)?;
    let path = recording.save(args.record.as_deref())?;
    note(&format!("recorded in {}; next: tssx-trace suggest", path.display()));
    if recording.closed_namespaces > 0 {
        note(&format!(
            "warning: {} network namespaces could not be entered: their sockets have no names",
            recording.closed_namespaces
        ));
    }
    recording.losses.tell(args.window.max_sockets);
    Ok(if recording.losses.any() { exit::LOST } else { 0 })
}

/// The recording of a window; `pairs` lists each connection.
pub(crate) fn record(seen: &Observation, pairs: bool) -> Recording {
    let window_ms = u64::try_from(seen.elapsed.as_millis()).unwrap_or(u64::MAX);
    let mut recording = Recording::new(window_ms, seen.losses);
    recording.interrupted = seen.interrupted;
    recording.cost = seen.cost;
    recording.mode = seen.mode.name().into();
    recording.mode_limits = seen.mode.limits().iter().copied().map(String::from).collect();
    recording.refused_modes.clone_from(&seen.refusals);
    recording.closed_namespaces = seen.inventory.closed_namespaces();
    for (key, service) in services(seen) {
        let mut record = record_service(seen, key, &service);
        for connection in &service.connections {
            let pair = PairRecord::new(&seen.inventory, seen.mode.measures_traffic(), connection);
            recording.conservation.add(&pair);
            if pairs {
                record.pairs.push(pair);
            }
        }
        let list = if record.name.is_some() { &mut recording.services } else { &mut recording.unnamed };
        list.push(record);
    }
    recording.services.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    recording
}

fn record_service(seen: &Observation, key: ServiceKey, service: &Service) -> ServiceRecord {
    let ServiceKey { name, kind, place } = key;
    let mut total = Flow::default();
    let mut to_server = FlowRecord::default();
    let mut to_client = FlowRecord::default();
    let mut servers = service.listener_pids.clone();
    let mut clients = BTreeSet::new();
    for connection in &service.connections {
        total.add(connection.total());
        add_direction(&mut to_server, &connection.client, &connection.server);
        add_direction(&mut to_client, &connection.server, &connection.client);
        servers.extend(&connection.server.pids);
        clients.extend(&connection.client.pids);
    }
    let count = |test: fn(&Connection) -> bool| service.connections.iter().filter(|c| test(c)).count() as u64;
    let display = name.as_ref().map_or_else(|| String::from("(unnamed)"), SocketName::to_string);
    ServiceRecord {
        file: file_of(name.as_ref(), place, &servers),
        absolute: name.as_ref().and_then(|name| make_absolute(name, &servers)),
        name,
        display,
        kind,
        servers: describe(seen, &servers),
        clients: describe(seen, &clients),
        connections: service.connections.len() as u64,
        waiting: service.waiting,
        selected: count(Connection::is_selected),
        accelerated: count(Connection::is_accelerated),
        calls: total.calls(),
        bytes: total.bytes(),
        ring_calls: total.ring_calls,
        ring_bytes: total.ring_bytes,
        queued_bytes: queued(seen, service),
        client_to_server: to_server,
        server_to_client: to_client,
        evidence: Evidence::of(seen, service),
        pairs: Vec::new(),
    }
}

fn file_of(name: Option<&SocketName>, place: Option<Place>, servers: &BTreeSet<u32>) -> Option<FileRecord> {
    let (Some(SocketName::Path(path)), Some(Place::File(file))) = (name, place) else { return None };
    Some(locate(path, file, servers.iter().copied()))
}

/// Bytes that the ends have not received yet, as far as a list of sockets told.
fn queued(seen: &Observation, service: &Service) -> Option<u64> {
    let ends = service.connections.iter().flat_map(Connection::ends);
    ends.filter_map(|end| seen.inventory.queued(end.cookie)).reduce(u64::saturating_add)
}

fn add_direction(record: &mut FlowRecord, from: &End, to: &End) {
    let (sent, received) = (sent(from, to), received(from, to));
    record.send_calls += sent.calls();
    record.sent_bytes += sent.bytes();
    record.receive_calls += received.calls();
    record.received_bytes += received.bytes();
}

/// The table and the sentences below it.
fn render(recording: &Recording, all: bool) -> String {
    let mut rows = Vec::new();
    let mut idle = 0;
    for service in recording.services.iter().filter(|service| service.kind == Kind::Stream) {
        if service.connections == 0 && !all {
            idle += 1;
            continue;
        }
        rows.push(vec![
            shown(service),
            summary(&service.servers),
            summary(&service.clients),
            service.connections.to_string(),
            measured(recording, || service.calls.to_string()),
            measured(recording, || short(recording.per_second(service.calls))),
            measured(recording, || service.bytes.to_string()),
            measured(recording, || short(recording.per_second(service.bytes))),
            measured(recording, || service.mean_size().map_or_else(|| String::from("-"), short)),
            accelerated(service),
        ]);
    }
    let header = ["SOCKET", "SERVER", "CLIENTS", "CONNS", "CALLS", "CALLS/S", "BYTES", "BYTES/S", "MEAN", "ACCELERATED"];
    let mut text = if rows.is_empty() {
        String::from("No Unix stream socket with a name had a connection.\n")
    } else {
        table(&header, &[3, 4, 5, 6, 7, 8], rows)
    };
    text.push('\n');
    let seconds = recording.window_ms as f64 / 1000.0;
    let early = if recording.interrupted { ", ended early" } else { "" };
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{seconds:.1} s{early}, mode {}. CALLS: sends of both ends; BYTES: what they sent.", recording.mode);
    for limit in &recording.mode_limits {
        let _ = writeln!(text, "Limit of mode {}: {limit}.", recording.mode);
    }
    let _ = writeln!(text, "{}", recording.cost);
    let others = recording.services.iter().filter(|service| service.kind != Kind::Stream).count() as u64;
    for (count, noun, what) in [
        (idle, "listening stream socket", "without a connection (--all shows them)"),
        (others, "named socket", "of another type than stream (in the recording only)"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "Not shown: {} {what}.", plural(count, noun));
        }
    }
    for unnamed in recording.unnamed.iter().filter(|unnamed| unnamed.connections > 0) {
        let what = match unnamed.kind {
            Kind::Unknown => "closed before seen by name",
            _ => "without a name (socketpair)",
        };
        let traffic = measured(recording, || format!("{}, {}", plural(unnamed.calls, "call"), plural(unnamed.bytes, "byte")));
        let _ = writeln!(text, "Not shown: {} {what}: {traffic}.", plural(unnamed.connections, "connection"));
    }
    text.push_str(&recording.conservation.warning());
    text.push_str(recording.losses.warning());
    text
}

/// The name, and what became of its file.
fn shown(service: &ServiceRecord) -> String {
    match service.file.as_ref().map(|file| file.state) {
        Some(FileState::Deleted) => format!("{} (deleted)", service.display),
        Some(FileState::Replaced) => format!("{} (replaced)", service.display),
        _ => service.display.clone(),
    }
}

/// A figure of the kernel's traffic, or the words for a mode that counts none.
fn measured(recording: &Recording, figure: impl FnOnce() -> String) -> String {
    if recording.measures_traffic() { figure() } else { String::from("not measured") }
}

fn accelerated(service: &ServiceRecord) -> String {
    match (service.accelerated, service.connections) {
        (0, _) if service.selected == 0 => String::from("no"),
        (0, _) => String::from("no (selected)"),
        (some, all) if some == all => format!("yes, {} ring bytes", short(service.ring_bytes as f64)),
        (some, all) => format!("{some} of {all}, {} ring bytes", short(service.ring_bytes as f64)),
    }
}

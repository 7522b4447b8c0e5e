//! `discover`: watch, print who talks to whom and how much, leave a recording; or print the report of a recording again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cli::{DiscoverArgs, Format, exit};
use crate::commands::follow::Follower;
use crate::inventory::Kind;
use crate::join::{Connection, End, Flow, Service, describe, make_absolute, received, sent, services};
use crate::names::SocketName;
use crate::output::{note, result};
use crate::recording::{FlowRecord, Recording, ServiceRecord};
use crate::report::Report;
use crate::screen::Screen;
use crate::watch::{Observation, watch, watch_with};

/// Ledgers only tell which sockets are accelerated already: no need to hurry.
const LEDGER_PERIOD: Duration = Duration::from_millis(250);

/// Runs the subcommand.
///
/// # Errors
/// Where the machine lacks what tracing needs, or a recording cannot be read or written.
pub(crate) fn run(args: &DiscoverArgs) -> anyhow::Result<u8> {
    let recording = if let Some(file) = &args.from {
        let recording = Recording::load(file)?;
        print(args, &recording)?;
        recording
    } else {
        let recording = record(&observe(args)?, args.window.max_sockets);
        print(args, &recording)?;
        let path = recording.save(args.record.as_deref())?;
        note(&format!("recorded in {}; next: tssx-trace suggest", path.display()));
        recording
    };
    let head = &recording.head;
    if head.closed_namespaces > 0 {
        note(&format!("warning: {} network namespaces could not be entered: their sockets have no names", head.closed_namespaces));
    }
    head.losses.tell(head.tracer.max_sockets);
    Ok(if head.losses.any() { exit::LOST } else { 0 })
}

fn observe(args: &DiscoverArgs) -> anyhow::Result<Observation> {
    let window = args.window(LEDGER_PERIOD);
    if args.follow {
        if args.format() == Format::Json {
            anyhow::bail!("--follow prints several documents: use --format jsonl instead of json");
        }
        watch_with(window, Some((args.interval, &mut Follower::new(args))))
    } else {
        watch(window)
    }
}

/// Prints the report that `args` ask for.
fn print(args: &DiscoverArgs, recording: &Recording) -> anyhow::Result<()> {
    let selection = args.selection();
    let report = Report::of(recording, &selection);
    let text = match args.format() {
        Format::Table => report.text(args.all, Screen::of_stdout()),
        Format::Json => report.json()?,
        Format::Jsonl => report.lines()?,
    };
    Ok(result(&text)?)
}

/// The recording of a window.
pub(crate) fn record(seen: &Observation, max_sockets: u32) -> Recording {
    let window_ms = u64::try_from(seen.elapsed.as_millis()).unwrap_or(u64::MAX);
    let mut recording = Recording::new(window_ms, seen.losses, max_sockets);
    recording.head.interrupted = seen.interrupted;
    recording.head.closed_namespaces = seen.inventory.closed_namespaces();
    for ((name, kind), service) in services(seen) {
        let record = record_service(seen, name, kind, &service);
        let list = if record.name.is_some() { &mut recording.services } else { &mut recording.unnamed };
        list.push(record);
    }
    recording.services.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    recording
}

fn record_service(seen: &Observation, name: Option<SocketName>, kind: Kind, service: &Service) -> ServiceRecord {
    let mut total = Flow::default();
    let mut to_server = FlowRecord::ZERO;
    let mut to_client = FlowRecord::ZERO;
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
    let selected = count(Connection::is_selected);
    let display = name.as_ref().map_or_else(|| String::from("(unnamed)"), SocketName::to_string);
    ServiceRecord {
        absolute: name.as_ref().and_then(|name| make_absolute(name, &servers)),
        name,
        display,
        kind,
        servers: describe(seen, &servers),
        clients: describe(seen, &clients),
        connections: service.connections.len() as u64,
        selected,
        accelerated: count(Connection::is_accelerated),
        calls: known(seen, total.calls()),
        bytes: known(seen, total.bytes()),
        ring_calls: (selected > 0).then_some(total.ring_calls),
        ring_bytes: (selected > 0).then_some(total.ring_bytes),
        client_to_server: known_flow(seen, to_server),
        server_to_client: known_flow(seen, to_client),
    }
}

/// A count that can be told: where something was lost, nothing counted does not mean that nothing was there.
fn known(seen: &Observation, count: u64) -> Option<u64> {
    (count > 0 || !seen.losses.any()).then_some(count)
}

fn known_flow(seen: &Observation, flow: FlowRecord) -> FlowRecord {
    let known = |count: Option<u64>| count.and_then(|count| known(seen, count));
    FlowRecord {
        send_calls: known(flow.send_calls),
        sent_bytes: known(flow.sent_bytes),
        receive_calls: known(flow.receive_calls),
        received_bytes: known(flow.received_bytes),
    }
}

fn add_direction(record: &mut FlowRecord, from: &End, to: &End) {
    let add = |sum: &mut Option<u64>, more: u64| *sum = Some(sum.unwrap_or(0).saturating_add(more));
    let (sent, received) = (sent(from, to), received(from, to));
    add(&mut record.send_calls, sent.calls());
    add(&mut record.sent_bytes, sent.bytes());
    add(&mut record.receive_calls, received.calls());
    add(&mut record.received_bytes, received.bytes());
}

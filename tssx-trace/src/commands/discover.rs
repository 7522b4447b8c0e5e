//! `discover`: watch, print who talks to whom and how much, leave a recording; or print the report of a recording again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cli::{DiscoverArgs, Format, exit};
use crate::commands::follow::Follower;
use crate::evidence::Index;
use crate::hit_rate::reasons;
use crate::join::{Connection, End, Flow, Place, Service, ServiceKey, describe, make_absolute, received, sent, services};
use crate::names::SocketName;
use crate::output::{note, result};
use crate::pairs::PairRecord;
use crate::places::{FileRecord, locate};
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
        for refusal in &recording.head.refused_modes {
            note(&format!("mode {} did not work there: {}", refusal.mode, refusal.reason));
        }
        print(args, &recording)?;
        recording
    } else {
        let recording = record(&observe(args)?, args.window.max_sockets, args.pairs);
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

/// The recording of a window; `pairs` lists each connection.
pub(crate) fn record(seen: &Observation, max_sockets: u32, pairs: bool) -> Recording {
    let window_ms = u64::try_from(seen.elapsed.as_millis()).unwrap_or(u64::MAX);
    let mut recording = Recording::new(window_ms, seen.losses, max_sockets);
    let head = &mut recording.head;
    head.interrupted = seen.interrupted;
    head.closer_ms = seen.closer.lasted.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    head.cost = seen.cost;
    head.mode = seen.mode.name().into();
    head.mode_limits = seen.mode.limits().iter().copied().map(String::from).collect();
    head.refused_modes.clone_from(&seen.refusals);
    head.library = seen.processes.library().map(|path| path.to_string_lossy().into_owned());
    head.closed_namespaces = seen.inventory.closed_namespaces();
    let evidence = Index::new(seen);
    for (key, service) in services(seen) {
        let mut record = record_service(seen, key, &service);
        record.evidence = evidence.of(&service);
        for connection in &service.connections {
            let pair = PairRecord::new(&seen.inventory, seen.mode.measures_traffic(), connection);
            recording.head.conservation.add(&pair);
            if pairs {
                record.pairs.push(pair);
            }
        }
        let list = if record.name.is_some() { &mut recording.services } else { &mut recording.unnamed };
        list.push(record);
    }
    let all = recording.services.iter().chain(&recording.unnamed);
    let pids: BTreeSet<u32> =
        all.flat_map(|record| record.servers.iter().chain(&record.clients)).map(|process| process.pid).collect();
    recording.programs = pids.into_iter().filter_map(|pid| seen.processes.program(pid).cloned()).collect();
    recording.services.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    recording
}

fn record_service(seen: &Observation, key: ServiceKey, service: &Service) -> ServiceRecord {
    let ServiceKey { name, kind, place } = key;
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
    let callers = |end: fn(&Connection) -> &End| {
        let callers: BTreeSet<u32> = service.connections.iter().flat_map(|connection| end(connection).callers.clone()).collect();
        callers.into_iter().collect()
    };
    let count = |test: fn(&Connection) -> bool| service.connections.iter().filter(|c| test(c)).count() as u64;
    let selected = count(Connection::is_selected);
    let display = name.as_ref().map_or_else(|| String::from("(unnamed)"), SocketName::to_string);
    ServiceRecord {
        network: network_of(place),
        file: file_of(name.as_ref(), place, &servers),
        absolute: name.as_ref().and_then(|name| make_absolute(name, &servers)),
        name,
        display,
        kind,
        servers: describe(seen, &servers),
        clients: describe(seen, &clients),
        server_callers: callers(|connection| &connection.server),
        client_callers: callers(|connection| &connection.client),
        connections: service.connections.len() as u64,
        waiting: service.waiting,
        open: open(seen, service),
        selected,
        accelerated: count(Connection::is_accelerated),
        reasons: reasons(&service.connections),
        calls: known(seen, total.calls()),
        bytes: known(seen, total.bytes()),
        ring_calls: (selected > 0).then_some(total.ring_calls),
        ring_bytes: (selected > 0).then_some(total.ring_bytes),
        queued_bytes: queued(seen, service),
        client_to_server: known_flow(seen, to_server),
        server_to_client: known_flow(seen, to_client),
        evidence: None,
        pairs: Vec::new(),
    }
}

/// A count that can be told: one of a mode that counts; and where something was lost, nothing counted does not mean that
/// nothing was there.
fn known(seen: &Observation, count: u64) -> Option<u64> {
    (seen.mode.measures_traffic() && (count > 0 || !seen.losses.any())).then_some(count)
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

fn file_of(name: Option<&SocketName>, place: Option<Place>, servers: &BTreeSet<u32>) -> Option<FileRecord> {
    let (Some(SocketName::Path(path)), Some(Place::File(file))) = (name, place) else { return None };
    Some(locate(path, file, servers.iter().copied()))
}

fn network_of(place: Option<Place>) -> Option<u64> {
    match place? {
        Place::Network(inode) => Some(inode),
        Place::File(_) => None,
    }
}

/// Connections of which a socket is there now. Where sockets cannot be listed nothing tells of one that no list ever showed.
fn open(seen: &Observation, service: &Service) -> Option<u64> {
    let has = |connection: &Connection, test: &dyn Fn(u64) -> bool| connection.ends().iter().any(|end| test(end.cookie));
    let is_listed = |connection: &Connection| has(connection, &|cookie| seen.inventory.socket(cookie).is_some());
    let is_open = |connection: &&Connection| has(connection, &|cookie| seen.inventory.is_there(cookie));
    let known = seen.inventory.closed_namespaces() == 0 || service.connections.iter().all(is_listed);
    known.then(|| service.connections.iter().filter(is_open).count() as u64)
}

/// Bytes that the ends have not received yet, as far as a list of sockets told.
fn queued(seen: &Observation, service: &Service) -> Option<u64> {
    let ends = service.connections.iter().flat_map(Connection::ends);
    ends.filter_map(|end| seen.inventory.queued(end.cookie)).reduce(u64::saturating_add)
}

fn add_direction(record: &mut FlowRecord, from: &End, to: &End) {
    let add = |sum: &mut Option<u64>, more: u64| *sum = Some(sum.unwrap_or(0).saturating_add(more));
    let (sent, received) = (sent(from, to), received(from, to));
    add(&mut record.send_calls, sent.calls());
    add(&mut record.sent_bytes, sent.bytes());
    add(&mut record.receive_calls, received.calls());
    add(&mut record.received_bytes, received.bytes());
}

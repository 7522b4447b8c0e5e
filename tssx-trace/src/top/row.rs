//! One socket: its figures of the last interval, and in few words whether it is accelerated and why not.

use std::collections::HashMap;

use super::columns::Column;
use crate::advice::{Code, Finding, Weight, explain};
use crate::output::short;
use crate::recording::{ProcessRecord, Recording, ServiceRecord, summary};
use crate::report::Recent;
use crate::report::follow::{Key, key};

/// Calls a second below which traffic would be called little: whoever looks sees how much it is.
const MIN_CALLS: f64 = 0.0;

/// One socket.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// What tells it from others.
    pub(super) key: Key,
    pub(super) name: String,
    pub(super) server: String,
    pub(super) clients: String,
    /// Every process of the one end and of the other.
    pub(super) processes: String,
    /// Connections since the start, how many of them a library selected, and how many moved bytes through a ring.
    pub(super) connections: u64,
    /// Of the connections, those that are open now; `None`: not known.
    pub(super) open: Option<u64>,
    pub(super) selected: u64,
    pub(super) accelerated: u64,
    /// What it did in the last interval.
    pub(super) recent: Recent,
    /// Whether all connections are accelerated, and in a word why the others are not.
    pub(super) state: String,
    /// The same in a sentence, with the remedy; empty where all are.
    pub(super) why: String,
}

/// What a column sorts by.
pub(super) enum Value<'a> {
    /// The largest first, and what was not measured last.
    Number(Option<f64>),
    /// From A to Z.
    Text(&'a str),
}

impl Row {
    /// What `service` did in the last interval.
    pub(super) fn new(recording: &Recording, service: &ServiceRecord, recent: Recent) -> Self {
        let (state, why) = state(recording, service);
        Self {
            key: key(service),
            name: service.display.clone(),
            server: summary(&service.servers),
            clients: summary(&service.clients),
            processes: format!("{} ⇄ {}", named(&service.servers), named(&service.clients)),
            connections: service.connections,
            open: service.open,
            selected: service.selected,
            accelerated: service.accelerated,
            recent,
            state,
            why,
        }
    }

    /// Whether every connection of it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.open == Some(0)
    }

    /// A count of the last interval as a rate.
    fn rate(&self, count: Option<u64>) -> Option<f64> {
        count.map(|count| self.recent.per_second(count))
    }

    /// The text of a column; none of the history.
    pub(super) fn text(&self, column: Column) -> String {
        let rate = |count: Option<u64>| self.rate(count).map_or_else(dash, short);
        match column {
            Column::Socket => self.name.clone(),
            Column::Server => self.server.clone(),
            Column::Clients => self.clients.clone(),
            Column::Connections => self.open.map_or_else(dash, |open| short(open as f64)),
            Column::Calls => rate(self.recent.calls),
            Column::Bytes => rate(self.recent.bytes),
            Column::Hit => self.recent.hit_rate().map_or_else(dash, percent),
            Column::Accelerated => self.state.clone(),
            Column::Recent => String::new(),
        }
    }

    /// What a column sorts by.
    pub(super) fn value(&self, column: Column) -> Value<'_> {
        match column {
            Column::Socket => Value::Text(&self.name),
            Column::Server => Value::Text(&self.server),
            Column::Clients => Value::Text(&self.clients),
            Column::Connections => Value::Number(self.open.map(|open| open as f64)),
            Column::Calls => Value::Number(self.rate(self.recent.calls)),
            Column::Bytes | Column::Recent => Value::Number(self.rate(self.recent.bytes)),
            Column::Hit => Value::Number(self.recent.hit_rate()),
            Column::Accelerated => Value::Number(Some(self.accelerated as f64 / self.connections.max(1) as f64)),
        }
    }

    /// Whether a filter that is typed leaves it in: its name, a process at an end, or its state has the text, in any case.
    pub(super) fn has(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        [&self.name, &self.processes, &self.state].into_iter().any(|field| field.to_lowercase().contains(&text))
    }
}

/// All processes of an end.
fn named(processes: &[ProcessRecord]) -> String {
    let names: Vec<String> = processes.iter().map(|process| format!("{} {}", process.pid, process.name)).collect();
    if names.is_empty() { dash() } else { names.join(", ") }
}

pub(super) fn dash() -> String {
    String::from("-")
}

/// A share, rounded down: 100% means all, 0% none.
pub(super) fn percent(rate: f64) -> String {
    if rate > 0.0 && rate < 0.01 { String::from("<1%") } else { format!("{:.0}%", (rate * 100.0).floor()) }
}

/// Whether all connections are accelerated, else why not: in a word, and in a sentence.
fn state(recording: &Recording, service: &ServiceRecord) -> (String, String) {
    let (accelerated, all) = (service.accelerated, service.connections);
    if accelerated == all {
        return (String::from("yes"), String::new());
    }
    let (word, why) = obstacle(recording, service);
    let state = if accelerated == 0 { format!("no: {word}") } else { format!("{accelerated} of {all}: {word}") };
    (state, why)
}

/// What is in the way: of a program, else what the library said most often, else that the library is missing, else whatever `explain` finds.
fn obstacle(recording: &Recording, service: &ServiceRecord) -> (String, String) {
    let findings = explain(recording, service, MIN_CALLS).findings;
    if let Some(finding) = findings.iter().find(|finding| finding.weight == Weight::Block) {
        return told(finding);
    }
    if let Some(reason) = service.reasons.iter().max_by_key(|reason| reason.connections) {
        let why = format!("{} end: {}: {}", reason.end.name(), reason.reason, reason.explanation);
        return (reason.reason.clone(), why);
    }
    let missing = |finding: &&Finding| matches!(finding.code, Code::LibraryNotLoaded | Code::NotSelected);
    let says_something = |finding: &&Finding| !matches!(finding.code, Code::AlreadyAccelerated | Code::IncompleteEvidence);
    let finding = findings.iter().find(missing).or_else(|| findings.iter().find(says_something));
    finding.map_or_else(|| (String::from("not-selected"), String::from("no library selected it")), told)
}

fn told(finding: &Finding) -> (String, String) {
    (String::from(finding.code.name()), format!("{}; remedy: {}", finding.sentence(), finding.remedy))
}

/// Bytes a second of each socket in the last intervals, the latest last; `None`: not measured.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    of: HashMap<Key, Vec<Option<u64>>>,
}

/// As many as the widest column shows.
const KEPT: usize = 60;

impl History {
    /// Adds an interval. Who was not there before had no traffic then; who is not there any more is forgotten.
    pub(super) fn add(&mut self, rows: &[Row]) {
        let mut before = std::mem::take(&mut self.of);
        for row in rows {
            let mut rates = before.remove(&row.key).unwrap_or_default();
            rates.push(row.rate(row.recent.bytes).map(|rate| rate.ceil() as u64)); // whatever is not nothing shows
            let excess = rates.len().saturating_sub(KEPT);
            rates.drain(..excess);
            self.of.insert(row.key.clone(), rates);
        }
    }

    /// The last `count` intervals; from before the first: `None`.
    pub(super) fn last(&self, key: &Key, count: usize) -> Vec<Option<u64>> {
        let rates = self.of.get(key).map_or(&[][..], Vec::as_slice);
        let kept = rates.get(rates.len().saturating_sub(count)..).unwrap_or_default();
        let missing = count.saturating_sub(kept.len());
        std::iter::repeat_n(None, missing).chain(kept.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::Side;
    use crate::hit_rate::ReasonCount;
    use crate::inventory::Kind;
    use crate::recording::samples::{CLIENT, busy, recording_of};

    fn row(service: ServiceRecord) -> Row {
        let (calls, bytes, ring_bytes) = (service.calls, service.bytes, service.ring_bytes);
        let recording = recording_of(vec![service]);
        Row::new(&recording, &recording.services[0], Recent { calls, bytes, ring_bytes, time_ms: 500 })
    }

    fn reason(end: Side, reason: &str, connections: u64) -> ReasonCount {
        ReasonCount { end, reason: reason.into(), explanation: String::from("why"), connections }
    }

    #[test]
    fn rates_are_those_of_the_interval_and_what_was_not_measured_is_no_zero() {
        let row = |calls, bytes, ring_bytes| row(ServiceRecord { calls, bytes, ring_bytes, ..busy(b"/run/x") });
        let shown = |row: &Row| [Column::Calls, Column::Bytes, Column::Hit].map(|column| row.text(column));
        assert_eq!(shown(&row(Some(1000), Some(64_000), Some(63_999))), ["2.00k", "128k", "99%"]);
        assert_eq!(shown(&row(Some(1000), Some(64_000), Some(64_000))), ["2.00k", "128k", "100%"]);
        assert_eq!(shown(&row(Some(1000), Some(64_000), Some(1))), ["2.00k", "128k", "<1%"]);
        assert_eq!(shown(&row(Some(1000), Some(64_000), None)), ["2.00k", "128k", "-"], "no library selected it");
        assert_eq!(shown(&row(Some(0), Some(0), Some(0))), ["0", "0", "-"], "a share of nothing");
        assert_eq!(shown(&row(None, None, None)), ["-", "-", "-"]);
    }

    #[test]
    fn the_reason_is_what_is_in_the_way_before_what_the_library_waits_for() {
        let plain = busy(b"/run/x");
        let with = |reasons: Vec<ReasonCount>| ServiceRecord { selected: 1, reasons, ..plain.clone() };
        let reasons = vec![reason(Side::Server, "no-library", 1), reason(Side::Client, "too-few-operations", 2)];
        for (service, state, why) in [
            (plain.clone(), "no: library-not-loaded", "remedy: "),
            (with(reasons.clone()), "no: too-few-operations", "client end: too-few-operations: why"),
            (ServiceRecord { kind: Kind::Datagram, ..with(reasons) }, "no: not-a-stream", "a datagram socket"),
            (ServiceRecord { accelerated: 1, selected: 1, ..plain.clone() }, "yes", ""),
            (
                ServiceRecord { accelerated: 1, connections: 3, ..with(vec![reason(Side::Server, "splice", 2)]) },
                "1 of 3: splice",
                "server end: splice",
            ),
        ] {
            let row = row(service);
            assert_eq!(row.state, state);
            assert!(row.why.contains(why) && row.why.is_empty() == why.is_empty(), "{}", row.why);
        }
        let mut recording = recording_of(vec![plain]);
        let client = recording.programs.iter_mut().find(|program| program.pid == CLIENT).expect("there");
        client.linkage = Some(crate::facts::Linkage::Static);
        assert_eq!(state(&recording, &recording.services[0]).0, "no: static-program");
    }

    #[test]
    fn a_typed_filter_finds_names_processes_and_reasons_in_any_case() {
        let row = row(busy(b"/run/Redis.sock"));
        assert!(["redis", "SERVER", "11 cl", "not-loaded", ""].iter().all(|text| row.has(text)));
        assert!(!row.has("postgres"));
    }

    #[test]
    fn history_has_the_latest_last_and_forgets_who_is_gone() {
        let (one, other) = (row(busy(b"/run/one")), row(busy(b"/run/other")));
        let mut history = History::default();
        history.add(&[one.clone(), other.clone()]);
        history.add(&[Row { recent: Recent { bytes: Some(1), time_ms: 5000, ..one.recent }, ..one.clone() }]);
        assert_eq!(history.last(&one.key, 4), [None, None, Some(128_000), Some(1)]);
        assert_eq!(history.last(&one.key, 1), [Some(1)]);
        assert_eq!(history.last(&other.key, 1), [None]);
        (0..100).for_each(|_| history.add(std::slice::from_ref(&one)));
        assert_eq!(history.last(&one.key, 200).iter().flatten().count(), KEPT);
    }
}

//! What a service's own figures say, and the verdict of everything together.

use crate::advice::{Code, Finding, Side, Verdict, Weight, ends};
use crate::inventory::Kind;
use crate::names::SocketName;
use crate::output::{plural, short};
use crate::recording::{Recording, ServiceRecord};

/// Sending calls that a connection must make on average: below, it ends about when the library would upgrade it, since
/// each end waits for 8 operations (TSSX_UPGRADE_AFTER).
const MIN_CALLS_PER_CONNECTION: f64 = 16.0;

/// Services that pass descriptors or credentials as a rule, for recordings that did not count them.
const PASSES_DESCRIPTORS: [&[u8]; 5] = [b"/run/dbus/", b"/var/run/dbus/", b"/run/systemd/", b"/tmp/.X11-unix/", b"/run/user/"];

/// Reasons of the library that say no more than that its other end, or time, is missing.
const WAITING: [&str; 5] = ["no-library", "undecided", "peer-not-ready", "too-few-operations", "closed"];

/// The same verdict, with what an operator asks who has started the programs already: whether the library is in them.
pub(crate) fn explain(recording: &Recording, service: &ServiceRecord, min_calls: f64) -> Verdict {
    let mut findings = judge(recording, service, min_calls).findings;
    findings.extend(ends::without_library(recording, service));
    Verdict::new(findings)
}

/// Judges one socket; `min_calls` is the least number of sending calls a second that gain.
pub(crate) fn judge(recording: &Recording, service: &ServiceRecord, min_calls: f64) -> Verdict {
    let mut findings = Vec::new();
    match service.kind {
        Kind::Stream => {}
        Kind::Datagram => findings.push(Finding::new(Code::NotAStream, "a datagram socket")),
        Kind::Seqpacket => findings.push(Finding::new(Code::NotAStream, "a seqpacket socket")),
        Kind::Unknown => findings.push(Finding::new(Code::TypeUnknown, plural(service.connections, "connection"))),
    }
    findings.extend(name(service));
    findings.extend(traffic(recording, service, min_calls));
    findings.extend(descriptors(service));
    findings.extend(library(service));
    if recording.head.losses.any() {
        findings.push(Finding::new(Code::IncompleteEvidence, "losses while it was recorded"));
    }
    if service.connections > 0 {
        findings.extend(ends::findings(recording, service));
    } else {
        findings.extend(ends::of(recording, service, Side::Server));
    }
    Verdict::new(findings)
}

fn name(service: &ServiceRecord) -> Option<Finding> {
    let Some(name) = service.socket_name() else {
        return Some(Finding::new(Code::NoName, "a socket pair, or closed before its name was seen"));
    };
    name.to_pattern().err().map(|error| Finding::new(Code::NameNotWritable, error.to_string()))
}

fn traffic(recording: &Recording, service: &ServiceRecord, min_calls: f64) -> Option<Finding> {
    if service.connections == 0 {
        let nameless = recording.unnamed.iter().any(|unnamed| unnamed.kind == Kind::Unknown && unnamed.connections > 0);
        let but = if nameless { "none that lived long enough to be seen by name (shorter ones do not gain)" } else { "none" };
        return Some(Finding::new(Code::NoConnection, but));
    }
    let Some(calls) = service.calls else {
        let lost = if recording.head.losses.any() { ", some traffic lost" } else { "" };
        return Some(Finding::new(Code::TrafficNotCounted, format!("mode {}{lost}", recording.head.mode)));
    };
    let connections = plural(service.connections, "connection");
    let rate = recording.per_second(calls);
    if calls == 0 {
        Some(Finding::new(Code::NoTraffic, connections))
    } else if rate < min_calls {
        Some(Finding::new(Code::TooLittleTraffic, format!("{} calls/s, fewer than {min_calls}", short(rate))))
    } else if (calls as f64) < MIN_CALLS_PER_CONNECTION * service.connections as f64 {
        let each = short(calls as f64 / service.connections as f64);
        Some(Finding::new(Code::ShortLived, format!("{each} calls for each of {connections}")))
    } else {
        None
    }
}

/// Descriptors and credentials, and ends that several processes use.
fn descriptors(service: &ServiceRecord) -> Vec<Finding> {
    let mut findings = Vec::new();
    let signals = service.evidence.as_ref().and_then(|evidence| evidence.signals);
    let passed = signals.map(|signals| signals.descriptor_ends + signals.credential_ends);
    match passed {
        Some(0) => {}
        Some(count) => findings.push(Finding::new(Code::DescriptorPassing, format!("seen at {}", plural(count, "end")))),
        None => {
            if let Some(SocketName::Path(path) | SocketName::Abstract(path)) = service.socket_name()
                && PASSES_DESCRIPTORS.iter().any(|prefix| path.starts_with(prefix))
            {
                findings
                    .push(Finding::new(Code::DescriptorPassing, "a service of the system or the desktop that does by its name"));
            }
        }
    }
    let most = service.evidence.as_ref().map_or(0, |evidence| evidence.most_processes_on_one_end);
    if most > 1 {
        findings.push(Finding::new(Code::SharedEnd, format!("{most} processes")));
    }
    findings
}

/// What the library said of its connections, where it was there already.
fn library(service: &ServiceRecord) -> Vec<Finding> {
    let mut findings = Vec::new();
    if service.accelerated > 0 {
        let evidence = format!("{} of {}", service.accelerated, plural(service.connections, "connection"));
        findings.push(Finding::new(Code::AlreadyAccelerated, evidence));
    }
    for reason in &service.reasons {
        let evidence = format!("{} ({}: {})", reason.reason, plural(reason.connections, "connection"), reason.explanation);
        let mut finding = Finding { end: Some(reason.end), ..Finding::new(Code::LibraryReason, evidence) };
        if service.accelerated > 0 || WAITING.contains(&reason.reason.as_str()) {
            finding.weight = Weight::Note;
        }
        findings.push(finding);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::Level;
    use crate::evidence::{Evidence, Signals};
    use crate::hit_rate::ReasonCount;
    use crate::losses::Losses;
    use crate::recording::samples::{busy, recording_of};

    fn verdict(service: ServiceRecord) -> Verdict {
        let recording = recording_of(vec![service]);
        judge(&recording, &recording.services[0], 10.0)
    }

    #[test]
    fn a_busy_stream_between_known_programs_is_recommended_without_a_word() {
        let verdict = verdict(busy(b"/run/x"));
        assert_eq!((verdict.level, verdict.findings.as_slice()), (Level::Recommended, &[][..]));
    }

    fn passing(descriptor_ends: u64) -> Signals {
        Signals { descriptor_ends, ..Signals::default() }
    }

    #[test]
    fn each_figure_that_speaks_against_a_socket_has_its_code() {
        let few = |connections, calls| ServiceRecord { connections, calls: Some(calls), ..busy(b"/run/x") };
        let evidence = |ends: Option<u64>, most_processes_on_one_end| ServiceRecord {
            evidence: Some(Evidence { signals: ends.map(passing), most_processes_on_one_end, ..Evidence::default() }),
            ..busy(b"/run/x")
        };
        let says = |reason: &str| ServiceRecord {
            reasons: vec![ReasonCount { end: Side::Client, reason: reason.into(), explanation: "why".into(), connections: 1 }],
            ..busy(b"/run/x")
        };
        for (service, code, level) in [
            (ServiceRecord { kind: Kind::Datagram, ..busy(b"/run/x") }, Code::NotAStream, Level::Blocked),
            (ServiceRecord { kind: Kind::Seqpacket, ..busy(b"/run/x") }, Code::NotAStream, Level::Blocked),
            (ServiceRecord { kind: Kind::Unknown, ..busy(b"/run/x") }, Code::TypeUnknown, Level::Possible),
            (ServiceRecord { name: None, ..busy(b"/run/x") }, Code::NoName, Level::Blocked),
            (busy(b"relative"), Code::NameNotWritable, Level::Blocked),
            (busy(b"/run/line\nbreak"), Code::NameNotWritable, Level::Blocked),
            (busy(b"/run/\xff"), Code::NameNotWritable, Level::Blocked),
            (busy(b"/run/dbus/bus"), Code::DescriptorPassing, Level::Blocked),
            (evidence(Some(3), 1), Code::DescriptorPassing, Level::Blocked),
            (evidence(None, 2), Code::SharedEnd, Level::Possible),
            (few(0, 0), Code::NoConnection, Level::Possible),
            (few(1, 0), Code::NoTraffic, Level::Possible),
            (few(1, 9), Code::TooLittleTraffic, Level::Possible),
            (few(100, 200), Code::ShortLived, Level::Possible),
            (ServiceRecord { calls: None, ..busy(b"/run/x") }, Code::TrafficNotCounted, Level::Possible),
            (says("splice"), Code::LibraryReason, Level::Possible),
            (says("peer-not-ready"), Code::LibraryReason, Level::Recommended),
            (ServiceRecord { accelerated: 1, ..says("splice") }, Code::AlreadyAccelerated, Level::Recommended),
        ] {
            let shown = service.display.clone();
            let verdict = verdict(service);
            assert!(verdict.has(code) && verdict.level == level, "{shown}: {code:?} {level:?}: {verdict:#?}");
        }
    }

    #[test]
    fn descriptors_that_were_counted_decide_and_the_name_does_not() {
        let counted = Some(Evidence { signals: Some(passing(0)), ..Evidence::default() });
        let verdict = verdict(ServiceRecord { evidence: counted, ..busy(b"/run/user/1000/x") });
        assert_eq!(verdict.level, Level::Recommended);
    }

    #[test]
    fn losses_are_said_and_a_relative_path_counts_by_its_absolute_one() {
        let absolute = Some(SocketName::Path(b"/srv/x".to_vec()));
        let mut recording = recording_of(vec![ServiceRecord { absolute, ..busy(b"x") }]);
        recording.head.losses = Losses { missed_events: 1, ..Losses::default() };
        let verdict = judge(&recording, &recording.services[0], 10.0);
        assert_eq!(verdict.level, Level::Recommended);
        assert!(verdict.has(Code::IncompleteEvidence) && !verdict.has(Code::NameNotWritable));
    }
}

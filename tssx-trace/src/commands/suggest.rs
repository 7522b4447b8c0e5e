//! `suggest`: from a recording to an environment file, with the reasons as comments. Reads one file, runs nothing.

use std::collections::BTreeSet;

use anyhow::bail;

use crate::cli::{SuggestArgs, exit};
use crate::env_file::{comment, line};
use crate::gain;
use crate::inventory::Kind;
use crate::library;
use crate::names::SocketName;
use crate::output::{note, plural, result, short};
use crate::recording::{Recording, ServiceRecord, summary};

/// Sending calls that a connection must make on average: below, it ends about when the library would upgrade it, since
/// each end waits for 8 operations (TSSX_UPGRADE_AFTER).
const MIN_CALLS_PER_CONNECTION: f64 = 16.0;

/// What the library takes of USE_TSSX: with more it stays out of the way altogether.
const MAX_NAMES: usize = 256;
const MAX_TEXT: usize = 16 * 1024;

/// Services that pass descriptors or credentials as a rule, which keeps their connections on the kernel socket.
const PASSES_DESCRIPTORS: [&[u8]; 5] = [b"/run/dbus/", b"/var/run/dbus/", b"/run/systemd/", b"/tmp/.X11-unix/", b"/run/user/"];

/// Runs the subcommand.
///
/// # Errors
/// Where there is no recording to read or no library to name.
pub(crate) fn run(args: &SuggestArgs) -> anyhow::Result<u8> {
    let recording = Recording::load(&args.from)?;
    if !recording.head.measures_traffic() {
        bail!(
            "{} was recorded in mode {}, which measures no traffic: record again where another mode works (`tssx-trace doctor` says which)",
            args.from.display(),
            recording.head.mode
        );
    }
    let library = library::find()?;
    let proposal = propose(&recording, args.min_calls);
    let mut lines = head(&recording);
    lines.extend(proposal.comments.iter().map(|text| comment(text)));
    if let Some(calibration) = args.gain.calibration()? {
        lines.extend(gain::comments(&calibration, &recording).iter().map(|text| comment(text)));
    }
    lines.push(String::new());
    lines.push(line("USE_TSSX", &proposal.patterns.join(" "))?);
    lines.push(line("LD_PRELOAD", &library.to_string_lossy())?);
    result(&(lines.join("\n") + "\n"))?;
    if proposal.patterns.is_empty() {
        note(
            "nothing to suggest: no socket of the recording would gain (the comments say why); was there traffic while `discover` watched?",
        );
        return Ok(exit::NOTHING);
    }
    Ok(0)
}

/// What to select, and why each socket is in or out.
struct Proposal {
    patterns: Vec<String>,
    comments: Vec<String>,
}

fn head(recording: &Recording) -> Vec<String> {
    let mut lines = vec![
        comment("Written by `tssx-trace suggest`. For a shell: set -a; . ./FILE; set +a   For systemd: EnvironmentFile=/path/FILE"),
        comment("Start both the server and its clients with it. To turn it off: unset LD_PRELOAD."),
        comment(&format!(
            "Evidence: {:.1} s on Linux {}, mode {}; calls are sends of both ends.",
            recording.head.window_ms as f64 / 1000.0,
            recording.head.kernel,
            recording.head.mode
        )),
    ];
    if recording.head.losses.any() {
        lines.push(comment("Some traffic of that window could not be counted: the figures are lower bounds."));
    }
    lines
}

fn propose(recording: &Recording, min_calls: f64) -> Proposal {
    let mut patterns = Vec::new();
    let mut taken = BTreeSet::new();
    let mut comments = Vec::new();
    let mut text = 0;
    for service in &recording.services {
        let mut verdict = judge(recording, service, min_calls);
        if let Ok(pattern) = &verdict
            && taken.insert(pattern.clone())
        {
            if patterns.len() < MAX_NAMES && text + pattern.len() < MAX_TEXT {
                text += pattern.len() + 1;
                patterns.push(pattern.clone());
            } else {
                verdict = Err(format!(
                    "no room: the library takes {MAX_NAMES} names and {MAX_TEXT} bytes of USE_TSSX, the busiest come first"
                ));
            }
        }
        let (word, reason) = match &verdict {
            Ok(_) => ("in ", "it gains"),
            Err(reason) => ("out", reason.as_str()),
        };
        comments.push(format!("{word} {}: {reason} ({})", service.display, evidence(recording, service)));
    }
    Proposal { patterns, comments }
}

/// The word for `USE_TSSX`, or why the socket is left out.
fn judge(recording: &Recording, service: &ServiceRecord, min_calls: f64) -> Result<String, String> {
    match service.kind {
        Kind::Stream => {}
        Kind::Datagram => return Err(String::from("a datagram socket, not a stream")),
        Kind::Seqpacket => return Err(String::from("a seqpacket socket, not a stream")),
        Kind::Unknown => return Err(String::from("closed before its type could be seen")),
    }
    if service.connections == 0 {
        let nameless = recording.unnamed.iter().any(|unnamed| unnamed.kind == Kind::Unknown && unnamed.connections > 0);
        let but = if nameless { " that lived long enough to be seen by name (shorter ones do not gain)" } else { "" };
        return Err(format!("no connection while it was watched{but}"));
    }
    let Some(calls) = service.calls else {
        let lost = if recording.head.losses.any() { ", some traffic lost" } else { "" };
        return Err(format!("its traffic was not counted (mode {}{lost})", recording.head.mode));
    };
    if calls == 0 {
        return Err(String::from("no traffic while it was watched"));
    }
    let name = service.absolute.as_ref().or(service.name.as_ref()).ok_or("it has no name to select it by")?;
    if let SocketName::Path(path) = name
        && PASSES_DESCRIPTORS.iter().any(|prefix| path.starts_with(prefix))
    {
        return Err(String::from("a service of the system or the desktop that passes descriptors, which needs the kernel socket"));
    }
    let rate = recording.per_second(calls);
    if rate < min_calls {
        return Err(format!("too little traffic to gain: fewer than {min_calls} calls/s"));
    }
    if (calls as f64) < MIN_CALLS_PER_CONNECTION * service.connections as f64 {
        return Err(String::from("its connections are too short to gain: they close before they would be upgraded"));
    }
    name.to_pattern().map_err(|error| error.to_string())
}

fn evidence(recording: &Recording, service: &ServiceRecord) -> String {
    let mean = service.mean_size().map_or_else(|| String::from("no size"), |mean| format!("mean {} B", short(mean)));
    let rate = |count: Option<u64>| count.map_or_else(|| String::from("-"), |count| short(recording.per_second(count)));
    let already = if service.accelerated > 0 { format!(", {} already accelerated", service.accelerated) } else { String::new() };
    format!(
        "{} calls/s, {} B/s, {mean}, {}{already}; server {}, clients {}",
        rate(service.calls),
        rate(service.bytes),
        plural(service.connections, "connection"),
        summary(&service.servers),
        summary(&service.clients)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::Losses;
    use crate::recording::FlowRecord;

    fn service(name: &[u8], kind: Kind, connections: u64, calls: u64) -> ServiceRecord {
        let name = SocketName::from_sun_path(name).expect("a name");
        ServiceRecord {
            display: name.to_string(),
            name: Some(name),
            absolute: None,
            network: None,
            file: None,
            kind,
            servers: vec![],
            clients: vec![],
            connections,
            waiting: None,
            selected: 0,
            accelerated: 0,
            calls: Some(calls),
            bytes: Some(calls * 64),
            ring_calls: None,
            ring_bytes: None,
            queued_bytes: None,
            client_to_server: FlowRecord::default(),
            server_to_client: FlowRecord::default(),
            evidence: None,
            pairs: Vec::new(),
        }
    }

    fn proposal(services: Vec<ServiceRecord>) -> Proposal {
        let mut recording = Recording::new(1000, Losses::default(), 8);
        recording.services = services;
        propose(&recording, 10.0)
    }

    #[test]
    fn busy_streams_are_in_and_each_other_socket_is_out_with_its_reason() {
        let out = [
            (service(b"/run/dgram", Kind::Datagram, 1, 1000), "datagram"),
            (service(b"/run/seq", Kind::Seqpacket, 1, 1000), "seqpacket"),
            (service(b"/run/idle", Kind::Stream, 1, 0), "no traffic"),
            (service(b"/run/listening", Kind::Stream, 0, 0), "no connection"),
            (service(b"/run/slow", Kind::Stream, 1, 9), "too little"),
            (service(b"/run/short", Kind::Stream, 100, 200), "too short"),
            (service(b"/run/dbus/bus", Kind::Stream, 1, 1000), "descriptors"),
            (service(b"relative", Kind::Stream, 1, 1000), "relative"),
            (service(b"/run/line\nbreak", Kind::Stream, 1, 1000), "control character"),
        ];
        for (service, reason) in out {
            let proposal = proposal(vec![service]);
            assert!(proposal.patterns.is_empty(), "{reason}");
            assert!(
                proposal.comments.iter().any(|comment| comment.starts_with("out") && comment.contains(reason)),
                "{:?}",
                proposal.comments
            );
        }
        let both = proposal(vec![service(b"/run/a b", Kind::Stream, 1, 1000), service(b"\0name", Kind::Stream, 1, 1000)]);
        assert_eq!(both.patterns, ["/run/a\\ b", "@name"]);
    }

    #[test]
    fn a_socket_whose_traffic_was_not_counted_is_left_out_for_that() {
        let proposal = proposal(vec![ServiceRecord { calls: None, bytes: None, ..service(b"/run/x", Kind::Stream, 1, 0) }]);
        assert!(proposal.patterns.is_empty());
        assert!(
            proposal.comments.iter().any(|comment| comment.contains("not counted (mode tp_btf)") && comment.contains("- calls/s"))
        );
    }

    #[test]
    fn no_more_is_proposed_than_the_library_takes() {
        let many = (0..1000).map(|number| service(format!("/run/{number}/{}", "x".repeat(80)).as_bytes(), Kind::Stream, 1, 1000));
        let proposal = proposal(many.collect());
        assert!(proposal.patterns.len() <= MAX_NAMES && proposal.patterns.join(" ").len() <= MAX_TEXT);
        assert!(proposal.patterns.len() > 100);
        assert!(proposal.comments.iter().any(|comment| comment.contains("no room")));
    }

    #[test]
    fn a_relative_path_is_selected_by_its_absolute_one() {
        let mut relative = service(b"x.sock", Kind::Stream, 1, 1000);
        relative.absolute = Some(SocketName::Path(b"/srv/x.sock".to_vec()));
        assert_eq!(proposal(vec![relative]).patterns, ["/srv/x.sock"]);
    }
}

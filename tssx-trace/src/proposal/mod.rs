//! What `suggest` proposes: which sockets to select, why each is in or out, and where the environment of each end is set.
//!
//! Everything comes from one recording, in an order that depends on nothing else, so that the same recording, and calibration,
//! gives the same bytes.
//! The formats are [`text`] (shell, systemd, compose) and [`Proposal::json`], which `schema/suggest-1.json` describes.

mod targets;
mod text;

use std::collections::BTreeSet;

use serde::Serialize;

use crate::advice::{Code, Finding, Level, Verdict, judge};
use crate::calibration::Calibration;
use crate::gain::{ASSUMPTIONS, Prediction};
use crate::names::SocketName;
use crate::output::{plural, short};
use crate::recording::{Recording, ServiceRecord, summary};

pub(crate) use targets::{Place, Target, place_of};

/// What the library takes of USE_TSSX: with more it stays out of the way altogether.
const MAX_NAMES: usize = 256;
const MAX_TEXT: usize = 16 * 1024;

/// What to judge by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sending calls a second below which a socket does not gain.
    pub(crate) min_calls: f64,
    /// Whether sockets with doubts are selected too, as far as they had traffic.
    pub(crate) possible: bool,
}

/// One socket of the recording.
pub(crate) struct Item<'a> {
    pub(crate) service: &'a ServiceRecord,
    pub(crate) verdict: Verdict,
    /// Its word of USE_TSSX; or, in one sentence, why it is left out.
    pub(crate) selection: Result<String, String>,
}

/// All of them.
pub(crate) struct Proposal<'a> {
    pub(crate) recording: &'a Recording,
    /// Path of the library.
    pub(crate) library: String,
    /// The busiest first.
    pub(crate) items: Vec<Item<'a>>,
    /// Where to set the environment for the selected sockets.
    pub(crate) targets: Vec<Target>,
    /// By which to say what each socket would gain; `None`: it is not said.
    pub(crate) calibration: Option<&'a Calibration>,
}

impl<'a> Proposal<'a> {
    pub(crate) fn new(recording: &'a Recording, library: String, limits: Limits) -> Self {
        let mut taken = Taken::default();
        let items: Vec<_> = recording
            .services
            .iter()
            .map(|service| {
                let verdict = judge(recording, service, limits.min_calls);
                let selection = select(service, &verdict, limits.possible).and_then(|word| taken.take(word));
                Item { service, verdict, selection }
            })
            .collect();
        let targets = targets::of(recording, &items);
        Self { recording, library, items, targets, calibration: None }
    }

    /// The words of USE_TSSX.
    pub(crate) fn patterns(&self) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        self.items.iter().filter_map(|item| item.selection.as_deref().ok()).filter(|word| seen.insert(*word)).collect()
    }

    /// The variables that both ends need.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [("USE_TSSX", self.patterns().join(" ")), ("LD_PRELOAD", self.library.clone())]
    }

    /// The proposal for programs.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        #[derive(Serialize)]
        struct Environment {
            #[serde(rename = "USE_TSSX")]
            selection: String,
            #[serde(rename = "LD_PRELOAD")]
            library: String,
        }
        #[derive(Serialize)]
        struct Socket<'a> {
            name: Option<&'a SocketName>,
            display: &'a str,
            level: Level,
            pattern: Option<&'a str>,
            left_out: Option<&'a str>,
            connections: u64,
            calls_per_second: Option<f64>,
            bytes_per_second: Option<f64>,
            findings: &'a [Finding],
            #[serde(skip_serializing_if = "Option::is_none")]
            gain: Option<Prediction>,
        }
        #[derive(Serialize)]
        struct Document<'a> {
            format: &'static str,
            version: u32,
            recorded_unix_ms: u64,
            window_ms: u64,
            mode: &'a str,
            environment: Environment,
            sockets: Vec<Socket<'a>>,
            targets: &'a [Target],
            #[serde(skip_serializing_if = "Option::is_none")]
            gain_assumes: Option<&'static [&'static str]>,
        }
        let head = &self.recording.head;
        let rate = |count: Option<u64>| count.map(|count| self.recording.per_second(count));
        let socket = |item| {
            let Item { service, verdict, selection }: &Item<'_> = item;
            Socket {
                name: service.name.as_ref(),
                display: &service.display,
                level: verdict.level,
                pattern: selection.as_deref().ok(),
                left_out: selection.as_ref().err().map(String::as_str),
                connections: service.connections,
                calls_per_second: rate(service.calls),
                bytes_per_second: rate(service.bytes),
                findings: &verdict.findings,
                gain: self.calibration.map(|calibration| Prediction::of(calibration, self.recording, service)),
            }
        };
        let [(_, selection), (_, library)] = self.variables();
        let document = Document {
            format: "tssx-trace suggest",
            version: 1,
            recorded_unix_ms: head.recorded_unix_ms,
            window_ms: head.window_ms,
            mode: &head.mode,
            environment: Environment { selection, library },
            sockets: self.items.iter().map(socket).collect(),
            targets: &self.targets,
            gain_assumes: self.calibration.map(|_| &ASSUMPTIONS[..]),
        };
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }
}

/// The words that are selected so far.
#[derive(Default)]
struct Taken {
    words: BTreeSet<String>,
    bytes: usize,
}

impl Taken {
    /// Takes a word if the library has room for it.
    fn take(&mut self, word: String) -> Result<String, String> {
        if self.words.contains(&word) {
            return Ok(word);
        }
        if self.words.len() >= MAX_NAMES || self.bytes + word.len() >= MAX_TEXT {
            return Err(format!(
                "no room: the library takes {MAX_NAMES} names and {MAX_TEXT} bytes of USE_TSSX, the busiest come first"
            ));
        }
        self.bytes += word.len() + 1;
        self.words.insert(word.clone());
        Ok(word)
    }
}

/// The word for `USE_TSSX`, or why the socket is left out.
fn select(service: &ServiceRecord, verdict: &Verdict, possible: bool) -> Result<String, String> {
    let silent = verdict.has(Code::NoConnection) || verdict.has(Code::NoTraffic);
    match verdict.level {
        Level::Blocked => return Err(String::from("blocked")),
        Level::Possible if silent => return Err(String::from("nothing was seen of it")),
        Level::Possible if !possible => return Err(String::from("only possible: --possible selects it too")),
        Level::Possible | Level::Recommended => {}
    }
    let name = service.socket_name().ok_or("it has no name")?;
    name.to_pattern().map_err(|error| error.to_string())
}

impl Item<'_> {
    /// One line on the socket, and one for each reason that decided.
    pub(crate) fn lines(&self, recording: &Recording) -> Vec<String> {
        let word = if self.selection.is_ok() { "in " } else { "out" };
        let head = format!("{word} {} ({}): {}", self.service.display, self.verdict.level.name(), figures(recording, self.service));
        let mut lines = vec![head];
        let heaviest = self.verdict.findings.first().map(|finding| finding.weight);
        for finding in self.verdict.findings.iter().filter(|finding| Some(finding.weight) == heaviest) {
            lines.push(format!("    {}", finding.sentence()));
            if self.selection.is_err() {
                lines.push(format!("      remedy: {}", finding.remedy));
            }
        }
        if let Err(reason) = &self.selection
            && self.verdict.level != Level::Blocked
        {
            lines.push(format!("    left out: {reason}"));
        }
        lines
    }
}

/// The evidence in one line.
pub(crate) fn figures(recording: &Recording, service: &ServiceRecord) -> String {
    let mean = service.mean_size().map_or_else(|| String::from("no size"), |mean| format!("mean {} B", short(mean)));
    let rate = |count: Option<u64>| count.map_or_else(|| String::from("-"), |count| short(recording.per_second(count)));
    format!(
        "{} calls/s, {} B/s, {mean}, {}; server {}, clients {}",
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
    use crate::facts::Linkage;
    use crate::inventory::Kind;
    use crate::recording::samples::{busy, recording_of};

    const LIMITS: Limits = Limits { min_calls: 10.0, possible: false };

    fn patterns(services: Vec<ServiceRecord>, limits: Limits) -> Vec<String> {
        let recording = recording_of(services);
        let proposal = Proposal::new(&recording, "/l.so".into(), limits);
        proposal.patterns().into_iter().map(String::from).collect()
    }

    #[test]
    fn what_is_recommended_is_selected_and_nothing_else() {
        let services = || {
            vec![
                busy(b"/run/a b"),
                busy(b"\0name"),
                ServiceRecord { kind: Kind::Datagram, ..busy(b"/run/dgram") },
                ServiceRecord { calls: Some(9), ..busy(b"/run/slow") },
                ServiceRecord { calls: Some(0), ..busy(b"/run/idle") },
            ]
        };
        assert_eq!(patterns(services(), LIMITS), ["/run/a\\ b", "@name"]);
        assert_eq!(patterns(services(), Limits { possible: true, ..LIMITS }), ["/run/a\\ b", "@name", "/run/slow"]);
    }

    #[test]
    fn a_relative_path_is_selected_by_its_absolute_one() {
        let absolute = Some(SocketName::Path(b"/srv/x.sock".to_vec()));
        assert_eq!(patterns(vec![ServiceRecord { absolute, ..busy(b"x.sock") }], LIMITS), ["/srv/x.sock"]);
    }

    #[test]
    fn no_more_is_proposed_than_the_library_takes() {
        let many: Vec<_> = (0..1000).map(|number| busy(format!("/run/{number}/{}", "x".repeat(80)).as_bytes())).collect();
        let recording = recording_of(many);
        let proposal = Proposal::new(&recording, "/l.so".into(), LIMITS);
        let patterns = proposal.patterns();
        assert!(patterns.len() > 100 && patterns.len() <= MAX_NAMES && patterns.join(" ").len() <= MAX_TEXT);
        let last = proposal.items.last().expect("items").lines(&recording);
        assert!(last.iter().any(|line| line.contains("no room")), "{last:?}");
    }

    #[test]
    fn the_decisive_reason_and_its_remedy_are_told() {
        let mut recording = recording_of(vec![busy(b"/run/x")]);
        recording.programs[1].linkage = Some(Linkage::Static);
        let lines = Proposal::new(&recording, "/l.so".into(), LIMITS).items[0].lines(&recording).join("\n");
        assert!(lines.starts_with("out /run/x (blocked): 1.00k calls/s"), "{lines}");
        assert!(lines.contains("static-program (client end): 11 client: ") && lines.contains("remedy: run a build"), "{lines}");
    }
}

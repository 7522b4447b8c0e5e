//! Why a socket is not accelerated: the verdict on it, what its two ends are, and what to do, from one recording.
//!
//! [`text`] is one screen for people, [`Explanation::json`] is for programs as `schema/explain-1.json` describes it.

mod text;

use serde::Serialize;

use crate::advice::{Finding, Level, Side, Verdict, deciding, explain};
use crate::facts::ProgramRecord;
use crate::hit_rate::is_same;
use crate::losses::Losses;
use crate::names::SocketName;
use crate::recording::{ProcessRecord, Recording, ServiceRecord};

/// What is to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Every socket that this process is an end of.
    Process(u32),
    /// The socket of this name.
    Socket(SocketName),
}

impl std::str::FromStr for Subject {
    type Err = String;

    /// Digits are a process; a file whose name is digits is `./123`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            return text.parse().map(Self::Process).map_err(|_| format!("`{text}` is no number of a process"));
        }
        text.parse().map(Self::Socket)
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::Socket(name) => write!(f, "{name}"),
        }
    }
}

/// How far a socket is accelerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Every connection moves bytes through a ring.
    Accelerated,
    /// Some do.
    Partly,
    /// A library selected connections, and none moves bytes through a ring.
    Selected,
    /// No library selected any.
    Plain,
    /// There was no connection.
    Unconnected,
}

/// One socket.
pub(crate) struct Explained<'a> {
    service: &'a ServiceRecord,
    state: State,
    verdict: Verdict,
    /// By [`Side::BOTH`].
    ends: [EndView<'a>; 2],
}

/// One end as it decides.
#[derive(Serialize)]
struct EndView<'a> {
    /// Those that moved bytes, or all where none is known to have.
    processes: Vec<&'a ProcessRecord>,
    /// The facts about them.
    programs: Vec<&'a ProgramRecord>,
}

/// Everything about one subject.
pub(crate) struct Explanation<'a> {
    recording: &'a Recording,
    subject: Subject,
    pub(crate) sockets: Vec<Explained<'a>>,
}

impl<'a> Explanation<'a> {
    /// Looks for the subject's sockets; `min_calls` as in `suggest`.
    pub(crate) fn new(recording: &'a Recording, subject: Subject, min_calls: f64) -> Self {
        let concerns = |service: &&ServiceRecord| match &subject {
            Subject::Process(pid) => service.servers.iter().chain(&service.clients).any(|process| process.pid == *pid),
            Subject::Socket(wanted) => {
                let names = [&service.name, &service.absolute];
                names.into_iter().flatten().any(|name| is_same(wanted, name)) || is_on_host(service, wanted)
            }
        };
        let all = recording.services.iter().chain(recording.unnamed.iter().filter(|_| matches!(subject, Subject::Process(_))));
        let sockets = all.filter(concerns).map(|service| explained(recording, service, min_calls)).collect();
        Self { recording, subject, sockets }
    }

    /// One document.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        #[derive(Serialize)]
        struct Socket<'a> {
            name: Option<&'a SocketName>,
            display: &'a str,
            state: State,
            level: Level,
            connections: u64,
            selected: u64,
            accelerated: u64,
            calls_per_second: Option<f64>,
            bytes_per_second: Option<f64>,
            findings: &'a [Finding],
            server: &'a EndView<'a>,
            client: &'a EndView<'a>,
        }
        #[derive(Serialize)]
        struct Document<'a> {
            format: &'static str,
            version: u32,
            subject: String,
            recorded_unix_ms: u64,
            window_ms: u64,
            mode: &'a str,
            losses: Losses,
            library: Option<&'a str>,
            sockets: Vec<Socket<'a>>,
        }
        let head = &self.recording.head;
        let rate = |count: Option<u64>| count.map(|count| self.recording.per_second(count));
        let socket = |explained| {
            let Explained { service, state, verdict, ends: [server, client] }: &Explained<'_> = explained;
            Socket {
                name: service.name.as_ref(),
                display: &service.display,
                state: *state,
                level: verdict.level,
                connections: service.connections,
                selected: service.selected,
                accelerated: service.accelerated,
                calls_per_second: rate(service.calls),
                bytes_per_second: rate(service.bytes),
                findings: &verdict.findings,
                server,
                client,
            }
        };
        let document = Document {
            format: "tssx-trace explain",
            version: 1,
            subject: self.subject.to_string(),
            recorded_unix_ms: head.recorded_unix_ms,
            window_ms: head.window_ms,
            mode: &head.mode,
            losses: head.losses,
            library: head.library.as_deref(),
            sockets: self.sockets.iter().map(socket).collect(),
        };
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }
}

/// Whether `wanted` is where the socket's file lies in the tracer's mount namespace.
fn is_on_host(service: &ServiceRecord, wanted: &SocketName) -> bool {
    service.file.as_ref().and_then(|file| file.host.as_ref()).is_some_and(|host| host == wanted)
}

fn explained<'a>(recording: &'a Recording, service: &'a ServiceRecord, min_calls: f64) -> Explained<'a> {
    let state = match (service.connections, service.selected, service.accelerated) {
        (0, ..) => State::Unconnected,
        (_, 0, 0) => State::Plain,
        (_, _, 0) => State::Selected,
        (all, _, some) if some >= all => State::Accelerated,
        _ => State::Partly,
    };
    let end = |side| {
        let processes = deciding(service, side);
        let programs = processes.iter().filter_map(|process| recording.program(process.pid)).collect();
        EndView { processes, programs }
    };
    Explained { service, state, verdict: explain(recording, service, min_calls), ends: Side::BOTH.map(end) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::Code;
    use crate::recording::samples::{CLIENT, SERVER, busy, recording_of};

    #[test]
    fn a_subject_is_a_process_by_its_digits_and_else_a_name() {
        assert_eq!("123".parse(), Ok(Subject::Process(123)));
        assert_eq!("./123".parse(), Ok(Subject::Socket(SocketName::Path(b"./123".to_vec()))));
        assert_eq!("@x".parse(), Ok(Subject::Socket(SocketName::Abstract(b"x".to_vec()))));
        for wrong in ["", "@", "99999999999"] {
            assert!(wrong.parse::<Subject>().is_err(), "{wrong}");
        }
        for good in [&b"4294967295"[..], b"@x\\x00"] {
            crate::mutations::each(good, 5000, |bytes| {
                let text = String::from_utf8_lossy(bytes);
                if let Ok(Subject::Process(pid)) = text.parse() {
                    assert_eq!(text.trim_start_matches('0').parse().unwrap_or(0), pid, "{text}");
                }
            });
        }
    }

    #[test]
    fn sockets_are_found_by_name_by_absolute_name_by_host_path_and_by_either_process() {
        let mut recording = recording_of(vec![busy(b"/run/one"), busy(b"two")]);
        recording.services[1].absolute = Some(SocketName::Path(b"/srv/two".to_vec()));
        recording.services[1].servers.clear();
        let count = |subject: &str| Explanation::new(&recording, subject.parse().expect("a subject"), 10.0).sockets.len();
        assert_eq!((count("/run/one"), count("/srv/two"), count("/run/three")), (1, 1, 0));
        assert_eq!((count(&SERVER.to_string()), count(&CLIENT.to_string()), count("999")), (1, 2, 0));
    }

    #[test]
    fn a_socket_that_only_lacks_the_library_is_told_so() {
        let recording = recording_of(vec![busy(b"/run/x")]);
        let explanation = Explanation::new(&recording, Subject::Process(SERVER), 10.0);
        let [socket] = explanation.sockets.as_slice() else { panic!("one socket") };
        assert_eq!((socket.state, socket.verdict.level), (State::Plain, Level::Recommended));
        let codes: Vec<_> = socket.verdict.findings.iter().map(|finding| (finding.code, finding.end)).collect();
        assert_eq!(codes, [(Code::LibraryNotLoaded, Some(Side::Server)), (Code::LibraryNotLoaded, Some(Side::Client))]);
    }

    #[test]
    fn a_library_that_did_not_select_the_socket_is_told_apart() {
        let mut recording = recording_of(vec![busy(b"/run/x")]);
        recording.programs.iter_mut().for_each(|program| program.library_loaded = Some(true));
        let explanation = Explanation::new(&recording, Subject::Process(SERVER), 10.0);
        assert!(explanation.sockets[0].verdict.has(Code::NotSelected));
        recording.services[0].selected = 1;
        let explanation = Explanation::new(&recording, Subject::Process(SERVER), 10.0);
        assert_eq!((explanation.sockets[0].state, explanation.sockets[0].verdict.has(Code::NotSelected)), (State::Selected, false));
    }
}

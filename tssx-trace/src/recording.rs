//! The recording: what `discover` found, as versioned JSON that `suggest` reads without privilege.
//!
//! It is written to a new file beside its final place and renamed over it, so that a reader sees the old one or the
//! new one, and a link that somebody planted is replaced, never followed.

use std::fs::{self, DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::cost::Cost;
use crate::evidence::Evidence;
use crate::facts::ProgramRecord;
use crate::hit_rate::ReasonCount;
use crate::inventory;
use crate::kept::Kind;
use crate::losses::Losses;
use crate::mode::Mode;
use crate::names::SocketName;
use crate::pairs::{ConservationRecord, PairRecord};
use crate::places::FileRecord;
use crate::probe::Refusal;

/// Where `discover` leaves its recording and `suggest` looks for it. `/run` belongs to root: nobody can plant a link.
pub(crate) const DEFAULT_PATH: &str = "/run/tssx/discover.json";
/// The same for a report, which is a recording with something left out and in another order.
const REPORT_FORMAT: &str = "tssx-trace discover report";
/// What the file says it is; the version is raised when a field changes its meaning or goes.
const KIND: Kind = Kind {
    noun: "recording",
    format: "tssx-trace discover",
    version: 3,
    missing: "run `sudo tssx-trace discover` first, or name one with --from",
    unreadable: "record again with `sudo tssx-trace discover`",
};

/// One window of `discover`: everything that a report needs, so that a replay prints what the live run printed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recording {
    #[serde(flatten)]
    pub(crate) head: Head,
    /// Every named socket.
    pub(crate) services: Vec<ServiceRecord>,
    /// All connections without a name: socket pairs, and those that closed before their name was seen.
    pub(crate) unnamed: Vec<ServiceRecord>,
    /// The facts about each process that `services` and `unnamed` name, by number; those that were gone are missing.
    pub(crate) programs: Vec<ProgramRecord>,
}

/// What holds for the window as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// That of [`KIND`], or [`REPORT_FORMAT`].
    format: String,
    /// That of [`KIND`].
    version: u32,
    /// When the window ended, milliseconds since 1970.
    pub(crate) recorded_unix_ms: u64,
    /// Kernel release it ran on.
    pub(crate) kernel: String,
    /// How the traffic was measured.
    pub(crate) mode: String,
    /// What that mode cannot see, one sentence each.
    pub(crate) mode_limits: Vec<String>,
    /// The better modes that do not work on that machine, and why.
    pub(crate) refused_modes: Vec<Refusal>,
    /// Length of the window in milliseconds; every rate is a count divided by it.
    pub(crate) window_ms: u64,
    /// Ended by a signal before its time.
    pub(crate) interrupted: bool,
    /// How much of it, from its beginning, the tracer looked closer; `None`: not at all.
    #[serde(default)]
    pub(crate) closer_ms: Option<u64>,
    /// What could not be counted.
    pub(crate) losses: Losses,
    /// Whether sent, received and queued bytes agree.
    pub(crate) conservation: ConservationRecord,
    /// What watching itself cost.
    pub(crate) cost: Cost,
    /// Network namespaces whose sockets have no names here because they could not be entered.
    pub(crate) closed_namespaces: usize,
    /// The library that was looked for in each process; `None`: none was found.
    pub(crate) library: Option<String>,
    pub(crate) tracer: TracerRecord,
}

/// What the measurement had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TracerRecord {
    /// Pairs of one socket and one process that the kernel had room for.
    pub(crate) max_sockets: u32,
}

/// All connections of one socket name within the window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceRecord {
    /// `None` for connections without a name.
    pub(crate) name: Option<SocketName>,
    /// The name as text, for people; `name` is what counts.
    pub(crate) display: String,
    /// The name with the server's working directory before it, where it was relative and the file is there.
    pub(crate) absolute: Option<SocketName>,
    /// Network namespace of an abstract name, by inode.
    pub(crate) network: Option<u64>,
    /// The socket file of a path, where it is known.
    pub(crate) file: Option<FileRecord>,
    pub(crate) kind: inventory::Kind,
    pub(crate) servers: Vec<ProcessRecord>,
    pub(crate) clients: Vec<ProcessRecord>,
    /// Of these, the numbers of those that moved bytes.
    pub(crate) server_callers: Vec<u32>,
    pub(crate) client_callers: Vec<u32>,
    /// Connections that existed within the window.
    pub(crate) connections: u64,
    /// Connections that waited to be accepted when the window ended; `None` if nobody listened then.
    pub(crate) waiting: Option<u64>,
    /// Of the connections, how many were open when the window ended; `None` if no list of sockets tells of each.
    #[serde(default)]
    pub(crate) open: Option<u64>,
    /// Of the connections, how many a library had selected, and how many had moved bytes through a ring.
    pub(crate) selected: u64,
    pub(crate) accelerated: u64,
    /// Why selected connections are (or went back) on the kernel socket, as the library says.
    pub(crate) reasons: Vec<ReasonCount>,
    /// Sending calls of both ends: each message counts once, where it was sent. `None`: this mode does not count, or nothing
    /// was counted while something was lost.
    pub(crate) calls: Option<u64>,
    /// Bytes of both directions, each counted once. `None` likewise.
    pub(crate) bytes: Option<u64>,
    /// Of `calls` and `bytes`, what went through rings instead of the kernel. `None`: no ledger speaks of these connections.
    pub(crate) ring_calls: Option<u64>,
    pub(crate) ring_bytes: Option<u64>,
    /// Bytes that were sent and not yet received when the window ended; `None` if no list of sockets told.
    pub(crate) queued_bytes: Option<u64>,
    pub(crate) client_to_server: FlowRecord,
    pub(crate) server_to_client: FlowRecord,
    /// What else the kernel showed of its connections; `None` if traffic was not measured.
    pub(crate) evidence: Option<Evidence>,
    /// Each connection; only with `--pairs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pairs: Vec<PairRecord>,
}

/// One direction of a service. `None` as in [`ServiceRecord::calls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct FlowRecord {
    /// Calls that sent at least one byte, by kernel socket or ring.
    pub(crate) send_calls: Option<u64>,
    pub(crate) sent_bytes: Option<u64>,
    /// Calls that received at least one byte; peeks not counted.
    pub(crate) receive_calls: Option<u64>,
    pub(crate) received_bytes: Option<u64>,
}

impl FlowRecord {
    /// Counted, and nothing there.
    pub(crate) const ZERO: Self =
        Self { send_calls: Some(0), sent_bytes: Some(0), receive_calls: Some(0), received_bytes: Some(0) };
}

/// A process by number, name and owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// Effective user; `None` where it was gone before it could be asked.
    pub(crate) uid: Option<u32>,
    /// Path of its control group, which names its container; `None` where it was gone, or the host has none.
    pub(crate) cgroup: Option<String>,
    /// Id or name of the container that the control group is made for.
    pub(crate) container: Option<String>,
}

/// The first process and how many more.
pub(crate) fn summary(list: &[ProcessRecord]) -> String {
    match list {
        [] => String::from("-"),
        [one] => format!("{} {}", one.pid, one.name),
        [one, rest @ ..] => format!("{} {} +{}", one.pid, one.name, rest.len()),
    }
}

impl ServiceRecord {
    /// The socket's name, a path as seen from the root if that is known; `None` without a name.
    pub(crate) fn socket_name(&self) -> Option<&SocketName> {
        self.absolute.as_ref().or(self.name.as_ref())
    }

    /// Mean bytes of a sending call, `None` without calls.
    pub(crate) fn mean_size(&self) -> Option<f64> {
        let (calls, bytes) = (self.calls?, self.bytes?);
        (calls > 0).then(|| bytes as f64 / calls as f64)
    }
}

impl Head {
    /// Whether calls and bytes were counted.
    pub(crate) fn measures_traffic(&self) -> bool {
        self.mode != Mode::Snapshots.name()
    }

    /// The head of a report on this recording.
    pub(crate) fn as_report(&self) -> Self {
        Self { format: REPORT_FORMAT.into(), ..self.clone() }
    }
}

impl Recording {
    /// A recording of now, with no services yet.
    pub(crate) fn new(window_ms: u64, losses: Losses, max_sockets: u32) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let head = Head {
            format: KIND.format.into(),
            version: KIND.version,
            recorded_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            mode: String::from(Mode::TpBtf.name()),
            mode_limits: Vec::new(),
            refused_modes: Vec::new(),
            window_ms,
            interrupted: false,
            closer_ms: None,
            losses,
            conservation: ConservationRecord::default(),
            cost: Cost::default(),
            closed_namespaces: 0,
            library: None,
            tracer: TracerRecord { max_sockets },
        };
        Self { head, services: Vec::new(), unnamed: Vec::new(), programs: Vec::new() }
    }

    /// A count of the window as a rate per second.
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        count as f64 * 1000.0 / self.head.window_ms.max(1) as f64
    }

    /// The facts about a process.
    pub(crate) fn program(&self, pid: u32) -> Option<&ProgramRecord> {
        self.programs.iter().find(|program| program.pid == pid)
    }

    /// The file's text.
    pub(crate) fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reads a recording.
    ///
    /// # Errors
    /// As [`Kind::load`].
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        KIND.load(path)
    }

    /// Writes the recording to `path`, or to [`DEFAULT_PATH`]; gives the path back.
    ///
    /// # Errors
    /// Where the directory is not safe or not writable.
    pub(crate) fn save(&self, path: Option<&Path>) -> anyhow::Result<PathBuf> {
        let target = path.unwrap_or(Path::new(DEFAULT_PATH));
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if path.is_none() {
            prepare_default_directory(directory)?;
        }
        let failed = || format!("cannot write the recording {}: choose another place with --record FILE", target.display());
        let mut file = tempfile::Builder::new()
            .prefix(".tssx-recording-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(directory)
            .with_context(failed)?;
        file.write_all(self.to_json()?.as_bytes()).with_context(failed)?;
        file.as_file().set_permissions(Permissions::from_mode(0o644)).with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        file.persist(target).with_context(failed)?;
        Ok(target.to_path_buf())
    }
}

/// Makes the default directory, or checks that the one that is there can be trusted.
fn prepare_default_directory(directory: &Path) -> anyhow::Result<()> {
    let shown = directory.display();
    match DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot open {shown} to readers"))?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("cannot make {shown}: choose another place with --record FILE")),
    }
    let metadata = fs::symlink_metadata(directory).with_context(|| format!("cannot look at {shown}"))?;
    let own = rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o022 != 0 {
        bail!("{shown} is not a directory that only this user can write to: remove it, or choose another place with --record FILE");
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod samples;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Recording {
        let mut recording = Recording::new(5000, Losses::default(), 8);
        let bytes = Some(192);
        let sent = FlowRecord { send_calls: Some(3), sent_bytes: bytes, ..FlowRecord::default() };
        let evidence = Some(Evidence::default());
        let service = samples::busy(b"/run/\xff x");
        recording.services.push(ServiceRecord { calls: Some(3), bytes, client_to_server: sent, evidence, ..service });
        recording.programs.push(samples::program(samples::SERVER));
        recording
    }

    #[test]
    fn a_recording_reads_back_as_it_was_and_anybody_may_read_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("recording.json");
        sample().save(Some(&path)).expect("saved");
        let back = Recording::load(&path).expect("loaded");
        let still = |mut recording: Recording| {
            recording.head.recorded_unix_ms = 0; // differs from one call of sample() to the next
            recording
        };
        assert_eq!(still(back), still(sample()));
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1, "no temporary file stays");
    }

    #[test]
    fn figures_that_were_not_measured_are_null_in_the_file_and_read_back() {
        let mut recording = sample();
        let service = &mut recording.services[0];
        (service.calls, service.bytes, service.client_to_server) = (None, None, FlowRecord::default());
        let text = recording.to_json().expect("text");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let service = &value["services"][0];
        for figure in [&service["calls"], &service["bytes"], &service["client_to_server"]["sent_bytes"]] {
            assert!(figure.is_null(), "{text}");
        }
        assert_eq!(service["connections"].as_u64(), Some(1), "{text}");
        assert_eq!(KIND.parse::<Recording>(&text).expect("it reads back").services, recording.services);
    }

    #[test]
    fn a_planted_link_is_replaced_and_its_target_untouched() {
        let directory = tempfile::tempdir().expect("a directory");
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").expect("written");
        let link = directory.path().join("recording.json");
        std::os::unix::fs::symlink(&victim, &link).expect("linked");
        sample().save(Some(&link)).expect("saved");
        assert_eq!(fs::read_to_string(&victim).expect("still there"), "precious");
        assert!(fs::symlink_metadata(&link).expect("there").is_file());
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_for_ever() {
        crate::mutations::each(sample().to_json().expect("text").as_bytes(), 20_000, |bytes| {
            if let Ok(recording) = KIND.parse::<Recording>(&String::from_utf8_lossy(bytes)) {
                recording.to_json().expect("what was read can be written");
            }
        });
    }

    #[test]
    fn other_versions_and_other_files_are_refused_by_name() {
        let text = sample().to_json().expect("text");
        for other in [2, 99] {
            let other = text.replace(&format!("\"version\": {}", KIND.version), &format!("\"version\": {other}"));
            let error = format!("{:#}", KIND.parse::<Recording>(&other).expect_err("refused"));
            assert!(error.contains("its version is") && error.contains(&format!("this release reads {}", KIND.version)), "{error}");
        }
        assert!(KIND.parse::<Recording>("{}").is_err());
        assert!(KIND.parse::<Recording>("not json").is_err());
        let missing = Recording::load(Path::new("/nonexistent/recording")).expect_err("refused");
        assert!(format!("{missing:#}").contains("tssx-trace discover"));
    }
}

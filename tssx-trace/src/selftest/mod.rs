//! The self-test of `doctor`: is the library where `run` looks for it, can it be loaded, does it fit, and does it accelerate a connection of two
//! processes of our own, by its own statistics and by what the kernel still carried.

mod child;
pub(crate) mod end;

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use tssx_core::reason::Reason;

use self::child::Child;
use self::end::{COUNT, Counts, SIZE, Task};
use crate::library;
use crate::mode::Wanted;
use crate::names::SocketName;
use crate::output::plural;
use crate::probe::{Probe, ProbeOptions};

/// Longest wait for anything that a process of the self-test does.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that come back through both rings in the round trips that count, each way.
const BYTES: u64 = COUNT * SIZE as u64;
/// Of those that go both ways, the kernel may carry one in so many besides doorbells.
const SHARE: u64 = 100;
/// Records of the kernel programs: the host's other sockets need some too.
const MAX_SOCKETS: u32 = 16_384;

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Ok,
    Failed,
    /// It could not be made.
    NotPossible,
}

impl Outcome {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::NotPossible => "not possible",
        }
    }
}

/// One check of the library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) name: Cow<'static, str>,
    pub(crate) outcome: Outcome,
    /// What was seen, or why it failed or could not be made.
    pub(crate) detail: String,
    /// What to do; `None` where it is ok.
    pub(crate) remedy: Option<Cow<'static, str>>,
}

const FOUND: &str = "library found";
const LOADED: &str = "library loads";
const FITS: &str = "library fits";
const ACCELERATED: &str = "self-test accelerated";
const KERNEL: &str = "self-test leaves the kernel idle";

const REMEDY_FOUND: &str = "install the package, or build it with `cargo xtask build`, or name it in TSSX_PRELOAD";
const REMEDY_LOADED: &str = "install the library for this machine and its libc again, where programs may read and map it";
const REMEDY_FITS: &str = "install the library and tssx-trace of one release";
const REMEDY_ACCELERATED: &str = "do what the reason says, in the environment that the programs are to run in; README, Limits";
const REMEDY_DISABLED: &str = "take TSSX_DISABLE out of the environment";
const REMEDY_KERNEL: &str = "see the capabilities and modes above";
const REMEDY_EARLIER: &str = "see the check before it";

impl Check {
    fn of(name: &'static str, outcome: anyhow::Result<String>, remedy: &'static str) -> Self {
        match outcome {
            Ok(detail) => Self { name: name.into(), outcome: Outcome::Ok, detail, remedy: None },
            Err(error) => {
                let detail = format!("{error:#}");
                Self { name: name.into(), outcome: Outcome::Failed, detail, remedy: Some(remedy.into()) }
            }
        }
    }

    fn impossible(name: &'static str, why: impl Into<String>, remedy: &'static str) -> Self {
        Self { name: name.into(), outcome: Outcome::NotPossible, detail: why.into(), remedy: Some(remedy.into()) }
    }
}

/// Makes every check.
pub(crate) fn checks() -> Vec<Check> {
    let found = library::find().and_then(|path| path.canonicalize().with_context(|| format!("cannot resolve {}", path.display())));
    let mut checks = vec![Check::of(
        FOUND,
        found.as_ref().map(|path| path.display().to_string()).map_err(|error| anyhow!("{error:#}")),
        REMEDY_FOUND,
    )];
    let Ok(path) = found else {
        let missing = |name| Check::impossible(name, "there is no library", REMEDY_EARLIER);
        checks.extend([FITS, LOADED, ACCELERATED, KERNEL].map(missing));
        return checks;
    };
    checks.push(Check::of(FITS, library::check_release(&path), REMEDY_FITS));
    let loaded = load(&path);
    let is_loaded = loaded.is_ok();
    checks.push(Check::of(LOADED, loaded, REMEDY_LOADED));
    if is_loaded {
        checks.extend(connect(&path));
    } else {
        let unloaded = |name| Check::impossible(name, "the library is not loaded", REMEDY_EARLIER);
        checks.extend([ACCELERATED, KERNEL].map(unloaded));
    }
    checks
}

/// Whether the dynamic linker takes the library into a process.
fn load(library: &Path) -> anyhow::Result<String> {
    let mut child = Child::start(&Task::Look(library.to_path_buf()), library, None)?;
    let statement = child.next()?;
    let said = child.finish()?;
    if statement.mapped {
        return Ok(String::from("mapped by a process of ours"));
    }
    match said.lines().find(|line| !line.trim().is_empty()) {
        Some(line) => bail!("ld.so says: {}", crate::names::escape(line.as_bytes())),
        None => bail!("ld.so ignored it without a word: has tssx-trace file capabilities (getcap)?"),
    }
}

/// What is known of the connection once the round trips are over.
struct Seen {
    /// The client's statistics when the round trips began, and at the end.
    before: Option<Counts>,
    client: Option<Counts>,
    server: Option<Counts>,
    /// Mode, calls and bytes that the kernel carried for both ends meanwhile, or why that is not known.
    kernel: anyhow::Result<(&'static str, u64, u64)>,
}

fn connect(library: &Path) -> [Check; 2] {
    let seen = match exchange(library) {
        Ok(seen) => seen,
        Err(error) => {
            let kernel = Check::impossible(KERNEL, "the exchange failed", REMEDY_EARLIER);
            return [Check::of(ACCELERATED, Err(error), REMEDY_ACCELERATED), kernel];
        }
    };
    let remedy = if is_disabled() { REMEDY_DISABLED } else { REMEDY_ACCELERATED };
    let accelerated = accelerated(&seen);
    let is_accelerated = accelerated.is_ok();
    let first = Check::of(ACCELERATED, accelerated, remedy);
    let second = match &seen.kernel {
        Err(error) => Check::impossible(KERNEL, format!("{error:#}"), REMEDY_KERNEL),
        Ok(_) if !is_accelerated => Check::impossible(KERNEL, "nothing is accelerated", REMEDY_EARLIER),
        Ok((mode, calls, bytes)) => Check::of(KERNEL, idle(&seen, mode, *calls, *bytes), REMEDY_ACCELERATED),
    };
    [first, second]
}

/// What the statistics of both ends come to.
fn accelerated(seen: &Seen) -> anyhow::Result<String> {
    let (Some(client), Some(server)) = (&seen.client, &seen.server) else {
        if is_disabled() {
            bail!("not accelerated: TSSX_DISABLE is set in this environment, so the library does nothing");
        }
        bail!("not accelerated: the library is loaded, but selected no connection");
    };
    let reasons = [("server", server), ("client", client)].into_iter().filter_map(|(end, counts)| {
        let (name, explanation) = counts.reason.as_ref().filter(|(name, _)| name != Reason::Closed.name())?;
        Some(format!("{end} end: {name}: {explanation}"))
    });
    let reasons: Vec<_> = reasons.collect();
    ensure!(reasons.is_empty(), "not accelerated; {}", reasons.join("; "));
    let before = seen.before.clone().unwrap_or_default();
    let grew = |of: fn(&Counts) -> u64| of(client).saturating_sub(of(&before));
    let (sent, received) = (grew(|counts| counts.ring_tx_bytes), grew(|counts| counts.ring_rx_bytes));
    ensure!(
        sent == BYTES && received == BYTES && server.ring_rx_bytes >= BYTES && server.ring_tx_bytes >= BYTES,
        "not accelerated: of {BYTES} bytes each way the rings carried {sent} to the server and {received} back"
    );
    let doorbells = plural(grew(|counts| counts.doorbells), "system call");
    let sleeps = plural(grew(|counts| counts.sleeps), "sleep");
    Ok(format!(
        "{COUNT} round trips of {SIZE} bytes came back right; the rings carried all {BYTES} bytes each way; the client's end made {doorbells} for doorbells and had {sleeps}"
    ))
}

/// What the kernel programs saw meanwhile.
fn idle(seen: &Seen, mode: &str, calls: u64, bytes: u64) -> anyhow::Result<String> {
    let counts = |counts: &Option<Counts>| counts.as_ref().map_or(0, |counts| counts.doorbell_bytes);
    let doorbells = counts(&seen.client).saturating_sub(counts(&seen.before));
    let text = format!(
        "mode {mode}: the kernel carried {} in {} meanwhile, doorbells included",
        plural(bytes, "byte"),
        plural(calls, "call")
    );
    ensure!(bytes.saturating_sub(doorbells) <= 2 * BYTES / SHARE, "{text}");
    Ok(text)
}

fn is_disabled() -> bool {
    std::env::var_os("TSSX_DISABLE").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Lets two processes talk over a socket of their own.
fn exchange(library: &Path) -> anyhow::Result<Seen> {
    let directory = tempfile::tempdir().context("no directory for a socket: is TMPDIR right?")?;
    let socket = directory.path().canonicalize().context("cannot resolve TMPDIR")?.join("socket");
    let name = SocketName::Path(socket.as_os_str().as_encoded_bytes().to_vec());
    let pattern = name.to_pattern().context("TMPDIR has no name that USE_TSSX can hold")?;
    let probe = Probe::attach(ProbeOptions {
        mode: Wanted(None),
        needs_traffic: true,
        max_sockets: MAX_SOCKETS,
        ring_bytes: tssx_ebpf::ARRIVALS_BYTES,
        log: false,
        closer: false,
    });
    let mut server = Child::start(&Task::Serve(socket.clone()), library, Some(&pattern))?;
    server.next().context("the server")?;
    let mut client = Child::start(&Task::Ask(socket), library, Some(&pattern))?;
    let pids = [server.pid(), client.pid()];
    let before = client.next().context("the client")?.counts;
    let first = carried(&probe, pids);
    client.go()?;
    let at_end = client.next().context("the client")?.counts;
    let last = carried(&probe, pids);
    client.finish().context("the client")?;
    let served = server.next().context("the server")?.counts;
    server.finish().context("the server")?;
    let kernel = match (first, last) {
        (Ok((mode, calls, bytes)), Ok((_, all_calls, all_bytes))) => Ok((mode, all_calls - calls, all_bytes - bytes)),
        (Err(error), _) | (_, Err(error)) => Err(error),
    };
    Ok(Seen { before, client: at_end, server: served, kernel })
}

/// Mode, calls and bytes that these processes have sent through the kernel until now.
fn carried(probe: &anyhow::Result<Probe>, pids: [u32; 2]) -> anyhow::Result<(&'static str, u64, u64)> {
    let probe = probe.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    let all = probe.traffic()?;
    let own = all.iter().filter(|record| pids.contains(&record.pid));
    let (calls, bytes) = own.fold((0, 0), |(calls, bytes), record| (calls + record.tx_calls, bytes + record.tx_bytes));
    Ok((probe.mode().name(), calls, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(client: Option<Counts>) -> Seen {
        let server = Some(Counts { ring_tx_bytes: BYTES, ring_rx_bytes: BYTES, ..Counts::default() });
        Seen { before: Some(Counts::default()), client, server, kernel: Ok(("tp_btf", 3, 3)) }
    }

    #[test]
    fn one_byte_past_the_rings_is_too_many_and_a_reason_is_told() {
        let all = Counts { ring_tx_bytes: BYTES, ring_rx_bytes: BYTES, ..Counts::default() };
        assert!(accelerated(&seen(Some(all.clone()))).is_ok());
        assert!(accelerated(&seen(Some(Counts { ring_rx_bytes: BYTES - 1, ..all.clone() }))).is_err());
        assert!(accelerated(&seen(None)).is_err());
        let reason = Some((String::from("no-memory"), String::from("x")));
        let error = accelerated(&seen(Some(Counts { reason, ..all }))).expect_err("plain");
        assert!(error.to_string().contains("no-memory"), "{error}");
    }

    #[test]
    fn only_doorbells_may_go_through_the_kernel() {
        let rung = |doorbell_bytes| seen(Some(Counts { doorbell_bytes, ..Counts::default() }));
        assert!(idle(&rung(0), "tp_btf", 9, 2 * BYTES / SHARE).is_ok());
        assert!(idle(&rung(0), "tp_btf", 9, 2 * BYTES / SHARE + 1).is_err());
        assert!(idle(&rung(1), "tp_btf", 9, 2 * BYTES / SHARE + 1).is_ok());
    }
}

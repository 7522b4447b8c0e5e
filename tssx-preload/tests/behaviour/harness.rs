//! Runs a case in one of the ways that the library can be present, and holds it against the plain run.
//!
//! The oracle is the kernel: the transcripts and exit codes of both ends must be what they are without the library. A
//! library that does nothing would pass that, so each end's ledger is read too: where acceleration is expected bytes
//! must have gone through rings, and where only one end has the library none may.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use tssx_core::reason::Reason;

use crate::ledger::Counted;
use crate::mode::{End, Mode, PRELOADED};
use crate::process::Process;
use crate::role::{Role, SOCKET};

/// Longest that both ends of a case may take. Only a hanging case ever takes that long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(25);

/// Plays of one case until its ends have met.
const PLAYS: usize = 4;

/// One case: what each end does.
pub(crate) struct Case {
    /// What is observed, as a sentence without blanks.
    pub name: &'static str,
    /// The accepting end.
    pub server: fn(&Role),
    /// The connecting end.
    pub client: fn(&Role),
    /// What the ledgers must say when both ends have the library.
    pub expect: Expect,
}

/// What must have happened to the connection under test when both ends have the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Bytes went through rings.
    Accelerated,
    /// Too short to pay for a segment: selected and counted, but never a segment nor a byte through a ring.
    NeverUpgraded,
    /// Selected and left on the kernel socket, with this reason at one end.
    Plain(Reason),
    /// The same for root. Whoever is not cannot make the case so, and it is of the ordinary kind.
    PlainForRoot(Reason),
    /// Either is right (it asks for what the library may refuse); only the transcript counts.
    Either,
}

/// What both ends showed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    transcript: String,
    counted: [Option<Counted>; 2],
}

/// The trials of a case: one for each mode. All of them share the one plain run that they are held against.
pub(crate) fn trials(case: &'static Case) -> Vec<Trial> {
    let plain = Trial::test(format!("{}::plain", case.name), move || plain(case).map(drop));
    let others = PRELOADED.into_iter().map(move |mode| {
        Trial::test(format!("{}::{mode:?}", case.name), move || {
            let oracle = plain_once(case)?;
            let mut missed = Ok(());
            for _ in 0..PLAYS {
                let run = play(case, mode)?;
                same(&oracle.transcript, &run.transcript)?;
                proven(case.expect, mode, &run.counted)?;
                if !has_missed(case.expect, mode, &run.counted) {
                    return Ok(());
                }
                missed = Err(format!("in {PLAYS} plays the ends never met: no byte went through a ring: {:?}", run.counted).into());
            }
            missed
        })
    });
    std::iter::once(plain).chain(others).collect()
}

/// Fails with both texts unless they are equal.
pub(crate) fn same(plain: &str, preloaded: &str) -> Result<(), Failed> {
    if plain == preloaded {
        return Ok(());
    }
    let first = plain.lines().zip(preloaded.lines()).find(|(left, right)| left != right);
    Err(format!("not what the kernel socket shows; first difference {first:?}\n--- plain\n{plain}--- preloaded\n{preloaded}")
        .into())
}

static PLAIN: LazyLock<Mutex<HashMap<&'static str, Run>>> = LazyLock::new(Mutex::default);

/// The plain run of a case, made on first use.
fn plain_once(case: &'static Case) -> Result<Run, Failed> {
    let made = PLAIN.lock().map_err(|_| "another trial panicked")?.get(case.name).cloned();
    made.map_or_else(|| plain(case), Ok)
}

/// A plain run must be the same twice: what differs from run to run proves nothing.
fn plain(case: &'static Case) -> Result<Run, Failed> {
    let run = play(case, Mode::Plain)?;
    same(&run.transcript, &play(case, Mode::Plain)?.transcript)?;
    PLAIN.lock().map_err(|_| "another trial panicked")?.insert(case.name, run.clone());
    Ok(run)
}

/// Whether the ends did not meet in time, and that alone is why nothing was accelerated: the library gives them a few moments for it, in
/// which a loaded machine may not let both run. What the program saw is held against the kernel all the same.
fn has_missed(expect: Expect, mode: Mode, counted: &[Option<Counted>; 2]) -> bool {
    let only = 1 << Reason::PeerNotReady as u32 | 1 << Reason::TooFewOperations as u32;
    let ring_bytes: u64 = counted.iter().flatten().map(|one| one.ring_bytes).sum();
    expect == Expect::Accelerated
        && mode.may_accelerate()
        && ring_bytes == 0
        && counted.iter().flatten().all(|one| one.selected > 0 && one.reasons & !only == 0)
}

fn proven(expect: Expect, mode: Mode, counted: &[Option<Counted>; 2]) -> Result<(), Failed> {
    let all: Vec<_> = counted.iter().flatten().collect();
    let ring_bytes: u64 = all.iter().map(|one| one.ring_bytes).sum();
    let selected: u64 = all.iter().map(|one| one.selected).sum();
    if !mode.may_accelerate() {
        return if ring_bytes == 0 { Ok(()) } else { Err(format!("{mode:?}: bytes in rings without a peer: {counted:?}").into()) };
    }
    match expect {
        Expect::Accelerated if ring_bytes == 0 && !has_missed(expect, mode, counted) => {
            Err(format!("not accelerated: no byte went through a ring: {counted:?}").into())
        }
        Expect::NeverUpgraded if mode != Mode::BothAtOnce => {
            let segments: u64 = all.iter().map(|one| one.segments + one.accelerated).sum();
            match (selected, segments + ring_bytes) {
                (0, _) => Err(format!("not even selected: {counted:?}").into()),
                (_, 0) => Ok(()),
                _ => Err(format!("a short connection paid for a segment: {counted:?}").into()),
            }
        }
        Expect::PlainForRoot(_) if !nix::unistd::geteuid().is_root() => Ok(()),
        Expect::Plain(reason) | Expect::PlainForRoot(reason) => {
            let told = all.iter().any(|one| one.reasons & 1 << reason as u32 != 0);
            if ring_bytes == 0 && told { Ok(()) } else { Err(format!("not plain with {reason:?}: {counted:?}").into()) }
        }
        _ => Ok(()),
    }
}

fn play(case: &Case, mode: Mode) -> Result<Run, Failed> {
    let directory = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    let start = |end| Process::start(&mut role_command(case, mode, end, directory.path()));
    let (server, client) = (start(End::Server)?, start(End::Client)?);
    let deadline = Instant::now() + DEADLINE;
    let (client, server) = (client.finish(deadline), server.finish(deadline));
    if client.late || server.late {
        return Err(format!("{mode:?}: did not end in time\n--- server\n{}--- client\n{}", server.all(), client.all()).into());
    }
    if client.code != Some(0) || server.code != Some(0) {
        return Err(format!("{mode:?}: failed\n--- server\n{}--- client\n{}", server.all(), client.all()).into());
    }
    let read = |end: End| {
        let text = std::fs::read_to_string(directory.path().join(format!("{end:?}.ledger"))).unwrap_or_default();
        Counted::from_text(&text)
    };
    let transcript = format!("server:\n{}client:\n{}", server.stdout, client.stdout);
    Ok(Run { transcript, counted: [read(End::Server), read(End::Client)] })
}

fn role_command(case: &Case, mode: Mode, end: End, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.args(["--play", case.name, &format!("{end:?}")]).arg(directory);
    mode.apply(&mut command, end, &directory.join(SOCKET));
    if let Some(selection) = crate::cases::selection(case.name, directory).filter(|_| mode.has_library(end)) {
        command.env("USE_TSSX", selection);
    }
    command
}

//! The end that lives on: what it got, how its connection ended, and what it has left behind after many of them.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::calls::{Receiver, Sender};
use super::plan::{Kind, Plan};
use super::victim::{FAMILY_TIME, RECORD, warm_up, write_last, write_records};
use super::{EndOptions, now};
use crate::exchange::{Counts, Pattern, connect};

/// What it says when victims may come.
pub(super) const READY: &str = "ready";
/// What it says when a round can begin.
pub(super) const CONNECTED: &str = "connected";

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    /// End of file.
    OfFile,
    /// ECONNRESET.
    Reset,
    /// EPIPE.
    Broken,
}

/// What a round came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Bytes that came; of a family the killed one's.
    pub received: u64,
    pub end: End,
    /// When the end was seen, CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// Something that must not be.
    pub wrong: Option<String>,
}

/// What is there after all rounds and was not before.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Left {
    pub descriptors: Vec<String>,
    pub segments: usize,
    pub counts: Counts,
}

impl Left {
    pub(super) fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
    }
}

/// Plays the rounds whose numbers come from standard input, and says how each ended.
///
/// # Errors
/// The socket cannot be made, or an answer does not fit.
pub(crate) fn survive(options: &EndOptions) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let listener = UnixListener::bind(options.directory.join("survivor"))?;
    let before = descriptors()?;
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush())?;
    let mut rounds = 0;
    for line in std::io::stdin().lock().lines() {
        let plan = Plan::of(options.seed, line?.trim().parse()?);
        let stream = if plan.survivor_accepts { listener.accept()?.0 } else { connect(&options.socket(&plan))? };
        writeln!(out, "{CONNECTED}").and_then(|()| out.flush())?;
        let outcome = play(&plan, &stream)?;
        writeln!(out, "{}", serde_json::to_string(&outcome)?).and_then(|()| out.flush())?;
        rounds += 1;
    }
    let descriptors = descriptors()?.into_iter().filter(|(number, _)| !before.contains_key(number));
    let descriptors = descriptors.map(|(number, target)| format!("{number} ({target})")).collect();
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let segments = maps.lines().filter(|line| line.contains("memfd:tssx-segment")).count();
    let left = Left { descriptors, segments, counts: Counts::of_this_process(rounds, 0)? };
    writeln!(out, "{}", serde_json::to_string(&left)?)?;
    Ok(())
}

/// This process' descriptors and what they are.
fn descriptors() -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // The directory's own is gone by now.
        if let Ok(target) = std::fs::read_link(entry.path()) {
            found.insert(entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned());
        }
    }
    found.retain(|_, target| !target.contains("/fd"));
    Ok(found)
}

fn play(plan: &Plan, stream: &UnixStream) -> Result<Outcome> {
    if plan.kind.is_family() {
        warm_up(stream, false)?;
    }
    match plan.kind {
        Kind::Family => records(stream),
        Kind::Readers => write_to_family(plan, stream),
        Kind::BothWays => thread::scope(|scope| {
            let writer = scope.spawn(|| send(plan, stream));
            let got = receive(plan, stream)?;
            let sent = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            Ok(Outcome { at_ns: got.at_ns.max(sent.at_ns), ..got })
        }),
        kind if kind.receives() => receive(plan, stream),
        _ => send(plan, stream),
    }
}

fn receive(plan: &Plan, stream: &UnixStream) -> Result<Outcome> {
    let (mut receiver, pattern) = (Receiver::new(plan.kind, stream)?, Pattern(plan.pattern));
    let mut bytes = vec![0; 1 << 16];
    let (mut received, mut wrong) = (0, None);
    let end = loop {
        match receiver.receive(&mut bytes)? {
            Ok(count) => {
                let came = bytes.get(..count).unwrap_or_default();
                let bad = pattern.first_wrong(received, came);
                wrong = wrong.or_else(|| bad.map(|at| pattern.explain(at, received, came)));
                received += count as u64;
            }
            Err(end) => break end,
        }
    };
    Ok(Outcome { received, end, at_ns: now()?, wrong })
}

fn send(plan: &Plan, stream: &UnixStream) -> Result<Outcome> {
    let (sender, pattern) = (Sender::new(plan.kind, stream)?, Pattern(!plan.pattern));
    let mut dice = plan.dice();
    let mut bytes = vec![0; plan.chunk_max as usize + 8];
    let mut sent = 0;
    let end = loop {
        let (length, lead) = (dice.size(plan.chunk_max) as usize, (sent % 8) as usize);
        let to_send = bytes.get_mut(..lead + length).unwrap_or_default();
        pattern.fill(sent - lead as u64, to_send);
        match sender.send(to_send.get(lead..).unwrap_or_default())? {
            Ok(count) => sent += count as u64,
            Err(end) => break end,
        }
    };
    Ok(Outcome { received: 0, end, at_ns: now()?, wrong: None })
}

/// Reads what a family writes: whole records, and those of each writer in order.
fn records(stream: &UnixStream) -> Result<Outcome> {
    let mut receiver = Receiver::new(Kind::Read, stream)?;
    let (mut bytes, mut held) = (vec![0; 1 << 16], Vec::new());
    let (mut next, mut last, mut wrong) = ([0_u64; 2], (0, 0), None);
    let end = loop {
        match receiver.receive(&mut bytes)? {
            Ok(count) => held.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            Err(end) => break end,
        }
        let whole = held.len() / RECORD * RECORD;
        for record in held.drain(..whole).collect::<Vec<_>>().chunks_exact(RECORD) {
            let word = |at: usize| record.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
            last = (word(0), word(8));
            match next.get_mut(last.0 as usize) {
                _ if last == (0, u64::MAX) => {}
                Some(expected) if *expected == last.1 => *expected += 1,
                _ => wrong = wrong.or_else(|| Some(format!("record {last:?} where the next ones are {next:?}"))),
            }
        }
    };
    if !held.is_empty() {
        wrong = wrong.or_else(|| Some(format!("a part of a record: {held:?}")));
    }
    if last != (0, u64::MAX) {
        wrong = wrong.or_else(|| Some(format!("the last record is {last:?}: the living one's are not all there")));
    }
    Ok(Outcome { received: next[1] * RECORD as u64, end, at_ns: now()?, wrong })
}

/// Writes records for two readers, and waits for the end of the one that lives.
fn write_to_family(plan: &Plan, stream: &UnixStream) -> Result<Outcome> {
    let start = Instant::now();
    write_records(plan, stream, 0, None, || start.elapsed() < FAMILY_TIME)?;
    if let Some(rest) = FAMILY_TIME.checked_sub(start.elapsed()) {
        thread::sleep(rest); // the last record is for the one that lives
    }
    write_last(stream)?;
    stream.shutdown(Shutdown::Write)?;
    let end = match Receiver::new(Kind::Read, stream)?.receive(&mut [0])? {
        Ok(_) => End::Broken,
        Err(end) => end,
    };
    Ok(Outcome { received: 0, end, at_ns: now()?, wrong: None })
}

/// What an errno means for a connection whose other end was killed.
pub(super) fn end_of(errno: nix::Error) -> Result<End> {
    ensure!(matches!(errno, nix::Error::ECONNRESET | nix::Error::EPIPE), "the kernel's socket never says {errno}");
    Ok(if errno == nix::Error::EPIPE { End::Broken } else { End::Reset })
}

//! The end that is killed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, getpid};

use super::plan::{Kind, Pace, Plan};
use super::record::Record;
use super::{EndOptions, PATIENCE, forked};
use crate::exchange::{Dice, Pattern};

/// How long a family's connection goes on: longer than the one lives that is killed.
pub(super) const FAMILY_TIME: Duration = Duration::from_millis(35);
/// Messages there and back before a family begins.
const WARM_UP: usize = 40;
/// Bytes of a family's records: the writer, and the record's number.
pub(super) const RECORD: usize = 16;

/// Plays until it is killed.
///
/// # Errors
/// An answer of the socket that does not fit, or a wrong byte.
pub(crate) fn die(options: &EndOptions) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let plan = Plan::of(options.seed, options.round);
    let record = Record::open(&options.directory)?;
    let socket = options.socket(&plan);
    let stream = if plan.survivor_accepts {
        UnixStream::connect(&socket).context("cannot connect to the survivor")?
    } else {
        UnixListener::bind(&socket)?.accept()?.0
    };
    record.connected()?;
    if plan.kind.is_family() {
        warm_up(&stream, true)?;
    }
    match plan.kind {
        Kind::Family => writers(&plan, &stream, &record),
        Kind::Readers => readers(options, &stream),
        Kind::BothWays => thread::scope(|scope| {
            let reader = scope.spawn(|| receive(&plan, &stream));
            send(&plan, &stream, &record)?;
            reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
        }),
        kind if kind.receives() => send(&plan, &stream, &record),
        _ => receive(&plan, &stream),
    }?;
    if plan.kind.is_family() {
        return Ok(());
    }
    thread::sleep(PATIENCE * 2);
    bail!("nobody has killed the victim")
}

/// Between two calls. False when there are to be no more.
pub(super) fn pause(plan: &Plan, dice: &mut Dice, calls: u64) -> bool {
    match plan.pace {
        Pace::Flood => true,
        Pace::Trickle => {
            thread::sleep(Duration::from_micros(dice.size(2000)));
            true
        }
        Pace::Few(most) => calls < most,
    }
}

fn send(plan: &Plan, mut stream: &UnixStream, record: &Record) -> Result<()> {
    let (mut dice, pattern) = (plan.dice(), Pattern(plan.pattern));
    let (mut sent, mut calls) = (0, 0);
    let mut bytes = vec![0; plan.chunk_max as usize + 8];
    while pause(plan, &mut dice, calls) {
        let length = dice.size(plan.chunk_max) as usize;
        let lead = (sent % 8) as usize;
        pattern.fill(sent - lead as u64, &mut bytes[..lead + length]);
        record.attempts(sent + length as u64)?;
        sent += stream.write(&bytes[lead..lead + length]).context("the survivor is there")? as u64;
        record.accepted(sent)?;
        calls += 1;
    }
    Ok(())
}

fn receive(plan: &Plan, mut stream: &UnixStream) -> Result<()> {
    // The survivor's bytes are another stream than the victim's.
    let (mut dice, pattern) = (plan.dice(), Pattern(!plan.pattern));
    let (mut received, mut calls) = (0, 0);
    let mut bytes = vec![0; plan.chunk_max as usize];
    while pause(plan, &mut dice, calls) {
        let length = dice.size(plan.chunk_max) as usize;
        let count = stream.read(&mut bytes[..length])?;
        ensure!(count > 0, "the survivor is there");
        let came = bytes.get(..count).unwrap_or_default();
        if let Some(wrong) = pattern.first_wrong(received, came) {
            bail!("the victim got a wrong byte: {}", pattern.explain(wrong, received, came));
        }
        received += count as u64;
        calls += 1;
    }
    Ok(())
}

/// Enough of a conversation to be accelerated: an end that two processes hold would not be.
pub(super) fn warm_up(mut stream: &UnixStream, first: bool) -> Result<()> {
    let mut byte = [0];
    for _ in 0..WARM_UP {
        if first {
            stream.write_all(&byte)?;
        }
        stream.read_exact(&mut byte)?;
        if !first {
            stream.write_all(&byte)?;
        }
    }
    Ok(())
}

/// Two processes write records to one connection; the parent for a while longer than the child lives.
fn writers(plan: &Plan, stream: &UnixStream, record: &Record) -> Result<()> {
    let start = Instant::now();
    match forked()? {
        ForkResult::Child => {
            say_id()?;
            write_records(plan, stream, 1, Some(record), || true)?;
            thread::sleep(PATIENCE * 2);
            bail!("nobody has killed the child")
        }
        ForkResult::Parent { child } => {
            write_records(plan, stream, 0, None, || start.elapsed() < FAMILY_TIME)?;
            nix::sys::wait::waitpid(child, None)?;
            // With the dead child's share of it gone, the connection must still work.
            write_last(stream)
        }
    }
}

/// Writes records of `writer`, each whole, as long as there are to be `more`.
pub(super) fn write_records(
    plan: &Plan,
    mut stream: &UnixStream,
    writer: u64,
    record: Option<&Record>,
    more: impl Fn() -> bool,
) -> Result<()> {
    let mut dice = plan.dice();
    let mut number = 0_u64;
    while more() && pause(plan, &mut dice, number) {
        let bytes = [writer.to_le_bytes(), number.to_le_bytes()].concat();
        number += 1;
        record.map_or(Ok(()), |record| record.attempts(number * RECORD as u64))?;
        ensure!(stream.write(&bytes)? == RECORD, "a record was cut");
        record.map_or(Ok(()), |record| record.accepted(number * RECORD as u64))?;
    }
    Ok(())
}

/// The record that says that no more follow, from writer 0.
pub(super) fn write_last(mut stream: &UnixStream) -> Result<()> {
    ensure!(stream.write(&[0_u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat())? == RECORD, "a record was cut");
    Ok(())
}

/// The one that is to be killed says who it is.
fn say_id() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    println!("{}", getpid());
    Ok(std::io::stdout().flush()?)
}

/// Two processes read records from one connection. Every record must come to one of them; one may be lost with the process that was killed
/// as it got it. The last comes to the one that lives.
fn readers(options: &EndOptions, stream: &UnixStream) -> Result<()> {
    let taken = options.directory.join("taken");
    match forked()? {
        ForkResult::Child => {
            let mut file = File::create(&taken)?;
            say_id()?;
            read_records(stream, |number| Ok(file.write_all(&number.to_le_bytes())?))?;
            thread::sleep(PATIENCE * 2);
            bail!("nobody has killed the child")
        }
        ForkResult::Parent { child } => {
            let mut all = Vec::new();
            read_records(stream, |number| {
                all.push(number);
                Ok(())
            })?;
            nix::sys::wait::waitpid(child, None)?;
            let theirs = std::fs::read(taken).unwrap_or_default();
            let theirs = theirs.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_le_bytes);
            all.extend(theirs);
            all.sort_unstable();
            ensure!(all.pop() == Some(u64::MAX), "the last record has not come");
            let count = all.len() as u64;
            all.dedup();
            ensure!(all.len() as u64 == count, "a record came twice");
            let most = all.last().map_or(0, |last| last + 1);
            ensure!(count + 1 >= most, "{count} records came of {most}");
            Ok(())
        }
    }
}

/// Reads records, whole, until the end.
fn read_records(mut stream: &UnixStream, mut got: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let (mut record, mut before) = ([0; RECORD], None);
    loop {
        match stream.read(&mut record)? {
            0 => return Ok(()),
            RECORD => {}
            count => bail!("{count} bytes of a record"),
        }
        let number = record.get(8..).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes);
        ensure!(before.is_none_or(|before| before < number), "record {number} behind {before:?}");
        before = Some(number);
        got(number)?;
    }
}

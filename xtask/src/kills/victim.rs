//! The end that is killed.

use std::io::Write;
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

/// How long the one of a family that is not killed goes on.
const FAMILY_TIME: Duration = Duration::from_millis(35);
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
    match plan.kind {
        Kind::Family => family(&plan, &stream, &record),
        Kind::BothWays => thread::scope(|scope| {
            let reader = scope.spawn(|| receive(&plan, &stream));
            send(&plan, &stream, &record)?;
            reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?
        }),
        kind if kind.receives() => send(&plan, &stream, &record),
        _ => receive(&plan, &stream),
    }?;
    if plan.kind == Kind::Family {
        return Ok(());
    }
    thread::sleep(PATIENCE * 2);
    bail!("nobody has killed the victim")
}

/// Between two calls. False when there are to be no more.
fn pause(plan: &Plan, dice: &mut Dice, calls: u64) -> bool {
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
    use std::io::Read;
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

/// Two processes write records to one connection; the parent for a while longer than the child lives.
fn family(plan: &Plan, stream: &UnixStream, record: &Record) -> Result<()> {
    let start = Instant::now();
    match forked::forked()? {
        ForkResult::Child => {
            set_pdeathsig(Signal::SIGKILL)?;
            println!("{}", getpid());
            std::io::stdout().flush()?;
            write_records(plan, stream, 1, Some(record), || true)?;
            thread::sleep(PATIENCE * 2);
            bail!("nobody has killed the child")
        }
        ForkResult::Parent { child } => {
            write_records(plan, stream, 0, None, || start.elapsed() < FAMILY_TIME)?;
            nix::sys::wait::waitpid(child, None)?;
            // With the dead child's share of it gone, the connection must still work.
            write_records(plan, stream, 0, None, || false)
        }
    }
}

/// Writes records of `writer`, each whole; at the end one with the number that says so.
fn write_records(
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
    if !more() {
        ensure!(stream.write(&[writer.to_le_bytes(), u64::MAX.to_le_bytes()].concat())? == RECORD, "a record was cut");
    }
    Ok(())
}

//! The victim: a process with the library, whose peer is an enemy; and a connection to somebody honest, which must not notice.

use std::io::{BufRead, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::board::Board;
use super::calls::End;
use super::control::Control;
use super::plan::Plan;
use super::{EndOptions, control};
use crate::exchange::{Counts, connect};

/// What it says when rounds may come.
pub(super) const READY: &str = "ready";
/// The name that it binds, and the one that the attacker does.
pub(super) const VICTIM: &str = "victim";
pub(super) const ATTACKER: &str = "attacker";

/// What is there after all rounds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Left {
    /// More than there were.
    pub descriptors: usize,
    pub segments: usize,
    /// Bytes exchanged with somebody honest, both ways.
    pub control: u64,
    pub counts: Counts,
}

/// Plays the rounds whose numbers come from standard input, and says how each ended.
///
/// # Errors
/// An answer that the kernel's socket would not give, or a wrong byte from somebody honest.
pub(crate) fn victim(options: &EndOptions) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let board = Board::open(options.board.as_deref().context("a victim needs --board")?)?;
    let listener = UnixListener::bind(options.directory.join(VICTIM))?;
    let mut control = Control::new(connect(&options.directory.join(control::NAME))?, options.seed);
    control.exchange(control::WARM_UP)?;
    let (descriptors, stop) = (open_descriptors()?, AtomicBool::new(false));
    let rounds = if options.threads {
        thread::scope(|scope| {
            let honest = scope.spawn(|| {
                while !stop.load(Relaxed) {
                    control.exchange(1)?;
                    thread::sleep(control::PAUSE);
                }
                anyhow::Ok(())
            });
            let rounds = rounds(options, &listener, &board, None);
            stop.store(true, Relaxed);
            // At once: the honest connection may be what hangs.
            if let Err(error) = &rounds {
                eprintln!("{error:#}");
            }
            honest.join().map_err(|_| anyhow!("the thread of the honest connection panicked"))??;
            rounds
        })
    } else {
        rounds(options, &listener, &board, Some(&mut control))
    }?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let left = Left {
        descriptors: open_descriptors()?.saturating_sub(descriptors),
        segments: maps.lines().filter(|line| line.contains("memfd:tssx-segment")).count(),
        control: control.bytes(),
        counts: Counts::of_this_process(rounds + 1, 0)?,
    };
    say(&serde_json::to_string(&left)?)
}

fn rounds(options: &EndOptions, listener: &UnixListener, board: &Board, mut control: Option<&mut Control>) -> Result<u64> {
    say(READY)?;
    let mut rounds = 0;
    for line in std::io::stdin().lock().lines() {
        let plan = Plan::of(options.seed, line?.trim().parse()?);
        let stream = if plan.victim_accepts { listener.accept()?.0 } else { connect(&options.directory.join(ATTACKER))? };
        let mut end = End::new(&stream, board, plan.manner)?;
        for _ in 0..plan.messages {
            end.answer()?;
            if let Some(control) = &mut control {
                control.exchange(1)?;
            }
        }
        end.play(&plan).with_context(|| format!("round {} of --seed {}: {plan:?}", plan.round, options.seed))?;
        board.begin(true);
        let outcome = end.outcome.clone();
        drop(end);
        drop(stream);
        if let Some(control) = &mut control {
            control.exchange(1)?;
        }
        say(&serde_json::to_string(&outcome)?)?;
        rounds += 1;
    }
    Ok(rounds)
}

pub(super) fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("nobody listens")
}

fn open_descriptors() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// The honest peer: checks what comes, and sends the same back.
///
/// # Errors
/// A wrong byte, or an error.
pub(crate) fn honest(options: &EndOptions) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let listener = UnixListener::bind(options.directory.join(control::NAME))?;
    let stream: UnixStream = listener.accept()?.0;
    control::answer(stream, options.seed)
}
